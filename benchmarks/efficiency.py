# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
The efficiency table of the paper (table 1 of arXiv 2512.04032), counted on the model of the figure:

    python -m benchmarks.efficiency [--layout stitched]

An image of 12 tiles and a thumbnail, with pooling and with one image token per patch. PyTorch's FLOP counter counts
the matrix products and attention of the vision tower, the connector and the prefill of the image tokens on the meta
device, so no weights are needed. A multiplication and an addition are two FLOPs.
"""

import argparse
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, PreTrainedModel

from jvlm import JinaVLMConfig, JinaVLMForConditionalGeneration, JinaVLMImageProcessor, plan_images

from .stages import CACHE


GRID = (3, 4)
CACHE_BYTES = 2  # of a value, in float16
# Table 1 of the paper, without pooling and with it.
PAPER = {"visual tokens": (9477, 2366), "prefill, TFLOP": (27.2, 6.9), "cache, GB": (2.12, 0.53)}
OVERALL_REDUCTION = 2.3  # of the FLOPs with those of the vision side, in the text of the paper


@dataclass
class Efficiency:
    """
    What an image costs. FLOPs count a multiplication and an addition as two.

    Args:
        tokens (`int`): image tokens that the language model reads, markers included.
        vision (`int`): FLOPs of vision tower and connector.
        prefill (`int`): FLOPs of the language model for these tokens, and of the head for the last one.
        attention (`int`): the part of `prefill` for attention between tokens, whether or not it is masked.
        cache (`int`): bytes of the key-value cache of these tokens in float16.
    """

    tokens: int
    vision: int
    prefill: int
    attention: int
    cache: int


def count(function) -> tuple[int, int]:
    """FLOPs of a call, and the part of attention."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        function()
    counts = counter.get_flop_counts()["Global"]
    is_attention = ("attention", "bmm")  # eager attention multiplies batches of matrices
    return counter.get_total_flops(), sum(
        flops for operation, flops in counts.items() if any(name in str(operation) for name in is_attention)
    )


def efficiency(config: JinaVLMConfig | None = None) -> dict[str, Efficiency]:
    """
    Counts what an image of 12 tiles and a thumbnail costs, without pooling and with it.

    Args:
        config (`JinaVLMConfig`, *optional*): by default the model of the figure.
    """
    config = config or JinaVLMConfig()
    vision = config.vision_config
    margin = min(4, config.patches_per_side // 4)  # 4 at the size of the figure
    geometry = JinaVLMImageProcessor(
        layout=config.layout,
        size={"height": vision.image_size, "width": vision.image_size},
        overlap_margins=[margin, margin],
        patch_size=vision.patch_size,
        pooling_size=config.pooling_size,
        pooled_grid=config.pooled_grid,
    ).geometry()
    positions = torch.tensor(geometry.token_positions(GRID))
    unpooled = config.patches_per_side**2 * len(positions)
    with torch.device("meta"):
        model = JinaVLMForConditionalGeneration._from_config(config, attn_implementation="eager")
    return {
        "no pooling": _measure(model, positions, unpooled, is_pooled=False),
        "2×2 pooling": _measure(model, positions, geometry.num_tokens(GRID)[0], is_pooled=True),
    }


def _measure(model: PreTrainedModel, positions: torch.Tensor, num_tokens: int, is_pooled: bool) -> Efficiency:
    config = model.config
    with torch.device("meta"):
        pixels = torch.empty(len(positions), 3, config.vision_config.image_size, config.vision_config.image_size)
        prompt = torch.zeros(1, num_tokens, dtype=torch.long)
    cache = DynamicCache(config=config.text_config)
    plan = plan_images(positions)
    if is_pooled:
        vision, _ = count(lambda: model.model.get_image_features(pixels, image_plan=plan))
    else:
        patches = torch.empty(num_tokens, 1, config.feature_size, device="meta")  # each is its own window

        def encode_patches():
            model.model.get_vision_features(pixels)
            model.model.connector.projector(model.model.connector.pooling(patches)[0])

        vision, _ = count(encode_patches)
    prefill, attention = count(lambda: model(prompt, **{CACHE: cache}, logits_to_keep=1))
    num_values = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    return Efficiency(num_tokens, vision, prefill, attention, num_values * CACHE_BYTES)


def table(costs: dict[str, Efficiency]) -> str:
    """The counts beside the numbers of the paper, as Markdown."""
    before, after = costs.values()
    linear = [(each.prefill - each.attention) / 1e12 for each in (before, after)]
    vision = [each.vision / 1e12 for each in (before, after)]
    rows = [
        ("visual tokens", before.tokens, after.tokens, "{:,}"),
        ("prefill, TFLOP", before.prefill / 1e12, after.prefill / 1e12, "{:.1f}"),
        ("prefill without attention between tokens, TFLOP", *linear, "{:.1f}"),
        ("vision tower and connector, TFLOP", *vision, "{:.1f}"),
        ("vision and prefill, TFLOP", *((each.prefill + each.vision) / 1e12 for each in (before, after)), "{:.1f}"),
        ("the same without attention between tokens", linear[0] + vision[0], linear[1] + vision[1], "{:.1f}"),
        ("cache, GB", before.cache / 1e9, after.cache / 1e9, "{:.2f}"),
    ]
    lines = [f"| | {' | '.join(costs)} | ratio | paper | paper's ratio |", "|---|---:|---:|---:|---:|---:|"]
    for name, one, other, form in rows:
        paper, ratio = "", ""
        if name in PAPER:
            paper = " → ".join(form.format(value) for value in PAPER[name])
            ratio = f"{PAPER[name][0] / PAPER[name][1]:.1f}"
        elif name.startswith("the same"):
            ratio = f"{OVERALL_REDUCTION}"
        lines.append(f"| {name} | {form.format(one)} | {form.format(other)} | {one / other:.1f} | {paper} | {ratio} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=("independent", "stitched"), default="independent")
    args = parser.parse_args(argv)
    print(table(efficiency(JinaVLMConfig(layout=args.layout))))


if __name__ == "__main__":
    main()
