# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The columns of a row, in all common formats of data sets, as messages and images."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import ClassVar, Self

import PIL.ExifTags
import PIL.Image

from .data_collator import content_parts


# Builders of 🤗 Datasets by file extension. CSV is read as text, so that an answer "007" or "None" stays what it is.
BUILDERS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".tsv": "csv",
    ".tar": "webdataset",
}
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
ROLES = {"human": "user", "gpt": "assistant"}  # names of ShareGPT and LLaVA
IMAGE_COLUMNS = ("images", "image")
_IMAGE_NAME = re.compile("image|img|photo|picture", re.IGNORECASE)


def _list_column(row: dict, column: str) -> list:
    value = row[column]
    if isinstance(value, str):  # tables hold nested columns as JSON, too
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"`{column}` is a string, but not of JSON: {value[:60]!r}.") from error
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"`{column}` must be a list of messages, got {repr(value)[:60]}.")
    return list(value)


def _text_column(row: dict, column: str) -> str:
    value = row[column]
    if isinstance(value, (list, tuple)) and value:
        value = value[0]  # the first of several reference answers
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"`{column}` must be a text, got {repr(value)[:60]}.")
    return value


def _from_messages(row: dict) -> list[dict]:
    return _list_column(row, "messages")


def _from_conversations(row: dict) -> list[dict]:
    messages = []
    for turn in _list_column(row, "conversations"):
        role, content = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if not isinstance(role, str) or content is None:
            raise ValueError(f"`conversations` must have turns with `from` and `value`, got {repr(turn)[:60]}.")
        messages.append({"role": ROLES.get(role, role), "content": content})
    return messages


def _from_texts(row: dict) -> list[dict]:
    messages = []
    for turn in _list_column(row, "texts"):
        if not isinstance(turn, dict) or not {"user", "assistant"} <= turn.keys():
            raise ValueError(f"`texts` must have turns with `user` and `assistant`, got {repr(turn)[:60]}.")
        messages.append({"role": "user", "content": turn["user"]})
        messages.append({"role": "assistant", "content": turn["assistant"]})
    return messages


def _from_prompt(row: dict) -> list[dict]:
    messages: list[dict] = []
    for column, role in (("prompt", "user"), ("completion", "assistant")):
        is_text = isinstance(row[column], str)
        messages += [{"role": role, "content": row[column]}] if is_text else _list_column(row, column)
    return messages


def _from_question(row: dict) -> list[dict]:
    answer = "answer" if row.get("answer") is not None or "answers" not in row else "answers"
    return [
        {"role": "user", "content": _text_column(row, "question")},
        {"role": "assistant", "content": _text_column(row, answer)},
    ]


# By name: the columns that tell a format, and the function that makes messages of them. The first that fits is taken.
FORMATS: dict[str, tuple[tuple[str, ...], Callable[[dict], list[dict]]]] = {
    "messages": (("messages",), _from_messages),
    "conversations": (("conversations",), _from_conversations),
    "texts": (("texts",), _from_texts),
    "prompt/completion": (("prompt", "completion"), _from_prompt),
    "question/answer": (("question", "answer"), _from_question),
    "question/answers": (("question", "answers"), _from_question),
}
TARGETS = tuple(dict.fromkeys([column for columns, _ in FORMATS.values() for column in columns] + [*IMAGE_COLUMNS]))


