# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Formats of fine-tuning data: files and columns as they are found, read as rows for [`DataCollatorForJinaVLM`]."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from glob import glob
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import PIL.ExifTags
import PIL.Image
from datasets import (
    Dataset,
    Features,
    Image,
    IterableDataset,
    ReadInstruction,
    Value,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)
from datasets.data_files import NON_WORDS_CHARS, SPLIT_KEYWORDS
from transformers import ProcessorMixin
from transformers.utils import logging

from .data_collator import DataCollatorForJinaVLM, content_parts


logger = logging.get_logger(__name__)
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
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # beside the images of an ImageFolder
ROLES = {"human": "user", "gpt": "assistant"}  # names of ShareGPT and LLaVA
IMAGE_COLUMNS = ("images", "image")
_IMAGE_NAME = re.compile("image|img|photo|picture", re.IGNORECASE)
# A feature of 🤗 Datasets for strings beside other values. Parts of a message may be objects with different keys.
_MIXED = re.compile(r"^Json\(|'(content|value|user|assistant)': Json\(")
DATA_SET = "__data_set__"  # the column that names the data set of a row, where there are several


# Columns to messages


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

    def __post_init__(self):
        if unknown := sorted(set(self.columns) - set(TARGETS)):
            raise ValueError(f"Columns can be mapped to {', '.join(TARGETS)}, not to {unknown[0]!r}.")

    @classmethod
    def of(cls, path: str, image_folder: str | None = None, **kwargs) -> "RowFormat":
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
            for message in FORMATS[self._detect(row)][1](row)
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
                    f"--dataset_columns image={column}, otherwise remove it."
                )

    def detect(self, row: dict) -> str:
        """The name of the format of a row, a key of `FORMATS`. Raises a `ValueError` that lists what was found."""
        return self._detect(self._named_columns(row))

    def _detect(self, row: dict) -> str:
        for name, (columns, _) in FORMATS.items():
            if all(column in row for column in columns):
                return name
        found = ", ".join(f"{column!r} ({type(value).__name__})" for column, value in row.items()) or "none"
        known = "; ".join(" + ".join(columns) for columns, _ in FORMATS.values())
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
            image = image.get("path")
        if not isinstance(image, str) or re.match(r"(https?://|data:)", image):
            return image
        path = Path(self.image_folder or "") / image
        if path.is_file():
            return str(path)
        if len(image) < 256 and Path(image).suffix:  # not an image in base64
            raise ValueError(f"There is no image {str(path)!r}; --image_folder names where relative paths begin.")
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
                "drop one of the two. --image_marker '' takes the markers as text."
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
                "equal." + (" --image_marker '' takes the markers as text." if num_markers else "")
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


class RowCollator(DataCollatorForJinaVLM):
    """
    [`DataCollatorForJinaVLM`] for rows of any known format.

    Args:
        processor ([`JinaVLMProcessor`]): see [`DataCollatorForJinaVLM`], as are further keyword arguments.
        formats (`RowFormat` or `dict[str | None, RowFormat]`): the format of all rows, or the formats by the name of
            the data set that a row has in its column `__data_set__`, `None` for rows without this column.
    """

    def __init__(self, processor: ProcessorMixin, formats: RowFormat | dict[str | None, RowFormat], **kwargs: Any):
        super().__init__(processor, **kwargs)
        self.formats = formats if isinstance(formats, dict) else {None: formats}

    def standard_row(self, row: dict) -> dict:
        """The row as `{"messages": [...], "images": [...]}`."""
        return self.formats[row.get(DATA_SET)](row)

    def _collate(self, rows: list[dict]) -> dict:
        return super()._collate([self.standard_row(row) for row in rows])

    def length(self, row: dict) -> int:
        """The length of a row in tokens, without decoding its images; 0 for a row that [`__call__`] refuses."""
        try:
            row = self.standard_row(row)
            sizes = [_image_size(image) for image in row["images"]]
            text = self.processor.apply_chat_template(row["messages"], tokenize=False)
            num_answers = sum(message["role"] == "assistant" for message in row["messages"])
        except (ValueError, OSError):
            return 0
        num_image_tokens = self.processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]
        num_text_tokens = len(self.processor.tokenizer(text)["input_ids"]) + self.processor.add_bos_token
        num_text_tokens += num_answers * bool(self._answer_end)  # one EOS token each
        length = num_text_tokens - len(sizes) + sum(num_image_tokens)
        return length if self.max_length is None else min(length, self.max_length)


