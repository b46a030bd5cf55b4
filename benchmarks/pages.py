# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Time to the first token of an answer about a page, of later tokens, and memory: JinaVLM, with and without leaving out
what a page has twice or where it is empty, against another model at the default settings of its image processor:

    python -m benchmarks.pages [--size full] [--dtype float32] [--pages receipt chart] [--others LFM2-VL SmolVLM]
    python -m benchmarks.pages --only-tokens

All models have random weights and, except for their connectors and their kinds of attention, the widths and depths of
JinaVLM, so that they differ in what they make of a page. Qwen3-VL has the vision tower of its 2B model. The weights of
all models are views of one block, so that they fit into memory together. The pages are drawn as by
`examples.documents`, without noise; the photo is one of scikit-learn. Models are measured in turn, round by round.
Ratios are those of the rounds: the median, the smallest and the largest. Needs the extras `documents` and `bench`, and
torchvision for the image processors of LFM2-VL and Molmo2. `--only-tokens` counts tokens, without models.
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from transformers import GenerationConfig

from jvlm import JinaVLMImageProcessor, plan_images
from jvlm.modeling.image_plan import pack_patches

from . import report
from .__main__ import machine
from .measure import measure
from .models import SIZES, TEXT_TOKENS, Bench
from .stages import MIN_ROUNDS, generate_with


PAGES = {"page": ("note", (4, 3)), "receipt": ("receipt", (4, 3)), "chart": ("bar chart", (3, 4))}
OTHERS = ("LFM2-VL", "SmolVLM", "Molmo2", "Qwen3-VL")
NUM_TOKENS = 8
OURS = {
    "JinaVLM, without uniform patches": {"drop_uniform_cells": True, "drop_uniform_patches": True},
    "JinaVLM, without uniform cells": {"drop_uniform_cells": True},
    "JinaVLM": {},
    "JinaVLM, every tile": {},
}


def draw(name: str) -> PIL.Image.Image:
    """One of `PAGES`, or the photo."""
    if name == "photo":
        from sklearn.datasets import load_sample_image

        return PIL.Image.fromarray(load_sample_image("china.jpg")).resize((1280, 854))
    from examples.documents.ingredients import TEST
    from examples.documents.pages import draw_page

    kind, grid = PAGES[name]
    return draw_page([0], TEST, kind, grid, strength=0.0).image


def our_inputs(bench: Bench, image: PIL.Image.Image, name: str) -> dict:
    """Inputs of JinaVLM about an image, with one of the settings `OURS`."""
    size = {"height": bench.geometry.tile_size, "width": bench.geometry.tile_size}
    image_processor = JinaVLMImageProcessor(size=size, overlap_margins=bench.margins, **OURS[name])
    tiles = image_processor(image, return_tensors="pt").to(bench.device, bench.dtype)
    inputs = bench.prompt({name: tiles[name] for name in ("pixel_values", "image_token_positions")})
    if name.endswith("every tile"):
        inputs["image_plan"] = plan_images(tiles["image_token_positions"])  # does not see the pixels
    return inputs


