# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Compares two checkpoints of any layout on the same pictures and the same prompt, stage by stage: where they first
differ is where to look. The exit status is 0 if they are equal, 1 if they differ, 2 if they cannot be compared.

    python -m jvlm.conversion_scripts.verify jinaai/jina-vlm my-copy --dtype float32 --image photo.jpg
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from transformers.image_utils import load_image

from .checkpoint_folder import DTYPES, load_model, load_processor, local_folder, run


PROMPT = "What is in this picture?"
NUM_GREEDY_TOKENS = 8
# Largest difference that counts as none, relative to the root mean square of a stage: rounding, in whatever order.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@dataclass
class Stage:
    """
    What two checkpoints compute in one stage, compared.

    Args:
        name (`str`): the stage.
        difference (`float`): largest absolute difference of values; of token ids, how many differ.
        tolerance (`float`): largest difference that counts as none.
        note (`str`): what prevents the comparison: other shapes.
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
        a (`str` or `Path`): folder or Hub id of a checkpoint of any layout.
        b (`str` or `Path`): the other one.
        dtype (`str`, *optional*): number type to compute in, by default each checkpoint's own.
        image (`list`, *optional*): files, URLs or pictures to show; a drawn picture when not given.
        prompt (`str`, *optional*): what to ask about them.

    Returns:
        `list[Stage]`: pixels, prompt tokens, vision features, connector, logits, greedy tokens, in this order.

    Raises:
        OSError, ValueError: if a checkpoint or a picture cannot be loaded.
    """
    images = [load_image(picture) for picture in image or [_drawn_picture()]]
    outputs_a, dtype_a = _stage_outputs(a, dtype, images, prompt)
    outputs_b, dtype_b = _stage_outputs(b, dtype, images, prompt)
    relative = max(TOLERANCES[dtype_a], TOLERANCES[dtype_b])
    return [_compare(name, outputs_a[name], outputs_b[name], relative) for name in outputs_a]


def _drawn_picture() -> PIL.Image.Image:
    """Smooth random colours, 640×480 pixels; the same every time."""
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return PIL.Image.fromarray(coarse).resize((640, 480), PIL.Image.Resampling.BICUBIC)


@torch.inference_mode()
def _stage_outputs(
    checkpoint: str | Path, dtype: str | None, images: list[PIL.Image.Image], prompt: str
) -> tuple[dict[str, torch.Tensor], torch.dtype]:
    folder = local_folder(checkpoint)
    model = load_model(folder, dtype).eval()
    processor = load_processor(folder, model.config)
    content = [{"type": "image", "image": picture} for picture in images] + [{"type": "text", "text": prompt}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
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
    return outputs, model.dtype


def _compare(name: str, a: torch.Tensor, b: torch.Tensor, relative: float) -> Stage:
    if a.shape != b.shape:
        return Stage(name, float("inf"), 0, note=f"shapes {list(a.shape)} and {list(b.shape)}")
    if not a.is_floating_point():
        return Stage(name, float((a != b).sum()), 0)
    a, b = a.float(), b.float()
    # Not a number is no number to agree on.
    difference = (a - b).abs().nan_to_num(nan=float("inf")).max().item()
    return Stage(name, difference, relative * a.square().mean().sqrt().item())


def format_table(stages: list[Stage]) -> str:
    """The stages as a table, with a verdict on the whole in the last line."""
    lines = [f"{'stage':<16} {'difference':>12} {'tolerance':>12}  verdict"]
    for stage in stages:
        verdict = "equal" if stage.is_equal else f"different {stage.note}".rstrip()
        lines.append(f"{stage.name:<16} {stage.difference:>12.3g} {stage.tolerance:>12.3g}  {verdict}")
    first = next((stage.name for stage in stages if not stage.is_equal), None)
    return "\n".join([*lines, f"different from here on: {first}" if first else "equal"])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", metavar="A", help="checkpoint: folder or Hub id")
    parser.add_argument("b", metavar="B", help="the other checkpoint")
    parser.add_argument("--dtype", choices=DTYPES, help="number type to compute in; each one's own when not given")
    parser.add_argument("--image", action="append", metavar="FILE", help="picture to show; can be given repeatedly")
    parser.add_argument("--prompt", default=PROMPT, metavar="TEXT", help="what to ask about it")
    stages = run(parser, verify, argv, status=2)
    print(format_table(stages))
    return 0 if all(stage.is_equal for stage in stages) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
