# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Fixtures of the training tests: rows of conversations, batches of them and training arguments."""

import os

import pytest

from jvlm.training import DataCollatorForJinaVLM, JinaVLMTrainingArguments


@pytest.fixture(autouse=True, scope="module")
def no_folder_is_left():
    """`Trainer` makes its output folder in the current one, unless a test names another."""
    before = set(os.listdir())
    yield
    assert not {"trainer_output", "tmp_trainer"} & (set(os.listdir()) - before)


@pytest.fixture
def build_row(make_image):
    """A function (number, number of images, number of turns) that builds a row. The number varies images and texts."""

    def build(number: int = 0, num_images: int = 1, num_turns: int = 1) -> dict:
        images = [
            make_image(70 + 40 * ((number + i) % 3), 60 + 50 * (number % 2), seed=number + i)
            for i in range(num_images)
        ]
        # The first image is in the first turn, all others are in the last one.
        counts = [0] * num_turns
        if images:
            counts[0] += 1
            counts[-1] += num_images - 1
        messages = []
        for turn, count in enumerate(counts):
            question = {"type": "text", "text": f"Which image is darker {number} {turn}?"}
            messages.append({"role": "user", "content": [{"type": "image"}] * count + [question]})
            answer = "The first one" + " is darker" * ((number + turn) % 3) + "."
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return {"messages": messages, "images": images}

    return build


@pytest.fixture
def collate(build_processor):
    """A function (rows, layout, padding side) that builds a batch."""

    def run(rows, layout: str = "independent", padding_side: str = "left") -> dict:
        processor = build_processor(layout)
        processor.tokenizer.padding_side = padding_side
        return DataCollatorForJinaVLM(processor)(rows)

    return run


@pytest.fixture
def row_features():
    """The column types of a data set of rows with decoded images."""
    from datasets import Features, Image, Value

    part = {"type": Value("string"), "text": Value("string")}
    return Features({"messages": [{"role": Value("string"), "content": [part]}], "images": [Image()]})


@pytest.fixture
def training_arguments(tmp_path):
    """A function (**settings) that builds training arguments for four short steps on the CPU."""

    def build(**settings) -> JinaVLMTrainingArguments:
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        return JinaVLMTrainingArguments(**{**defaults, **settings})

    return build
