# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Output folders that are either complete or absent."""

import errno
import filecmp
import glob
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from huggingface_hub.utils import WeakFileLock
from safetensors import SafetensorError

from ..configuration.checkpoint_files import listed


_LOCK = "jvlm.lock"


@contextmanager
def new_folder(output: str | Path, num_bytes: int = 0, may_exist: bool = False) -> Iterator[Path]:
    """
    A temporary folder that is renamed to `output` when the block ends. If the block raises, the folder is deleted.
    What a killed run left of the same output is deleted first.

    Args:
        output (`str` or `Path`): folder to create.
        num_bytes (`int`, *optional*): a lower bound of the space that the output needs.
        may_exist (`bool`, *optional*): whether `output` may exist if it has all files with the same content, apart
            from README.md. It stays as it is then.

    Raises:
        FileExistsError: if `output` exists. The message names the files that differ if it may exist.
        OSError: if the disk has less than `num_bytes` of free space, or gets full.
    """
    output = Path(output)
    if output.exists() and not may_exist:
        raise FileExistsError(f"{output} exists already; remove it or choose another output folder.")
    output.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(output)

    def disk_full() -> OSError:
        free, needed = shutil.disk_usage(output.parent).free / 1e9, num_bytes / 1e9
        return OSError(
            errno.ENOSPC,
            f"{output} needs {needed:.3f} GB, but only {free:.3f} GB are free; make room or choose another disk",
        )

    if shutil.disk_usage(output.parent).free < num_bytes:
        raise disk_full()
    with (
        tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as temporary,
        # The system releases the lock even of a killed program. So a leftover is a folder whose lock is free.
        WeakFileLock(Path(temporary) / _LOCK),
    ):
        folder = Path(temporary) / output.name
        folder.mkdir()
        try:
            yield folder
        except (OSError, SafetensorError) as error:
            # The errors of safetensors have no `errno`; the code is in the message.
            if getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC}" in str(error):
                raise disk_full() from error
            raise
        if not output.exists():
            folder.rename(output)
        elif differing := _differing_files(folder, output):
            raise FileExistsError(
                f"{output} exists already, and these files differ: {listed(differing)}. Remove it or choose another "
                "output folder."
            )


def _differing_files(folder: Path, other: Path) -> list[str]:
    files = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
    _, different, missing = filecmp.cmpfiles(folder, other, [*filter("README.md".__ne__, files)], shallow=False)
    return different + missing


def _remove_leftovers(output: Path) -> None:
    for temporary in output.parent.glob(f".{glob.escape(output.name)}-*"):
        # A run that starts has the lock before it makes the inner folder.
        if (temporary / output.name).is_dir() and (temporary / _LOCK).is_file():
            with suppress(OSError):  # a time-out, if the run still writes
                with WeakFileLock(temporary / _LOCK, timeout=0.1):
                    shutil.rmtree(temporary / output.name)
                shutil.rmtree(temporary)


__all__ = ["new_folder"]
