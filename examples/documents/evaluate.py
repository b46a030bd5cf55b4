# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Asks the document model about held-out pages and scores the answers by kind of document and by grid:

    python -m examples.documents.evaluate [--model DIR] [--num_pages 252] [--json FILE] [--markdown]
    python -m examples.documents.evaluate --tesseract       # what the OCR program Tesseract reads on these pages

The pages have fonts, words, names, tables and photographs that no training page has; see `ingredients`. Each question
is asked by itself. Answers are decoded greedily, in float32. The scores are those of `scores`.

Tesseract answers no questions. A question counts for it if the answer is printed on the page and occurs in the text
that it reads. For the model, the column "printed" has the exact answers to the same questions.
"""

import argparse
import io
import json
import subprocess
from collections import defaultdict
from pathlib import Path

from transformers.utils import logging

from ..digits.evaluate import ask, model_folder
from .data import held_out_pages
from .pages import Page, Question
from .scores import SCORES


MODEL = Path(__file__).parent / "model"
NUM_PAGES = 252  # three of every kind and grid
MAX_NEW_TOKENS = 48
PRINTED = "printed"


def is_printed(question: Question) -> bool:
    """Whether the answer is text on the page, and neither counted nor a tick."""
    return question.box is not None and question.answer not in ("yes", "no")


def rows_of(pages: list[Page]) -> list[tuple[Page, Question]]:
    """All questions about every page, sorted by grid, which keeps padding small."""
    rows = [(page, question) for page in pages for question in page.questions]
    return sorted(rows, key=lambda row: row[0].grid)


def score(rows: list[tuple[Page, Question]], answers: list[str]) -> dict:
    """
    Scores answers.

    Returns:
        `dict`: for `"all"`, every kind and every grid such as `"3x4"`: the number of questions, and under the names of
        `SCORES` the sums of the scores; `"printed"` is `[exact answers, questions]` of those whose answer is printed.
    """
    parts: dict[str, dict] = {}
    for (page, question), answer in zip(rows, answers, strict=True):
        for part in ("all", page.kind, f"{page.grid[0]}x{page.grid[1]}"):
            sums = parts.setdefault(part, {"questions": 0, **dict.fromkeys(SCORES, 0.0), PRINTED: [0, 0]})
            sums["questions"] += 1
            for name, function in SCORES.items():
                sums[name] += function(answer, question.answer)
            if is_printed(question):
                sums[PRINTED][0] += int(answer == question.answer)
                sums[PRINTED][1] += 1
    return parts


def evaluate(model: str | Path = MODEL, num_pages: int = NUM_PAGES, batch_size: int = 8, seed: int = 1) -> dict:
    """Asks a model about held-out pages. Returns the arguments and under `parts` what [`score`] returns."""
    if num_pages < 1:
        raise ValueError(f"`num_pages` must be at least 1, got {num_pages}.")
    rows = rows_of(held_out_pages(num_pages, seed))
    answers = ask(model, [(page, question.text) for page, question in rows], batch_size, max_new_tokens=MAX_NEW_TOKENS)
    return {"model": str(model), "num_pages": num_pages, "seed": seed, "parts": score(rows, answers)}


def read_with_tesseract(page: Page) -> str:
    """
    The text that Tesseract reads on a page.

    Raises:
        FileNotFoundError: if the program `tesseract` is not installed.
    """
    file = io.BytesIO()
    page.image.save(file, "PNG")
    command = ["tesseract", "stdin", "stdout", "--psm", "6", "-l", "eng"]
    return subprocess.run(command, input=file.getvalue(), capture_output=True, check=True).stdout.decode()


def evaluate_tesseract(num_pages: int = NUM_PAGES, seed: int = 1) -> dict[str, list[int]]:
    """For `"all"`, every kind and every grid: `[answers that Tesseract reads, questions whose answer is printed]`."""
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for page in logging.tqdm(held_out_pages(num_pages, seed), desc="Pages"):
        text = " ".join(read_with_tesseract(page).split())
        for question in page.questions:
            if not is_printed(question):
                continue
            for part in ("all", page.kind, f"{page.grid[0]}x{page.grid[1]}"):
                found[part][0] += int(question.answer in text)
                found[part][1] += 1
    return dict(found)


def markdown(results: dict, tesseract: dict[str, list[int]] | None = None) -> str:
    """The results of [`evaluate`] as a Markdown table by kind and by grid, with Tesseract's column if it was run."""
    tesseract = tesseract or {}
    names = [*SCORES, PRINTED, *(["Tesseract"] if tesseract else [])]
    lines = [
        f"{results['num_pages']} held-out pages, {results['parts']['all']['questions']} questions.",
        "",
        "| pages | questions | " + " | ".join(names) + " |",
        "|---|---:|" + "---:|" * len(names),
    ]
    for part, sums in results["parts"].items():
        cells = [f"{sums[name] / sums['questions']:.1%}" for name in SCORES]
        cells.append(f"{sums[PRINTED][0] / max(1, sums[PRINTED][1]):.1%}")
        if tesseract:
            read, total = tesseract.get(part, [0, 0])
            cells.append(f"{read / max(1, total):.1%}")
        label = f"**{part}**" if part == "all" else part.replace("x", " × ") if part[0].isdigit() else part
        lines.append(f"| {label} | {sums['questions']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Scores answers of the document model on held-out pages.")
    parser.add_argument("--model", default=str(MODEL), type=model_folder, help="folder with model and processor")
    parser.add_argument("--num_pages", default=NUM_PAGES, type=int)
    parser.add_argument("--batch_size", default=8, type=int, help="questions per batch")
    parser.add_argument("--seed", default=1, type=int, help="seed of the pages")
    parser.add_argument("--tesseract", action="store_true", help="also run Tesseract on the pages")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to FILE")
    parser.add_argument("--markdown", action="store_true", help="print only the Markdown table")
    args = parser.parse_args(argv)
    results = evaluate(args.model, args.num_pages, args.batch_size, args.seed)
    if args.tesseract:
        results["tesseract"] = evaluate_tesseract(args.num_pages, args.seed)
    print(markdown(results, results.get("tesseract")))
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")
    if not args.markdown:
        sums = results["parts"]["all"]
        print("\n" + ", ".join(f"{name} {sums[name] / sums['questions']:.1%}" for name in SCORES))


if __name__ == "__main__":
    main()
