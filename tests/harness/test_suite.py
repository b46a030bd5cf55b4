# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Both harnesses as programs, offline, on data that the tests write."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from miniatures import write_miniatures

from examples.digits.evaluate import MODEL, evaluate, rows_of
from examples.digits.pages import COUNT, held_out_pages
from examples.digits.tasks import write_tasks
from jvlm_cli.answering import Answerer, user_message


pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; `make harness` installs it.")
pytest.importorskip("lm_eval", reason="lm-eval is not installed; `make harness` installs it.")

NUM_PAGES = 12


def run(*arguments: str, cwd: Path) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(cwd / "cache")}
    command = [sys.executable, "-m", *arguments]
    finished = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def results(folder: Path) -> dict:
    [file] = folder.rglob("*results*.json")
    return json.loads(file.read_text())["results"]


@pytest.fixture(scope="module")
def digit_tasks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digit_tasks")
    write_tasks(folder, NUM_PAGES)
    return folder


@pytest.fixture(scope="module")
def expected() -> float:
    return evaluate(MODEL, NUM_PAGES)["exact"]["rate"]


def test_lmms_eval_scores_the_digit_pages(digit_tasks, expected, tmp_path):
    run(
        *("lmms_eval", "--model", "jvlm", "--model_args", f"pretrained={MODEL},dtype=float32", "--batch_size", "24"),
        *("--tasks", "digit_pages", "--include_path", str(digit_tasks / "lmms_eval")),
        *("--output_path", str(tmp_path / "out")),
        cwd=tmp_path,
    )
    assert results(tmp_path / "out")["digit_pages"]["exact_match,none"] == pytest.approx(expected, abs=1e-12)


def test_lm_eval_scores_the_digit_pages(digit_tasks, expected, tmp_path):
    run(
        *("jvlm.evaluation.lm_eval", "--model", "hf-multimodal", "--apply_chat_template", "--batch_size", "24"),
        *("--model_args", f"pretrained={MODEL},dtype=float32", "--device", "cpu"),
        *("--tasks", "digit_pages", "--include_path", str(digit_tasks / "lm_eval")),
        *("--output_path", str(tmp_path / "out")),
        cwd=tmp_path,
    )
    assert results(tmp_path / "out")["digit_pages"]["exact_match,stripped"] == pytest.approx(expected, abs=1e-12)


def test_the_paper_on_miniatures_end_to_end(tmp_path):
    """Six benchmarks run with the task files and the metrics of the harness; the others say why not."""
    write_miniatures(tmp_path / "data")
    command = (
        *("jvlm.evaluation", "--model", str(MODEL), "--suite", "paper", "--limit", "20", "--batch_size", "8"),
        *("--data_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out")),
    )
    printed = run(*command, cwd=tmp_path)
    table = (tmp_path / "out" / "results.md").read_text()
    assert table in printed
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines() if line.startswith("| ")]
    ours = {row[2]: row[4] for row in rows[1:] if row[4]}
    assert set(ours) == {"AI2D", "ChartQA", "TextVQA", "DocVQA", "MuirBench", "POPE"}
    assert all(0 <= float(score) <= 100 for score in ours.values())
    assert ours["DocVQA"] == "50.0"  # see `write_miniatures`
    # Nothing is run a second time. What has lost its result goes on from the answers.
    (tmp_path / "out" / "ai2d" / "result.json").unlink()
    answers = (tmp_path / "out" / "ai2d" / "answers.jsonl").read_text()
    assert len(answers.splitlines()) == 20
    again = run(*command, cwd=tmp_path)
    assert again.count("Postprocessing") == 0
    assert (tmp_path / "out" / "ai2d" / "answers.jsonl").read_text() == answers
    assert (tmp_path / "out" / "results.md").read_text() == table


TEXT_TASK = """task: gsm8k
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["Question:"], max_gen_toks: 8, do_sample: false}}
metric_list: [{{metric: exact_match}}]
filter_list: [{{name: flexible-extract, filter: [{{function: remove_whitespace}}, {{function: take_first}}]}}]
"""
CHOICE_TASK = """task: arc_challenge
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: 0
doc_to_choice: ["1", "2"]
metric_list: [{{metric: acc}}]
"""


def test_text_only_benchmarks_run_with_lm_eval(tmp_path):
    """The digits of a page as text instead of an image; the answer is generated, or chosen by its likelihood."""
    rows = rows_of(held_out_pages(12), [COUNT])
    data, answerer = tmp_path / "rows.jsonl", Answerer(device="cpu", max_new_tokens=8)
    texts = [(" / ".join(" ".join(map(str, line)) for line in page.lines), page.answer(COUNT)) for page, _ in rows]
    data.write_text("".join(json.dumps({"question": text + COUNT, "answer": answer}) + "\n" for text, answer in texts))
    for name, text in ("gsm8k", TEXT_TASK), ("arc_challenge", CHOICE_TASK):
        (tmp_path / "tasks").mkdir(exist_ok=True)
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text.format(data=data))
    run(
        *("jvlm.evaluation", "--model", str(MODEL), "--suite", "gsm-8k", "arc-c", "--device", "cpu"),
        *("--include_path", str(tmp_path / "tasks"), "--output_dir", str(tmp_path / "out"), "--dtype", "float32"),
        cwd=tmp_path,
    )
    scores = {name: json.loads((tmp_path / "out" / name / "result.json").read_text()) for name in ("gsm-8k", "arc-c")}
    given = ["".join(answerer.stream([user_message([], text + COUNT)])).strip() for text, _ in texts]
    right = sum(text == answer for text, (_, answer) in zip(given, texts, strict=True))
    assert scores["gsm-8k"]["score"] == pytest.approx(100 * right / len(texts))
    assert right > 0
    assert 0 <= scores["arc-c"]["score"] <= 100
