# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Data collator that turns conversations with images into batches with labels."""

from io import BytesIO

import PIL.Image
import torch
from transformers import ProcessorMixin


class DataCollatorForJinaVLM:
    """
    Batches rows `{"messages": [...], "images": [...]}`, the format of TRL and of chat data sets on the Hub.

    `images` are PIL images, encoded bytes, paths, URLs or the `{"bytes": ..., "path": ...}` of an undecoded column
    of 🤗 Datasets. They fill the `{"type": "image"}` parts of the messages in order. If all message contents are
    strings, all images are inserted at the beginning of the first user message. `images` may be empty, `None` or
    missing. Rows with and without images may share a batch.

    All assistant turns are labels, including the end-of-sequence tokens: the tokens inside the `{% generation %}`
    blocks of the chat template. All other tokens, image tokens among them, have the label -100. Batches are padded
    on the tokenizer's `padding_side`.

    Args:
        processor ([`JinaVLMProcessor`]): a processor whose chat template has `{% generation %}` blocks.
        max_length (`int`, *optional*): maximum sequence length in tokens. Longer sequences are truncated on the
            tokenizer's `truncation_side`. Image tokens are never truncated.
        pad_to_multiple_of (`int`, *optional*): pads the sequence length of every batch to a multiple of this.
        add_blank_tile (`bool`, *optional*, defaults to `True`): adds a tile without image tokens to batches without
            images, so that every process runs the vision tower and the connector in every step. DDP, FSDP and ZeRO-3
            need that, and a single process then takes the same optimizer steps. It changes no loss.

    Returns:
        `dict[str, torch.Tensor]`: `input_ids`, `attention_mask` and `labels` of shape `[batch, sequence]`,
        `pixel_values` of shape `[tiles, 3, height, width]` and `image_token_positions` of shape
        `[tiles, pooled cells]`, concatenated over all images.

    Raises:
        ValueError: if the number of images does not match the number of image parts, an image cannot be read,
            `max_length` would truncate image tokens, or a row has no assistant message. The message names the row.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        add_blank_tile: bool = True,
    ):
        self.processor = processor
        self.max_length = max_length
        self.pad_to_multiple_of = pad_to_multiple_of
        self.add_blank_tile = add_blank_tile

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
        if self.add_blank_tile and "pixel_values" not in batch:
            geometry = self.processor.image_processor.geometry()
            batch["pixel_values"] = torch.zeros(1, 3, geometry.tile_size, geometry.tile_size)
            batch["image_token_positions"] = torch.full((1, geometry.cells_per_tile), -1)
        return dict(batch)


def conversation(row: dict) -> list[dict]:
    """
    The messages of a row with its images inserted, in the format of chat templates and pipelines.

    Raises:
        ValueError: if the number of images does not match the number of image parts, or there is no assistant
            message.
    """
    images = row.get("images") or []
    images = [_open(image) for image in (images if isinstance(images, (list, tuple)) else [images])]
    messages = [{**message, "content": content_parts(message["content"])} for message in row["messages"]]
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError('there is no assistant message to train on; add a message with `"role": "assistant"`.')
    if images and all(isinstance(message["content"], str) for message in row["messages"]):
        first = next((message for message in messages if message["role"] == "user"), messages[0])
        first["content"] = [{"type": "image"}] * len(images) + first["content"]
    num_parts = sum(part == {"type": "image"} for message in messages for part in message["content"])
    if num_parts != len(images):
        raise ValueError(
            f'there are {num_parts} {{"type": "image"}} parts for {len(images)} images; their numbers must be equal.'
        )
    images = iter(images)
    for message in messages:
        message["content"] = [
            {**part, "image": next(images)} if part == {"type": "image"} else part for part in message["content"]
        ]
    return messages


def content_parts(content: str | list[dict]) -> list[dict]:
    """The content of a message as a list of parts, without the `None` values that Arrow tables fill in."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [{key: value for key, value in part.items() if value is not None} for part in content]


def _open(image):
    if isinstance(image, dict):
        image = image["bytes"] if image.get("bytes") is not None else image["path"]
    return PIL.Image.open(BytesIO(image)) if isinstance(image, bytes) else image


def _describe(row: dict) -> str:
    texts = [
        part.get("text") or ""
        for message in row.get("messages") or []
        for part in content_parts(message.get("content") or "")
    ]
    return f"which begins with {' '.join(texts).strip()[:60]!r}"
