# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Compares two checkpoints on the same images and the same prompt, stage by stage. The first stage that differs shows
where the cause is. The last two stages compare all weights, bit by bit, and all settings, even those that have no
effect on this input. The exit status is 0 if they are equal, 1 if they differ, 2 if they cannot be compared.

    python -m jvlm.conversion_scripts.verify jinaai/jina-vlm my-copy --dtype float32 --image photo.jpg
"""

import json
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import PIL.Image
import torch
from transformers.image_utils import load_image

from ..modeling.modeling_jvlm import JinaVLMForConditionalGeneration
from ..processing.processing_jvlm import JinaVLMProcessor
from ..published_format.published_schema import by_path
from .checkpoint_folder import DTYPES, argument_parser, listed, load_model, load_processor, local_folder, run


PROMPT = "What is in this image?"
NUM_GREEDY_TOKENS = 8
TOKENIZER_SETTINGS = ("padding_side", "truncation_side", "model_max_length", "special_tokens_map")
# Largest difference that rounding can cause, relative to the root mean square of a stage.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


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
        this order. Weights are left out if the dtypes differ.

    Raises:
        OSError, ValueError: if a checkpoint or an image cannot be loaded.
    """
    images = [load_image(image) for image in image or [_generated_image()]]
    first, second = (_run(checkpoint, dtype, images, prompt) for checkpoint in (a, b))
    relative = max(TOLERANCES[first.dtype], TOLERANCES[second.dtype])
    stages = [_compare(name, output, second.outputs[name], relative) for name, output in first.outputs.items()]
    if first.dtype == second.dtype:
        stages.append(_compare_entries("weights", first.checksums, second.checksums))
    return [*stages, _compare_entries("settings", first.settings, second.settings)]


@dataclass
class _Checkpoint:
    """The output of every stage, the checksum of every weight (0 for zeros) and the value of every setting."""

    dtype: torch.dtype
    outputs: dict[str, torch.Tensor]
    checksums: dict[str, int]
    settings: dict[str, Any]


def _generated_image() -> PIL.Image.Image:
    """Smooth random colours, 640×480 pixels, from a fixed seed."""
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return PIL.Image.fromarray(coarse).resize((640, 480), PIL.Image.Resampling.BICUBIC)


@torch.inference_mode()
def _run(checkpoint: str | Path, dtype: str | None, images: list[PIL.Image.Image], prompt: str) -> _Checkpoint:
    folder = local_folder(checkpoint)
    model = load_model(folder, dtype).eval()
    processor = load_processor(folder, model.config)
    content = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": prompt}]
    chat = [{"role": "user", "content": content}]
    try:
        settings = _settings(model, processor)
        inputs = processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
    except jinja2.TemplateError as error:
        raise ValueError(f"The chat template of {checkpoint} is invalid: {error}") from error
    features = model.get_image_features(
        inputs["pixel_values"], image_token_positions=inputs["image_token_positions"], return_dict=True
    )
    greedy = model.generate(**inputs, max_new_tokens=NUM_GREEDY_TOKENS, do_sample=False)
    outputs = {
        "pixels": inputs["pixel_values"],
        "prompt tokens": inputs["input_ids"],
        "vision features": features.last_hidden_state,
        "connector": torch.cat(list(features.pooler_output)),
        "logits": model(**inputs).logits,
        "greedy tokens": greedy[0, inputs["input_ids"].shape[1] :],
    }
    checksums = {name: _checksum(weight) for name, weight in model.state_dict().items()}
    return _Checkpoint(model.dtype, outputs, checksums, settings)


def _checksum(weight: torch.Tensor) -> int:
    return zlib.crc32(weight.contiguous().view(torch.uint8).numpy().data) if weight.any() else 0


def _settings(model: JinaVLMForConditionalGeneration, processor: JinaVLMProcessor) -> dict[str, Any]:
    """All settings by path, except those without effect."""
    tokenizer = processor.tokenizer
    generation = model.generation_config.to_dict()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):  # files may omit them, as the tokenizer has them
        given = (generation.pop(name), getattr(tokenizer, name), tokenizer.eos_token_id)
        generation[name.replace("_id", "")] = next((token_id for token_id in given if token_id is not None), None)
    # Padding and truncation depend on the last call.
    backend = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else tokenizer.get_vocab()
    groups = {
        "config": model.config.to_dict(),
        "generation_config": generation,
        "image_processor": processor.image_processor.to_dict(),
        "processor": {"add_bos_token": processor.add_bos_token},
        "chat_template": {role: _render(processor, role) for role in ("system", "user", "assistant")},
        "tokenizer": {name: getattr(tokenizer, name) for name in TOKENIZER_SETTINGS},
        "tokenizer.backend": {
            name: json.dumps(part) for name, part in backend.items() if name not in ("padding", "truncation")
        },
    }
    return dict(by_path(groups))


def _render(processor: JinaVLMProcessor, role: str) -> list[str]:
    """The chat template's output for messages with text and with parts, with and without a generation prompt."""
    contents = ["a", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]]
    if role != "assistant":
        contents.append([{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}])
    messages = [{"role": role, "content": content} for content in contents]
    chats = [[message] for message in messages] + [messages]
    return [processor.apply_chat_template(chat, add_generation_prompt=add) for chat in chats for add in (False, True)]


def _compare_entries(name: str, a: dict[str, Any], b: dict[str, Any]) -> Stage:
    """An entry that is missing is equal to zero and to `None`."""
    differing = [entry for entry in a.keys() | b.keys() if (a.get(entry) or None) != (b.get(entry) or None)]
    return Stage(name, len(differing), 0, note=listed(differing))


def _compare(name: str, a: torch.Tensor, b: torch.Tensor, relative: float) -> Stage:
    if a.shape != b.shape:
        return Stage(name, float("inf"), 0, note=f"shapes {list(a.shape)} and {list(b.shape)}")
    if not a.is_floating_point():
        return Stage(name, float((a != b).sum()), 0)
    a, b = a.float(), b.float()
    # NaN is different from every value.
    difference = (a - b).abs().nan_to_num(nan=float("inf")).max().item()
    return Stage(name, difference, relative * a.square().mean().sqrt().item())


def format_table(stages: list[Stage]) -> str:
    """The stages as a table. The last line has the overall verdict."""
    lines = [f"{'stage':<16} {'difference':>12} {'tolerance':>12}  verdict"]
    for stage in stages:
        verdict = "equal" if stage.is_equal else f"different {stage.note}".rstrip()
        lines.append(f"{stage.name:<16} {stage.difference:>12.3g} {stage.tolerance:>12.3g}  {verdict}")
    first = next((stage.name for stage in stages if not stage.is_equal), None)
    return "\n".join([*lines, f"different from here on: {first}" if first else "equal"])


def main(argv: list[str] | None = None) -> int:
    parser = argument_parser("verify", __doc__)
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
