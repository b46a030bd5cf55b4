# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Writes the sample images beside the document model: a held-out page of every kind, a question and the model's answer.

    python -m examples.documents.samples
"""

from pathlib import Path

from ..digits.samples import write_samples
from .data import held_out_pages
from .evaluate import MAX_NEW_TOKENS, MODEL
from .pages import KINDS


def main(folder: Path = MODEL) -> None:
    rows = []
    for page in held_out_pages(len(KINDS)):
        question = page.questions[0]
        name = f"{page.kind.replace(' ', '-')}-{page.grid[0]}x{page.grid[1]}.jpg"
        rows.append((name, page.image, question.text, question.answer))
    write_samples(folder, rows, max_new_tokens=MAX_NEW_TOKENS)


if __name__ == "__main__":
    main()
