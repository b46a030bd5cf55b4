# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""What tells one folder of weights, data or task files from another without reading it."""

from pathlib import Path


def files_of(folder: str | None) -> list:
    """
    Names, sizes and times of change of all files of a folder.

    Args:
        folder (`str`, *optional*): path of the folder.

    Returns:
        `list`: of lists, which JSON keeps as they are. It is empty for what is no folder, such as a Hub id.
    """
    files = sorted(Path(folder).rglob("*")) if folder and Path(folder).is_dir() else []
    return [
        [str(file.relative_to(str(folder))), (stat := file.stat()).st_size, stat.st_mtime_ns]
        for file in files
        if file.is_file()
    ]


__all__ = ["files_of"]
