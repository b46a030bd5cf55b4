# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Miniature data sets in the formats that tasks of lmms-eval read, with digit pages as images."""

import itertools
from pathlib import Path

import datasets
from datasets import Features, Image, Sequence, Value

from examples.digits.pages import COUNT, LARGEST, READ, held_out_pages


LETTERS = "ABCD"


def _choice(page, index: int) -> tuple[list[str], int]:
    """Four options for the number of digits, and the index of the right one."""
    count, place = len(page.digits), index % 4
    options = [str(count + shift) for shift in range(-place, 4 - place)]
    return options, place


def _write(folder: Path, task: str, split: str, rows: list[dict], features: dict) -> None:
    data = datasets.Dataset.from_list(rows, features=Features(features))
    datasets.DatasetDict({split: data}).save_to_disk(str(folder / task))


def write_miniatures(folder: Path, num_rows: int = 24) -> None:
    """
    Writes AI2D (multiple choice), DocVQA (ANLS), ChartQA (relaxed accuracy), POPE (yes or no), MuirBench (several
    images) and TextVQA (VQA score), each with `num_rows` rows, as `datasets` saves them to disk.
    """
    pages = held_out_pages(num_rows + 1)
    text = Value("string")
    tables: dict[str, tuple[str, list[dict], dict]] = {
        "ai2d": ("test", [], {"image": Image(), "question": text, "options": Sequence(text), "answer": text}),
        "docvqa_val": ("validation", [], {"image": Image(), "question": text, "answers": Sequence(text)}),
        "chartqa": ("test", [], {"image": Image(), "question": text, "answer": text, "type": text}),
        "pope": ("test", [], {"image": Image(), "question": text, "answer": text, "question_id": text}),
        "muirbench": (
            "test",
            [],
            {
                "image_list": Sequence(Image()),
                "question": text,
                "options": Sequence(text),
                "answer": text,
                **dict.fromkeys(("task", "idx", "image_relation", "image_type"), text),
            },
        ),
        "textvqa_val": (
            "validation",
            [],
            {"image": Image(), "question": text, "answers": Sequence(text), "question_id": Value("int64")},
        ),
    }
    for index, (page, following) in enumerate(itertools.pairwise(pages)):
        options, place = _choice(page, index)
        largest, digits = page.answer(LARGEST), [str(digit) for digit in range(10)]
        rows = {
            "ai2d": {"image": page.image, "question": COUNT, "options": options, "answer": str(place)},
            # Every digit is right, or none: half of the points for a model that answers with a digit.
            "docvqa_val": {"image": page.image, "question": READ, "answers": digits if index % 2 else ["none"]},
            "chartqa": {
                "image": page.image,
                "question": LARGEST,
                "answer": largest,
                "type": "human_test" if index % 2 else "augmented_test",
            },
            "pope": {
                "image": page.image,
                "question": "Is there a digit?",
                "answer": "yes" if index % 2 else "no",
                "question_id": str(index),
            },
            "muirbench": {
                "image_list": [page.image, following.image],
                "question": COUNT,
                "options": options,
                "answer": LETTERS[place],
                **dict.fromkeys(("task", "image_relation", "image_type"), "digits"),
                "idx": str(index),
            },
            "textvqa_val": {
                "image": page.image,
                "question": LARGEST,
                "answers": [largest] * 8 + ["0"] * 2,
                "question_id": index,
            },
        }
        for task, row in rows.items():
            tables[task][1].append(row)
    for task, (split, table, features) in tables.items():
        _write(folder, task, split, table, features)
