# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Formats of fine-tuning data: files and columns as they are found, read as rows for [`DataCollatorForJinaVLM`]."""

import re
from glob import glob
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
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

from .data_collator import DataCollatorForJinaVLM
from .row_formats import BUILDERS, COMPRESSIONS, FORMATS, TARGETS, RowFormat, builder, image_size, is_hub_id


logger = logging.get_logger(__name__)
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # beside the images of an ImageFolder
# A feature of 🤗 Datasets for strings beside other values. Parts of a message may be objects with different keys.
_MIXED = re.compile(r"^Json\(|'(content|value|user|assistant)': Json\(")
DATA_SET = "__data_set__"  # the column that names the data set of a row, where there are several


# Rows to batches


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
            sizes = [image_size(image) for image in row["images"]]
            text = self.processor.apply_chat_template(row["messages"], tokenize=False)
            num_answers = sum(message["role"] == "assistant" for message in row["messages"])
        except (ValueError, OSError):
            return 0
        num_image_tokens = self.processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]
        num_text_tokens = len(self.processor.tokenizer(text)["input_ids"]) + self.processor.add_bos_token
        num_text_tokens += num_answers * bool(self._answer_end)  # one EOS token each
        length = num_text_tokens - len(sizes) + sum(num_image_tokens)
        return length if self.max_length is None else min(length, self.max_length)


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


def _folder(path: Path, split: str) -> dict:
    images = sorted({file.parent for name in METADATA for file in path.rglob(name)})
    if images:
        # `load_dataset` would take an image called train-1.png for a split, so the files are given to it.
        splits = {_split_of(folder.relative_to(path)): str(folder / "**") for folder in images}
        _check_split(str(path), split, splits)
        return {"path": "imagefolder", "data_files": splits, "drop_labels": True}
    files = sorted(file for file in path.rglob("*") if file.is_file() and builder(file))
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
    builders = {builder(file) for file in files}
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


__all__ = [
    "BUILDERS",
    "COMPRESSIONS",
    "FORMATS",
    "RowCollator",
    "RowFormat",
    "check_test_rows",
    "is_hub_id",
    "load_rows",
]