def other_inputs(bench: Bench, image: PIL.Image.Image, name: str) -> dict:
    """Image inputs of another model at its default settings, and under `num_tokens` the number of image tokens."""
    if name == "SmolVLM":
        from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

        side, patch = bench.config.vision_config.image_size, bench.config.vision_config.patch_size
        settings = {"size": {"longest_edge": 4 * side}, "max_image_size": {"longest_edge": side}}
        pixel_values = SmolVLMImageProcessorPil(**settings)(image, return_tensors="pt")["pixel_values"]
        scale = 3 if side // patch % 3 == 0 else 2
        return {"pixel_values": pixel_values, "num_tokens": pixel_values.shape[1] * (side // patch // scale) ** 2}
    if name == "LFM2-VL":
        from transformers import Lfm2VlImageProcessor

        inputs = Lfm2VlImageProcessor()(image, return_tensors="pt")
        return {**inputs, "num_tokens": int((inputs["spatial_shapes"] // 2).prod(dim=1).sum())}
    if name == "Molmo2":
        from transformers import Molmo2ImageProcessor

        inputs = Molmo2ImageProcessor()(image, return_tensors="pt")
        return {**inputs, "num_tokens": len(inputs["image_token_pooling"])}
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    image_processor = Qwen2VLImageProcessorPil(patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    inputs = image_processor(image, return_tensors="pt")
    return {**inputs, "num_tokens": int(inputs["image_grid_thw"].prod()) // 4}


def other_model(bench: Bench, name: str):
    """Another model; its inputs are those of [`other_inputs`]."""
    if name != "Qwen3-VL":
        return bench.other(name)[0]
    from transformers import Qwen3VLConfig

    text = bench.config.text_config
    config = Qwen3VLConfig(
        text_config={**bench.text_fields, "head_dim": text.head_dim},
        vision_config={
            **{"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "patch_size": 16},
            **{"out_hidden_size": text.hidden_size, "deepstack_visual_indexes": [5, 11, 17]},
        },
        image_token_id=bench.config.image_token_id,
    )
    model = bench.random_model(config)
    model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=1)
    return model


def full_inputs(bench: Bench, inputs: dict) -> dict:
    """Image inputs with a prompt before them."""
    inputs = dict(inputs)
    image_tokens = torch.full((1, inputs.pop("num_tokens")), bench.config.image_token_id, device=bench.device)
    inputs["input_ids"] = torch.cat([image_tokens, bench.text(TEXT_TOKENS)], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == bench.config.image_token_id).int()
    return {
        name: value.to(bench.device, bench.dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
    }


def count(bench: Bench, pages: list[str], others: list[str]) -> str:
    """A Markdown table of the tokens and tiles of pages."""
    lines = [f"| model | {' | '.join(pages)} |", f"|---|{'---:|' * len(pages)}"]
    images = {name: draw(name) for name in pages}
    for name in OURS:
        cells = []
        for image in images.values():
            inputs = our_inputs(bench, image, name)
            plan = inputs.get("image_plan") or plan_images(inputs["image_token_positions"], inputs["pixel_values"])
            tokens = inputs["input_ids"].shape[1] - TEXT_TOKENS
            rows = "" if plan.encoded_cells is None else f" in {len(pack_patches(plan.encoded_cells)[0])} rows"
            cells.append(f"{tokens} tokens, {len(plan.tile_indices)} tiles{rows}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for name in others:
        counts = [other_inputs(bench, image, name)["num_tokens"] for image in images.values()]
        lines.append(f"| {name} | {' | '.join(f'{each} tokens' for each in counts)} |")
    return "\n".join(lines)


def compare_page(bench: Bench, page: str, others: list[str]) -> list[dict]:
    """
    Records of JinaVLM with all settings and of other models, measured in turn: `name`, `tokens` of the prompt, `first`
    and `later` with the seconds of each round, and `peak_memory` in bytes.
    """
    image = draw(page)
    prompts = {name: (bench.model, our_inputs(bench, image, name)) for name in OURS}
    for name in others:
        prompts[name] = (other_model(bench, name), full_inputs(bench, other_inputs(bench, image, name)))
    clocks: dict[str, list] = {name: [] for name in prompts}
    calls = {
        name: lambda name=name, each=each: clocks[name].append(generate_with(*each, NUM_TOKENS))
        for name, each in prompts.items()
    }
    measured = measure(calls, bench.device, max_rounds=MIN_ROUNDS + 1, max_seconds=bench.max_seconds)
    records = []
    for name, (_, inputs) in prompts.items():
        kept = clocks[name][-len(measured[name].seconds) :]
        records.append(
            {
                "page": page,
                "name": name,
                "tokens": inputs["input_ids"].shape[1],
                "first": [clock.first for clock in kept],
                "later": [clock.later for clock in kept],
                "peak_memory": measured[name].peak_memory,
            }
        )
    return records


def table(records: list[dict]) -> str:
    """The records of a page as Markdown. Ratios are those of the rounds: the median, the smallest and the largest."""
    baselines = [each for each in records if each["name"] == "JinaVLM, every tile" or each["name"] not in OURS]
    names = " | ".join(f"to {each['name'].removeprefix('JinaVLM, ')}" for each in baselines)
    lines = [
        f"| {records[0]['page']} | tokens | first token | {names} | later token | {names} | peak memory |",
        f"|---|---:|{'---:|' * (2 + 2 * len(baselines))}---:|",
    ]
    for each in records:
        cells = [each["name"], str(each["tokens"])]
        for part, unit, factor in (("first", "s", 1), ("later", "ms", 1000)):
            cells.append(f"{statistics.median(each[part]) * factor:.3g} {unit}")
            for other in baselines:
                ratios = sorted(one / two for one, two in zip(each[part], other[part], strict=True))
                is_known = other is not each and len(ratios) >= MIN_ROUNDS
                text = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"
                cells.append(text if is_known else "")
        cells.append(report.gigabytes(each["peak_memory"]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pages", nargs="+", choices=(*PAGES, "photo"), default=["photo", *PAGES])
    parser.add_argument("--others", nargs="+", choices=OTHERS, default=list(OTHERS))
    parser.add_argument("--seconds", type=float, default=1e9, help="no round of a comparison starts after this time")
    parser.add_argument("--only-tokens", action="store_true", help="count tokens and tiles, without models")
    parser.add_argument(
        "--output", type=Path, default=Path("build/benchmarks/pages.json"), help="default: %(default)s"
    )
    args = parser.parse_args(argv)
    np.random.seed(0)
    bench = Bench(args.size, getattr(torch, args.dtype), torch.device(args.device), args.seconds, share_weights=True)
    print(count(bench, args.pages, args.others), flush=True)
    if args.only_tokens:
        return
    results: list[dict] = []
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for page in args.pages:
        results += compare_page(bench, page, args.others)
        print(f"\n{table([each for each in results if each['page'] == page])}", flush=True)
        values = {"dtype": args.dtype, "size": args.size, **machine(bench.device), "records": results}
        args.output.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
