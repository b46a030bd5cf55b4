# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The JSON files of a checkpoint, checked before Transformers reads them and fails with errors of many classes."""

from pathlib import Path

from .checkpoint_files import read_json
from .setting_kinds import FLAG, GENERATION, IMAGE_PROCESSOR, NAME, OBJECT, Kind, check_settings


# What Transformers reads before the classes of this package do. These check the rest.
_IMAGE_PROCESSOR_TYPE = IMAGE_PROCESSOR["image_processor_type"]
_CLASSES = ("AutoConfig", "AutoImageProcessor", "AutoProcessor")
_AUTO_MAP = {"auto_map": OBJECT, **{f"auto_map.{name}": NAME for name in _CLASSES}}
KINDS: dict[str, dict[str, Kind]] = {
    "config.json": {"model_type": NAME, **_AUTO_MAP},
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
        if folder and file.is_file():
            settings = read_json(file)
            try:
                # Null means "not given" for generation only.
                check_settings(settings, KINDS[name], null=name == "generation_config.json")
            except ValueError as error:
                raise ValueError(f"{error} Correct it in {file}.") from error


__all__ = ["KINDS", "check_config_files"]
