# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The pages of digits and the training program of the small model."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from helpers import END_OF_TEXT
from skimage.measure import label, regionprops
from transformers import AutoModelForImageTextToText, AutoProcessor, SiglipVisionModel

from examples.digits import train
from examples.digits.evaluate import MODEL
from examples.digits.pages import (
    BACKGROUND,
    CORNERS,
    COUNT,
    DESCRIBE,
    GRIDS,
    LARGEST,
    MAX_DIGITS,
    NUM_HELD_OUT,
    PATCH_SIZE,
    QUESTIONS,
    READ,
    DigitPages,
    DigitTiles,
    Page,
    draw_page,
    held_out_pages,
    load_samples,
)
from jvlm.training import DataCollatorForJinaVLM


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(MODEL)


def ink_coded_samples():
    """Samples that encode their digit: a block whose right half is as dark as its left half (1) or brighter (0)."""
    samples = []
    for digit in (0, 1):
        ink = np.zeros((8, 8), np.uint8)
        ink[2:6, 2:4], ink[2:6, 4:6] = 255, (90, 255)[digit]
        samples.append(PIL.Image.fromarray(ink))
    return samples, np.arange(2)


def read_ink(image: PIL.Image.Image) -> list[int]:
    """Reads the digits of a page of `ink_coded_samples` from its pixels, in reading order."""
    ink = 255.0 - np.asarray(image.convert("L"))
    found = []
    for region in regionprops(label(ink > 20)):
        top, left, bottom, right = region.bbox
        row = ink[(top + bottom) // 2, left:right]
        found.append(((top + bottom) / 2, left, int(row[int(len(row) * 0.75)] > 0.7 * row[int(len(row) * 0.25)])))
    found.sort()
    lines = [[]]
    for index, (centre, left, digit) in enumerate(found):
        if index and centre - found[index - 1][0] > 9:  # lines are further apart than digits within a line
            lines.append([])
        lines[-1].append((left, digit))
    return [digit for line in lines for _, digit in sorted(line)]


def test_digits_are_in_reading_order():
    for seed in range(60):
        page = draw_page(ink_coded_samples(), np.random.default_rng(seed), GRIDS[seed % 12], MAX_DIGITS, augment=False)
        assert page.digits == read_ink(page.image)


def test_boxes_hold_the_ink_of_their_digits():
    for seed in range(60):
        page = draw_page(ink_coded_samples(), np.random.default_rng(seed), GRIDS[seed % 12], MAX_DIGITS, augment=False)
        assert [read_ink(page.image.crop(box)) for box in page.boxes] == [[digit] for digit in page.digits]
        for box in page.boxes:
            page.image.paste("white", box)
        assert page.image.getextrema() == ((255, 255),) * 3
        largest = page.answer_boxes(LARGEST)
        assert largest == [
            box for box, digit in zip(page.boxes, page.digits, strict=True) if digit == max(page.digits)
        ]
        assert [page.answer_boxes(question) for question in CORNERS] == [[page.boxes[0]], [page.boxes[-1]]]


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_image_processor_selects_the_grid_of_a_page(processor, grid, augment):
    samples = load_samples("train")
    for seed in range(8):
        page = draw_page(samples, np.random.default_rng(seed), grid, 1 + seed % MAX_DIGITS, augment)
        assert processor.image_processor.get_image_grid(page.image.height, page.image.width) == page.grid == grid
        assert 1 <= len(page.digits) <= 1 + seed % MAX_DIGITS


def test_held_out_pages_are_deterministic_and_cover_all_grids():
    first, second = held_out_pages(24), held_out_pages(24)
    assert [page.image.tobytes() for page in first] == [page.image.tobytes() for page in second]
    assert [page.digits for page in first] == [page.digits for page in second]
    assert [page.grid for page in first] == GRIDS * 2
    other = held_out_pages(24, seed=2)
    assert [page.image.tobytes() for page in first] != [page.image.tobytes() for page in other]
    assert {len(page.digits) for page in held_out_pages(72)} == set(range(1, MAX_DIGITS + 1))


def test_held_out_samples_are_not_in_the_training_set():
    (images, labels), (held_out, held_out_labels) = load_samples("train"), load_samples("test")
    trained = {image.tobytes() for image in images}
    assert not any(image.tobytes() in trained for image in held_out)
    assert len(held_out) == len(held_out_labels) == NUM_HELD_OUT
    assert len(images) == len(labels) > 3 * NUM_HELD_OUT
    assert {image.tobytes() for image in DigitPages(8, QUESTIONS, 4).samples[0]} == trained


def test_answers():
    page = Page([[3, 1], [9, 2]])
    answers = {question: page.answer(question) for question in QUESTIONS}
    assert answers == {
        READ: "3 1 9 2",
        COUNT: "4",
        LARGEST: "9",
        "Which digit is at the top left?": "3",
        "Which digit is at the bottom right?": "2",
    }


def test_captions():
    page = Page([[3, 1], [9]])
    assert page.answer(DESCRIBE) == "3 digits, line 1: 3 1, line 2: 9"
    assert page.digits == [3, 1, 9]


def test_training_rows_are_deterministic_and_a_batch_has_one_grid(processor):
    rows, again = DigitPages(400, QUESTIONS, 4, growth=0.5), DigitPages(400, QUESTIONS, 4, growth=0.5)
    grids = set()
    for start in (0, 100, 240, 396):
        batch = [rows[index] for index in range(start, start + 4)]
        for index, row in enumerate(batch, start):
            assert row["messages"] == again[index]["messages"]
            assert row["images"][0].tobytes() == again[index]["images"][0].tobytes()
        sizes = [row["images"][0].size for row in batch]
        in_batch = {processor.image_processor.get_image_grid(height, width) for width, height in sizes}
        assert len(in_batch) == 1
        grids |= in_batch
    assert processor.image_processor.get_image_grid(*rows[0]["images"][0].size[::-1]) == (1, 1)  # pages start small
    assert len(grids) > 1
    other = DigitPages(400, QUESTIONS, 4, growth=0.5, seed=1)
    assert rows[0]["images"][0].tobytes() != other[0]["images"][0].tobytes()


def test_pages_given_as_text():
    rows = DigitPages(60, [READ, COUNT], 4, text_only_share=0.5)
    text_rows = [row for row in map(rows.__getitem__, range(60)) if not row["images"]]
    assert 15 < len(text_rows) < 45
    for row in text_rows:
        words = row["messages"][0]["content"][0]["text"]
        digits = [word for word in words.split() if word != "/"]
        answers = {
            row["messages"][turn]["content"][-1]["text"]: row["messages"][turn + 1]["content"][0]["text"]
            for turn in (0, 2)
        }
        assert answers == {READ: " ".join(digits), COUNT: str(len(digits))}
    assert any("/" in row["messages"][0]["content"][0]["text"] for row in text_rows)


def test_labels_are_the_answers(processor):
    pages = DigitPages(64, [*QUESTIONS, DESCRIBE], 4)
    rows = [pages[index] for index in (0, 20, 63)]
    batch = DataCollatorForJinaVLM(processor)(rows)
    for row, labels in zip(rows, batch["labels"], strict=True):
        answers = [message["content"][0]["text"] for message in row["messages"] if message["role"] == "assistant"]
        assert len(answers) == len(QUESTIONS) + 1
        expected = "".join(f" {answer}{END_OF_TEXT}" for answer in answers)
        assert processor.tokenizer.decode(labels[labels != -100]) == expected


def test_digit_is_one_token(processor):
    assert len(processor.tokenizer.tokenize(" 0 1 2 3 4 5 6 7 8 9")) == 10


def test_patch_labels_are_the_digits_at_their_centres():
    tiles = DigitTiles(8)
    tiles.samples = [PIL.Image.fromarray(np.full((8, 8), 255, np.uint8))] * 3, np.array([3, 5, 7])
    inked = []
    for tile in map(tiles.__getitem__, range(8)):
        centres = tile["pixel_values"][0, PATCH_SIZE // 2 :: PATCH_SIZE, PATCH_SIZE // 2 :: PATCH_SIZE]
        is_digit = (tile["labels"] != BACKGROUND).reshape(centres.shape)
        assert (centres[~is_digit] == 1).all()
        assert set(tile["labels"]) <= {3, 5, 7, BACKGROUND}
        inked += (centres[is_digit] < 0).tolist()
    # The corners of a rotated sample stay white.
    assert len(inked) > 50
    assert np.mean(inked) > 0.8


def test_training_runs_all_steps_once(tmp_path):
    steps = {"vision_steps": 2, "language_steps": 2, "caption_steps": 2, "question_steps": 2, "batch_size": 2}
    arguments = {**steps, "output_dir": tmp_path, "num_workers": 0}
    words = [str(word) for name, value in arguments.items() for word in (f"--{name}", value)]
    train.main(words)
    names = ["vision_tower", "composed", "language", "captions", "questions", "model"]
    models = {name: AutoModelForImageTextToText.from_pretrained(tmp_path / name).state_dict() for name in names[1:]}
    tower = SiglipVisionModel.from_pretrained(tmp_path / "vision_tower").state_dict()
    for name, tensor in models["composed"].items():
        if ".vision_tower." in name:
            assert torch.equal(tensor, tower[name.removeprefix("model.vision_tower.")]), name
        is_decoder = "language_model" in name or "lm_head" in name
        assert is_decoder != torch.equal(tensor, models["language"][name]), name
    assert all(tensor.dtype == torch.bfloat16 for tensor in models["model"].values())
    for name, tensor in models["questions"].items():
        assert torch.equal(tensor.bfloat16(), models["model"][name]), name
    logs = json.loads((tmp_path / "model" / "training_log.json").read_text())
    assert list(logs) == ["vision_tower", "language", "captions", "questions"]
    assert (tmp_path / "model" / "losses.png").read_bytes().startswith(b"\x89PNG")

    # Complete steps are not repeated.
    changed = {
        path: path.stat().st_mtime_ns for name in names[:-1] for path in (tmp_path / name).rglob("*.safetensors")
    }
    train.main(words)
    assert changed == {path: path.stat().st_mtime_ns for path in changed}
