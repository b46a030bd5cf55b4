# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Checks that lmms-eval and lm-eval give the shipped model the numbers of `examples.digits.evaluate`: the same answer to
each of the 1800 questions, and so the same rates. A run of lmms-eval is killed and must go on after its last answer; a
second run of each harness must be equal. `make harness` installs both and runs the script.

    python -m benchmarks.harness [--num_pages 360]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from examples.digits.evaluate import MODEL, ask, rows_of
from examples.digits.pages import held_out_pages
from examples.digits.tasks import write_tasks


BATCH_SIZE = 24


def command(harness: str, tasks: Path, output: Path, **model_args: Path) -> list[str]:
    """The command that asks all questions and writes results and answers to a folder."""
    values = {"pretrained": MODEL, "dtype": "float32", **model_args}
    joined = ",".join(f"{name}={value}" for name, value in values.items())
    start = {
        "lmms-eval": ["lmms_eval", "--model", "jvlm", "--verbosity", "WARNING"],
        "lm-eval": ["jvlm.evaluation.lm_eval", "--model", "hf-multimodal", "--apply_chat_template"],
    }[harness]
    return [
        sys.executable,
        "-m",
        *start,
        *("--model_args", joined, "--device", "cpu", "--batch_size", str(BATCH_SIZE), "--tasks", "digit_pages"),
        *("--include_path", str(tasks / harness.replace("-", "_")), "--output_path", str(output), "--log_samples"),
    ]


def read(output: Path) -> tuple[float, list[str]]:
    """The score that the harness wrote, and its answers in the order of the questions."""
    [results] = output.rglob("*results*.json")
    [samples] = output.rglob("*samples*.jsonl")
    scores = json.loads(results.read_text())["results"]["digit_pages"]
    [score] = [value for name, value in scores.items() if name.startswith("exact_match,")]
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    answers = [row["filtered_resps"] for row in rows]
    return score, [(each if isinstance(each, str) else each[0]).strip() for each in answers]


def kill_half_way(argv: list[str], answers: Path, count: int, folder: Path, environment: dict) -> int:
    """Kills a run once it has written `count` answers. Returns how many it has written."""
    with subprocess.Popen(argv, cwd=folder, env=environment) as process:
        while process.poll() is None:
            if answers.is_file() and len(answers.read_bytes().splitlines()) >= count:
                process.kill()
            time.sleep(0.05)
    return len(answers.read_bytes().splitlines())


def main() -> int:
    parser = argparse.ArgumentParser(description="Compares lmms-eval and lm-eval with examples.digits.evaluate.")
    parser.add_argument("--num_pages", default=360, type=int)
    pages = held_out_pages(parser.parse_args().num_pages)
    rows = rows_of(pages)
    expected = ask(MODEL, rows, BATCH_SIZE)
    right = sum(answer == page.answer(question) for (page, question), answer in zip(rows, expected, strict=True))
    lines = [f"| `python -m examples.digits.evaluate` | | {right} of {len(rows)} | |"]
    failed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
        write_tasks(folder, len(pages))
        kept = folder / "answers.jsonl"
        runs = [
            ("lmms-eval", "first", {}),
            ("lmms-eval", "killed, then again", {"answers": kept}),
            ("lm-eval", "first", {}),
            ("lm-eval", "second", {}),
        ]
        for number, (harness, run, model_args) in enumerate(runs):
            output = folder / str(number)
            argv = command(harness, folder, output, **model_args)
            if model_args:
                killed = kill_half_way(argv, kept, len(rows) // 3, folder, environment)
                if killed >= len(rows):
                    failed.append("The run was over before it was killed.")
                run = run.replace("killed", f"killed after {killed} answers")
            subprocess.run(argv, cwd=folder, env=environment, check=True)
            score, answers = read(output)
            equal = sum(a == b for a, b in zip(answers, expected, strict=True))
            lines.append(f"| {harness} | {run} | {score * len(rows):.0f} of {len(rows)} | {equal} |")
            if equal < len(rows) or abs(score - right / len(rows)) > 1e-12:
                failed.append(f"{harness}, {run} run: {score * len(rows):.3f} right, {equal} answers equal.")
            if model_args and len(kept.read_bytes().splitlines()) != len(rows):
                failed.append("The run after the killed one did not go on after its last answer.")
    print("\n".join(["| program | run | exact answers | equal answers |", "|---|---|---:|---:|", *lines, *failed]))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
