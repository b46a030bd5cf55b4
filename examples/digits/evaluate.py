# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Asks the shipped model every question about held-out pages and counts the correct answers:

    python -m examples.digits.evaluate [--model DIR] [--num_pages 360] [--batch_size 24] [--json FILE] [--markdown]

Answers are decoded greedily, in float32, and compared as strings. Two rates are reported:

- **exact answers**: the fraction of answers that equal the reference, ignoring leading and trailing spaces;
- **digits read**: the fraction of correct digits in the answers to "Which digits are written here?".
  `difflib.SequenceMatcher` aligns answer and reference. Matched digits are correct, and the length of the longer of
  the two is the total, so both missing and surplus digits lower the rate.
"""

import argparse
import json
from collections import defaultdict
from difflib import SequenceMatcher
from pathlib import Path

from transformers import pipeline
from transformers.utils import logging

import jvlm  # noqa: F401 - registers the model with the pipeline

from .pages import GRIDS, MAX_DIGITS, QUESTIONS, READ, Page, held_out_pages


MODEL = Path(__file__).parent / "model"


def evaluate(model: str | Path = MODEL, num_pages: int = 360, batch_size: int = 24, seed: int = 1) -> dict:
    """
    Evaluates a model on held-out pages.

    Args:
        model (`str` or `Path`, *optional*): folder with model and processor; the shipped one by default.
        num_pages (`int`, *optional*, defaults to 360): number of pages, cycling through all grids.
        batch_size (`int`, *optional*, defaults to 24): questions per batch. It does not change the answers.
        seed (`int`, *optional*, defaults to 1): random seed of the pages.

    Returns:
        `dict`: the arguments, the rates `exact` (of answers) and `digits` (of digits), and under `questions` and
        `grids` the same rates for every question and every grid such as `"3x4"`. A rate is a
        `{"right": int, "all": int, "rate": float}`.

    Raises:
        ValueError: if `num_pages` is not positive.
    """
    if num_pages < 1:
        raise ValueError(f"`num_pages` must be at least 1, got {num_pages}.")
    counts = {kind: defaultdict(lambda: [0, 0]) for kind in ("exact", "digits")}
    rows = rows_of(held_out_pages(num_pages, seed))
    for (page, question), answer in zip(rows, ask(model, rows, batch_size), strict=True):
        right = page.answer(question)
        found = {"exact": (int(answer == right), 1)}
        if question == READ:
            found["digits"] = digits_read(answer, right)
        for kind, pair in found.items():
            for part in ("all", question, f"{page.grid[0]}x{page.grid[1]}"):
                counts[kind][part] = [total + more for total, more in zip(counts[kind][part], pair, strict=True)]

    def rates(part: str) -> dict:
        return {
            kind: {"right": right, "all": total, "rate": right / total}
            for kind, (right, total) in ((kind, counts[kind][part]) for kind in counts)
            if total
        }

    grids = [f"{rows}x{cols}" for rows, cols in GRIDS]
    return {
        "model": str(model),
        "num_pages": num_pages,
        "seed": seed,
        **rates("all"),
        "questions": {question: rates(question) for question in QUESTIONS},
        "grids": {grid: rates(grid) for grid in grids if rates(grid)},
    }


def rows_of(pages: list[Page], questions: list[str] = QUESTIONS) -> list[tuple[Page, str]]:
    """
    All questions about every page. Prompts of pages with the same grid have almost the same length, so sorting by grid
    keeps padding small.
    """
    return sorted(((page, question) for page in pages for question in questions), key=lambda row: row[0].grid)


def ask(model: str | Path, rows: list[tuple[Page, str]], batch_size: int = 24, **settings) -> list[str]:
    """
    The answers of a model to questions about pages, each asked by itself.

    Args:
        model (`str` or `Path`): folder with model and processor.
        rows (`list[tuple[Page, str]]`): pages and the questions about them.
        batch_size (`int`, *optional*, defaults to 24): questions per batch.
        settings: settings of `generate`; greedy decoding by default.
    """
    pipe = pipeline("image-text-to-text", model=str(model), dtype="float32")
    texts: list[str] = []
    for start in logging.tqdm(range(0, len(rows), batch_size), desc="Questions", unit="batch"):
        outputs = pipe(
            [conversation(page.image, question) for page, question in rows[start : start + batch_size]],
            batch_size=batch_size,
            return_full_text=False,
            generate_kwargs={"do_sample": False, "max_new_tokens": 4 + 2 * MAX_DIGITS, **settings},
        )
        texts += [output["generated_text"].strip() for (output,) in outputs]
    return texts


def conversation(image, question: str) -> list[dict]:
    """A chat with one question about one image, in the format of pipelines and chat templates."""
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]


def digits_read(answer: str, right: str) -> tuple[int, int]:
    """The number of correct digits of an answer and the total number of digits; see the module docstring."""
    given, written = answer.split(), right.split()
    blocks = SequenceMatcher(None, given, written, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks), max(len(given), len(written))


def model_folder(path: str) -> Path:
    """Converts the argument of --model to a path, which must be a folder."""
    if not Path(path).is_dir():
        raise argparse.ArgumentTypeError(f"{path} is no folder; train a model with python -m examples.digits.train")
    return Path(path)


def markdown(results: dict) -> str:
    """The results of [`evaluate`] as Markdown: two tables, by question and by grid."""

    def cell(part: dict, kind: str) -> str:
        return f"{part[kind]['rate']:.1%} ({part[kind]['right']}/{part[kind]['all']})" if kind in part else ""

    def table(name: str, parts: dict) -> list[str]:
        head = [f"| {name} | exact answers | digits read |", "|---|---:|---:|"]
        return head + [
            f"| {part} | {cell(value, 'exact')} | {cell(value, 'digits')} |" for part, value in parts.items()
        ]

    grids = {grid.replace("x", " × "): value for grid, value in results["grids"].items()}
    lines = [
        f"{results['num_pages']} held-out pages, {results['exact']['all']} questions.",
        "",
        *table("question", {**results["questions"], "**all**": results}),
        "",
        *table("grid (rows × columns)", grids),
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Counts the correct answers of the shipped model on held-out pages.")
    parser.add_argument("--model", default=str(MODEL), type=model_folder, help="folder with model and processor")
    parser.add_argument("--num_pages", default=360, type=int)
    parser.add_argument("--batch_size", default=24, type=int, help="questions per batch")
    parser.add_argument("--seed", default=1, type=int, help="seed of the pages")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to FILE")
    parser.add_argument("--markdown", action="store_true", help="print only the Markdown tables")
    args = parser.parse_args(argv)
    results = evaluate(args.model, args.num_pages, args.batch_size, args.seed)
    print(markdown(results))
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")
    if not args.markdown:
        print(f"\nexact answers {results['exact']['rate']:.1%}, digits read {results['digits']['rate']:.1%}")


if __name__ == "__main__":
    main()
