# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Tells whether files are those that were exported. A folder for ONNX Runtime gets a copy of this module."""

import hashlib
from pathlib import Path


_BLOCK, _NUM_BLOCKS = 2**16, 256


def digest(path: Path) -> str:
    """Size and SHA-256 of a file; above 16 MiB, of 256 blocks of 64 KiB that are spread evenly over it."""
    size, content = path.stat().st_size, hashlib.sha256()
    step = max(_BLOCK, size // _NUM_BLOCKS)
    with path.open("rb") as file:
        for start in range(0, size, step):
            file.seek(min(start, max(size - _BLOCK, 0)) if step > _BLOCK else start)
            content.update(file.read(_BLOCK))
    return f"{size} {content.hexdigest()}"


__all__ = ["digest"]
