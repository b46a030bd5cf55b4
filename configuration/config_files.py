# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The JSON files of a checkpoint, checked before Transformers reads them and fails with errors of many classes."""

import json
from pathlib import Path
from typing import Any

from .setting_kinds import FLAG, GENERATION, IMAGE_PROCESSOR, NAME, OBJECT, Kind, check_settings, shown


# What Transformers reads before the classes of this package do. The rest is checked by these.
_IMAGE_PROCESSOR_TYPE = IMAGE_PROCESSOR["image_processor_type"]
_AUTO_MAP = {"auto_map": OBJECT, "auto_map.AutoImageProcessor": NAME, "auto_map.AutoProcessor": NAME}
KINDS: dict[str, dict[str, Kind]] = {
    "config.json": {"auto_map": OBJECT},
    "generation_config.json": GENERATION,
    "preprocessor_config.json": {"image_processor_type": _IMAGE_PROCESSOR_TYPE, **_AUTO_MAP},
    "processor_config.json": {
        "add_bos_token": FLAG,
        "image_processor": OBJECT,
        "image_processor.image_processor_type": _IMAGE_PROCESSOR_TYPE,
        **_AUTO_MAP,
    },
    "tokenizer_config.json": {},
}


def parse_json(text: str) -> Any:
    """
    The content of a JSON text.

    Raises:
        ValueError: if it is no JSON. Two values of one name and the numbers NaN and Infinity are errors too, which
            Python's parser accepts.
        RecursionError: if it is nested too deeply.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise ValueError(f"{shown(next(name for name in names if names.count(name) > 1))} is there twice")
        return dict(pairs)

    def refuse(constant: str):
        raise ValueError(f"{constant} is no JSON value")

    return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)


def check_config_files(folder: str | Path | None, *names: str) -> None:
    """
    Checks JSON files of a checkpoint. Files that are missing, and folders that are not local, are not checked.

    Args:
        folder (`str` or `Path`, *optional*): folder of the checkpoint.
        names (`str`): files to check, some of `KINDS`.

    Raises:
        ValueError: if a file is damaged, or a setting that Transformers reads has a wrong value; the message names the
            file and the setting.
    """
    for name in names:
        file = Path(folder or "", name)
        if not folder or not file.is_file():
            continue
        try:
            settings = parse_json(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError, OSError) as error:
            raise ValueError(f"{file} is damaged or truncated ({error}). Download or save it again.") from error
        if not isinstance(settings, dict):
            raise ValueError(f"{file} must hold a JSON object, got {shown(settings)}. Download or save it again.")
        try:
            # Null means "not given" for generation only.
            check_settings(settings, KINDS[name], null=name == "generation_config.json")
        except ValueError as error:
            raise ValueError(f"{error} Correct it in {file}.") from error


__all__ = ["KINDS", "check_config_files", "parse_json"]
