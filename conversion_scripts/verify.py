# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Compares two checkpoints on the same images and the same prompt, stage by stage. The first stage that differs shows
where the cause is. The last two stages compare all weights, bit by bit, and all settings, even those that have no
effect on this input. Either can be an export for a runtime; then weights are not compared, as its files hold them in
other forms. The exit status is 0 if they are equal, 1 if they differ, 2 if they cannot be compared.

    python -m jvlm.conversion_scripts.verify jinaai/jina-vlm my-copy --dtype float32 --image photo.jpg
    python -m jvlm.conversion_scripts.verify my-copy my-copy-onnx --dtype float32
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from jvlm_cli.command_line import argument_parser, run

from ..configuration.checkpoint_files import read_json
from ..configuration.configuration_jvlm import JinaVLMConfig
from ..modeling.modeling_jvlm import JinaVLMForConditionalGeneration
from ..processing.image_loading import load_image
from ..processing.processing_jvlm import JinaVLMProcessor
from ..processing.prompt_inputs import prompt_inputs
from ..runtimes import JinaVLMRuntimeModel, is_runtime_folder
from .checkpoint_folder import (
    DTYPES,
    is_published,
    listed,
    load_config,
    load_model,
    load_processor,
    local_folder,
    read_config_file,
    remove_export_additions,
)


FILES_WITH_AUTO_MAP = ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
PROMPT = "What is in this image?"
NUM_GREEDY_TOKENS = 8
# Largest difference that rounding can cause, relative to the root mean square of a stage.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
# The same for exports: by format of weights, runtime or dtype. About three times what docs/runtimes.md lists.
RUNTIME_TOLERANCES = {"int8": 0.3, "int4": 4.0, "executorch": 1e-2}
RUNTIME_TOLERANCES |= {"float32": 5e-5, "bfloat16": 3e-2, "float16": 2e-2}
# Where a checkpoint comes from and which version saved it. They have no effect.
WITHOUT_EFFECT = {"_from_model_config", "_name_or_path", "transformers_version"}
_TOKENIZER_PROPERTIES = ("added_tokens_decoder", "all_special_tokens", "pad_token_type_id", "special_tokens_map")
# Attributes and arguments of a tokenizer that are compared elsewhere, or that have no effect on tokens.
_NOT_COMPARED = {"added_tokens_decoder", "auto_map", "chat_template", "init_inputs", "init_kwargs"}
_NOT_COMPARED |= {"deprecation_warnings", "files_loaded", "is_local", "local_files_only", "name_or_path", "verbose"}
_NOT_COMPARED |= {*_TOKENIZER_PROPERTIES}