@dataclass
class RowFormat:
    """
    Turns a row of any known format into `{"messages": [...], "images": [...]}`, the row of [`DataCollatorForJinaVLM`].

    Args:
        columns (`dict[str, str]`, *optional*): names of columns by what they mean, such as
            `{"question": "query", "image": "page"}`. Text comes from the named columns only.
        question (`str`, *optional*): the question of every row of a data set that has answers only, such as captions.
        image_marker (`str`, *optional*, defaults to `"<image>"`): what marks the place of an image in a text. The line
            breaks beside it are dropped. With an empty string, texts have no markers.
        image_folder (`str`, *optional*): where relative paths of images begin.
        name (`str`, *optional*): the data set, for error messages.
        text_only (`bool`, *optional*, defaults to `False`): refuses rows with images.

    Raises:
        ValueError: if a name in `columns` is unknown. A call raises it if the row has no known format, lacks a text,
            or its markers and `{"type": "image"}` parts do not fit its images.
    """

    columns: dict[str, str] = field(default_factory=dict)
    question: str | None = None
    image_marker: str = "<image>"
    image_folder: str | None = None
    name: str = "the data set"
    text_only: bool = False

    formats: ClassVar = FORMATS
    # Names of options in error messages.
    columns_option: ClassVar = "--dataset_columns"
    image_folder_option: ClassVar = "--image_folder"
    image_marker_option: ClassVar = "--image_marker"

    def __post_init__(self):
        if unknown := sorted(set(self.columns) - set(TARGETS)):
            raise ValueError(f"Columns can be mapped to {', '.join(TARGETS)}, not to {unknown[0]!r}.")

    @classmethod
    def of(cls, path: str, image_folder: str | None = None, **kwargs) -> Self:
        """The format of the rows of `path`; relative paths of images begin in its folder if it is local."""
        local = Path(path)
        if image_folder is None and local.parent.is_dir() and not is_hub_id(path):
            image_folder = str(local if local.is_dir() else local.parent)
        return cls(image_folder=image_folder, **{"name": path, **kwargs})

    def __call__(self, row: dict) -> dict:
        given, row = row, self._named_columns(row)
        messages = [
            {key: value for key, value in message.items() if value is not None or key == "content"}
            if isinstance(message, dict)
            else message
            for message in self.formats[self._detect(row)][1](row)
        ]
        images = self._images(row)
        if images and self.text_only:
            raise ValueError(f"{self.name} is `text_only`, but has a row with images.")
        messages = self._place_images(messages, len(images))
        if not (images or self.text_only or _has_image(messages)):
            self._check_unread_columns(given)
        return {"messages": messages, "images": images}

    def _check_unread_columns(self, row: dict) -> None:
        """Raises a `ValueError` if a row without images has a column that may hold one."""
        for column, value in row.items():
            is_read = column in self.columns.values() or column in TARGETS
            if (
                not is_read
                and _IMAGE_NAME.search(column)
                and not (_is_empty(value) or isinstance(value, (int, float)))
            ):
                raise ValueError(
                    f"The row has no images, but a column {column!r}, which is not read. If it holds the image, use "
                    f"{self.columns_option} image={column}, otherwise remove it."
                )

    def detect(self, row: dict) -> str:
        """The name of the format of a row, a key of `FORMATS`. Raises a `ValueError` that lists what was found."""
        return self._detect(self._named_columns(row))

    def _detect(self, row: dict) -> str:
        for name, (columns, _) in self.formats.items():
            if all(column in row for column in columns):
                return name
        found = ", ".join(f"{column!r} ({type(value).__name__})" for column, value in row.items()) or "none"
        known = "; ".join(" + ".join(columns) for columns, _ in self.formats.values())
        raise ValueError(
            f"The columns of {self.name} are {found}. Known are {known}, each with `image` or `images`. Map your "
            "columns to these names, such as --dataset_columns question=query answer=label, or answer=caption with "
            "--dataset_question 'Describe the image.'"
        )

    def _named_columns(self, row: dict) -> dict:
        if "__key__" in row and "__url__" in row:
            row = _from_webdataset(row)
        if missing := sorted(set(self.columns.values()) - row.keys()):
            raise ValueError(f"{self.name} has no column {missing[0]!r}; its columns are {', '.join(row)}.")
        if set(self.columns) - set(IMAGE_COLUMNS):
            kept = {column: row[column] for column in IMAGE_COLUMNS if column in row}
        else:
            kept = row
        if set(self.columns) & set(IMAGE_COLUMNS):
            kept = {column: value for column, value in kept.items() if column not in IMAGE_COLUMNS}
        row = {**kept, **{target: row[column] for target, column in self.columns.items()}}
        if self.question is not None:
            if "question" in row:
                raise ValueError(f"{self.name} has a column `question`, so it takes no question for all rows.")
            row["question"] = self.question
        return row

    def _images(self, row: dict) -> list:
        found = [column for column in IMAGE_COLUMNS if column in row and not _is_empty(row[column])]
        if len(found) > 1:
            raise ValueError("The row has `image` and `images`; map one of them, such as images=images.")
        images = row[found[0]] if found else []
        images = images if isinstance(images, (list, tuple)) else [images]
        return [self._resolve(image) for image in images]

    def _resolve(self, image):
        if isinstance(image, dict) and image.get("bytes") is None:
            if image.get("path") is None:
                raise ValueError(f"An image must have `bytes` or a `path`, got {repr(image)[:60]}.")
            image = image["path"]
        if not isinstance(image, str) or re.match(r"(https?://|data:)", image):
            return image
        path = Path(self.image_folder or "") / image
        if path.is_file():
            return str(path)
        if len(image) < 256 and Path(image).suffix:  # not an image in base64
            raise ValueError(
                f"There is no image {str(path)!r}; {self.image_folder_option} names where relative paths begin."
            )
        return image

    def _place_images(self, messages: list[dict], num_images: int) -> list[dict]:
        """Contents as lists of parts, with one `{"type": "image"}` for each image of the row."""
        contents = [message.get("content") for message in messages if isinstance(message, dict)]
        if len(contents) < len(messages):
            raise ValueError(f"Messages must be dicts with `role` and `content`, got {repr(messages)[:60]}.")
        all_text = all(isinstance(content, str) for content in contents if content is not None)
        parts = [self._parts(content) for content in contents]
        num_markers = sum(part.get("text", "").count(self.image_marker) for of_one in parts for part in of_one or [])
        num_markers = num_markers if self.image_marker else 0
        num_parts = sum(part == {"type": "image"} for of_one in parts for part in of_one or [])
        if num_markers and num_parts:
            raise ValueError(
                f'The texts have {num_markers} {self.image_marker!r} beside {num_parts} {{"type": "image"}} parts; '
                f"drop one of the two. {self.image_marker_option} '' takes the markers as text."
            )
        if num_markers:
            parts = [of_one and self._split(of_one) for of_one in parts]
        elif num_images and all_text:
            users = [i for i, message in enumerate(messages) if message.get("role") == "user" and parts[i]]
            first = users[0] if users else 0
            parts[first] = [{"type": "image"}] * num_images + (parts[first] or [])
            num_parts = num_images
        if num_markers + num_parts != num_images:
            kind = repr(self.image_marker) if num_markers else '{"type": "image"} parts'
            raise ValueError(
                f"The messages have {num_markers + num_parts} {kind} for {num_images} images; their numbers must be "
                "equal." + (f" {self.image_marker_option} '' takes the markers as text." if num_markers else "")
            )
        return [
            message if of_one is None else {**message, "content": of_one}
            for message, of_one in zip(messages, parts, strict=True)
        ]

    def _parts(self, content) -> list[dict] | None:
        if content is None:  # of a message with tool calls
            return None
        parts = content_parts(content)
        for part in parts:
            for key in ("image", "path"):
                if key in part:
                    part[key] = self._resolve(part[key])
        return parts

    def _split(self, parts: list[dict]) -> list[dict]:
        """Text parts with markers as texts and image parts in turn."""
        split = []
        for part in parts:
            if part.get("type") != "text":
                split.append(part)
                continue
            texts = re.split(rf"\n?{re.escape(self.image_marker)}\n?", part["text"])
            for index, text in enumerate(texts):
                split += [{"type": "image"}] * (index > 0) + [{"type": "text", "text": text}] * bool(text)
        return split


