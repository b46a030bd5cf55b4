# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Imports, a pipeline call and a training step, as users write them; test_silence.py runs it and reads what it prints.

    python tests/silent_program.py ask|train CHECKPOINT OUTPUT
"""

# ruff: noqa: E402
import sys
import warnings


# By default Python shows no deprecation warnings; those that this package causes count.
warnings.filterwarnings("always", module="jvlm|transformers_modules")
sys.modules["torchao"] = None  # type: ignore[assignment]  # where it is installed it prints when PEFT imports it

import PIL.Image
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments, pipeline
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging


IMAGE = PIL.Image.effect_noise((130, 90), 64).convert("RGB")


def user(image) -> dict:
    part = {"type": "image"} if image is None else {"type": "image", "image": image}
    return {"role": "user", "content": [part, {"type": "text", "text": "Which digits are written here?"}]}


def ask(checkpoint: str, output: str) -> None:
    """Without `import jvlm`: the folder has the code. The pipeline asks for it in every Auto class."""
    answer = pipeline("image-text-to-text", model=checkpoint, trust_remote_code=True)
    answer(text=[user(IMAGE)], max_new_tokens=3)
    answer(text=[[user(IMAGE)]] * 2, batch_size=2, max_new_tokens=3)


def train(checkpoint: str, output: str) -> None:
    import jvlm  # noqa: F401
    from jvlm.training import DataCollatorForJinaVLM, JinaVLMTrainer, JinaVLMTrainingArguments

    answer = pipeline("image-text-to-text", model=checkpoint)
    answer(text=[user(IMAGE)], max_new_tokens=3)
    settings = {"max_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "report_to": "none", "use_cpu": True}
    settings |= {"disable_tqdm": True, "remove_unused_columns": False, "per_device_train_batch_size": 2}
    assistant = {"role": "assistant", "content": [{"type": "text", "text": "4 2"}]}
    rows = [{"messages": [user(None), assistant], "images": [IMAGE]}] * 2
    for trainer_class, arguments_class in ((Trainer, TrainingArguments), (JinaVLMTrainer, JinaVLMTrainingArguments)):
        folder = f"{output}/{trainer_class.__name__}"
        processor = AutoProcessor.from_pretrained(checkpoint)
        trainer = trainer_class(
            model=AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="float32"),
            args=arguments_class(output_dir=folder, **settings),
            train_dataset=rows,
            eval_dataset=rows,
            data_collator=DataCollatorForJinaVLM(processor, max_length=2000),
            processing_class=processor,
        )
        trainer.remove_callback(PrinterCallback)  # it prints the losses in place of a progress bar
        trainer.train()
        trainer.save_model(folder)
        model = AutoModelForImageTextToText.from_pretrained(folder)
        inputs = AutoProcessor.from_pretrained(folder)(images=IMAGE, text="<|image|>Which?", return_tensors="pt")
        for ways in ({"do_sample": True}, {"num_beams": 2}):
            model.generate(**inputs, **ways, max_new_tokens=3)


if __name__ == "__main__":
    logging.disable_progress_bar()
    {"ask": ask, "train": train}[sys.argv[1]](*sys.argv[2:])