def _image_size(image) -> tuple[int, int]:
    """Height and width as the model sees them; reads the head of the file only."""
    if isinstance(image, PIL.Image.Image):
        return image.height, image.width
    image = image["bytes"] if isinstance(image, dict) else image
    with PIL.Image.open(BytesIO(image) if isinstance(image, bytes) else image) as opened:
        # The method of PNG files would decode the image.
        orientation = PIL.Image.Image.getexif(opened).get(PIL.ExifTags.Base.Orientation, 1)
        is_turned = orientation >= 5  # by a quarter, which swaps the sides
        return (opened.width, opened.height) if is_turned else (opened.height, opened.width)


# Files to rows


def load_rows(
    name: str, split: str = "train", config: str | None = None, streaming: bool = False
) -> Dataset | IterableDataset:
    """
    Loads the rows of a data set as they are, with undecoded images.

    Args:
        name (`str`): a JSON, JSONL, CSV, TSV, Parquet, Arrow or WebDataset tar file, also compressed; a glob of such
            files; a folder of them, one or more for each split by their names; an ImageFolder with `metadata.jsonl`;
            a folder written by `save_to_disk`; or a Hub id.
        split (`str`): `train`, `test` and so on, or a slice such as `train[:90%]`. A single file is the split `train`.
        config (`str`, *optional*): the configuration of a data set of the Hub.
        streaming (`bool`): whether to read the rows as a stream.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if a folder has no data files or those of several types, or there is no such split.
    """
    path = Path(name)
    if any((path / file).is_file() for file in ("state.json", "dataset_dict.json")):
        saved = load_from_disk(name)
        splits = saved if isinstance(saved, dict) else {"train": saved}
        _check_split(name, split, splits)
        rows = concatenate_datasets(
            [splits[key].select(_range(part, len(splits[key]))) for key, part in _parts(split)]
        )
        rows = rows.to_iterable_dataset() if streaming else rows
    else:
        options = _local_files(name, split) or {"path": name, "name": config}
        rows = load_dataset(**options, split=split, streaming=streaming)
    for column, feature in (rows.features or {}).items():
        if column in TARGETS and _MIXED.search(str(feature)):
            logger.warning_once(
                f"The column `{column}` of {name} has strings beside lists or objects. 🤗 Datasets reads its strings "
                'as JSON: "007" becomes the number 7, and quotes around a text are lost. Write all of them as lists '
                "of parts."
            )
        # The collator decodes the images, in the workers of the DataLoader.
        if isinstance(feature, Image):
            rows = rows.cast_column(column, Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), Image):
            rows = rows.cast_column(column, type(feature)(Image(decode=False)))
    return rows


def is_hub_id(name: str) -> bool:
    """Whether a name can only be that of a repository on the Hub, and of no file or folder."""
    path = Path(name)
    is_id = len(path.parts) <= 2 and not path.is_absolute() and not path.exists() and not _builder(path)
    return is_id and not name.startswith(".") and not any(character in name for character in "*?[")


def _local_files(name: str, split: str) -> dict | None:
    """The arguments of `load_dataset` for local files, which are told by their extensions; `None` for a Hub id."""
    path = Path(name)
    if is_hub_id(name):
        return None
    if path.is_dir():
        return _folder(path, split)
    files = [path] if path.is_file() else sorted(path.parent.glob(path.name))
    if not files:
        raise FileNotFoundError(f"There is no file or folder {name!r}.")
    _check_split(name, split, ["train"])
    return _file_options(name, {"train": files})


def _builder(path: Path) -> str | None:
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSIONS]
    return BUILDERS.get(suffixes[-1]) if suffixes else None


def _folder(path: Path, split: str) -> dict:
    images = sorted({file.parent for name in METADATA for file in path.rglob(name)})
    if images:
        # `load_dataset` would take an image called train-1.png for a split, so the files are given to it.
        splits = {_split_of(folder.relative_to(path)): str(folder / "**") for folder in images}
        _check_split(str(path), split, splits)
        return {"path": "imagefolder", "data_files": splits, "drop_labels": True}
    files = sorted(file for file in path.rglob("*") if file.is_file() and _builder(file))
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of(file.relative_to(path)), []).append(file)
    if not files:
        raise ValueError(
            f"{path} has no data files. Known are {', '.join(BUILDERS)}, also compressed, and images with one of "
            f"{', '.join(METADATA)}."
        )
    _check_split(str(path), split, by_split)
    return _file_options(str(path), by_split)


