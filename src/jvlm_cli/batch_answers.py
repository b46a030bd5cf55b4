# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The output of `jvlm batch`: a JSONL file that an interrupted run leaves behind, and the next one continues."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]


class AnswerLines:
    """
    A JSONL file with one line for each of some rows, in any order, and beside it a file with the settings of the run.
    It is a context manager, which locks the file. What an interrupted run left of a line is deleted.

    Args:
        path (`Path`): the file. It is made if it does not exist.
        settings (`dict[str, Any]`): what the answers depend on, as JSON.
        rows (`range`): the numbers of the rows that get a line.

    Attributes:
        done (`set[int]`): the rows that have a line.
        num_errors (`int`): how many of these lines have an error.

    Raises:
        ValueError: on entering, if the file was written by something else or with other settings, has a line that is
            none of a row, or is in use by another process.
    """

    def __init__(self, path: Path, settings: dict[str, Any], rows: range):
        self.path, self.settings, self.rows = path, json.loads(json.dumps(settings)), rows
        self.settings_path = path.with_name(path.name + ".settings.json")
        self.done: set[int] = set()
        self.num_errors = 0

    def __enter__(self) -> "AnswerLines":
        self._check_path()
        self._file = self.path.open("ab+")
        try:
            self._lock()
            is_new = self._file.tell() == 0
            if not is_new:
                self._check_settings()
            self._read()
            if is_new:
                part = self.settings_path.with_suffix(".part")
                part.write_text(json.dumps(self.settings, indent=2) + "\n")
                part.replace(self.settings_path)
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is not None and not self.done:  # the run failed before its first answer
            self.path.unlink()
            self.settings_path.unlink()
        self._file.close()

    def append(self, lines: Iterable[dict]) -> None:
        """Adds lines. They are on the disk when this returns."""
        lines = list(lines)
        # The text of an unpaired surrogate is its JSON escape.
        texts = (json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n" for line in lines)
        self._file.write(b"".join(texts))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done.update(line["row"] for line in lines)
        self.num_errors += sum("error" in line for line in lines)

    def _check_path(self) -> None:
        if self.path.is_dir():
            raise ValueError(f"{self.path} is a folder; name a file for the answers.")
        if not self.path.absolute().parent.is_dir():
            raise ValueError(f"{self.path}: there is no folder {self.path.absolute().parent}.")
        if self.path.is_file() and self.path.stat().st_size and not self.settings_path.is_file():
            raise ValueError(
                f"{self.path} exists, and there is no {self.settings_path.name} beside it, so it was not written by "
                "`jvlm batch`. Name another file, or delete it."
            )

    def _lock(self) -> None:
        if fcntl is not None:
            try:
                # Workers outlive a killed run for seconds. They do not inherit this lock; they would that of `flock`.
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ValueError(f"{self.path} is in use by another process.") from error

    def _check_settings(self) -> None:
        try:
            before = json.loads(self.settings_path.read_text())
        except ValueError as error:
            raise ValueError(f"{self.settings_path} is damaged; delete it and {self.path.name}.") from error
        names = [name for name in {**before, **self.settings} if before.get(name) != self.settings.get(name)]
        if names:
            changes = [f"{name} was {before.get(name)!r} and is {self.settings.get(name)!r}" for name in names]
            raise ValueError(
                f"{self.path} was begun with other settings: {'; '.join(changes)}. Repeat the settings to complete "
                f"it. To start again, name another file, or delete {self.path.name}."
            )

    def _read(self) -> None:
        """Reads which rows have a line, and deletes an incomplete last line."""
        complete = 0
        self._file.seek(0)
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break
            complete += len(line)
            try:
                answer = json.loads(line)
                row, is_error = answer["row"], "error" in answer
                is_line = isinstance(row, int) and row in self.rows and (is_error or "answer" in answer)
            except (ValueError, KeyError, TypeError):
                is_line = False
            if not is_line or row in self.done:
                problem = "repeats a row" if is_line else "is no answer to a row of the input"
                raise ValueError(f"Line {number} of {self.path} {problem}. Delete the line, or name another file.")
            self.done.add(row)
            self.num_errors += is_error
        self._file.truncate(complete)
