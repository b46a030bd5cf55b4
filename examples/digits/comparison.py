# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Counts the exact answers of models on the same held-out pages, and compares them with those of the first model:

    python -m examples.digits.comparison examples/digits/model OUT/seed-0 OUT/seed-1 [--num_pages 360]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scipy.stats import binomtest

from .evaluate import ask, rows_of
from .pages import QUESTIONS, held_out_pages


def compare(models: Sequence[str | Path], num_pages: int = 360, seed: int = 1) -> list[dict]:
    """
    Asks all models every question about held-out pages.

    Args:
        models (`Sequence[str | Path]`): folders with model and processor. The others are compared to the
            first.
        num_pages (`int`, *optional*, defaults to 360): number of pages, as in [`evaluate`].
        seed (`int`, *optional*, defaults to 1): random seed of the pages.

    Returns:
        `list[dict]`: for each model the numbers of `right` answers and of `all`; the 95 % Wilson `interval` of their
        ratio; the right ones of each of the `questions`; how many were wrong before and are right (`gained`), or the
        other way (`lost`); and `p`, the probability of a difference at least as large between equally good models, by
        the exact McNemar test.
    """
    rows = rows_of(held_out_pages(num_pages, seed))
    first: list[bool] = []
    results = []
    for model in models:
        answers = ask(model, rows)
        verdicts = [answer == page.answer(question) for (page, question), answer in zip(rows, answers, strict=True)]
        first = first or verdicts
        interval = binomtest(sum(verdicts), len(verdicts)).proportion_ci(method="wilson")
        gained = sum(now and not before for before, now in zip(first, verdicts, strict=True))
        lost = sum(before and not now for before, now in zip(first, verdicts, strict=True))
        results.append(
            {
                "model": Path(model).name,
                "right": sum(verdicts),
                "all": len(verdicts),
                "interval": (interval.low, interval.high),
                "questions": {
                    question: sum(right for right, row in zip(verdicts, rows, strict=True) if row[1] == question)
                    for question in QUESTIONS
                },
                "gained": gained,
                "lost": lost,
                "p": binomtest(gained, gained + lost).pvalue if gained + lost else 1.0,
            }
        )
    return results


def markdown(results: list[dict]) -> str:
    """The results of [`compare`] as a table."""
    lines = [
        "| model | exact answers | rate | 95 % interval | gained | lost | p |",
        "|---|---:|---:|---|---:|---:|---:|",
    ]
    for index, result in enumerate(results):
        low, high = result["interval"]
        change = f"{result['gained']} | {result['lost']} | {result['p']:.2g}" if index else " | | "
        lines.append(
            f"| {result['model']} | {result['right']} of {result['all']} | {result['right'] / result['all']:.1%} | "
            f"{low:.1%} to {high:.1%} | {change} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compares the exact answers of models on the same held-out pages.")
    parser.add_argument("models", nargs="+", type=Path, help="folders with model and processor")
    parser.add_argument("--num_pages", default=360, type=int)
    args = parser.parse_args(argv)
    print(markdown(compare(args.models, args.num_pages)))


if __name__ == "__main__":
    main()
