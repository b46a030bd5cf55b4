# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Runs the commands of a page's ```console blocks and writes their outputs into the page:

    python tools/transcript.py docs/first_hour.md

Lines that begin with "$ " are commands, and those that begin with ">" continue them. What follows is the output: what
the command prints, without warnings and progress bars, and with its error if it fails. In an output, a line "..."
stands for any lines, and "..." within a line for anything; such an output is kept if it fits.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^\$ (.*(?:\n>.*)*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)


@dataclass
class Step:
    """A command of a page, the output that the page shows, and the output that it has."""

    command: str
    shown: str
    output: str

    @property
    def fits(self) -> bool:
        """Whether the page shows the output, apart from what "..." stands for."""
        pattern = re.escape(self.shown).replace(re.escape("...\n"), r"(?:.*\n)*?").replace(re.escape("..."), ".*")
        return re.fullmatch(pattern, self.output) is not None


def run_page(text: str, folder: Path) -> Iterator[Step]:
    """Runs the commands of a page in order in an empty folder, which gets a link to `examples`."""
    (folder / "examples").symlink_to(ROOT / "examples")
    programs = folder / ".bin"
    programs.mkdir()
    for name, arguments in (("python", ""), ("jvlm", "-m jvlm ")):
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments}"$@"\n')
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "PYTHONWARNINGS": "ignore",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "80",
        "LC_ALL": "C.UTF-8",
    }
    for block in _BLOCK.findall(text):
        for command, shown in _COMMAND.findall(block):
            done = subprocess.run(
                ["bash", "-c", re.sub(r"\n> ?", "\n", command)],
                cwd=folder,
                env=environment,
                text=True,
                capture_output=True,
            )
            yield Step(command, shown, done.stdout + (last_line(done.stderr) if done.returncode else ""))


def last_line(text: str) -> str:
    return "".join(text.splitlines(keepends=True)[-1:])


def main(page: str) -> None:
    path = Path(page)
    text = path.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        for step in run_page(text, Path(folder)):
            print(f"$ {step.command}\n{step.output}", end="", flush=True)
            if not step.fits:
                text = text.replace(f"$ {step.command}\n{step.shown}", f"$ {step.command}\n{step.output}")
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
