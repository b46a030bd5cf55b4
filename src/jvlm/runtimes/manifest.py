# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The file that says what a folder for a runtime holds, and the check that the folder still holds it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..configuration.checkpoint_files import listed, read_json
from .digests import digest


MANIFEST = "runtime.json"
FORMAT = 1
RUNTIMES = ("onnx", "openvino", "torch", "executorch")
COMPONENTS = ("vision", "connector", "embedding", "decoder", "head")
# Files that users may edit: the settings of `generate`, the card, the prompt.
_EDITABLE = {MANIFEST, "README.md", "generation_config.json", "chat_template.jinja"}


@dataclass
class Manifest:
    r"""
    What a folder for a runtime holds.

    Args:
        runtime (`str`): one of `RUNTIMES`.
        dtype (`str`): dtype of the floating-point inputs and outputs of the graphs.
        weights (`str` or `None`): `"int8"` or `"int4"` if the weights of linear layers are quantized.
        graphs (`dict[str, str]`): the file of each of `COMPONENTS`.
        checkpoint (`str`): digest of the weights of the checkpoint that was exported.
        opset (`int` or `None`): opset of ONNX graphs.
        versions (`dict[str, str]`): versions of the packages that wrote the folder.
        files (`dict[str, str]`): digests of the files that belong together, see [`digest`].
        format (`int`): version of this description.
    """

    runtime: str
    dtype: str
    weights: str | None
    graphs: dict[str, str]
    checkpoint: str
    opset: int | None
    versions: dict[str, str]
    files: dict[str, str]
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Saves the description of a folder that is otherwise complete."""
        files = (file for file in folder.rglob("*") if file.is_file() and file.name not in _EDITABLE)
        self.files = {file.relative_to(folder).as_posix(): digest(file) for file in sorted(files)}
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def is_runtime_folder(folder: Any) -> bool:
    """Whether a path is a folder for a runtime."""
    return (Path(folder) / MANIFEST).is_file()


def read_manifest(folder: str | Path, runtime: str | None = None) -> Manifest:
    """
    Reads the description of a folder for a runtime and compares the folder with it.

    Args:
        folder (`str` or `Path`): the folder.
        runtime (`str`, *optional*): the runtime that the folder must be for.

    Raises:
        FileNotFoundError: if there is no such folder, or it has no description.
        ValueError: if the description is damaged or of another version, if the folder is for another runtime, or if
            files are missing or differ from those that were exported together.
    """
    folder = Path(folder)
    if not is_runtime_folder(folder):
        raise FileNotFoundError(
            f"{folder} has no {MANIFEST}, so it is no export for a runtime. Write one with "
            "`jvlm export-runtime --checkpoint ID --runtime onnx --output DIR`."
        )
    content = read_json(folder / MANIFEST)
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{folder / MANIFEST} has the format {content.get('format')!r}, but this version of jvlm reads {FORMAT}. "
            "Export the checkpoint again, or install the jvlm that wrote it."
        )
    try:
        manifest = Manifest(**content)
        is_complete = set(manifest.graphs) == set(COMPONENTS) and manifest.runtime in RUNTIMES
        is_complete &= set(manifest.graphs.values()) <= set(manifest.files)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{folder / MANIFEST} is damaged: {error}.") from error
    if not is_complete:
        raise ValueError(f"{folder / MANIFEST} is damaged: it does not name a known runtime and its five graphs.")
    if runtime not in (None, manifest.runtime):
        raise ValueError(f"{folder} was exported for {manifest.runtime}, not for {runtime}.")
    if missing := {name for name in manifest.files if not (folder / name).is_file()}:
        raise ValueError(f"{folder} lacks {listed(missing)}. Check that the copy is complete.")
    if other := {name for name, value in manifest.files.items() if digest(folder / name) != value}:
        raise ValueError(
            f"{folder} holds files that are damaged or of another export: {listed(other)}. Copy the whole folder "
            "again, or export the checkpoint again."
        )
    return manifest


__all__ = ["COMPONENTS", "MANIFEST", "RUNTIMES", "Manifest", "is_runtime_folder", "read_manifest"]