def _file_options(name: str, splits: dict[str, list[Path]]) -> dict:
    files = [file for of_split in splits.values() for file in of_split]
    builders = {_builder(file) for file in files}
    if len(builders) > 1 or None in builders:
        found = ", ".join(file.name for file in files[:5])
        raise ValueError(
            f"{name} has files of several or of unknown types: {found}. Name those to read, such as 'folder/*.jsonl'; "
            f"known are {', '.join(BUILDERS)}, also compressed."
        )
    options: dict[str, Any] = {
        "path": builders.pop(),
        "data_files": {key: [*map(str, paths)] for key, paths in splits.items()},
    }
    if options["path"] == "csv":
        separator = "\t" if ".tsv" in files[0].suffixes else ","
        columns = pd.read_csv(files[0], sep=separator, nrows=0).columns
        options.update(sep=separator, keep_default_na=False, features=Features({c: Value("string") for c in columns}))
    return options


def _split_of(path: Path) -> str:
    """The split that the name of a file or folder tells, as 🤗 Datasets reads names; `train` if it tells none."""
    for split, keywords in SPLIT_KEYWORDS.items():
        pattern = rf"(^|[{NON_WORDS_CHARS}/])({'|'.join(keywords)})($|[{NON_WORDS_CHARS}/])"
        if re.search(pattern, path.as_posix()):
            return str(split)
    return "train"


def _check_split(name: str, split: str, splits) -> None:
    if any(key not in splits for key, _ in _parts(split)):
        raise ValueError(
            f"{name} has no split {split!r}, but {', '.join(map(repr, splits))}. To hold rows out, use "
            "--dataset_train_split 'train[:90%]' --dataset_test_split 'train[90%:]', or name another file with "
            "--dataset_test_name."
        )


def _parts(split: str) -> list[tuple[str, str]]:
    """The parts that a split such as `train[:90%]+dev` adds up: the name of each, and the part as it is written."""
    return [(part.split("[")[0].strip(), part.strip()) for part in split.split("+")]


def _range(part: str, num_rows: int) -> range:
    """The rows of a part of a split, given the number of rows of the whole split."""
    name = part.split("[")[0]
    (instruction,) = ReadInstruction.from_spec(part).to_absolute({name: num_rows})
    return range(num_rows)[instruction.from_ : instruction.to]


def _files_of(name: str, split: str) -> set[Path]:
    """The local files of a split. None of a data set of the Hub, or if the files cannot be told."""
    try:
        patterns = (_local_files(name, split) or {"data_files": {}})["data_files"].get(split, [])
    except (OSError, ValueError):  # `load_rows` reports it
        return set()
    patterns = [patterns] if isinstance(patterns, str) else patterns
    files = (file for pattern in patterns for file in (glob(pattern, recursive=True) if "*" in pattern else [pattern]))
    return {Path(file).resolve() for file in files if Path(file).is_file()}


def check_test_rows(
    train_name: str, train_split: str, test_name: str, test_split: str, config: str | None = None
) -> None:
    """Raises a `ValueError` if rows to evaluate on are among those to train on."""
    if Path(train_name).resolve() != Path(test_name).resolve():
        for (name, _), (test, _) in product(_parts(train_split), _parts(test_split)):
            if shared := _files_of(train_name, name) & _files_of(test_name, test):
                raise ValueError(
                    f"{min(shared)} is among the files of {train_name} to train on and of {test_name} to evaluate on; "
                    "name other files."
                )
        return
    for (name, trained), (test, held_out) in product(_parts(train_split), _parts(test_split)):
        if name != test:
            continue
        if "[" in trained and "[" in held_out:
            num_rows = len(load_rows(train_name, name, config))
            first, second = _range(trained, num_rows), _range(held_out, num_rows)
            if max(first.start, second.start) >= min(first.stop, second.stop):
                continue
        raise ValueError(
            f"The split {test_split!r} of {test_name} to evaluate on has rows of the split {train_split!r} to train "
            f"on. To hold rows out, use --dataset_train_split '{name}[:90%]' --dataset_test_split '{name}[90%:]'."
        )


__all__ = ["FORMATS", "RowCollator", "RowFormat", "check_test_rows", "is_hub_id", "load_rows"]
