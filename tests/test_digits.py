# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The digit pages and the training script of the small model."""

import json
import math

import numpy as np
import PIL.Image
import pytest
import torch
from skimage.measure import label, regionprops
from transformers import AutoModelForImageTextToText, AutoProcessor

from examples.digits import train
from examples.digits.pages import (
    COUNT,
    GRIDS,
    LARGEST,
    MAX_DIGITS,
    NUM_HELD_OUT,
    QUESTIONS,
    READ,
    DigitPages,
    Page,
    draw_page,
    held_out_pages,
    load_samples,
)


@pytest.fixture(scope="module")
def processor():
    return train.build_processor()


def ink_coded_samples():
    """Two samples whose ink tells the digit: a block, its right half as dark as its left one (1) or fainter (0)."""
    samples = []
    for digit in (0, 1):
        ink = np.zeros((8, 8), np.uint8)
        ink[2:6, 2:4], ink[2:6, 4:6] = 255, (90, 255)[digit]
        samples.append(PIL.Image.fromarray(ink))
    return samples, np.arange(2)


def read_ink(image: PIL.Image.Image) -> list[int]:
    """Digits of a page of `ink_coded_samples`, line by line from left to right, read off its pixels."""
    ink = 255.0 - np.asarray(image.convert("L"))
    found = []
    for region in regionprops(label(ink > 20)):
        top, left, bottom, right = region.bbox
        row = ink[(top + bottom) // 2, left:right]
        found.append(((top + bottom) / 2, left, int(row[int(len(row) * 0.75)] > 0.7 * row[int(len(row) * 0.25)])))
    found.sort()
    lines = [[]]
    for index, (centre, left, digit) in enumerate(found):
        if index and centre - found[index - 1][0] > 9:  # digits of a line stand closer together than lines do
            lines.append([])
        lines[-1].append((left, digit))
    return [digit for line in lines for _, digit in sorted(line)]


def test_digits_are_told_in_reading_order():
    for seed in range(60):
        page = draw_page(ink_coded_samples(), np.random.default_rng(seed), GRIDS[seed % 12], MAX_DIGITS, augment=False)
        assert page.digits == read_ink(page.image)


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_every_page_gives_its_grid(processor, grid, augment):
    samples = load_samples("train")
    for seed in range(8):
        page = draw_page(samples, np.random.default_rng(seed), grid, 1 + seed % MAX_DIGITS, augment)
        assert processor.image_processor.get_image_grid(page.image.height, page.image.width) == page.grid == grid
        assert 1 <= len(page.digits) <= 1 + seed % MAX_DIGITS


def test_held_out_pages_are_always_the_same_and_over_all_grids():
    first, second = held_out_pages(24), held_out_pages(24)
    assert [page.image.tobytes() for page in first] == [page.image.tobytes() for page in second]
    assert [page.digits for page in first] == [page.digits for page in second]
    assert [page.grid for page in first] == GRIDS * 2
    other = held_out_pages(24, seed=2)
    assert [page.image.tobytes() for page in first] != [page.image.tobytes() for page in other]
    assert {len(page.digits) for page in held_out_pages(72)} == set(range(1, MAX_DIGITS + 1))


def test_no_held_out_sample_is_trained_on():
    (images, labels), (held_out, held_out_labels) = load_samples("train"), load_samples("test")
    trained = {image.tobytes() for image in images}
    assert not any(image.tobytes() in trained for image in held_out)
    assert len(held_out) == len(held_out_labels) == NUM_HELD_OUT
    assert len(images) == len(labels) > 3 * NUM_HELD_OUT
    assert {image.tobytes() for image in DigitPages(8, 4).samples[0]} == trained


def test_answers_are_right():
    page = Page(PIL.Image.new("RGB", (50, 50)), [3, 1, 9, 2], (1, 1))
    answers = {question: page.answer(question) for question in QUESTIONS}
    assert answers == {
        READ: "3 1 9 2",
        COUNT: "4",
        LARGEST: "9",
        "Which digit is at the top left?": "3",
        "Which digit is at the bottom right?": "2",
    }


def test_training_rows_are_always_the_same_and_share_a_grid_in_a_batch(processor):
    rows, again = DigitPages(400, 4), DigitPages(400, 4)
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
    assert rows[0]["images"][0].tobytes() != DigitPages(400, 4, seed=1)[0]["images"][0].tobytes()


def test_labels_are_the_answers_and_their_end_marks(processor):
    rows = [DigitPages(64, 4)[index] for index in (0, 20, 63)]
    batch = train.Collator(processor)(rows)
    assert set(batch) == {
        "input_ids",
        "attention_mask",
        "labels",
        "pixel_values",
        "image_token_positions",
    }
    for row, input_ids, labels in zip(rows, batch["input_ids"], batch["labels"], strict=True):
        answers = [
            part["text"]
            for message in row["messages"]
            if message["role"] == "assistant"
            for part in message["content"]
        ]
        assert len(answers) == 3
        expected = "".join(f" {answer}{train.END_OF_TEXT}" for answer in answers)
        assert processor.tokenizer.decode(labels[labels != -100]) == expected
        assert (input_ids == labels)[labels != -100].all()
        assert (labels != processor.image_token_id).all()


def test_a_digit_is_one_token(processor):
    assert len(processor.tokenizer.tokenize(" 0 1 2 3 4 5 6 7 8 9")) == 10


def test_the_model_goes_with_the_processor(processor):
    model = train.build_model(processor)
    assert model.config.text_config.vocab_size >= len(processor.tokenizer)
    inputs = train.Collator(processor)([DigitPages(8, 4)[7]])
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).loss)


def test_two_training_steps_leave_a_model_that_loads(tmp_path):
    arguments = {
        "output_dir": tmp_path,
        "max_steps": 2,
        "save_steps": 2,
        "logging_steps": 1,
        "warmup_steps": 0,
        "vision_steps": 2,
        "per_device_train_batch_size": 2,
        "dataloader_num_workers": 0,
    }
    train.main([word for name, value in arguments.items() for word in (f"--{name}", str(value))] + ["--use_cpu"])
    log = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    assert losses[0] > 1  # an untrained model does not know the answers
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    before = train.build_model(AutoProcessor.from_pretrained(tmp_path))
    assert model.num_parameters() == before.num_parameters()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
