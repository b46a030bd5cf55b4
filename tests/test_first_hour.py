# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""docs/first_hour.md: every command prints what the page shows."""

import re
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from transcript import Step, run_page  # noqa: E402


PAGE = (ROOT / "docs" / "first_hour.md").read_text(encoding="utf-8")


def test_every_command_prints_what_the_page_shows(tmp_path):
    for package in ("datasets", "matplotlib", "peft"):
        pytest.importorskip(package, reason="needs the extra `train`")
    steps = list(run_page(PAGE, tmp_path))
    assert len(steps) == len(re.findall(r"^\$ ", PAGE, re.MULTILINE)) >= 12
    for step in steps:
        assert step.fits, f"$ {step.command}\n{step.output}"


@pytest.mark.parametrize(
    ("shown", "output", "fits"),
    [
        ("4 4\n", "4 4\n", True),
        ("4 4\n", "4 5\n", False),
        ("a\n...\nb\n", "a\n1\n2\nb\n", True),
        ("a\n...\nb\n", "a\n1\n2\nc\n", False),
        ("loss = ...\n", "loss = 3.1\n", True),
        ("loss = ...\n", "score = 3.1\n", False),
    ],
)
def test_dots_stand_for_anything(shown, output, fits):
    assert Step("true", shown, output).fits is fits