def _has_image(messages: list[dict]) -> bool:
    return any(part.get("type") != "text" for message in messages for part in message.get("content") or [])


def _is_empty(images) -> bool:
    return images is None or (isinstance(images, (str, list, tuple)) and len(images) == 0)


def _from_webdataset(row: dict) -> dict:
    """The columns of a sample of a tar: its images, the keys of its JSON file, and its `.txt` file as `text`."""
    extensions = PIL.Image.registered_extensions()
    images = [v for k, v in row.items() if f".{k.rsplit('.', 1)[-1].lower()}" in extensions and v is not None]
    columns = row.get("json")
    columns = columns if isinstance(columns, dict) else {} if columns is None else {"conversations": columns}
    if images:  # the paths in the JSON file are those of files before they were packed
        columns = {key: value for key, value in columns.items() if key not in IMAGE_COLUMNS} | {"images": images}
    return columns if row.get("txt") is None else {**columns, "text": row["txt"]}


def image_size(image) -> tuple[int, int]:
    """Height and width as the model sees them; reads the head of the file only."""
    if isinstance(image, PIL.Image.Image):
        return image.height, image.width
    image = image["bytes"] if isinstance(image, dict) else image
    with PIL.Image.open(BytesIO(image) if isinstance(image, bytes) else image) as opened:
        # The method of PNG files would decode the image.
        orientation = PIL.Image.Image.getexif(opened).get(PIL.ExifTags.Base.Orientation, 1)
        is_turned = orientation >= 5  # by a quarter, which swaps the sides
        return (opened.width, opened.height) if is_turned else (opened.height, opened.width)


def is_hub_id(name: str) -> bool:
    """Whether a name can only be that of a repository on the Hub, and of no file or folder."""
    path = Path(name)
    is_id = len(path.parts) <= 2 and not path.is_absolute() and not path.exists() and not builder(path)
    return is_id and not name.startswith(".") and not any(character in name for character in "*?[")


def builder(path: Path) -> str | None:
    """The builder of 🤗 Datasets for a file, by its extension; `None` if there is none."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSIONS]
    return BUILDERS.get(suffixes[-1]) if suffixes else None


__all__ = [
    "BUILDERS",
    "COMPRESSIONS",
    "FORMATS",
    "IMAGE_COLUMNS",
    "TARGETS",
    "RowFormat",
    "builder",
    "image_size",
    "is_hub_id",
]
