# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Measures how often the evidence of an answer about one digit is strongest within the box of that digit, and writes the
result beside the weights, where `jvlm ask --evidence` finds it:

    python -m examples.digits.evidence [--model DIR] [--num_pages 360]

The decoder layer is chosen on pages of the training samples, and the share is measured on held-out pages.
"""

import argparse
from pathlib import Path

from jvlm import EvidenceMeasurement, measure_evidence

from .demo import load
from .evaluate import MODEL, model_folder
from .pages import MAX_DIGITS, ONE_DIGIT, DigitPages, Page, held_out_pages


TRAINING_SEED = 1_000_000  # of pages that no training program draws
NUM_TRAINING_PAGES = 120


def measure(model: str | Path = MODEL, num_pages: int = 360, num_training_pages: int = NUM_TRAINING_PAGES):
    """
    Measures the evidence of a model on held-out pages and writes `evidence.json` into its folder.

    Args:
        model (`str` or `Path`, *optional*): folder with model and processor; the shipped one by default.
        num_pages (`int`, *optional*, defaults to 360): number of held-out pages, as in [`evaluate`].
        num_training_pages (`int`, *optional*, defaults to 120): number of pages on which the layer is chosen.

    Returns:
        [`EvidenceMeasurement`]: what was measured.
    """
    training = DigitPages(num_training_pages, ONE_DIGIT, 1, seed=TRAINING_SEED)
    measurement: EvidenceMeasurement = measure_evidence(
        *load(model),
        choice_rows=rows_of([training.draw(index)[0] for index in range(num_training_pages)]),
        rows=rows_of(held_out_pages(num_pages)),
        data="questions about one digit of held-out pages",
        max_new_tokens=4 + 2 * MAX_DIGITS,
    )
    measurement.save(model)
    return measurement


def rows_of(pages: list[Page]) -> list[tuple]:
    """The questions with one digit as answer about every page, with the boxes of that digit."""
    return [(page.image, question, page.answer_boxes(question)) for page in pages for question in ONE_DIGIT]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL), type=model_folder, help="folder with model and processor")
    parser.add_argument("--num_pages", default=360, type=int, help="number of held-out pages")
    args = parser.parse_args(argv)
    measurement = measure(args.model, args.num_pages)
    for layer, right in enumerate(measurement.choice):
        print(f"layer {layer}: {right} of {measurement.choice_total} on training pages")
    print(f"Layer {measurement.layer} is used. {measurement}")


if __name__ == "__main__":
    main()
