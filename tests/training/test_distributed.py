# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Training in two processes on the CPU, with the configurations in `examples/accelerate`: losses equal those of one
process, processes may have no images, and saved checkpoints are complete.
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
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from jvlm.modeling.image_plan import digest
from jvlm.training import DataCollatorForJinaVLM
from jvlm.training.vision_features import tower_settings


ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "examples" / "accelerate"
PROGRAM = Path(__file__).with_name("distributed_program.py")

needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")
MARKS = {"ddp": [], "fsdp2": [], "deepspeed_zero3": [needs_deepspeed]}
STRATEGIES = [pytest.param(strategy, marks=marks) for strategy, marks in MARKS.items()]
CAN_FINETUNE = all(importlib.util.find_spec(name) is not None for name in ("datasets", "peft", "matplotlib"))
EVERY_RUN = [pytest.param(strategy, run, marks=MARKS[strategy]) for strategy, runs in RUNS.items() for run in runs]

# Results of `launch` by strategy. Several tests use the same launch.
launched: dict[str, str | None] = {}


def launch(config: str, *arguments: str, timeout: int = 400) -> str | None:
    """Runs distributed_program.py in two processes. Returns its output if it failed or timed out, else `None`."""
    environment = {
        **os.environ,
        "ACCELERATE_TORCH_DEVICE": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        # This checkout, also where another one is installed.
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
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
        # Not kill: the launcher must terminate its child processes.
        process.terminate()
        output, _ = process.communicate()
        return f"Timeout after {timeout} s.\n{output[-20_000:]}"
    return output[-20_000:] if process.returncode else None


def finetune_arguments(folder: Path) -> list[str]:
    """Arguments of jvlm.training.finetune, for the rows and the model in `folder`."""
    settings = {
        "model_name_or_path": folder / "model",
        "dataset_name": folder / "rows.jsonl",
        "dataset_test_name": folder / "held_out.jsonl",
        "output_dir": folder / "finetuned",
        "max_steps": 2,
        "per_device_train_batch_size": 1,
        "save_steps": 1,
        "report_to": "none",
        "max_new_tokens": 4,
        "ddp_timeout": 120,
    }
    return [str(word) for name, value in settings.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture
def folder(module_folder, build_model, build_processor, build_row):
    """A folder with a model, and rows for steps of four rows, two per process."""
    if not (module_folder / "rows.pt").exists():
        build_model().save_pretrained(module_folder / "model")
        build_processor().save_pretrained(module_folder / "model")
        # In every step, at least one of the processes has no image.
        num_images = [1, 2, 0, 0, 0, 0, 1, 0, 0, 1, 2, 0]
        rows = {
            "mixed": [build_row(number, num_images=images) for number, images in enumerate(num_images)],
            "text": [build_row(number, num_images=0) for number in range(8)],
            "evaluation": [build_row(20 + number, num_images=images) for number, images in enumerate([2, 0, 0, 1])],
            "by_process": [[build_row(30, num_images=1), build_row(31, num_images=0)], [build_row(32, num_images=0)]],
        }
        torch.save(rows, module_folder / "rows.pt")
        lines = []
        for number in range(4):
            row = build_row(number, num_images=number % 2)
            for image in row["images"]:
                image.save(module_folder / f"{number}.png")
            lines.append(json.dumps({**row, "images": [f"{number}.png"] * len(row["images"])}))
        for name in ("rows.jsonl", "held_out.jsonl"):
            (module_folder / name).write_text("\n".join(lines))
    return module_folder


@pytest.fixture
def run_folder(folder):
    """A function (strategy, run) that returns the output folder of a run in two processes."""

    def run(strategy: str, name: str) -> Path:
        if strategy not in launched:
            finetune = finetune_arguments(folder) if strategy == "fsdp2" and CAN_FINETUNE else []
            launched[strategy] = launch(f"{strategy}.yaml", str(folder), strategy, *finetune)
        if launched[strategy] is not None:
            pytest.fail(launched[strategy])
        return folder / strategy / name

    return run


@pytest.fixture
def results(run_folder):
    """A function (strategy, run) that returns the results of the two processes."""
    return lambda strategy, name: [
        json.loads((run_folder(strategy, name) / f"{rank}.json").read_text()) for rank in range(2)
    ]


@pytest.mark.parametrize(("strategy", "run"), [run for run in EVERY_RUN if run.values[1] != "stream"])
def test_losses_equal_those_of_one_process(results, folder, tmp_path, strategy, run):
    rows, settings = RUNS[strategy][run]
    _, expected = train(
        folder,
        rows,
        tmp_path,
        freeze=settings.get("freeze"),
        use_cpu=True,
        per_device_train_batch_size=ROWS_PER_STEP,
        per_device_eval_batch_size=2,
    )
    assert expected["losses"][-1] < expected["losses"][0]
    for process in results(strategy, run):
        # The loss of a step is the mean over the tokens of all rows of both processes.
        torch.testing.assert_close(process["losses"], expected["losses"], rtol=1e-4, atol=0)
        # Also where the last batches have different numbers of rows.
        for name in ("eval_loss", "uneven_eval_loss"):
            torch.testing.assert_close(process[name], expected[name], rtol=1e-4, atol=0)


@pytest.mark.parametrize(("strategy", "run"), EVERY_RUN)
def test_loss_of_a_process_without_images_ignores_the_vision_side(results, run_folder, folder, strategy, run):
    model = AutoModelForImageTextToText.from_pretrained(run_folder(strategy, run)).train()
    # Fails if the vision side is called.
    model.model.vision_tower = model.model.connector = None
    rows = torch.load(folder / "rows.pt", weights_only=False)["by_process"][1]
    processor = AutoProcessor.from_pretrained(folder / "model")
    batch = DataCollatorForJinaVLM(processor, add_blank_tile=False)(rows)
    with_images, without_images = results(strategy, run)
    assert without_images["own_loss"] == model(**batch).loss.item()
    assert with_images["own_loss"] != without_images["own_loss"]


@pytest.mark.parametrize(("strategy", "run"), EVERY_RUN)
def test_evaluation_with_an_uneven_number_of_rows(results, strategy, run):
    first, second = results(strategy, run)
    assert math.isfinite(first["uneven_eval_loss"])
    assert first["uneven_eval_loss"] == second["uneven_eval_loss"]


@pytest.mark.parametrize(("strategy", "run"), EVERY_RUN)
def test_saved_checkpoint_is_complete(run_folder, folder, strategy, run):
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
    # Without images, the vision side must not change.
    rows, settings = RUNS[strategy][run]
    vision = {"vision_tower", "connector"} - set(settings.get("freeze") or ()) if rows != "text" else set()
    assert changed == {"language_model", "lm_head"} | vision


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_processes_share_the_kept_features(results, run_folder, folder, strategy):
    first, second = results(strategy, "packed")
    # Each process finds the features of all rows. The features of a blank tile are computed in both.
    rows = torch.load(folder / "rows.pt", weights_only=False)["mixed"]
    pixel_values = DataCollatorForJinaVLM(AutoProcessor.from_pretrained(folder / "model"))(rows)["pixel_values"]
    num_tiles = len({digest(tile) for tile in pixel_values}) + 1
    assert first["num_kept_tiles"] == second["num_kept_tiles"] == num_tiles
    features = run_folder(strategy, "packed") / "features"
    # Those of one process would be used.
    model = AutoModelForImageTextToText.from_pretrained(folder / "model").model
    assert json.loads((features / "vision_tower.json").read_text()) == tower_settings(model)
    shards = list(features.glob("*.safetensors"))
    assert len(shards) == (1 if strategy == "fsdp2" else 2)


def test_processes_with_uneven_streams_stop_together(results):
    first, second = results("fsdp2", "stream")
    assert len(first["losses"]) == STREAM_STEPS
    assert first["losses"] == second["losses"]
    assert first["losses"][-1] < first["losses"][0]


def test_fsdp_wraps_the_configured_blocks(build_model):
    """The configuration names the blocks; Accelerate's own choice would name parts that the model does not have."""
    model = build_model()
    config = load_config_from_file(str(CONFIGS / "fsdp2.yaml")).fsdp_config
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy=config["fsdp_auto_wrap_policy"].lower(),
        transformer_cls_names_to_wrap=config["fsdp_transformer_layer_cls_to_wrap"].split(","),
    )
    plugin.set_auto_wrap_policy(model)
    found = {block.__name__ for block in plugin.auto_wrap_policy.keywords["transformer_layer_cls"]}
    assert found == {"SiglipEncoderLayer", "Qwen3DecoderLayer"}


@pytest.mark.skipif(not CAN_FINETUNE, reason="jvlm.training.finetune needs datasets, peft and matplotlib")
def test_finetuning_program_with_fsdp2(run_folder, folder):
    run_folder("fsdp2", "mixed")  # the same launch runs the program
    output = folder / "finetuned"
    answers = [json.loads(line) for line in (output / "answers.jsonl").read_text().splitlines()]
    assert [answer["row"] for answer in answers] == [0, 1, 2, 3]
    # Intermediate and final checkpoints are complete.
    last = load_file(output / "model.safetensors")
    for saved in ("checkpoint-2", "."):
        model = AutoModelForImageTextToText.from_pretrained(output / saved)
        assert all(torch.equal(parameter, last[name]) for name, parameter in model.named_parameters())
