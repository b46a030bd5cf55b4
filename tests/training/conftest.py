# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""What the tests of training share: rows of conversations, and batches of them."""

import pytest

from jvlm.training import DataCollatorForJinaVLM


@pytest.fixture
def build_row(make_image):
    """A function (number, number of images, turns) to a row; numbers give other images and words."""

    def build(number: int = 0, num_images: int = 1, num_turns: int = 1) -> dict:
        images = [
            make_image(70 + 40 * ((number + i) % 3), 60 + 50 * (number % 2), seed=number + i)
            for i in range(num_images)
        ]
        messages = []
        for turn in range(num_turns):
            # All images but the first are shown in the last turn.
            shown = 0 if not images else (len(images) if num_turns == 1 else 1)
            shown = shown if turn == 0 else (len(images) - 1 if images and turn == num_turns - 1 else 0)
            question = {"type": "text", "text": f"Which image is darker {number} {turn}?"}
            messages.append({"role": "user", "content": [{"type": "image"}] * shown + [question]})
            answer = "The first one" + " is darker" * ((number + turn) % 3) + "."
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return {"messages": messages, "images": images}

    return build


@pytest.fixture
def collate(build_processor):
    """A function (rows, layout, padding side) to a batch."""

    def run(rows, layout: str = "independent", padding_side: str = "left") -> dict:
        processor = build_processor(layout)
        processor.tokenizer.padding_side = padding_side
        return DataCollatorForJinaVLM(processor)(rows)

    return run
