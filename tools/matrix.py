# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Runs the tests on the oldest and on the newest supported versions: `make matrix`, or
`python tools/matrix.py [NAME ...]` for some of the sets.

Each set of versions gets its own virtual environment in build/matrix. "oldest" has every lower bound of
pyproject.toml. "newest" is constraints.txt. "newest, oldest PyTorch" is constraints.txt with the
lower bound of PyTorch. "latest releases" has no constraints: it shows what the next `pip install` brings.
"""

import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path


ROOT = Path(__file__).parents[1]
SHOWN = ("transformers", "torch", "accelerate", "pillow", "numpy")


def version_sets() -> dict[str, list[str]]:
    """Version pins in the syntax of pip, by the name of their set."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    oldest = [f"{bound[1]}=={bound[2]}" for each in declared if (bound := re.match(r"([\w.-]+)>=([\w.]+)", each))]
    newest = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    oldest_torch = next(pin for pin in oldest if pin.startswith("torch=="))
    return {
        "oldest": oldest,
        "newest": newest,
        "newest, oldest PyTorch": [oldest_torch if pin.startswith("torch==") else pin for pin in newest],
        "latest releases": [],
    }


def run(name: str, pins: list[str]) -> tuple[bool, list[str]]:
    """Whether the tests pass with these pins, and a row of the table."""
    folder = ROOT / "build" / "matrix" / name.replace(", ", "-").replace(" ", "-")
    python = folder / "bin" / "python"
    venv.create(folder, clear=True, with_pip=True)
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(pins))
    subprocess.run([python, "-m", "pip", "install", "-q", "-c", constraints, "-e", ".[test]"], cwd=ROOT, check=True)
    show = f"from importlib.metadata import version; print(*map(version, {SHOWN}))"
    versions = subprocess.run([python, "-c", show], capture_output=True, text=True, check=True).stdout.split()
    lines = []
    with subprocess.Popen([python, "-m", "pytest", "-q"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as tests:
        for line in tests.stdout:
            print(line, end="", flush=True)
            lines.append(line.strip())
    result = lines[-1] if lines else "did not start"
    return tests.returncode == 0, [name, ".".join(map(str, sys.version_info[:3])), *versions, result]


def main(names: list[str]) -> int:
    sets = version_sets()
    results = [run(name, sets[name]) for name in names or sets]
    for row in (["", "Python", *SHOWN, "result"], ["---"] * (len(SHOWN) + 3), *(row for _, row in results)):
        print("|", " | ".join(row), "|")
    return 0 if all(passed for passed, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
