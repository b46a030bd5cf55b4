# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Conversations with images to batches with labels."""

from io import BytesIO

import PIL.Image
import torch
from transformers import ProcessorMixin


class DataCollatorForJinaVLM:
    """
    Batches rows `{"messages": [...], "images": [...]}`, the format of TRL and of chat data sets on the Hub.

    `images` are PIL images, encoded bytes, paths, URLs or the `{"bytes": ..., "path": ...}` of an undecoded column
    of 🤗 Datasets, in the order of the `{"type": "image"}` parts of the messages. Messages whose contents are strings
    get all of them before the first user's words. `images` may be empty, `None` or missing: rows with and without
    images may share a batch.

    Labels stand on what the assistant says, end marks included, in all of its turns: where the chat template has its
    generation marks. Image tokens are never labels. Batches are padded on the tokenizer's `padding_side`.

    Args:
        processor ([`JinaVLMProcessor`]): with a chat template that has generation marks.
        max_length (`int`, *optional*): longest sequence in tokens. Longer ones are truncated on the tokenizer's
            `truncation_side`, image tokens excepted.
        pad_to_multiple_of (`int`, *optional*): what the length of every batch is a multiple of, in tokens.

    Returns:
        `dict[str, torch.Tensor]`: `input_ids`, `attention_mask` and `labels`, `[batch, sequence]`, and, if there is
        any image, `pixel_values`, `[tiles, 3, height, width]`, and `image_token_positions`,
        `[tiles, pooled cells]`, of all images one after the other.

    Raises:
        ValueError: naming the row, if its images and the places for them do not match, an image cannot be read,
            `max_length` would cut the tokens of an image, or there is no turn of the assistant.
    """

    def __init__(
        self, processor: ProcessorMixin, max_length: int | None = None, pad_to_multiple_of: int | None = None
    ):
        self.processor = processor
        self.max_length = max_length
        self.pad_to_multiple_of = pad_to_multiple_of

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        try:
            return self._collate(rows)
        except (ValueError, OSError):
            for index, row in enumerate(rows):
                try:
                    self._collate([row])
                except (ValueError, OSError) as error:
                    raise ValueError(f"Row {index} of the batch, {_describe(row)}: {error}") from error
            raise

    def _collate(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = self.processor.apply_chat_template(
            [conversation(row) for row in rows],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            return_tensors="pt",
            processor_kwargs={
                "padding": True,
                "pad_to_multiple_of": self.pad_to_multiple_of,
                "truncation": self.max_length is not None,
                "max_length": self.max_length,
            },
        )
        is_assistant = torch.as_tensor(batch.pop("assistant_masks")).bool()  # [batch, sequence]
        batch["labels"] = batch["input_ids"].masked_fill(~is_assistant, -100)
        return dict(batch)


def conversation(row: dict) -> list[dict]:
    """
    The messages of a row with its images in their places, as chat templates and pipelines take them.

    Raises:
        ValueError: if images and places do not match, or the assistant says nothing.
    """
    images = row.get("images") or []
    images = [_open(image) for image in (images if isinstance(images, (list, tuple)) else [images])]
    messages = [{**message, "content": content_parts(message["content"])} for message in row["messages"]]
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError("there is no message of the assistant to learn from.")
    if images and all(isinstance(message["content"], str) for message in row["messages"]):
        first = next((message for message in messages if message["role"] == "user"), messages[0])
        first["content"] = [{"type": "image"}] * len(images) + first["content"]
    places = [part for message in messages for part in message["content"] if part == {"type": "image"}]
    if len(places) != len(images):
        raise ValueError(f'there are {len(places)} {{"type": "image"}} parts for {len(images)} images.')
    images = iter(images)
    for message in messages:
        message["content"] = [
            {**part, "image": next(images)} if part == {"type": "image"} else part for part in message["content"]
        ]
    return messages


def content_parts(content: str | list[dict]) -> list[dict]:
    """A message's content as a list of parts, without the `None`s that a table of Arrow fills in."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [{key: value for key, value in part.items() if value is not None} for part in content]


def _open(image):
    if isinstance(image, dict):
        image = image["bytes"] if image.get("bytes") is not None else image["path"]
    return PIL.Image.open(BytesIO(image)) if isinstance(image, bytes) else image


def _describe(row: dict) -> str:
    words = [
        part.get("text") or ""
        for message in row.get("messages") or []
        for part in content_parts(message.get("content") or "")
    ]
    return f"which begins with {' '.join(words).strip()[:60]!r}"
