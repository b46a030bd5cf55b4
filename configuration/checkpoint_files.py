# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Finding the damaged file of a checkpoint. The errors of the libraries that read the files often do not name it."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open
from tokenizers import Tokenizer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME


# PEFT saves the second one, which names the base model.
CONFIGS = ("config.json", "adapter_config.json")


def listed(names: Iterable[str]) -> str:
    """The first five names in order, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def check_files(folder: str | Path, pattern: str = "*") -> None:
    """
    Reads the JSON files and chat templates of a folder and the headers of its safetensors files.

    Args:
        folder (`str` or `Path`): nothing is checked if it is not a local folder.
        pattern (`str`, *optional*): which files to read.

    Raises:
        ValueError: for the first file that is damaged; the message names it.
    """
    for file in sorted(Path(folder).glob(pattern)) if folder and Path(folder).is_dir() else []:
        try:
            if file.suffix == ".jinja":
                file.read_text(encoding="utf-8")
            if file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))
            if file.name == "tokenizer.json":
                Tokenizer.from_file(str(file))
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt"):
                    pass
        except Exception as error:  # tokenizers raises no other class
            raise ValueError(f"{file} is damaged or truncated ({error}). Download or save it again.") from error


def check_folder(folder: str | Path, needs_config: bool) -> None:
    """
    Checks a folder for errors that Transformers ignores. Nothing is checked if it is not a local folder.

    Raises:
        FileNotFoundError: if it has no configuration. Transformers would build a model of default size.
        ValueError: if `generation_config.json` is damaged, which Transformers would ignore, or if the index of the
            weights names a file that is not a safetensors file, which Transformers would open as a pickle.
    """
    if not folder or not Path(folder).is_dir():
        return
    if needs_config and not any((Path(folder) / name).is_file() for name in CONFIGS):
        raise FileNotFoundError(f"{folder} is not a checkpoint: it has no config.json.")
    check_files(folder, "generation_config.json")
    check_files(folder, SAFE_WEIGHTS_INDEX_NAME)
    index = Path(folder) / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        for name, file in json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).items():
            if not str(file).endswith(".safetensors"):
                raise ValueError(f"{index} assigns {name} to {file!r}, which is not a safetensors file.")


@contextmanager
def name_damaged_file(folder: str | Path) -> Iterator[None]:
    """If the block raises an error and a file of the folder is damaged, raises a `ValueError` that names the file."""
    try:
        yield
    except Exception as error:
        try:
            check_files(folder)
        except ValueError as damage:
            raise damage from error
        raise


__all__ = ["check_files", "check_folder", "listed", "name_damaged_file"]
