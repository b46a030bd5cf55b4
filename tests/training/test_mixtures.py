# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Weighted mixtures: shares, batches of one data set and mixed ones, the same rows in many processes and resumed."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from accelerate.data_loader import BatchSamplerShard
from datasets import IterableDataset
from helpers import make_image
from torch.utils.data import BatchSampler, SequentialSampler
from transformers import AutoModelForImageTextToText

from jvlm.training import finetune
from jvlm.training.mixtures import Mixture, MixtureConfig, MixtureSource


SIZES = {"charts": 40, "photos": 7, "text": 25}
ROWS = [[{"question": f"{name} {row}?", "answer": "A."} for row in range(size)] for name, size in SIZES.items()]


def mixture(num_steps: int = 200, rows_per_step: int = 8, seed: int = 0, weights=(2, 1, 1), **settings) -> Mixture:
    sources = [
        MixtureSource(name, weight=weight, text_only=name == "text")
        for name, weight in zip(SIZES, weights, strict=True)
    ]
    return Mixture(MixtureConfig(sources, **settings), num_steps, rows_per_step, seed, ROWS)


def by_step(rows: Mixture) -> np.ndarray:
    return rows.sources.reshape(-1, rows.rows_per_step)


def test_batches_are_of_one_source_first_and_mixed_later():
    steps = by_step(mixture(single_source_steps=120))
    kinds = np.array([len(set(step)) for step in steps])
    assert (kinds[:120] == 1).all()
    assert set(steps[:120, 0]) == {0, 1, 2}
    assert (kinds[120:] > 1).mean() > 0.95


@pytest.mark.parametrize("single_source_steps", [0, 20_000])
def test_shares(single_source_steps):
    rows = mixture(20_000, 2, single_source_steps=single_source_steps)
    assert np.bincount(rows.sources) / len(rows) == pytest.approx([0.5, 0.25, 0.25], abs=0.01)
    rows = mixture(20_000, 2, weights=(3, 1, 5), text_only_share=0.15, single_source_steps=single_source_steps)
    assert np.bincount(rows.sources) / len(rows) == pytest.approx([0.85 * 0.75, 0.85 * 0.25, 0.15], abs=0.01)
    assert "text                  15.0%" in rows.describe()


def test_every_data_set_is_read_in_full_before_a_row_comes_again():
    rows = mixture()
    for number, name in enumerate(SIZES):
        read = [row["question"] for row in map(rows.__getitem__, np.flatnonzero(rows.sources == number))]
        size = SIZES[name]
        rounds = [read[start : start + size] for start in range(0, len(read) - size + 1, size)]
        assert len(rounds) > 3
        assert all(len(set(one)) == size for one in rounds)
        assert rounds[0] != rounds[1]
        assert rounds[0] != sorted(rounds[0])


def test_distinct_rows_are_the_first_draws():
    rows = mixture(20)
    located = [rows.locate(index) for index in range(len(rows))]
    assert len(set(located)) < len(located)
    assert [located[index] for index in rows.distinct_rows()] == list(dict.fromkeys(located))


def test_rows_are_a_function_of_seed_and_index():
    rows, again, other = mixture(single_source_steps=50), mixture(single_source_steps=50), mixture(seed=1)
    order = list(range(len(rows)))
    expected = [rows[index] for index in order]
    backwards = [again[index] for index in reversed(order)]
    assert backwards[::-1] == expected
    assert [other[index] for index in order] != expected
    # A longer run begins with the rows of a shorter one.
    longer = mixture(300, single_source_steps=50)
    assert [longer[index] for index in order] == expected
    assert rows[0].keys() == {"question", "answer", "__data_set__"}


