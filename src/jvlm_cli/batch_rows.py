# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The input of `jvlm batch`: rows of images and questions, and what worker processes make of them."""

import json
import os
import signal
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL.Image
from torch.utils.data import DataLoader, Dataset
from transformers import BatchFeature

from jvlm.processing.image_loading import load_image
from jvlm.processing.prompt_format import IMAGE_PLACEHOLDER
from jvlm.processing.prompt_inputs import prompt_inputs
from jvlm.training.data_collator import content_parts
from jvlm.training.row_formats import FORMATS, RowFormat, builder, image_size


WINDOW = 16  # batches of rows that are sorted by length together
IMAGE_KEYS = ("image", "path", "url", "base64")  # of an image part
# Files that tell a data set of 🤗 Datasets from a folder of images.
DATA_FILES = ("state.json", "dataset_dict.json", "metadata.jsonl", "metadata.csv", "metadata.parquet")


def _question(row: dict) -> list[dict]:
    question = row["question"]
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"`question` must be a text, got {repr(question)[:60]}.")
    return [{"role": "user", "content": question}]


def _prompt(row: dict) -> list[dict]:
    if isinstance(row["prompt"], str):
        return [{"role": "user", "content": row["prompt"]}]
    return FORMATS["messages"][1]({"messages": row["prompt"]})


class QuestionFormat(RowFormat):
    """[`RowFormat`] for rows that may have no answer. One that a row has is left out: it is what is asked for."""

    formats = {
        "question": (("question",), _question),
        "prompt": (("prompt",), _prompt),
        **{name: FORMATS[name] for name in ("messages", "conversations", "texts")},
    }
    columns_option = "--columns"
    image_folder_option = "--image-folder"
    image_marker_option = "--image-marker"

    def __call__(self, row: dict) -> dict:
        row = super().__call__(row)
        return {**row, "messages": _asked(row["messages"])}

    def last_question(self, row: dict) -> str:
        """The text of the last question, without markers of images. The images may be missing."""
        row = self._named_columns(row)
        parts = content_parts(_asked(self.formats[self._detect(row)][1](row))[-1]["content"])
        parts = self._split(parts) if self.image_marker else parts
        return "".join(part.get("text", "") for part in parts)

    def _detect(self, row: dict) -> str:
        for name, (columns, _) in self.formats.items():
            if columns[0] in row:
                return name
        found = ", ".join(map(repr, row)) or "none"
        raise ValueError(
            f"{self.name} has no question: its columns are {found}, and known are {', '.join(self.formats)}. Use "
            "--columns question=NAME, or --question TEXT for one question about all images."
        )

    def check_columns(self, rows: Sequence[dict]) -> None:
        """Raises a `ValueError` if none of the first rows has a question: then the input is wrong, not its rows."""
        error = None
        for number in range(min(len(rows), 20)):
            try:
                self.detect(rows[number])
            except ValueError as found:
                error = error or found
            else:
                return
        if error is not None:
            raise error


def _asked(messages: list[dict]) -> list[dict]:
    """The messages up to the last question, which has no answer yet or one that is left out."""
    while messages and messages[-1].get("role") == "assistant":
        messages = messages[:-1]
    if not messages or messages[-1].get("role") != "user":
        raise ValueError("The row has no message of the user to answer.")
    return messages


class ImageFiles(Sequence):
    """
    The images of a folder and its subfolders as rows, by their names.

    Args:
        folder (`Path`): the folder.
    """

    def __init__(self, folder: Path):
        formats = PIL.Image.registered_extensions()
        readable = {suffix for suffix, name in formats.items() if name in PIL.Image.OPEN and name != "PDF"}
        self.folder = folder
        self.names = sorted(
            str(path.relative_to(folder))
            for path in folder.rglob("*")
            if path.suffix.lower() in readable and path.is_file()
        )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index):
        # Absolute, because relative paths begin in the folder of the input.
        return {"id": self.names[index], "image": str(self.folder.absolute() / self.names[index])}


class JsonLines(Sequence):
    """
    The lines of a JSONL file as rows. Only their places are kept in memory. Blank lines are no rows.

    Args:
        path (`Path`): the file.

    Attributes:
        line_numbers (`array`): the number of the line of each row, from 1 on.
    """

    def __init__(self, path: Path):
        self.path, self.offsets, self.line_numbers = path, array("q"), array("q")
        offset = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    self.offsets.append(offset)
                    self.line_numbers.append(number)
                offset += len(line)

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index):
        with self.path.open("rb") as file:
            file.seek(self.offsets[index])
            line = file.readline()
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"The line is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise ValueError(f"The line must be an object with a question and an image, got {repr(row)[:60]}.")
        return row


