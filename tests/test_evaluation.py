# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The command `jvlm evaluate`, with a stand-in for the harnesses. tests/harness has those with the real ones."""

import itertools
import json
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import huggingface_hub
import PIL.Image
import pytest
from huggingface_hub.errors import HfHubHTTPError

from jvlm.evaluation import evaluate as program
from jvlm.evaluation.answer_file import AnswerFile
from jvlm.evaluation.benchmarks import BENCHMARKS
from jvlm.evaluation.evaluate import Settings, choose, command, description, evaluate, main, read_score
from jvlm.evaluation.fingerprint import files_of


ROOT = Path(__file__).parents[1]
DIGITS = str(ROOT / "examples" / "digits" / "model")
AI2D, DOCVQA, MME, WEMATH, ARC = (choose([name])[0] for name in ("ai2d", "docvqa", "mme", "wemath", "arc-c"))


@pytest.fixture
def harness(monkeypatch):
    """Stands in for the harnesses: `scores` are what they write by task, `runs` the tasks they were started with."""

    class Harness:
        def __init__(self):
            self.scores = {"ai2d": {"exact_match,flexible-extract": 0.5}, "docvqa_val": {"anls,none": 0.25}}
            self.rows, self.status, self.runs = 100, 0, []

        def run(self, argv, cwd, env):
            self.is_offline = env.get("HF_HUB_OFFLINE") == "1"
            given = dict(itertools.pairwise(argv))
            task = given["--tasks"]
            if task.endswith("_local"):
                self.task_file = json.loads((Path(given["--include_path"]) / f"{task}.yaml").read_text())
            self.runs.append(task)
            if score := self.scores.get(task.removesuffix("_local")):
                effective = min(self.rows, int(given.get("--limit", self.rows)))
                counts = {task: {"original": 100, "effective": effective}}
                folder = Path(given["--output_path"]) / "model"
                folder.mkdir(parents=True)
                results = {"results": {task: score}, "n-samples": counts}
                (folder / "20260101_000000_results.json").write_text(json.dumps(results))
                (folder / "20260101_000000_samples.jsonl").write_text("")
                (folder / "task_results.json").write_text("{}")  # as some tasks write
            return subprocess.CompletedProcess(argv, self.status)

    stand_in = Harness()
    monkeypatch.setattr(program.subprocess, "run", stand_in.run)
    monkeypatch.setattr(program, "version", lambda name: version(name) if name in ("jvlm", "transformers") else "1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return stand_in


@pytest.fixture
def measure(harness, tmp_path):
    """A function that evaluates on two benchmarks, or those of `suite`, and returns their scores by name."""

    def run(suite=("ai2d", "docvqa"), **options):
        outcomes = evaluate(options.pop("model", DIGITS), list(suite), str(tmp_path / "out"), **options)
        return {outcome.benchmark.name: outcome.score for outcome in outcomes}

    return run


def test_the_description_is_complete():
    assert len({benchmark.slug for benchmark in BENCHMARKS}) == len(BENCHMARKS)
    for benchmark in BENCHMARKS:
        if benchmark.task is None:
            assert benchmark.unknown
            assert not benchmark.metrics
        else:
            assert benchmark.metrics
            assert benchmark.split
        assert benchmark.harness in program.PACKAGES
        assert f"| {benchmark.name} |" in description()


def test_the_documents_have_the_description():
    assert description() in (ROOT / "docs" / "evaluation.md").read_text()


def test_the_paper_is_all_benchmarks_in_order():
    assert choose(["paper"]) == choose(["MTVQA", "paper"]) == BENCHMARKS
    assert [benchmark.name for benchmark in choose(["MTVQA", "ai2d"])] == ["AI2D", "MTVQA"]


def test_an_unknown_benchmark_is_named(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["--suite", "docvqa", "docvqb"])
    assert exit_info.value.code == 1
    assert "no benchmark 'docvqb'. Choose paper or some of ai2d, " in capsys.readouterr().err


def test_the_entry_point_of_lmms_eval_leads_to_the_manifest():
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["lmms_eval.models"]
    module, _, name = entry["jvlm"].partition(":")
    assert callable(getattr(import_module(module), name))


def test_commands(tmp_path):
    settings = Settings("ID", limit=20, max_crops=4, dtype="bfloat16", device="cpu", batch_size=8)
    model_args = f"pretrained=ID,dtype=bfloat16,max_crops=4,answers={tmp_path / 'answers.jsonl'}"
    assert command(AI2D, settings, tmp_path) == [
        *(sys.executable, "-m", "lmms_eval", "--model", "jvlm", "--verbosity", "WARNING"),
        *("--model_args", model_args, "--tasks", "ai2d", "--batch_size", "8"),
        *("--output_path", str(tmp_path / "harness"), "--log_samples", "--limit", "20", "--device", "cpu"),
    ]
    of_text = command(ARC, settings, tmp_path)
    assert of_text[1:6] == ["-m", "jvlm.evaluation.lm_eval", "run", "--model", "jvlm"]
    assert "pretrained=ID,dtype=bfloat16,max_crops=4" in of_text


def test_a_dry_run_prints_commands_and_writes_nothing(harness, tmp_path, capsys):
    assert main(["--model", DIGITS, "--dry_run", "--output_dir", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert harness.runs == []
    assert list(tmp_path.iterdir()) == []
    assert printed.count(" -m lmms_eval ") + printed.count("not run: ") + printed.count(" run --model jvlm") == len(
        BENCHMARKS
    )


def test_paths_that_the_harness_would_misread_are_refused(harness, tmp_path):
    with pytest.raises(ValueError, match=r"cannot read `answers` with a comma or an equals sign: .*a,b"):
        evaluate(DIGITS, ["ai2d"], str(tmp_path / "a,b"))
    with pytest.raises(ValueError, match=r"`data_dir` is no folder: missing"):
        evaluate(DIGITS, ["ai2d"], str(tmp_path), data_dir="missing")


def test_scores_and_differences_are_written_and_printed(harness, measure, tmp_path, capsys):
    assert measure() == {"AI2D": 50.0, "DocVQA": 25.0}
    text = (tmp_path / "out" / "results.md").read_text()
    assert text in capsys.readouterr().out
    assert "Model: model, all rows." in text
    assert "| VQA | AI2D | `ai2d` | 50.0 | 82 | -32.0 |  |" in text


def test_a_finished_benchmark_is_not_run_again(harness, measure):
    first = measure()
    assert measure() == first
    assert harness.runs == ["ai2d", "docvqa_val"]
    measure(limit=10)  # other settings
    assert harness.runs == ["ai2d", "docvqa_val"] * 2


def test_another_checkpoint_of_the_same_name_is_run_again(harness, measure, tmp_path):
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_text("one")
    measure(["ai2d"], model=str(weights.parent))
    weights.write_text("another")
    measure(["ai2d"], model=str(weights.parent))
    assert harness.runs == ["ai2d", "ai2d"]


def test_an_interrupted_benchmark_does_not_count(harness, measure, tmp_path, monkeypatch):
    def interrupt(argv, cwd, env):
        harness.run(argv, cwd, env)
        raise KeyboardInterrupt

    monkeypatch.setattr(program.subprocess, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        measure()
    monkeypatch.setattr(program.subprocess, "run", harness.run)
    harness.scores["ai2d"] = {"exact_match,flexible-extract": 0.75}
    assert measure() == {"AI2D": 75.0, "DocVQA": 25.0}
    assert harness.runs == ["ai2d", "ai2d", "docvqa_val"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"status": 1}, "lmms-eval failed, see above"),
        ({"scores": {}}, "lmms-eval failed, see above"),  # exits with 0
        ({"rows": 99}, "ai2d was scored on 99 of 100 rows"),
        ({"scores": {"ai2d": {"exact_match,a": 0.5, "exact_match,b": 0.5}}}, "ai2d have no single exact_match"),
        ({"scores": {"ai2d": {"exact_match,a": float("nan")}}}, "exact_match of ai2d is nan"),
        ({"scores": {"ai2d": {"exact_match,a": " "}}}, "exact_match of ai2d is ' '"),
    ],
)
def test_a_failure_is_told_and_the_others_still_run(harness, tmp_path, capsys, change, reason):
    harness.scores["docvqa_val"] = {"anls,none": 0.25}
    vars(harness).update(change)
    assert main(["--model", DIGITS, "--suite", "ai2d", "docvqa", "--output_dir", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert reason in printed
    assert harness.runs == ["ai2d", "docvqa_val"]
    assert not (tmp_path / "ai2d" / "result.json").exists()


def test_what_cannot_run_is_told(harness, measure, monkeypatch, tmp_path):
    assert measure(["charxiv-reasoning", "mmmb"]) == {"CharXiv reasoning": None, "MMMB": None}
    assert harness.runs == []
    text = (tmp_path / "out" / "results.md").read_text()
    assert "(1) a language model scores the answers; set OPENAI_API_KEY." in text
    assert "(2) lmms-eval 0.7.3 has no task for it." in text


def test_a_missing_harness_is_named(monkeypatch, tmp_path, capsys):
    def fail(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(program, "version", fail)
    assert [outcome.score for outcome in evaluate(DIGITS, ["ai2d"], str(tmp_path))] == [None]
    assert "lmms-eval is not installed; pip install 'jvlm[evaluate]'" in capsys.readouterr().out
    assert main(["--model", DIGITS, "--suite", "ai2d", "--output_dir", str(tmp_path)]) == 1  # nothing has run


@pytest.mark.parametrize(
    ("found", "is_offline"), [(None, False), (HfHubHTTPError("503", response=Mock()), False), (OSError(), True)]
)
def test_without_the_hub_the_harness_does_not_wait_for_it(harness, measure, monkeypatch, capsys, found, is_offline):
    monkeypatch.setattr(huggingface_hub, "model_info", Mock(side_effect=found))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert measure(["ai2d"]) == {"AI2D": 50.0}
    assert harness.is_offline == is_offline
    assert ("cannot be reached. Only what is in its cache is used." in capsys.readouterr().out) == is_offline


def test_local_data_replaces_that_of_the_task(harness, measure, tmp_path, monkeypatch):
    package, data = tmp_path / "lmms_eval", tmp_path / "data"
    monkeypatch.setattr(program, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(package)]))
    installed = package / "tasks" / "docvqa" / "val.yaml"
    installed.parent.mkdir(parents=True)
    installed.write_text('include: template\ntask: "docvqa_val"\n')
    (installed.parent / "lite.yaml").write_text("task: docvqa_val_lite\n")
    (data / "docvqa_val").mkdir(parents=True)
    assert main(["--model", DIGITS, "--suite", "docvqa", "--output_dir", str(tmp_path), "--data_dir", str(data)]) == 1
    assert "docvqa_val is no data set with a split validation; write it with" in (tmp_path / "results.md").read_text()
    assert harness.runs == []
    (data / "docvqa_val" / "dataset_dict.json").write_text('{"splits": ["validation"]}')
    scores = measure(["ai2d", "docvqa", "arc-c"], data_dir=str(data))
    assert scores == {"AI2D": None, "DocVQA": 25.0, "ARC-C": None}
    assert harness.task_file == {
        "include": str(installed),
        "task": "docvqa_val_local",
        "dataset_path": str(data / "docvqa_val"),
        "dataset_name": None,
        "dataset_kwargs": {"load_from_disk": True},
    }
    assert measure(["docvqa"], data_dir=str(data))
    assert len(harness.runs) == 1
    (data / "docvqa_val" / "state.json").write_text("{}")  # other data
    assert measure(["docvqa"], data_dir=str(data))
    assert len(harness.runs) == 2
    installed.unlink()
    with pytest.raises(ValueError, match="0 task files of lmms-eval have the task docvqa_val, expected one"):
        measure(["docvqa"], data_dir=str(data), limit=1)


def test_scores_are_on_the_scale_of_the_paper():
    counts = {"n-samples": {"mme": {"original": 30, "effective": 20}}}
    found = {"mme_perception_score,none": 1500.5, "mme_cognition_score,none": 400.0}
    assert read_score(MME, {"results": {"mme": found}, **counts}, 20) == 1900.5
    found = {"wemath_strict,none": "17.14%", "wemath_strict_stderr,none": "N/A"}
    assert read_score(WEMATH, {"results": {WEMATH.task: found}, "n-samples": {}}, None) == pytest.approx(17.14)
    blink = choose(["blink"])[0]
    found = {"results": {}, "groups": {"blink": {"blink_acc,none": 0.5}}, "n-samples": {}}
    assert read_score(blink, found, None) == 50.0


def conversation(color: str) -> list[dict]:
    image = PIL.Image.new("RGB", (4, 3), color)
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]}]