@pytest.mark.parametrize(("processes", "per_device"), [(1, 8), (1, 2), (2, 2), (4, 1)])
def test_a_step_has_the_same_rows_in_one_process_and_in_many(processes, per_device):
    """As Accelerate gives batches to processes, with gradient accumulation."""
    rows = mixture(num_steps=20)
    steps: list[set] = [set() for _ in range(20)]
    accumulated = rows.rows_per_step // (processes * per_device)
    for rank in range(processes):
        sampler = BatchSampler(SequentialSampler(rows), per_device, drop_last=False)
        for number, batch in enumerate(BatchSamplerShard(sampler, processes, rank)):
            steps[number // accumulated].update(batch)
    assert steps == [set(range(8 * step, 8 * step + 8)) for step in range(20)]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"datasets": []}, r"names of their own, got \[\]"),
        ({"datasets": [{"path": "a.jsonl"}, {"path": "b/a.csv"}]}, r"\['a', 'a'\]; set `name`"),
        ({"datasets": [{"path": "a", "weight": 0}]}, "weight of a is 0"),
        ({"datasets": [{"path": "a", "share": 1}]}, "MixtureSource has the settings path, .*, not 'share'"),
        ({"datasets": [{"weight": 1}]}, "MixtureSource needs `path`"),
        ({"datasets": [{"path": "a"}], "text_only_share": 0.1}, "is 0.1, .* needs data sets with and without"),
        ({"datasets": [{"path": "a"}], "single_source_steps": -1}, "`single_source_steps` is -1"),
        ({"datasets": [{"path": "a", "test_split": "train[:5]"}]}, "has rows of the split 'train'"),
        ({"single_source_steps": 5}, "MixtureConfig needs `datasets`"),
        (["a"], "not 'list'"),
    ],
)
def test_bad_mixtures_are_errors(tmp_path, settings, problem):
    (tmp_path / "mixture.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match=problem):
        MixtureConfig.load(str(tmp_path / "mixture.yaml"))


def test_rows_to_evaluate_on_are_in_no_data_set(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "Q?", "answer": "A."}\n' * 10)
    path = str(tmp_path / "a.jsonl")
    held_out = {"path": path, "split": "train[:50%]", "test_split": "train[50%:]"}
    other = {"path": path, "name": "other", "split": "train[:60%]"}
    with pytest.raises(ValueError, match=r"'train\[50%:\]' of .* has rows of the split 'train\[:60%\]'"):
        MixtureConfig([held_out, other])
    config = MixtureConfig([held_out, {**other, "split": "train[:40%]"}])
    assert len(config.datasets[0].test_rows()) == 5
    words = ["--model_name_or_path", "m", "--output_dir", str(tmp_path), "--use_cpu", "--max_steps", "1"]
    (tmp_path / "mixture.yaml").write_text(yaml.safe_dump({"datasets": [other]}))
    words += ["--mixture", str(tmp_path / "mixture.yaml"), "--dataset_test_name", path]
    ((_, data, _),) = finetune.parse_arguments([*words, "--dataset_test_split", "train[60%:]"])
    assert len(finetune.load_test_rows(data)[0]) == 4
    data.dataset_test_split = "train[50%:]"
    with pytest.raises(ValueError, match=r"has rows of the split 'train\[:60%\]'"):
        finetune.load_test_rows(data)


def test_streams_are_refused():
    rows = IterableDataset.from_generator(lambda: iter([{"question": "Q?", "answer": "A."}]))
    with pytest.raises(ValueError, match="a is a stream, but a mixture draws rows by their number; load them"):
        Mixture(MixtureConfig([MixtureSource("a")]), 1, 1, data_sets=[rows])


def test_empty_data_sets_are_errors():
    with pytest.raises(ValueError, match="a has no rows"):
        Mixture(MixtureConfig([MixtureSource("a")]), 1, 1, data_sets=[[]])


# The command


@pytest.fixture
def folder(tmp_path, build_model, build_processor):
    """A folder with a model, three data sets of different formats and the two stages of the paper in small."""
    build_model().save_pretrained(tmp_path / "model")
    build_processor().save_pretrained(tmp_path / "model")
    for number in range(4):
        make_image(60, 50 + 30 * number, number).save(tmp_path / f"{number}.png")
    captions = [{"image": f"{number}.png", "caption": "dark" * number + "ness"} for number in range(4)]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, captions)))
    pages = "".join(f"{number}.png,Who?,{'Ada ' * (number + 1)}\n" for number in range(4))
    (tmp_path / "pages.csv").write_text("image,question,answer\n" + pages)
    texts = [{"prompt": f"What is {number}?", "completion": "A number."} for number in range(4)]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    captions = {"path": "captions.jsonl", "columns": {"answer": "caption"}, "question": "Describe it."}
    texts = {"path": "texts.jsonl", "text_only": True}
    pages = {"path": "pages.csv", "split": "train[:3]", "test_split": "train[3:]", "weight": 2}
    stages = {
        "model_name_or_path": "model",
        "output_dir": "runs",
        "use_cpu": True,
        "disable_tqdm": True,
        "global_batch_size": 4,
        "per_device_train_batch_size": 2,
        "max_new_tokens": 4,
        "logging_steps": 1,
        "runs": [
            {
                "name": "alignment",
                "stage": "alignment",
                "max_steps": 2,
                "mixture": {"text_only_share": 0.15, "datasets": [captions, texts]},
            },
            {
                "name": "instruction",
                "stage": "instruction",
                "max_steps": 4,
                "save_steps": 2,
                "mixture": {
                    "single_source_steps": 2,
                    "text_only_share": 0.178,
                    "datasets": [captions, pages, texts],
                },
            },
        ],
    }
    (tmp_path / "stages.yaml").write_text(yaml.safe_dump(stages))
    return tmp_path