def open_rows(name: str, split: str = "train") -> Sequence[dict]:
    """
    Opens an input.

    Args:
        name (`str`): a folder of images, a JSONL file, or any data set that `jvlm finetune` reads.
        split (`str`, *optional*, defaults to `"train"`): the split of a data set that has several.

    Raises:
        OSError: if there is no such file.
        ValueError: if the input has no rows, or 🤗 Datasets is needed and not installed.
    """
    path = Path(name)
    rows: Any
    if path.is_dir() and not _is_data_set(path):
        rows = ImageFiles(path)
    elif path.suffix in (".jsonl", ".ndjson"):
        rows = JsonLines(path)
    else:
        try:
            from jvlm.training.formats import load_rows
        except ModuleNotFoundError as error:
            raise ValueError(
                f"{name} needs {error.name}, as all inputs but JSONL files and folders of images do; install with "
                "`pip install 'jvlm[train]'`."
            ) from error
        try:
            rows = load_rows(name, split)
        except (OSError, ValueError) as error:
            if path.exists():
                raise
            raise OSError(f"{name} is no file or folder, and no data set that can be loaded: {error}") from error
    if len(rows) == 0:
        raise ValueError(f"{name} has no rows.")
    return rows


def _is_data_set(folder: Path) -> bool:
    files = [path for path in folder.rglob("*") if path.is_file()]
    has_data = any(path.name in DATA_FILES for path in files)
    return has_data or (not ImageFiles(folder) and any(builder(path) for path in files))


@dataclass
class Row:
    """
    A row of the input: its number, its id, the line of a JSONL file and the last question; the conversation, or why
    there is none.
    """

    number: int
    id: Any
    line_number: int | None = None
    question: str | None = None
    messages: list[dict] = field(default_factory=list)
    error: str = ""

    def line(self, result: dict) -> dict:
        """The line of the output, given the answer or the error."""
        if "error" in result and self.line_number is not None:  # blank lines are no rows
            result = {**result, "error": f"Line {self.line_number}: {result['error']}"}
        return {"row": self.number, "id": self.id, "question": self.question, **result}


class RowReader(Dataset):
    """
    Reads rows and opens their images, in the workers of a `DataLoader`.

    Args:
        rows (`Sequence[dict]`): the input.
        row_format ([`QuestionFormat`]): what makes conversations of them.
    """

    def __init__(self, rows: Sequence[dict], row_format: QuestionFormat):
        self.rows, self.row_format = rows, row_format

    def __getitem__(self, number: int) -> Row:
        row = Row(number, number)
        if isinstance(self.rows, JsonLines):
            row.line_number = self.rows.line_numbers[number]
        with _noting_error(row):
            columns = self.rows[number]
            if isinstance(columns.get("id"), (str, int)):
                row.id = columns["id"]
            with suppress(Exception):  # the next line says why there is none
                row.question = self.row_format.last_question(columns)
            messages, images = self.conversation(columns)
            if not any(part["type"] == "image" for message in messages for part in message["content"]):
                raise ValueError("The row has no image; name its column with --columns image=NAME.")
            if any(IMAGE_PLACEHOLDER in part.get("text", "") for message in messages for part in message["content"]):
                raise ValueError(
                    f"The row has {IMAGE_PLACEHOLDER} in its text, which the model would take for one more image. "
                    f"Mark the place of an image with {self.row_format.image_marker or 'an --image-marker'}."
                )
            loaded = map(load_image, images)
            row.messages = [
                {**message, "content": [_with_image(part, loaded) for part in message["content"]]}
                for message in messages
            ]
        return row

    def conversation(self, columns: dict) -> tuple[list[dict], list]:
        """The messages of a row, and the images that its image parts have, which are not opened."""
        row = self.row_format(columns)
        messages = [{**message, "content": content_parts(message.get("content"))} for message in row["messages"]]
        images = iter(row["images"])
        parts = [part for message in messages for part in message["content"] if part["type"] == "image"]
        named = [next((part[key] for key in IMAGE_KEYS if key in part), None) for part in parts]
        return messages, [next(images) if image is None else image for image in named]


def _with_image(part: dict, images: Iterator) -> dict:
    return {"type": "image", "image": next(images)} if part["type"] == "image" else part


