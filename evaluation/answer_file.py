# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""A file of answers, with which an interrupted evaluation goes on. The harnesses keep none until all are there."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import PIL.Image


class AnswerFile:
    """
    Answers by the hash of what was asked, in a JSONL file. What an interrupted run left of a line is deleted.

    Args:
        path (`Path`): the file; its folder is made if needed.
        identity: part of every hash, as JSON: what else an answer depends on, such as the checkpoint.

    Raises:
        ValueError: if a line of the file is not one of this class.
    """

    def __init__(self, path: Path, identity: Any):
        self.identity = json.dumps(identity)
        self.found: dict[str, tuple[str, int]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("ab+")
        self.file.seek(0)
        complete = 0
        for number, line in enumerate(self.file, start=1):
            if not line.endswith(b"\n"):
                break
            complete += len(line)
            try:
                row = json.loads(line)
                self.found[row["key"]] = row["answer"], row["tokens"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"Line {number} of {path} is no answer of an evaluation. Name another file."
                ) from error
        self.file.truncate(complete)

    def key(self, messages: list[dict], settings: dict) -> str:
        """The hash of a conversation with the pixels of its PIL images, of settings, and of the identity."""
        asked = [self.identity, settings, messages]
        return hashlib.sha256(json.dumps(asked, sort_keys=True, default=_pixels).encode()).hexdigest()

    def get(self, key: str) -> tuple[str, int] | None:
        """The answer to what has this hash and its number of tokens, if there is one."""
        return self.found.get(key)

    def append(self, key: str, answer: str, tokens: int) -> None:
        """Adds an answer. It is on the disk when this returns."""
        self.found[key] = answer, tokens
        self.file.write(json.dumps({"key": key, "answer": answer, "tokens": tokens}).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())


def _pixels(image: PIL.Image.Image) -> list:
    return [image.mode, image.size, hashlib.sha256(image.tobytes()).hexdigest()]


__all__ = ["AnswerFile"]