def test_two_stages_run_by_one_command_and_resume(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    asked = []
    collate = finetune.RowCollator._collate
    monkeypatch.setattr(finetune.RowCollator, "_collate", lambda self, rows: asked.append(rows) or collate(self, rows))
    finetune.main(["--config", "stages.yaml"])
    output = capsys.readouterr().out
    assert "Mixture: 2 steps of 4 rows" in output
    assert "Mixture: 4 steps of 4 rows, up to step 2 of one data set each" in output
    of_stages = [
        Counter(row["__data_set__"] for batch in asked[start:end] for row in batch) for start, end in ((0, 4),)
    ]
    assert set(of_stages[0]) <= {"captions", "texts"}
    card = (folder / "runs" / "instruction" / "README.md").read_text()
    for part in (
        "| stage | instruction |",
        "| rows per step | 4 |",
        "pages exact answers",
        "`captions`, `pages`, `texts`",
    ):
        assert part in card, part
    assert (folder / "runs" / "instruction" / "answers_pages.jsonl").is_file()
    # Resumed after step 2, the second stage reads the rows that are left, and ends with the same weights.
    expected = AutoModelForImageTextToText.from_pretrained(folder / "runs" / "instruction").state_dict()
    (folder / "runs" / "instruction" / "trainer_state.json").unlink()
    (folder / "runs" / "instruction" / "checkpoint-4" / "trainer_state.json").unlink()
    rows_of_the_end = [batch for batch in asked if len(batch) == 2][-4:]
    asked.clear()
    finetune.main(["--config", "stages.yaml", "--resume_from_checkpoint", "true"])
    assert [batch for batch in asked if len(batch) == 2] == rows_of_the_end
    found = AutoModelForImageTextToText.from_pretrained(folder / "runs" / "instruction").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_what_does_not_go_with_a_mixture_is_an_error(folder, monkeypatch):
    monkeypatch.chdir(folder)
    sources = [{"path": "pages.csv", "text_only": True}]
    (folder / "mixture.yaml").write_text(yaml.safe_dump({"datasets": sources}))
    words = ["--model_name_or_path", "model", "--use_cpu", "--output_dir", "runs", "--mixture", "mixture.yaml"]
    for further, problem in (
        ([], "--max_steps or --stage"),
        (["--max_steps", "1", "--streaming"], "an order of its own"),
        (["--max_steps", "1", "--train_sampling_strategy", "group_by_length"], "an order of its own"),
        (["--max_steps", "1", "--dataset_name", "pages.csv"], "either --dataset_name or --mixture"),
        (["--max_steps", "1"], "pages is `text_only`, but has a row with images"),
    ):
        with pytest.raises(ValueError, match=problem):
            finetune.main([*words, *further])
