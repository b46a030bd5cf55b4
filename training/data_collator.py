# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Data collator that turns conversations with images into batches with labels."""

import re
from itertools import chain
from typing import Any

import torch
from transformers import ProcessorMixin
from transformers.utils import logging

from ..processing.image_loading import load_image


# As Transformers looks for it.
_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")

logger = logging.get_logger(__name__)


class DataCollatorForJinaVLM:
    """
    Batches rows `{"messages": [...], "images": [...]}`, the format of TRL and of chat data sets on the Hub.

    `images` are PIL images, encoded bytes, paths, URLs or the `{"bytes": ..., "path": ...}` of an undecoded column
    of 🤗 Datasets. They fill the `{"type": "image"}` parts of the messages in order. If all message contents are
    strings, all images are inserted at the beginning of the first user message. `images` may be empty, `None` or
    missing; a column `image` is read in its place. Rows with and without images may share a batch.

    All assistant turns are labels: the tokens inside the `{% generation %}` blocks of the chat template. If the
    template writes nothing after an answer, as the published one, the collator writes the end-of-sequence token there,
    which the model must learn. All other tokens, image tokens among them, have the label -100. Batches are padded
    on the tokenizer's `padding_side`.

    Args:
        processor ([`JinaVLMProcessor`]): a processor whose chat template has `{% generation %}` blocks.
        max_length (`int`, *optional*): maximum sequence length in tokens. Longer sequences are truncated on the
            tokenizer's `truncation_side`. Image tokens are never truncated.
        pad_to_multiple_of (`int`, *optional*): pads the sequence length of every batch to a multiple of this.
        add_blank_tile (`bool`, *optional*, defaults to `True`): adds a tile without image tokens to batches without
            images, so that every process runs the vision tower and the connector in every step. DDP, FSDP and ZeRO-3
            need that, and a single process then takes the same optimizer steps. It changes no loss.
        skip_bad_rows (`bool`, *optional*, defaults to `False`): leaves out rows that would raise an error. Each is
            logged with its error and counted in `num_skipped_rows`, over all workers of a `DataLoader`. A batch
            without any other row is an error, or has no label if `allow_empty_batches` is set.
        packing (`bool`, *optional*, defaults to `False`): puts the rows of a batch into one sequence without padding.
            No row attends to another one, and the loss is that of the padded batch. Saves the computation of padding
            tokens if rows have different lengths.

    Attributes:
        allow_empty_batches (`bool`): whether a batch may have no label because all of its rows are bad. Its loss, a
            mean over none, is not a number, so only a trainer that takes care of it sets this, as [`JinaVLMTrainer`].
        vision_features ([`VisionFeatures`], *optional*): kept features of a frozen vision tower. Batches have them as
            `vision_features` of shape `[tiles, patches, feature_size]` in place of `pixel_values`.

    Returns:
        `dict[str, torch.Tensor]`: `input_ids`, `attention_mask` and `labels` of shape `[batch, sequence]`,
        `pixel_values` of shape `[tiles, 3, height, width]` and `image_token_positions` of shape
        `[tiles, pooled cells]`, concatenated over all images. With `packing`, `input_ids`, `labels` and
        `position_ids` of shape `[1, sequence]`, positions that begin at 0 in each row, no `attention_mask`, and
        `use_cache`, which is `False`.

    Raises:
        ValueError: if the chat template has no `{% generation %}` block; and in a call if a row has not the format
            above, the number of images does not match the number of image parts, an image cannot be read,
            `max_length` would truncate image tokens, or no token of a row is a label. The message names the row. With
            `skip_bad_rows`, if all rows of a batch are bad.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        add_blank_tile: bool = True,
        skip_bad_rows: bool = False,
        packing: bool = False,
    ):
        if not _GENERATION_MARK.search(str(processor.chat_template)):
            raise ValueError(
                "The chat template has no `{% generation %}` block, so no token would be a label. Put the answers of "
                "your template between `{% generation %}` and `{% endgeneration %}`, or use the template of this "
                "package: `processor.chat_template = "
                "jvlm.processing.prompt_format.CHAT_TEMPLATES[processor.image_processor.layout]`."
            )
        self.processor = processor
        self.max_length = max_length
        self.pad_to_multiple_of = pad_to_multiple_of
        self.add_blank_tile = add_blank_tile
        self.skip_bad_rows = skip_bad_rows
        self.packing = packing
        self.allow_empty_batches = False
        self.vision_features: Any = None
        self._answer_end = _missing_end(processor)
        self._num_skipped_rows = torch.zeros(1, dtype=torch.long).share_memory_()  # workers add to it

    @property
    def num_skipped_rows(self) -> int:
        """How many rows `skip_bad_rows` has left out."""
        return int(self._num_skipped_rows)

    def __call__(self, rows: list[dict]) -> dict[str, Any]:
        batch = self._collate_good(rows)
        if self.vision_features is not None and "pixel_values" in batch:
            batch["vision_features"] = self.vision_features.read(batch.pop("pixel_values"))
        return batch

    def _collate_good(self, rows: list[dict]) -> dict[str, Any]:
        try:
            return self._collate(rows)
        except (ValueError, OSError):
            good = []
            for index, row in enumerate(rows):
                try:
                    self._collate([row])
                    good.append(row)
                except (ValueError, OSError) as error:
                    message = f"Row {index} of the batch, {_describe(row)}: {error}"
                    if not self.skip_bad_rows:
                        raise ValueError(message) from error
                    logger.warning(f"Skipped: {message}")
                    self._num_skipped_rows += 1
            if len(good) == len(rows):
                raise
        if not good and not self.allow_empty_batches:
            raise ValueError(
                f"None of the {len(rows)} rows of the batch can be used; a warning above says why for each. The loss "
                "of a batch without labels is not a number. Train with `JinaVLMTrainer`, which gives such a batch no "
                "weight, or with larger batches."
            )
        return self._collate(good) if good else self._batch_without_rows()

    def _collate(self, rows: list[dict]) -> dict[str, Any]:
        conversations = [conversation(row, self.processor.chat_template) for row in rows]
        for message in chain(*conversations):
            if message["role"] == "assistant" and self._answer_end:
                message["content"] = [*message["content"], {"type": "text", "text": self._answer_end}]
        batch = self.processor.apply_chat_template(
            conversations,
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
        # The first token of a row is never predicted.
        has_label = (batch["labels"][:, 1:] != -100).any(dim=1)
        if not has_label.all():
            length = int(batch["attention_mask"][(~has_label).nonzero()[0, 0]].sum())
            is_cut = self.max_length is not None and length >= self.max_length
            raise ValueError(
                f"no token is left to train on, because `max_length` ({self.max_length}) cuts the answers; increase "
                "it, or decrease the `max_crops` of the processor."
                if is_cut
                else "no token is a label, because the chat template writes none inside of a `{% generation %}` block."
            )
        return self._with_blank_tile(self._pack(batch) if self.packing else batch)

    def _pack(self, batch) -> dict:
        """The rows of a padded batch one after the other, in one sequence."""
        is_token = batch.pop("attention_mask").bool()  # [batch, sequence]
        positions = is_token.cumsum(dim=1) - 1
        # The last token of a row must not predict the first one of the next.
        batch["labels"] = batch["labels"].masked_fill(positions == 0, -100)
        packed = {"input_ids": batch["input_ids"], "labels": batch["labels"], "position_ids": positions}
        packed = {name: tensor[is_token] for name, tensor in packed.items()}  # [tokens]
        num_padding = -len(packed["input_ids"]) % (self.pad_to_multiple_of or 1)
        padding = {
            "input_ids": torch.full((num_padding,), self.processor.tokenizer.pad_token_id),
            "labels": torch.full((num_padding,), -100),
            "position_ids": torch.arange(num_padding),  # a row of its own
        }
        packed = {name: torch.cat([tensor, padding[name]])[None] for name, tensor in packed.items()}
        # With a cache, Transformers would not look for rows, and each would attend to those before it.
        return {**batch, **packed, "use_cache": False}

    def _with_blank_tile(self, batch) -> dict[str, Any]:
        if self.add_blank_tile and "pixel_values" not in batch:
            geometry = self.processor.image_processor.geometry()
            batch["pixel_values"] = torch.zeros(1, 3, geometry.tile_size, geometry.tile_size)
            batch["image_token_positions"] = torch.full((1, geometry.cells_per_tile), -1)
        return dict(batch)

    def _batch_without_rows(self) -> dict[str, Any]:
        # The processes of a distributed run wait for each other, so a step cannot be left out.
        input_ids = torch.full((1, 2), self.processor.tokenizer.eos_token_id)
        batch = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        batch["labels"] = torch.full_like(input_ids, -100)
        return self._with_blank_tile(self._pack(batch) if self.packing else batch)


def _missing_end(processor: ProcessorMixin) -> str:
    """The EOS token if the chat template writes nothing after an answer, as the published one: it must be learned."""
    roles = ("user", "assistant")
    messages = [{"role": role, "content": [{"type": "text", "text": role}]} for role in roles]
    text = processor.apply_chat_template(messages)
    return processor.tokenizer.eos_token if text.rstrip().endswith("assistant") else ""


def conversation(row: dict, chat_template: str | dict | None = None) -> list[dict]:
    """
    The messages of a row with its images inserted, in the format of chat templates and pipelines.

    Args:
        row (`dict`): a row as [`DataCollatorForJinaVLM`] takes it.
        chat_template (`str`, *optional*): the template that will write the messages. Tool calls are refused unless
            it mentions them.

    Raises:
        ValueError: if the row has another format, if the number of images does not match the number of image parts,
            or there is no assistant message.
    """
    if not isinstance(row, dict):
        raise ValueError(f"a row must be a dict with `messages`, got {type(row).__name__}.")
    if not isinstance(row.get("messages"), (list, tuple)):
        found = f"its columns are {', '.join(map(str, row)) or 'none'}" if "messages" not in row else "it is no list"
        raise ValueError(f"`messages` must be a list of dicts with `role` and `content`; {found}.")
    messages = [_message(index, message, str(chat_template)) for index, message in enumerate(row["messages"])]
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError('there is no assistant message to train on; add a message with `"role": "assistant"`.')
    images = row.get("image") if row.get("images") is None else row["images"]
    images = [] if images is None else images if isinstance(images, (list, tuple)) else [images]
    images = [load_image(image) for image in images]
    if images and any("<image>" in (part.get("text") or "") for message in messages for part in message["content"]):
        logger.warning_once(
            "A text has '<image>', which stays text. `jvlm.training.formats.RowCollator` puts an image in its place."
        )
    if images and not any(isinstance(message["content"], (list, tuple)) for message in row["messages"]):
        first = next((message for message in messages if message["role"] == "user"), messages[0])
        first["content"] = [{"type": "image"}] * len(images) + first["content"]
    num_parts = sum(part == {"type": "image"} for message in messages for part in message["content"])
    if num_parts != len(images):
        raise ValueError(
            f'there are {num_parts} {{"type": "image"}} parts for {len(images)} images; their numbers must be equal.'
        )
    remaining = iter(images)
    for message in messages:
        message["content"] = [
            {**part, "image": next(remaining)} if part == {"type": "image"} else part for part in message["content"]
        ]
    return messages


def _message(index: int, message: dict, chat_template: str) -> dict:
    """The message with a list of parts as its content, or a `ValueError` that names what it lacks."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        found = f"the keys {', '.join(map(str, message))}" if isinstance(message, dict) else repr(message)[:60]
        raise ValueError(f"`messages[{index}]` must be a dict with a `role` and a `content`, got {found}.")
    content = message.get("content")
    if message.get("tool_calls") and "tool_calls" not in chat_template:
        raise ValueError(
            f"`messages[{index}]` has `tool_calls`, which the chat template does not write; write the calls into its "
            "`content`, or set a template that writes them."
        )
    if content is None and not message.get("tool_calls"):
        raise ValueError(f"`messages[{index}]` has no `content`; give a string or a list of parts.")
    try:
        return {**message, "content": content_parts("" if content is None else content)}
    except ValueError as error:
        raise ValueError(f"`messages[{index}]`: {error}") from error