def test_answers_are_found_by_what_was_asked(tmp_path):
    path = tmp_path / "new" / "answers.jsonl"
    answers = AnswerFile(path, ["model"])
    key = answers.key(conversation("red"), {"max_new_tokens": 4})
    answers.append(key, "röt\n", 3)
    again = AnswerFile(path, ["model"])
    assert again.get(again.key(conversation("red"), {"max_new_tokens": 4})) == ("röt\n", 3)
    assert again.get(again.key(conversation("blue"), {"max_new_tokens": 4})) is None
    assert again.get(again.key(conversation("red"), {"max_new_tokens": 5})) is None
    other = AnswerFile(path, ["another model"])
    assert other.get(other.key(conversation("red"), {"max_new_tokens": 4})) is None


def test_half_of_a_line_is_deleted(tmp_path):
    path = tmp_path / "answers.jsonl"
    AnswerFile(path, []).append("a", "1", 1)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"key": "b", "ans')
    answers = AnswerFile(path, [])
    assert (answers.get("a"), answers.get("b")) == (("1", 1), None)
    answers.append("c", "2", 1)
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "c"]


@pytest.mark.parametrize("line", ["no JSON\n", '{"key": "a"}\n', "[]\n"])
def test_a_file_of_another_kind_is_refused(tmp_path, line):
    path = tmp_path / "answers.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=r"Line 1 of .*answers\.jsonl is no answer of an evaluation"):
        AnswerFile(path, [])
    assert path.read_text() == line


def test_the_files_of_a_folder(tmp_path):
    assert files_of("jinaai/jina-vlm") == files_of(None) == []
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "a.txt").write_text("abc")
    [[name, size, _]] = files_of(str(tmp_path))
    assert (name, size) == ("samples/a.txt", 3)
