# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The notebooks run from the first cell to the last, in an empty folder."""

import json
import re
from pathlib import Path

import pytest


FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def run(name: str, folder: Path, monkeypatch, **changes: int) -> dict:
    """Runs the code cells with some of their constants changed, and returns their variables."""
    monkeypatch.chdir(folder)
    variables = {"__name__": name}
    for cell in json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]:
        code = "".join(cell["source"])
        for constant, value in changes.items():
            code = re.sub(rf"^{constant} = .*$", f"{constant} = {value}", code, flags=re.MULTILINE)
        if cell["cell_type"] == "code":
            exec(compile(code, f"{name}.ipynb, {cell['id']}", "exec"), variables)
    return variables


def test_every_notebook_is_run():
    assert NOTEBOOKS == ["ask", "finetune"]


def test_ask(tmp_path, monkeypatch, capsys):
    run("ask", tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    assert "1 6 4 6 6 (70 tokens in the prompt)" in printed
    assert "page-3x4.png  How many digits are there?  6" in printed


def test_finetune(tmp_path, monkeypatch, capsys):
    for package in ("datasets", "matplotlib", "peft"):
        pytest.importorskip(package, reason="needs the extra `train`")
    variables = run("finetune", tmp_path, monkeypatch, STEPS=2)
    assert len(variables["answers"]) == 20
    assert "Training: 2 steps of 8 rows" in capsys.readouterr().out
    assert (tmp_path / "tuned" / "model.safetensors").is_file()
