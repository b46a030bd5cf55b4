# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Imports, pipeline calls and training print nothing: no warning, no log line, no other output."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from packaging.version import Version

from jvlm.conversion_scripts.export_to_hub import export_to_hub


PROGRAM = Path(__file__).with_name("silent_program.py")
DIGITS = Path(__file__).parents[1] / "examples" / "digits" / "model"
# What the pipeline of Transformers 5.19 says in every call, whatever the model.
PIPELINE_LINES = (
    "[transformers] Passing `generation_config` together with generation-related arguments=",
    "[transformers] Both `max_new_tokens` (=3) and `max_length`(=20) seem to have been set.",
)


@pytest.mark.parametrize("what", ["ask", "train"])
def test_nothing_is_printed(what, tmp_path):
    checkpoint = DIGITS
    if what == "ask":
        checkpoint = export_to_hub(DIGITS, tmp_path / "repository")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    program = [sys.executable, PROGRAM, what, checkpoint, tmp_path / "output"]
    done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, env=environment)
    lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    if Version(transformers.__version__) < Version("5.20"):
        lines = [line for line in lines if not line.startswith(PIPELINE_LINES)]
    assert lines == []
    assert done.returncode == 0
