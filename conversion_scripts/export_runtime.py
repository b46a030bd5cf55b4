# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Exports a checkpoint to ONNX Runtime, OpenVINO, torch.export or ExecuTorch. `jvlm.runtimes` answers with the folder as
the checkpoint does; a folder for ONNX Runtime also answers without PyTorch and Transformers, see its README.md.

    python -m jvlm.conversion_scripts.export_runtime --checkpoint my-jina-vlm --runtime onnx --output my-jina-vlm-onnx
"""

import hashlib
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import ModelCard, ModelCardData
from transformers.utils import logging

from jvlm_cli.command_line import argument_parser, run

from ..runtimes.manifest import COMPONENTS, RUNTIMES, Manifest
from . import runtime_graphs
from .answer_script import write_answer_script
from .checkpoint_folder import (
    DTYPES,
    generation_config,
    load_config,
    load_model,
    load_processor,
    local_folder,
)
from .output_folder import new_folder
from .runtime_components import components, mask_bytes


WEIGHTS = ("int8", "int4")
# What a runtime's CPU can compute in, the packages that write its graphs, and the ending of their names.
_DTYPES = {
    "onnx": ("float32", "float16"),
    "openvino": ("float32",),
    "torch": DTYPES,
    "executorch": ("float32",),
}
_PACKAGES = {
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "openvino": ("openvino",),
    "torch": (),
    "executorch": ("executorch",),
}
_MAX_MASK_BYTES = 4e9  # so a program for more could not be loaded on most machines
_ENDINGS = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2", "executorch": ".pte"}

_README = """
# {title}

{checkpoint}, exported for {manifest.runtime} ({manifest.dtype}{weights}) with {versions}. The weights keep the licence
of their source.

```python
from jvlm.runtimes import JinaVLMRuntimeModel
from transformers import AutoProcessor, pipeline

model = JinaVLMRuntimeModel.from_pretrained("{title}")
processor = AutoProcessor.from_pretrained("{title}")
answer = pipeline("image-text-to-text", model=model, processor=processor)
content = [{{"type": "image", "path": "photo.jpg"}}, {{"type": "text", "text": "What is in this image?"}}]
print(answer([{{"role": "user", "content": content}}], return_full_text=False))
```

`jvlm verify {checkpoint} {title}` compares it with the checkpoint, stage by stage.

| graph | from | to |
|---|---|---|
| vision | `pixel_values` of tiles | `features` of patches |
| connector | features, `cell_indices`, `is_last_tile` | `image_features`, one for each image token |
| embedding | `input_ids` | `inputs_embeds`; the features of images are added to those of their tokens |
| decoder | embeddings, mask, positions and the cache, `past.*` | `hidden_states` and the new cache, `present.*` |
| head | `hidden_states` | `logits` |

Numbers of tiles, cells, prompts and tokens are dynamic.
"""
_SCRIPT_README = """
`answer.py` needs neither PyTorch nor Transformers:

```bash
pip install onnxruntime tokenizers numpy pillow
python answer.py photo.jpg "What is in this image?"
```
"""


def export_runtime(
    checkpoint: str | Path, runtime: str, output: str | Path, dtype: str | None = None, weights: str | None = None
) -> Path:
    """
    Writes a folder with the graphs of a runtime, their weights, the processor and the settings of a checkpoint.

    Args:
        checkpoint (`str` or `Path`): folder or Hub id of a checkpoint in either format.
        runtime (`str`): `"onnx"`, `"openvino"`, `"torch"` or `"executorch"`.
        output (`str` or `Path`): folder to create.
        dtype (`str`, *optional*): dtype to compute in, float32 by default.
        weights (`str`, *optional*): `"int8"` or `"int4"`, to quantize the weights of linear layers.

    Returns:
        `Path`: `output`.

    Raises:
        FileExistsError: if `output` exists.
        ValueError: if the checkpoint is incomplete, damaged or inconsistent, if the runtime lacks the dtype or the
            format of weights or would reserve more memory than a machine has, or if the packages that write its graphs
            are not installed.
    """
    dtype = dtype or "float32"
    _check(runtime, dtype, weights)
    source = local_folder(checkpoint)
    config = load_config(source)
    num_tokens = config.text_config.max_position_embeddings
    if runtime == "executorch" and mask_bytes(num_tokens) > _MAX_MASK_BYTES:
        raise ValueError(
            f"ExecuTorch reserves memory for `max_position_embeddings` = {num_tokens} tokens, "
            f"{mask_bytes(num_tokens) / 1e9:.0f} GB for their attention mask alone. Lower it in the config.json of a "
            "copy of the checkpoint."
        )
    processor = load_processor(source, config)
    if processor.image_processor.drop_uniform_patches:
        raise ValueError(
            "The graphs encode whole tiles, but the image processor has `drop_uniform_patches=True`; export the "
            "checkpoint with an image processor that has not."
        )
    model = load_model(source, dtype).eval()
    write = getattr(runtime_graphs, f"write_{runtime}")
    output = Path(output)
    num_bytes = model.num_parameters() * (model.dtype.itemsize if weights is None else 1) // (1 + (weights == "int4"))
    manifest = Manifest(
        runtime=runtime,
        dtype=dtype,
        weights=weights,
        graphs={name: f"{name}{_ENDINGS[runtime]}" for name in COMPONENTS},
        checkpoint=_fingerprint(model),
        opset=runtime_graphs.OPSET if runtime == "onnx" else None,
        versions={name: version(name) for name in ("jvlm", "torch", "transformers", *_PACKAGES[runtime])},
        files={},
    )
    parts = components(model)
    del model  # the weights of each part are released once it is written
    with new_folder(output, num_bytes) as folder:
        for name in logging.tqdm(COMPONENTS, desc="Graphs", unit="graph"):
            write(parts.pop(name), folder / manifest.graphs[name], weights)
        config.dtype = dtype
        config.save_pretrained(folder)
        processor.save_pretrained(folder)
        if runtime == "onnx":
            write_answer_script(processor, folder)
        generation_config(config, processor.tokenizer, source).save_pretrained(folder)
        _write_readme(folder, output.name, str(checkpoint), manifest)
        manifest.write(folder)
        for file in folder.iterdir():  # some of the libraries write files that nobody else may read
            file.chmod((folder / "config.json").stat().st_mode)
    return output


def _check(runtime: str, dtype: str, weights: str | None) -> None:
    if runtime not in RUNTIMES:
        raise ValueError(f"`runtime` must be one of {', '.join(RUNTIMES)}, got {runtime!r}.")
    if dtype not in _DTYPES[runtime]:
        raise ValueError(f"{runtime} cannot compute in {dtype} on CPUs; choose {' or '.join(_DTYPES[runtime])}.")
    if weights is not None and (weights not in WEIGHTS or runtime not in ("onnx", "openvino")):
        raise ValueError(
            f"`weights` can be {' or '.join(WEIGHTS)} for onnx and openvino, got {weights!r} for {runtime}."
        )
    extras = [runtime] if weights is None else [runtime, "onnx"]
    packages = {package: extra for extra in extras for package in _PACKAGES[extra]}
    if missing := [package for package in packages if find_spec(package) is None]:
        raise ValueError(
            f"An export for {runtime} needs {', '.join(missing)}; install with "
            f"`pip install 'jvlm[{','.join(sorted({packages[package] for package in missing}))}]'`."
        )


def _write_readme(folder: Path, title: str, checkpoint: str, manifest: Manifest) -> None:
    weights = "" if manifest.weights is None else f", weights of linear layers in {manifest.weights}"
    versions = ", ".join(f"{name} {number}" for name, number in manifest.versions.items())
    text = _README.format(title=title, checkpoint=checkpoint, manifest=manifest, weights=weights, versions=versions)
    if (folder / "answer.py").is_file():
        text += _SCRIPT_README
    data = ModelCardData(library_name="jvlm", pipeline_tag="image-text-to-text", tags=["jvlm", manifest.runtime])
    ModelCard(f"---\n{data.to_yaml()}\n---\n{text}").save(folder / "README.md")


def _fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 of the names and weights of a model."""
    content = hashlib.sha256()
    for name, weight in model.state_dict().items():
        content.update(name.encode())
        content.update(weight.contiguous().flatten().view(torch.uint8).numpy().data)
    return content.hexdigest()


def main(argv: list[str] | None = None) -> None:
    parser = argument_parser("jvlm export-runtime", __doc__)
    parser.add_argument("--checkpoint", required=True, metavar="ID", help="folder or Hub id")
    parser.add_argument("--runtime", required=True, choices=RUNTIMES)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to create")
    parser.add_argument("--dtype", choices=DTYPES, help="dtype to compute in, float32 by default")
    parser.add_argument("--weights", choices=WEIGHTS, help="quantize the weights of linear layers")
    print(f"Saved: {run(parser, export_runtime, argv)}")


if __name__ == "__main__":
    main(sys.argv[1:])
