# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""What tells one checkpoint from another without reading its weights."""

from pathlib import Path


def checkpoint_files(pretrained: str) -> list:
    """
    Names, sizes and times of change of the files of a local checkpoint.

    Args:
        pretrained (`str`): folder or Hub id.

    Returns:
        `list`: of lists, which JSON keeps as they are. It is empty for a Hub id.
    """
    folder = Path(pretrained)
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [[file.name, (stat := file.stat()).st_size, stat.st_mtime_ns] for file in files if file.is_file()]


__all__ = ["checkpoint_files"]
