# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The description of the benchmarks against the task files of the installed harnesses."""

from functools import cache

import pytest

from jvlm.evaluation.benchmarks import BENCHMARKS


pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; `make harness` installs it.")
pytest.importorskip("lm_eval", reason="lm-eval is not installed; `make harness` installs it.")


@cache
def task_managers() -> dict:
    from lm_eval.tasks import TaskManager as TextTasks
    from lmms_eval.tasks import TaskManager

    return {"lmms-eval": TaskManager("ERROR", model_name="jvlm"), "lm-eval": TextTasks()}


def task_files(harness: str, task: str) -> list[dict]:
    """The settings of a task, or of all tasks of a group, with those of included files, without its functions."""
    if harness == "lmms-eval":
        from lmms_eval.utils import load_yaml_config

        index = task_managers()[harness].task_index
        entry = index[task]
        if entry["type"] == "tag":
            return [file for each in entry["task"] for file in task_files(harness, each)]
        settings = load_yaml_config(entry["yaml_path"], mode="simple")
    else:
        from lm_eval.tasks._yaml_loader import load_yaml

        entry = task_managers()[harness].task_index[task]
        if entry.yaml_path is None:  # a tag, whose tasks it knows
            return [file for each in entry.tags for file in task_files(harness, each)]
        settings = load_yaml(entry.yaml_path, resolve_func=False)
    if "group" in settings and "dataset_path" not in settings:
        return [file for each in settings["task"] for file in task_files(harness, each)]
    return [settings]


@pytest.mark.parametrize("benchmark", [each for each in BENCHMARKS if each.task], ids=lambda each: each.slug)
def test_the_harness_has_the_task_as_described(benchmark):
    files = task_files(benchmark.harness, benchmark.task)
    assert files
    for settings in files:
        assert benchmark.split in (settings.get("test_split"), settings.get("validation_split"))
        assert (settings.get("test_split") or settings.get("validation_split")) == benchmark.split
        limits = settings.get("generation_kwargs") or {}
        assert limits.get("max_new_tokens", limits.get("max_gen_toks")) == benchmark.max_new_tokens
        metrics = {metric["metric"] for metric in settings["metric_list"]}
        filters = {each["name"] for each in settings.get("filter_list", [])}
        for metric in benchmark.metrics:
            name, _, wanted = metric.partition(",")
            assert name in metrics
            assert {wanted} <= filters if wanted else len(filters) <= 1
        kwargs = (settings.get("lmms_eval_specific_kwargs") or {}).get("default", {})
        suffix = kwargs.get("post_prompt")
        if benchmark.suffix is not None:
            between = "\n" if benchmark.task == "seedbench_2_plus" else ""  # the task writes it in its own code
            assert between + suffix == benchmark.suffix
        elif benchmark.harness == "lmms-eval":
            assert not suffix


def test_what_the_harness_lacks():
    """A release that has these is to be entered into the description."""
    index = task_managers()["lmms-eval"].task_index
    for name in ("mmmb", "rbench", "r_bench", "mmbench_en_dev_v11", "mmbench_v11", "mmbench_ar_dev", "mmbench_tr_dev"):
        assert name not in index
