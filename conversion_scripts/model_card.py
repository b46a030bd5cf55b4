# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The model card of the checkpoints that the conversion scripts save."""

import shutil
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData


_TEXT = """
# {title}

{description}

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

# With `import jvlm`, or with trust_remote_code=True if the repository contains the code files.
model = AutoModelForImageTextToText.from_pretrained("{title}", dtype="auto")
processor = AutoProcessor.from_pretrained("{title}")

messages = [
    {{
        "role": "user",
        "content": [
            {{"type": "image", "path": "photo.jpg"}},
            {{"type": "text", "text": "What is in this image?"}},
        ],
    }}
]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
output = model.generate(**inputs, max_new_tokens=64)
print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

{licence}
"""


def write_model_card(
    folder: Path, source: Path | None, title: str, description: str, licence: str, **metadata
) -> None:
    """
    Saves the model card of a checkpoint: a copy of the source's, if there is one, else a new one.

    Args:
        folder (`Path`): where to save it.
        source (`Path`, *optional*): the checkpoint whose model card applies to the new one, too.
        title (`str`): name of the model.
        description (`str`): what the model is and where it comes from.
        licence (`str`): a sentence on the licence of the weights.
        metadata: further fields of `huggingface_hub.ModelCardData`, such as `base_model` and `license`.
    """
    if source is not None and (source / "README.md").is_file():
        shutil.copyfile(source / "README.md", folder / "README.md")
        return
    data = ModelCardData(library_name="transformers", pipeline_tag="image-text-to-text", tags=["jvlm"], **metadata)
    text = _TEXT.format(title=title, description=description, licence=licence)
    ModelCard(f"---\n{data.to_yaml()}\n---\n{text}").save(folder / "README.md")


__all__ = ["write_model_card"]