def content_parts(content: str | list[dict]) -> list[dict]:
    """
    The content of a message as a list of parts, without the `None` values that Arrow tables fill in.

    Raises:
        ValueError: if it is neither a string nor a list of dicts with a `type`, or a text part has no text.
    """
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    is_list = isinstance(content, (list, tuple))
    parts = [
        {key: value for key, value in part.items() if value is not None} if isinstance(part, dict) else part
        for part in (content if is_list else [])
    ]
    wrong = [part for part in parts if not _is_part(part)] if is_list else [content]
    if wrong:
        raise ValueError(
            '`content` must be a string or a list of parts such as {"type": "text", "text": "..."}, got '
            f"{repr(wrong[0])[:60]}."
        )
    return parts


def _is_part(part: Any) -> bool:
    return isinstance(part, dict) and "type" in part and (part["type"] != "text" or isinstance(part.get("text"), str))


def _describe(row: dict) -> str:
    messages = row.get("messages") if isinstance(row, dict) else None
    texts = []
    for message in messages if isinstance(messages, (list, tuple)) else []:
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, (list, tuple)) else [{"text": content}]
        texts += [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    if not texts and isinstance(row, dict):  # of another format
        texts = [value for value in row.values() if isinstance(value, str) and value.strip()][:1]
    return f"which begins with {' '.join(texts).strip()[:60]!r}"