@dataclass
class Stage:
    """
    The comparison of one stage.

    Args:
        name (`str`): name of the stage.
        difference (`float`): largest absolute difference. For token ids, weights and settings, the number that differ.
        tolerance (`float`): largest difference that counts as equal.
        note (`str`): the shapes, if they differ, or the weights or settings that differ.
    """

    name: str
    difference: float
    tolerance: float
    note: str = ""

    @property
    def is_equal(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.difference <= self.tolerance


def verify(
    a: str | Path,
    b: str | Path,
    dtype: str | None = None,
    image: Sequence[str | PIL.Image.Image] | None = None,
    prompt: str = PROMPT,
) -> list[Stage]:
    """
    Compares two checkpoints.

    Args:
        a (`str` or `Path`): folder or Hub id of a checkpoint in either format.
        b (`str` or `Path`): the other one.
        dtype (`str`, *optional*): dtype to compute in, by default that of each checkpoint.
        image (`list`, *optional*): files, URLs or images. By default a generated image.
        prompt (`str`, *optional*): the text of the user's message.

    Returns:
        `list[Stage]`: pixels, prompt tokens, vision features, connector, logits, greedy tokens, weights, settings, in
        this order. Weights are compared in the dtype in which they are stored.

    Raises:
        ValueError: if they cannot be compared. The message names the checkpoint or the image.
    """
    images = []
    for each in image or [_generated_image()]:
        with _cannot_compare(f"the image {each}"):
            images.append(load_image(each))
    return compare(*(examine(checkpoint, dtype, images, prompt) for checkpoint in (a, b)))


@dataclass
class Findings:
    """
    What `verify` compares.

    Args:
        checkpoint (`str` or `Path`): the checkpoint.
        format (`tuple[bool, bool]`): whether it is in the published format, and whether it has code of its own.
        dtype (`torch.dtype`): the dtype of the computation.
        outputs (`dict[str, torch.Tensor]`): the output of every stage.
        weights (`dict[str, str]`, *optional*): the digest of every weight.
        settings (`dict[str, str]`): the JSON text of every setting.
        format_settings (`dict[str, str]`): further settings, which `convert_release` and `export_to_hub` change. They
            are compared if the formats are equal.
        tolerance (`float`): the largest difference that rounding can cause, relative to the root mean square.
    """

    checkpoint: str | Path
    format: tuple[bool, bool]
    dtype: torch.dtype
    outputs: dict[str, torch.Tensor]
    weights: dict[str, str] | None
    settings: dict[str, str]
    format_settings: dict[str, str]
    tolerance: float


def examine(checkpoint: str | Path, dtype: str | None, images: list[PIL.Image.Image], prompt: str) -> Findings:
    """
    Runs a checkpoint and reads its weights and settings. See [`verify`] for the arguments.

    Raises:
        ValueError: if that fails for any reason.
    """
    with _cannot_compare(checkpoint):
        return _examine(checkpoint, dtype, images, prompt)


def compare(first: Findings, second: Findings) -> list[Stage]:
    """The comparison of two checkpoints, see [`verify`]."""
    with _cannot_compare(f"{first.checkpoint} and {second.checkpoint}"):
        relative = max(first.tolerance, second.tolerance)
        stages = [
            # The processor computes in float32, whatever the model does.
            _compare(name, output, second.outputs[name], TOLERANCES[torch.float32] if name == "pixels" else relative)
            for name, output in first.outputs.items()
        ]
        if first.weights is not None and second.weights is not None:
            stages.append(_compare_entries("weights", first.weights, second.weights))
        settings = [first.settings, second.settings]
        if first.weights is None or second.weights is None:
            # An export has the dtype that was asked for; the attention of a graph has no name.
            settings = [
                {name: text for name, text in entries.items() if not name.startswith(("dtype", "attn_implementation"))}
                for entries in settings
            ]
        elif first.format == second.format:
            settings = [first.settings | first.format_settings, second.settings | second.format_settings]
        return [*stages, _compare_entries("settings", *settings)]


@contextmanager
def _cannot_compare(name: Any) -> Iterator[None]:
    """Damaged files cause errors of many classes, in the libraries that read them."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        raise ValueError(f"{name} cannot be compared: {kind}{error}") from error


def _generated_image() -> PIL.Image.Image:
    """Smooth random colours, 640×480 pixels, from a fixed seed."""
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return PIL.Image.fromarray(coarse).resize((640, 480), PIL.Image.Resampling.BICUBIC)


@torch.inference_mode()
def _examine(checkpoint: str | Path, dtype: str | None, images: list[PIL.Image.Image], prompt: str) -> Findings:
    if is_runtime_folder(checkpoint):
        return _examine_runtime(Path(checkpoint), dtype, images, prompt)
    folder = local_folder(checkpoint)
    config, model = load_config(folder), load_model(folder)
    weights = {name: _digest(weight) for name, weight in model.state_dict().items()}
    # Users get the dtype of the configuration.
    default_dtype = config.dtype or load_model(folder, "auto").dtype
    wanted = getattr(torch, dtype) if dtype else default_dtype
    if model.dtype != wanted:
        del model
        model = load_model(folder, str(wanted).removeprefix("torch."))
    model.eval()
    processor = load_processor(folder, config, is_export=True)
    format_settings = dict(_entries(_format_settings(folder, config, model, processor)))
    remove_export_additions(processor)
    settings = dict(_entries(_settings(config, default_dtype, model, processor)))
    format = is_published(folder), "auto_map" in read_config_file(folder)
    outputs, tolerance = _stages(model, processor, images, prompt), TOLERANCES.get(model.dtype, 0)
    return Findings(checkpoint, format, model.dtype, outputs, weights, settings, format_settings, tolerance)


def _examine_runtime(folder: Path, dtype: str | None, images: list[PIL.Image.Image], prompt: str) -> Findings:
    model = JinaVLMRuntimeModel.from_pretrained(folder)
    manifest = model.manifest
    if dtype not in (None, manifest.dtype):
        raise ValueError(f"It was exported in {manifest.dtype}, not in {dtype}.")
    processor = load_processor(folder, model.config)
    settings = dict(_entries(_settings(model.config, model.dtype, model, processor)))
    keys = (manifest.weights, manifest.runtime, manifest.dtype)
    tolerance = next(RUNTIME_TOLERANCES[key] for key in keys if key in RUNTIME_TOLERANCES)
    outputs = _stages(model, processor, images, prompt)
    return Findings(folder, (False, False), model.dtype, outputs, None, settings, {}, tolerance)


def _stages(
    model: JinaVLMForConditionalGeneration, processor: JinaVLMProcessor, images: list[PIL.Image.Image], prompt: str
) -> dict[str, torch.Tensor]:
    """The output of every stage."""
    content = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": prompt}]
    inputs = prompt_inputs(processor, [{"role": "user", "content": content}])
    features = model.get_image_features(
        inputs["pixel_values"], image_token_positions=inputs["image_token_positions"], return_dict=True
    )
    greedy = model.generate(**inputs, max_new_tokens=NUM_GREEDY_TOKENS, do_sample=False)
    return {
        "pixels": inputs["pixel_values"],
        "prompt tokens": inputs["input_ids"],
        "vision features": features.last_hidden_state,
        "connector": torch.cat(list(features.pooler_output)),
        "logits": model(**inputs).logits,
        "greedy tokens": greedy[0, inputs["input_ids"].shape[1] :],
    }


def _digest(weight: torch.Tensor) -> str:
    """Dtype, shape and SHA-256. So two full-size models need not be in memory at once."""
    content = weight.contiguous().flatten().view(torch.uint8).numpy()
    return f"{weight.dtype} {list(weight.shape)} {hashlib.sha256(content.data).hexdigest()}"


def _settings(
    config: JinaVLMConfig,
    default_dtype: torch.dtype,
    model: JinaVLMForConditionalGeneration,
    processor: JinaVLMProcessor,
) -> dict[str, Any]:
    """The settings that all formats have."""
    image_processor, tokenizer = processor.image_processor, processor.tokenizer
    generation = model.generation_config.to_dict()
    for name in TOKEN_IDS:  # files may omit them, as the tokenizer has them
        given = (generation[name], getattr(tokenizer, name), tokenizer.eos_token_id)
        generation[name] = next((token_id for token_id in given if token_id is not None), None)
    configs = {"config": config, "text_config": config.text_config, "vision_config": config.vision_config}
    settings = config.to_dict()
    for part in (settings, settings["text_config"], settings["vision_config"]):
        part.pop("dtype", None)
    return {
        "dtype": default_dtype,
        "config": settings,
        "attn_implementation": {name: part._attn_implementation for name, part in configs.items()},
        "generation_config": generation,
        "image_processor": {**image_processor.to_dict(), "model_input_names": image_processor.model_input_names},
        "processor": {
            **{name: value for name, value in processor.to_dict().items() if name != "image_processor"},
            "model_input_names": processor.model_input_names,
        },
        "chat_template": processor.chat_template,
        "tokenizer": {
            "class": type(tokenizer).__name__,
            **{name: value for name, value in vars(tokenizer).items() if name[0] != "_" and name not in _NOT_COMPARED},
            # Processors take them as defaults for their own arguments.
            "init_kwargs": {name: value for name, value in tokenizer.init_kwargs.items() if name not in _NOT_COMPARED},
            **{name: getattr(tokenizer, name) for name in _TOKENIZER_PROPERTIES},
        },
        "tokenizer.backend": _backend(tokenizer),
    }


def _format_settings(
    folder: Path, config: JinaVLMConfig, model: JinaVLMForConditionalGeneration, processor: JinaVLMProcessor
) -> dict[str, Any]:
    """The settings that depend on the format. Their names differ from those of `_settings`."""
    files = [folder / name for name in FILES_WITH_AUTO_MAP]
    texts = {file.name: read_json(file) for file in files if file.is_file()}
    texts["image_processor"] = texts.get("processor_config.json", {}).get("image_processor") or {}
    auto_maps = {name: text["auto_map"] for name, text in texts.items() if "auto_map" in text}
    code = folder.rglob("*.py") if auto_maps else []
    return {
        "auto_map": auto_maps,
        "code": {str(file.relative_to(folder)): file.read_text("utf-8") for file in code},
        "config.dtype": [part.dtype for part in (config, config.text_config, config.vision_config)],
        "generation_config.token_ids": {name: getattr(model.generation_config, name) for name in TOKEN_IDS},
        "chat_template.with_bos_token": processor.chat_template,
        "tokenizer.chat_template": processor.tokenizer.chat_template,
        "tokenizer.before_image_tokens": _backend(AutoTokenizer.from_pretrained(folder, trust_remote_code=False)),
    }


def _backend(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The parts of a tokenizer, without padding and truncation, which every call sets."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {"vocab": tokenizer.get_vocab()}
    parts = {name: part for name, part in parts.items() if name not in ("padding", "truncation")}
    return {name: json.dumps(part, sort_keys=True) for name, part in parts.items()}


def _entries(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Path and JSON text of all nested settings that are given."""
    if isinstance(value, dict) and value:
        for name, part in value.items():
            if name not in WITHOUT_EFFECT:
                yield from _entries(part, f"{path}.{name}".removeprefix("."))
    elif value is not None:
        yield path, json.dumps(value, sort_keys=True, default=repr)


def _compare_entries(name: str, a: dict[str, str], b: dict[str, str]) -> Stage:
    differing = [entry for entry in a.keys() | b.keys() if a.get(entry) != b.get(entry)]
    return Stage(name, len(differing), 0, note=listed(differing))


def _compare(name: str, a: torch.Tensor, b: torch.Tensor, relative: float) -> Stage:
    if a.shape != b.shape:
        return Stage(name, float("inf"), 0, note=f"shapes {list(a.shape)} and {list(b.shape)}")
    if not a.is_floating_point():
        return Stage(name, float((a != b).sum()), 0)
    a, b = a.float(), b.float()
    is_same = (a == b) | (a.isnan() & b.isnan())
    difference = (a - b).abs().masked_fill(is_same, 0).nan_to_num(nan=float("inf")).max().item()
    return Stage(name, difference, relative * a[a.isfinite()].square().mean().sqrt().nan_to_num().item())


def format_table(stages: list[Stage]) -> str:
    """The stages as a table. The last line has the overall verdict."""
    lines = [f"{'stage':<16} {'difference':>12} {'tolerance':>12}  verdict"]
    for stage in stages:
        verdict = "equal" if stage.is_equal else f"different {stage.note}".rstrip()
        lines.append(f"{stage.name:<16} {stage.difference:>12.3g} {stage.tolerance:>12.3g}  {verdict}")
    first = next((stage.name for stage in stages if not stage.is_equal), None)
    return "\n".join([*lines, f"different from here on: {first}" if first else "equal"])


def main(argv: list[str] | None = None) -> int:
    parser = argument_parser("jvlm verify", __doc__)
    parser.add_argument("a", metavar="A", help="checkpoint: folder or Hub id")
    parser.add_argument("b", metavar="B", help="the other checkpoint")
    parser.add_argument("--dtype", choices=DTYPES, help="dtype to compute in; by default that of each checkpoint")
    parser.add_argument("--image", action="append", metavar="FILE", help="image file or URL; can be given repeatedly")
    parser.add_argument("--prompt", default=PROMPT, metavar="TEXT", help="text of the user's message")
    stages = run(parser, verify, argv, status=2)
    print(format_table(stages))
    return 0 if all(stage.is_equal for stage in stages) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
