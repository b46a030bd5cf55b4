# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
What fewer image tokens cost the digit model: its exact answers by the share of tokens that are dropped, as shipped and
after short fine-tunings without the dropped tokens, with and without their patches in the vision tower.

    python -m benchmarks.dropped_tokens [--output_dir OUT] [--steps 150] [--num_pages 360]

Tokens are dropped in three ways: cells of one colour with a growing `uniform_tolerance`, the same with their patches
(`drop_uniform_patches`), and smaller grids of tiles by `max_image_tokens`. The models are fine-tuned with
`drop_uniform_cells` alone or with both settings, and the tolerance of the image processor. OUT has the fine-tuned
models, the results as JSON and the figure. What is complete there is not computed again.

    python -m benchmarks.dropped_tokens --documents

prints how many tokens of printed documents (`examples.documents`) are those of uniform cells, clean as from a file and
as in photographs, with noise, shadows and folds.
"""

import argparse
import json
from itertools import cycle
from pathlib import Path

from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from examples.digits.evaluate import MODEL, evaluate
from examples.digits.pages import DESCRIBE, QUESTIONS, DigitPages, held_out_pages
from examples.documents.ingredients import TEST
from examples.documents.pages import KINDS, draw_page
from jvlm import JinaVLMImageProcessor
from jvlm.training import DataCollatorForJinaVLM, JinaVLMTrainingArguments
from jvlm.training.finetune import finetune


BATCH_SIZE = 32
# Strength of the degradation of a document, and the layout.
PHOTOGRAPHS = [(strength, layout) for strength in (0.0, 1.0) for layout in ("independent", "stitched")]
CELLS, PATCHES = {"drop_uniform_cells": True}, {"drop_uniform_cells": True, "drop_uniform_patches": True}
TOLERANCES = (0.0, 64.0, 160.0, 200.0)
# Settings of the image processor by the name of their curve.
CURVES = {
    "uniform cells": [{**CELLS, "uniform_tolerance": value} for value in TOLERANCES],
    "uniform cells and patches": [{**PATCHES, "uniform_tolerance": value} for value in TOLERANCES],
    "smaller grids": [{"max_image_tokens": value} for value in (120, 84, 48, 24)],
}


def tune(folder: Path, steps: int, settings: dict) -> Path:
    """Fine-tunes the shipped model with settings of its image processor. Returns the folder."""
    if not (folder / "config.json").is_file():
        processor = AutoProcessor.from_pretrained(MODEL)
        for name, value in settings.items():
            setattr(processor.image_processor, name, value)
        args = JinaVLMTrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=BATCH_SIZE,
            max_steps=steps,
            learning_rate=3e-4,
            freeze=["vision_tower"],
            warmup_steps=0.05,
            weight_decay=0.05,
            lr_scheduler_kwargs={"min_lr_rate": 0.01},
            train_sampling_strategy="sequential",
            logging_steps=50,
            save_strategy="no",
            report_to="none",
            seed=0,
        )
        rows = DigitPages(steps * BATCH_SIZE, [*QUESTIONS, DESCRIBE], BATCH_SIZE, seed=11, text_only_share=0.18)
        model = AutoModelForImageTextToText.from_pretrained(MODEL, dtype="float32")
        finetune(model, DataCollatorForJinaVLM(processor), args, rows)
    return folder


def count_tokens(processor, num_pages: int, **settings) -> int:
    """Number of image tokens of the held-out pages."""
    images = [page.image for page in held_out_pages(num_pages)]
    return int((processor.image_processor(images, **settings)["image_token_positions"] >= 0).sum())


def measure(model: Path, settings: dict, num_pages: int, folder: Path) -> dict:
    """
    Evaluates a model with other settings of its image processor. `folder` becomes that of a checkpoint with them.

    Returns:
        `dict`: `dropped`, the share of image tokens that are dropped, and the numbers of exact answers `right` of
        `all`.
    """
    processor = AutoProcessor.from_pretrained(model)
    off = dict.fromkeys(PATCHES, False)
    all_tokens = count_tokens(processor, num_pages, **off)
    dropped = 1 - count_tokens(processor, num_pages, **{**off, **settings}) / all_tokens
    for name, value in {**off, **settings}.items():
        setattr(processor.image_processor, name, value)
    processor.save_pretrained(folder)
    AutoModelForImageTextToText.from_pretrained(model, dtype="float32").save_pretrained(folder)
    results = evaluate(folder, num_pages)
    return {
        "settings": settings,
        "dropped": dropped,
        "right": results["exact"]["right"],
        "all": results["exact"]["all"],
    }


def run(output: Path, steps: int, num_pages: int) -> dict[str, dict[str, list[dict]]]:
    """The results of every curve by model, with the point at which nothing is dropped."""
    output.mkdir(parents=True, exist_ok=True)
    path = output / "results.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    models = {
        "as shipped": MODEL,
        f"fine-tuned without cells, {steps} steps": tune(output / "cells", steps, CELLS),
        f"fine-tuned without patches, {steps} steps": tune(output / "patches", steps, PATCHES),
    }
    cases = [(name, settings) for name in models for curve in ([{}], *CURVES.values()) for settings in curve]
    for name, settings in logging.tqdm(cases, desc="Settings"):
        key = f"{name}, {num_pages} pages, {json.dumps(settings)}"
        if key not in kept:
            kept[key] = measure(models[name], settings, num_pages, output / "checkpoint")
            path.write_text(json.dumps(kept, indent=1) + "\n")

    def points(name: str, settings: list[dict]) -> list[dict]:
        return [kept[f"{name}, {num_pages} pages, {json.dumps(each)}"] for each in ({}, *settings)]

    return {name: {curve: points(name, settings) for curve, settings in CURVES.items()} for name in models}


def document_shares(num_pages: int = 4) -> dict[str, list[float]]:
    """
    Shares of the image tokens that `drop_uniform_cells` drops, by kind of document: on clean pages of 3 × 4 tiles in
    the layouts `"independent"` and `"stitched"`, then on photographs of them.
    """
    shares = {}
    for kind in logging.tqdm(KINDS, desc="Documents"):
        shares[kind] = [_dropped_share(kind, strength, layout, num_pages) for strength, layout in PHOTOGRAPHS]
    return shares


def _dropped_share(kind: str, strength: float, layout: str, num_pages: int) -> float:
    pages = [draw_page([1, index], TEST, kind, (3, 4), strength).image for index in range(num_pages)]
    process = JinaVLMImageProcessor(layout=layout)
    kept, total = (
        sum((process(page, drop_uniform_cells=drop)["image_token_positions"] >= 0).sum().item() for page in pages)
        for drop in (True, False)
    )
    return 1 - kept / total


def table(results: dict[str, dict[str, list[dict]]]) -> str:
    """The results as Markdown."""
    lines = [f"| settings | tokens dropped | {' | '.join(results)} |", "|---|---:|" + "---:|" * len(results)]
    first, *_ = results.values()
    for curve, points in first.items():
        for index, point in enumerate(points):
            if index or curve == next(iter(first)):
                settings = ", ".join(f"`{name}={value}`" for name, value in point["settings"].items()) or "default"
                rates = [f"{each[curve][index]['right'] / each[curve][index]['all']:.1%}" for each in results.values()]
                lines.append(f"| {settings} | {point['dropped']:.0%} | {' | '.join(rates)} |")
    return "\n".join(lines)


def plot(results: dict[str, dict[str, list[dict]]], path: Path) -> None:
    """Draws the curves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(results):
        for (curve, points), style in zip(results[name].items(), cycle(("o-", "^:", "s--"))):
            shares = [100 * point["dropped"] for point in points]
            rates = [100 * point["right"] / point["all"] for point in points]
            axes.plot(shares, rates, style, color=f"C{number}", label=f"{curve}, {name}")
    axes.set(xlabel="image tokens dropped, %", ylabel="exact answers, %", xlim=0, ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("build/dropped_tokens"), help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=150, help="steps of the fine-tuning, default: %(default)s")
    parser.add_argument("--num_pages", type=int, default=360, help="held-out pages, default: %(default)s")
    parser.add_argument("--documents", action="store_true", help="print the shares of uniform cells of documents")
    args = parser.parse_args(argv)
    if args.documents:
        print("| | clean, independent | clean, stitched | photograph, independent | photograph, stitched |")
        print("|---|---:|---:|---:|---:|")
        for kind, shares in document_shares().items():
            print(f"| {kind} | {' | '.join(f'{share:.0%}' for share in shares)} |")
        return
    results = run(args.output_dir, args.steps, args.num_pages)
    plot(results, args.output_dir / "dropped_tokens.png")
    print(table(results))


if __name__ == "__main__":
    main()