@contextmanager
def _noting_error(row: Row) -> Iterator[None]:
    """Keeps an error of a row. Its class can be any: rows have any content, and libraries read them."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        is_ours = isinstance(error, (ValueError, OSError))
        text = str(error).replace("Prompt 0 ", "The prompt ")  # a row has one
        row.error = " ".join(f"{'' if is_ours else type(error).__name__ + ': '}{text}".split())
        row.messages = []


@dataclass
class RowBatch:
    """Rows that can be answered and, for [`TransformersEngine`], the inputs of the model; and the bad rows."""

    rows: list[Row]
    bad_rows: list[Row]
    inputs: BatchFeature | None = None


class PromptMaker:
    """
    What the processor makes of rows.

    Args:
        processor ([`JinaVLMProcessor`]): the processor.
        images_kwargs (`dict`): arguments of the image processor.
        max_length (`int`): a prompt must have fewer tokens.

    Raises:
        ValueError: if an argument of the image processor has a wrong value.
    """

    def __init__(self, processor: Any, images_kwargs: dict[str, Any], max_length: int):
        self.processor, self.images_kwargs, self.max_length = processor, images_kwargs, max_length
        processor._get_num_multimodal_tokens(image_sizes=[[1, 1]], **images_kwargs)  # checks them

    def num_tokens(self, messages: list[dict], sizes: list[tuple[int, int]]) -> int:
        """The length of a prompt, given heights and widths of its images."""
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        self.processor.check_prompts([text], len(sizes))
        counts = self.processor._get_num_multimodal_tokens(image_sizes=sizes, **self.images_kwargs)
        num_text_tokens = len(self.processor.tokenizer(text)["input_ids"]) + self.processor.add_bos_token
        return num_text_tokens - len(sizes) + sum(counts["num_image_tokens"])

    def inputs(self, rows: list[Row]) -> BatchFeature:
        """The inputs of the model for some rows, padded on the left."""
        conversations = [row.messages for row in rows]
        inputs = prompt_inputs(self.processor, conversations, padding=True, padding_side="left", **self.images_kwargs)
        self._check_length(inputs["input_ids"].shape[1])
        return inputs

    def check(self, row: Row) -> None:
        """Raises a `ValueError` if a prompt is too long, or an image has no grid."""
        images = [part["image"] for message in row.messages for part in message["content"] if part["type"] == "image"]
        self._check_length(self.num_tokens(row.messages, [image_size(image) for image in images]))

    def _check_length(self, length: int) -> None:
        if length >= self.max_length:
            raise ValueError(
                f"The prompt has {length} tokens, and the model takes {self.max_length} with the answer. Use fewer or "
                "smaller images, or --max-crops."
            )


def collate_inputs(rows: list[Row], maker: PromptMaker) -> RowBatch:
    """The batch of some rows for [`TransformersEngine`]. If the processor refuses it, each row is tried alone."""
    good = [row for row in rows if not row.error]
    inputs = None
    if good:
        try:
            inputs = maker.inputs(good)
        except Exception:
            for row in good:
                with _noting_error(row):
                    maker.inputs([row])
            good = [row for row in good if not row.error]
            inputs = maker.inputs(good) if good else None
    bad_rows = [row for row in rows if row.error]
    for row in rows:
        row.messages = []  # the images need not travel to the main process
    return RowBatch(good, bad_rows, inputs)


def collate_conversations(rows: list[Row], maker: PromptMaker) -> RowBatch:
    """The batch of some rows for [`VllmEngine`], which calls the processor itself."""
    for row in rows:
        if not row.error:
            with _noting_error(row):
                maker.check(row)
    return RowBatch([row for row in rows if not row.error], [row for row in rows if row.error])


class LengthBatches:
    """
    Batches of row numbers. Some batches ahead are sorted by length together, so that little of a batch is padding.

    Args:
        numbers (`Sequence[int]`): the rows.
        batch_size (`int`): rows of a batch.
        reader ([`RowReader`]): reads the rows. Only the heads of image files are read.
        maker ([`PromptMaker`], *optional*): counts the tokens. Without it, batches are not sorted.
    """

    def __init__(self, numbers: Sequence[int], batch_size: int, reader: RowReader, maker: PromptMaker | None):
        self.numbers, self.batch_size, self.reader, self.maker = numbers, batch_size, reader, maker

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self.numbers), WINDOW * self.batch_size):
            window = list(self.numbers[start : start + WINDOW * self.batch_size])
            if self.maker is not None:
                window.sort(key=self._length)
            yield from (window[first : first + self.batch_size] for first in range(0, len(window), self.batch_size))

    def _length(self, number: int) -> int:
        """Tokens of the prompt of a row, 0 if it cannot be told, as for a bad row and for the URL of an image."""
        try:
            messages, images = self.reader.conversation(self.reader.rows[number])
            return self.maker.num_tokens(messages, [image_size(image) for image in images])
        except Exception:
            return 0


def load_batches(batches: LengthBatches, collate: Callable, num_workers: int) -> DataLoader:
    """The batches, read ahead in `num_workers` processes."""
    return DataLoader(
        batches.reader,
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=num_workers,
        worker_init_fn=_start_worker,
    )


def _start_worker(number: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends its workers
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads do not outlive a fork
