# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Finding the damaged file of a checkpoint. The errors of the libraries that read the files often do not name it."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from tokenizers import Tokenizer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file


# PEFT saves the second one, which names the base model.
CONFIGS = ("config.json", "adapter_config.json")
# What Transformers reads, apart from the weights. Other files of a folder, such as training logs, do not matter.
FILES = (
    *CONFIGS,
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
# Arguments of `from_pretrained` that say where to find the files of a repository.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def listed(names: Iterable[str]) -> str:
    """The first five names in order, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def read_json(file: Path) -> dict[str, Any]:
    """
    The object in a JSON file.

    Raises:
        ValueError: if the file is damaged or holds something else, and for two values of one name, NaN and Infinity,
            which Python's parser accepts; the message names the file.
    """
    with _naming(file):
        content = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
        if not isinstance(content, dict):
            raise ValueError(f"it must hold a JSON object, not {type(content).__name__}")
    return content


def read_index(index: Path) -> dict[str, str]:
    """
    The file of every weight, from the index of a checkpoint in several files.

    Raises:
        ValueError: if the index is damaged, or if it names a file that is not a safetensors file, which Transformers
            would open as a pickle, or that lies outside of its folder. Links of a file inside the folder may lead
            outside, as they do in the cache of huggingface_hub.
    """
    content = read_json(index)
    with _naming(index):
        for name in ("weight_map", "metadata"):  # Transformers needs both
            if not isinstance(content.get(name), dict):
                raise ValueError(f"`{name}` must be an object, got {content.get(name)!r}")
    weight_map: dict[str, str] = content["weight_map"]
    for name, file in weight_map.items():
        if not str(file).endswith(".safetensors"):
            raise ValueError(f"{index} assigns {name} to {file!r}, which is not a safetensors file.")
        if Path(file).anchor or ".." in Path(file).parts:
            raise ValueError(f"{index} assigns {name} to {file!r}, which lies outside of its folder.")
    return weight_map


def _with_variant(name: str, variant: str | None) -> str:
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{variant}.{suffix}" if variant else name


def weight_files(folder: Path, variant: str | None = None) -> dict[Path, list[str]]:
    """
    The safetensors files that Transformers loads, each with the weights that the index assigns to it.

    Args:
        folder (`Path`): the checkpoint.
        variant (`str`, *optional*): the argument of `from_pretrained`, which is part of the names of the files.

    Raises:
        ValueError: if the index is damaged or refers to other files, see [`read_index`].
    """
    single, index = (folder / _with_variant(name, variant) for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))
    if single.is_file() or not index.is_file():
        return {single: []}
    files: dict[Path, list[str]] = {}
    for name, file in read_index(index).items():
        files.setdefault(folder / file, []).append(name)
    return files


def check_files(folder: str | Path) -> None:
    """
    Reads the JSON files and chat templates that Transformers reads, and the headers of the safetensors files. Nothing
    is checked if `folder` is not a local folder.

    Raises:
        ValueError: for the first file that is damaged; the message names it.
    """
    if not folder or not Path(folder).is_dir():
        return
    files = [Path(folder) / name for name in FILES]
    for file in filter(Path.is_file, [*files, *weight_files(Path(folder))]):
        if file.suffix == ".json":
            read_json(file)
        with _naming(file):
            if file.suffix == ".jinja":
                file.read_text(encoding="utf-8")
            if file.name == "tokenizer.json":
                Tokenizer.from_file(str(file))
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt"):
                    pass


def check_folder(name: str | Path | None, kwargs: dict[str, Any]) -> None:
    """
    Checks a checkpoint for errors that Transformers ignores.

    Args:
        name (`str` or `Path`, *optional*): folder or Hub id.
        kwargs (`dict`): the arguments of `from_pretrained`.

    Raises:
        FileNotFoundError: if a folder has no configuration. Transformers would build a model of default size.
        ValueError: if the index of the weights is damaged or refers to files that must not be opened, see
            [`read_index`].
    """
    if not name:
        return
    folder = Path(name, kwargs.get("subfolder") or "")
    if folder.is_dir():
        if kwargs.get("config") is None and not any((folder / config).is_file() for config in CONFIGS):
            raise FileNotFoundError(f"{folder} is not a checkpoint: it has no config.json.")
        weight_files(folder, kwargs.get("variant"))
    elif not Path(name).is_file():
        hub = {argument: kwargs[argument] for argument in HUB_ARGUMENTS if argument in kwargs}
        index = cached_file(
            name,
            _with_variant(SAFE_WEIGHTS_INDEX_NAME, kwargs.get("variant")),
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **hub,
        )
        if index is not None:
            read_index(Path(index))


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


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{name!r} is there twice")
    return values


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON value")


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # tokenizers raises no other class
        raise ValueError(f"{file} is damaged or truncated ({error}). Download or save it again.") from error


__all__ = ["check_files", "check_folder", "listed", "name_damaged_file", "read_index", "read_json", "weight_files"]
