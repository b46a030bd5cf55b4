# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Training in two processes on the CPU, with accelerate's configurations in `examples/accelerate`: losses of one process,
processes without images, whole checkpoints.
"""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from distributed_program import ROWS_PER_STEP, RUNS, STREAM_STEPS, train
from packaging.version import Version
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from jvlm.training import DataCollatorForJinaVLM


ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "examples" / "accelerate"
PROGRAM = Path(__file__).with_name("distributed_program.py")

needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")
needs_fsdp2 = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.7"),
    reason="FSDP2 of PyTorch 2.6 needs events, which CPUs lack",
)
MARKS = {"ddp": [], "fsdp2": [needs_fsdp2], "deepspeed_zero3": [needs_deepspeed]}
STRATEGIES = [pytest.param(strategy, marks=marks) for strategy, marks in MARKS.items()]
EVERY_RUN = [pytest.param(strategy, run, marks=MARKS[strategy]) for strategy, runs in RUNS.items() for run in runs]

# Output of every launch so far, None where it went well: each is needed by several tests.
launched: dict[str, str | None] = {}


def launch(config: str, *arguments: str, timeout: int = 300) -> str | None:
    """Runs the program in two processes; returns its output if it failed or did not end."""
    environment = {
        **os.environ,
        "ACCELERATE_TORCH_DEVICE": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / config)]
    command += ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0", str(PROGRAM)]
    process = subprocess.Popen(
        [*command, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        # Not kill: the launcher must end its processes.
        process.terminate()
        output, _ = process.communicate()
        return f"Not done after {timeout} s.\n{output[-20_000:]}"
    return output[-20_000:] if process.returncode else None


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture
def folder(module_folder, build_model, build_processor, build_row):
    """A folder with a model and rows: steps of four, two for each process."""
    if not (module_folder / "rows.pt").exists():
        build_model().save_pretrained(module_folder / "model")
        build_processor().save_pretrained(module_folder / "model")
        # In every step one of the processes, or neither, has no image.
        num_images = [1, 2, 0, 0, 0, 0, 1, 0, 0, 1, 2, 0]
        rows = {
            "mixed": [build_row(number, num_images=images) for number, images in enumerate(num_images)],
            "text": [build_row(number, num_images=0) for number in range(8)],
            "evaluation": [build_row(20 + number, num_images=images) for number, images in enumerate([2, 0, 0, 1])],
            "by_process": [[build_row(30, num_images=1), build_row(31, num_images=0)], [build_row(32, num_images=0)]],
        }
        torch.save(rows, module_folder / "rows.pt")
    return module_folder


@pytest.fixture
def run_folder(folder):
    """A function (strategy, run) to the folder of that run in two processes."""

    def run(strategy: str, name: str) -> Path:
        if strategy not in launched:
            launched[strategy] = launch(f"{strategy}.yaml", str(folder), strategy)
        if launched[strategy] is not None:
            pytest.fail(launched[strategy])
        return folder / strategy / name

    return run


@pytest.fixture
def seen(run_folder):
    """A function (strategy, run) to what its two processes saw."""
    return lambda strategy, name: [
        json.loads((run_folder(strategy, name) / f"{rank}.json").read_text()) for rank in range(2)
    ]


@pytest.mark.parametrize(("strategy", "run"), [run for run in EVERY_RUN if run.values[1] != "stream"])
def test_two_processes_follow_the_losses_of_one(seen, folder, tmp_path, strategy, run):
    _, expected = train(
        folder,
        RUNS[strategy][run][0],
        tmp_path,
        use_cpu=True,
        per_device_train_batch_size=ROWS_PER_STEP,
        per_device_eval_batch_size=2,
    )
    assert expected["losses"][-1] < expected["losses"][0]
    for process in seen(strategy, run):
        # One step's rows are all those of both processes, averaged over their tokens.
        torch.testing.assert_close(process["losses"], expected["losses"], rtol=1e-4, atol=0)
        torch.testing.assert_close(process["eval_loss"], expected["eval_loss"], rtol=1e-4, atol=0)


@pytest.mark.parametrize(("strategy", "run"), EVERY_RUN)
def test_loss_without_images_is_bitwise_that_without_the_vision_side(seen, run_folder, folder, strategy, run):
    model = AutoModelForImageTextToText.from_pretrained(run_folder(strategy, run)).train()
    # Nothing of the vision side may be run here.
    model.model.vision_tower = model.model.connector = None
    rows = torch.load(folder / "rows.pt", weights_only=False)["by_process"][1]
    batch = DataCollatorForJinaVLM(AutoProcessor.from_pretrained(folder / "model"))(rows)
    with_images, without_images = seen(strategy, run)
    assert without_images["own_loss"] == model(**batch).loss.item()
    assert with_images["own_loss"] != without_images["own_loss"]


@pytest.mark.parametrize(("strategy", "run"), EVERY_RUN)
def test_processes_evaluate_uneven_rows(seen, strategy, run):
    first, second = seen(strategy, run)
    assert math.isfinite(first["uneven_eval_loss"])
    assert first["uneven_eval_loss"] == second["uneven_eval_loss"]


@pytest.mark.parametrize(("strategy", "run"), EVERY_RUN)
def test_saved_checkpoint_is_whole(run_folder, folder, strategy, run):
    model, loading_info = AutoModelForImageTextToText.from_pretrained(
        run_folder(strategy, run), output_loading_info=True
    )
    assert not any(loading_info.values())
    trained = load_file(run_folder(strategy, run) / "weights.safetensors")
    before = load_file(folder / "model" / "model.safetensors")
    changed = set()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, trained.pop(name)), name
        if not torch.equal(parameter, before[name]):
            changed |= {part for part in ("vision_tower", "connector", "language_model", "lm_head") if part in name}
    assert not trained
    # Nothing is learned about images where there are none.
    vision = {"vision_tower", "connector"} if RUNS[strategy][run][0] != "text" else set()
    assert changed == {"language_model", "lm_head"} | vision


@needs_fsdp2
def test_streams_of_uneven_files_do_not_end_apart(seen):
    first, second = seen("fsdp2", "stream")
    assert len(first["losses"]) == STREAM_STEPS
    assert first["losses"] == second["losses"]
    assert first["losses"][-1] < first["losses"][0]


def test_fsdp_finds_the_blocks_by_itself(build_model):
    model = build_model()
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    plugin.set_auto_wrap_policy(model)
    found = {block.__name__ for block in plugin.auto_wrap_policy.keywords["transformer_layer_cls"]}
    config = load_config_from_file(str(CONFIGS / "fsdp2.yaml"))
    ours = set(config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"].split(","))
    assert ours <= found
    assert found <= {type(module).__name__ for module in model.modules()}


@needs_fsdp2
def test_finetuning_program_under_fsdp2(folder, tmp_path, build_row):
    pytest.importorskip("datasets")
    pytest.importorskip("peft")
    pytest.importorskip("matplotlib")
    lines = []
    for number in range(4):
        row = build_row(number, num_images=number % 2)
        for image in row["images"]:
            image.save(tmp_path / f"{number}.png")
        lines.append(json.dumps({**row, "images": [f"{number}.png"] * len(row["images"])}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    failure = launch(
        "fsdp2.yaml",
        *("--model_name_or_path", str(folder / "model"), "--dataset_name", str(tmp_path / "rows.jsonl")),
        *("--dataset_test_split", "test", "--output_dir", str(tmp_path / "output"), "--max_steps", "2"),
        *("--per_device_train_batch_size", "1", "--save_steps", "1", "--report_to", "none"),
        *("--max_new_tokens", "4", "--ddp_timeout", "120"),
    )
    assert failure is None, failure
    answers = [json.loads(line) for line in (tmp_path / "output" / "answers.jsonl").read_text().splitlines()]
    assert [answer["row"] for answer in answers] == [0, 1, 2, 3]
    # A checkpoint on the way is as whole as the last.
    for saved in ("checkpoint-2", "."):
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / "output" / saved)
        last = load_file(tmp_path / "output" / "model.safetensors")
        assert all(torch.equal(parameter, last[name]) for name, parameter in model.named_parameters())
