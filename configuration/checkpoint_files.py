# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Which file of a checkpoint is damaged: the libraries that read them often do not say."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open
from tokenizers import Tokenizer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME


# Folders of PEFT have the second one, which tells where the model is.
CONFIGS = ("config.json", "adapter_config.json")


def listed(names: Iterable[str]) -> str:
    """The first five names in order, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def check_files(folder: str | Path, pattern: str = "*") -> None:
    """
    Reads the JSON files and chat templates of a folder and the headers of its safetensors files.

    Args:
        folder (`str` or `Path`): anything but a local folder, such as an empty string, has no files here.
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
        except Exception as error:  # tokenizers knows no other class
            raise ValueError(f"{file} is damaged or truncated ({error}); get it again.") from error


def check_folder(folder: str | Path, needs_config: bool) -> None:
    """
    Checks of a folder what Transformers would pass over without a word; anything but a local folder is left alone.

    Raises:
        FileNotFoundError: if it has no configuration, in place of which a model of default size would be built.
        ValueError: if `generation_config.json` is damaged, which would be left out, or if the index of the weights
            names other files than safetensors, which would be opened as pickles.
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
                raise ValueError(f"{index} places {name} in {file!r}, which is no safetensors file; get it again.")


@contextmanager
def name_damaged_file(folder: str | Path) -> Iterator[None]:
    """What fails in this context because a file of the folder is damaged fails with a `ValueError` that names it."""
    try:
        yield
    except Exception as error:
        try:
            check_files(folder)
        except ValueError as damage:
            raise damage from error
        raise


__all__ = ["check_files", "check_folder", "listed", "name_damaged_file"]
