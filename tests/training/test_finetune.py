# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The fine-tuning program, from data files to a model card."""

import json
import math

import datasets
import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from examples import finetune


@pytest.fixture
def checkpoint(tmp_path, build_model, build_processor):
    """The folder of a new small model and its processor."""
    build_model().save_pretrained(tmp_path / "checkpoint")
    build_processor().save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def rows_folder(tmp_path, build_row):
    """A folder with train.jsonl, test.jsonl and their images. Rows without images are in text.jsonl outside of it."""
    folder = tmp_path / "rows"
    (folder / "images").mkdir(parents=True)
    number = 0
    for split, count in (("train", 6), ("test", 2)):
        lines = []
        for _ in range(count):
            row = build_row(number, num_images=1 + number % 2)
            paths = [f"images/{number}-{index}.png" for index in range(len(row["images"]))]
            for path, image in zip(paths, row["images"], strict=True):
                image.save(folder / path)
            lines.append(json.dumps({"messages": row["messages"], "images": paths}) + "\n")
            number += 1
        (folder / f"{split}.jsonl").write_text("".join(lines))
    text = [json.dumps({"messages": build_row(number, num_images=0)["messages"]}) + "\n" for number in range(4)]
    (tmp_path / "text.jsonl").write_text("".join(text))
    return folder


def run(checkpoint, dataset, output, *arguments) -> None:
    defaults = {
        "model_name_or_path": checkpoint,
        "dataset_name": dataset,
        "output_dir": output,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "max_new_tokens": 8,
    }
    words = [str(word) for name, value in defaults.items() for word in (f"--{name}", value)]
    finetune.main([*words, "--use_cpu", "--disable_tqdm", "true", *arguments])


def test_finetuning_writes_model_log_answers_and_card(checkpoint, rows_folder, tmp_path):
    output = tmp_path / "tuned"
    run(checkpoint, rows_folder, output, "--dataset_test_split", "test")
    before = AutoModelForImageTextToText.from_pretrained(checkpoint)
    model, processor = AutoModelForImageTextToText.from_pretrained(output), AutoProcessor.from_pretrained(output)
    assert not torch.equal(model.lm_head.weight, before.lm_head.weight)
    log = json.loads((output / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2]
    assert (output / "losses.png").read_bytes().startswith(b"\x89PNG")
    card = ModelCard.load(output / "README.md")
    assert "jvlm" in card.data.tags
    assert "vision_tower_learning_rate: 0.01" in card.text

    answers = [json.loads(line) for line in (output / "answers.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (rows_folder / "test.jsonl").read_text().splitlines()]
    assert [answer["reference"] for answer in answers] == [row["messages"][1]["content"][0]["text"] for row in rows]
    for row in rows:
        row["images"] = [str(rows_folder / image) for image in row["images"]]
    again = finetune.generate_answers(model, processor, rows, batch_size=1, max_new_tokens=8)
    assert again == answers
    metrics = json.loads((output / "eval_results.json").read_text())
    assert 0 <= metrics["eval_exact_answers"] <= 1
    assert math.isfinite(metrics["eval_loss"])


def test_lora_saves_adapters(checkpoint, rows_folder, tmp_path):
    output = tmp_path / "adapter"
    run(checkpoint, rows_folder / "train.jsonl", output, "--use_peft", "true", "--dataset_test_split", "train")
    base = AutoModelForImageTextToText.from_pretrained(checkpoint)
    weight = base.model.language_model.layers[0].self_attn.q_proj.weight.clone()
    merged = PeftModel.from_pretrained(base, output).merge_and_unload()
    assert not torch.equal(merged.model.language_model.layers[0].self_attn.q_proj.weight, weight)
    assert not (output / "model.safetensors").exists()
    assert len((output / "answers.jsonl").read_text().splitlines()) == 6


def test_lora_on_bfloat16_trains_in_float32(checkpoint, rows_folder, tmp_path):
    options = ("--use_peft", "true", "--dtype", "bfloat16", "--dataset_test_split", "train")
    with pytest.raises(ValueError, match="--bf16"):
        run(checkpoint, rows_folder / "train.jsonl", tmp_path / "rejected", *options)
    run(checkpoint, rows_folder / "train.jsonl", tmp_path / "adapter", *options, "--bf16", "true")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.float32}
    before = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="bfloat16").model.connector.state_dict()
    moved = [
        not torch.equal(saved[f"base_model.model.model.connector.{name}"], weight.float())
        for name, weight in before.items()
        if not name.endswith("k_proj.bias")  # has a gradient of zero, except for rounding errors
    ]
    assert all(moved)


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_rows_without_images_are_mixed_in(checkpoint, rows_folder, tmp_path, streaming):
    arguments = finetune.DataArguments(dataset_name=str(rows_folder), streaming=streaming == "true")
    rows = finetune.load_rows(arguments, arguments.dataset_name, "train")
    text = finetune.load_rows(arguments, str(tmp_path / "text.jsonl"), "train")
    mixed = finetune.mix(rows, text, 0.5, seed=0)
    assert {bool(row["images"]) for row in mixed} == {True, False}
    run(
        checkpoint,
        rows_folder,
        tmp_path / "tuned",
        *("--text_dataset_name", str(tmp_path / "text.jsonl"), "--text_only_share", "0.5"),
        *("--streaming", streaming, "--freeze", "vision_tower"),
    )
    before = AutoModelForImageTextToText.from_pretrained(checkpoint).state_dict()
    for name, tensor in AutoModelForImageTextToText.from_pretrained(tmp_path / "tuned").state_dict().items():
        if not name.endswith("k_proj.bias"):  # has a gradient of zero, except for rounding errors
            assert torch.equal(tensor, before[name]) == ("vision_tower" in name), name


def test_formats_of_data_sets(checkpoint, build_row, row_features, tmp_path):
    dataset = datasets.Dataset.from_list([build_row(number) for number in range(3)], features=row_features)
    dataset.save_to_disk(tmp_path / "disk")
    datasets.DatasetDict({"train": dataset}).save_to_disk(tmp_path / "disks")
    dataset.to_parquet(tmp_path / "rows.parquet")
    expected = finetune.DataCollatorForJinaVLM(AutoProcessor.from_pretrained(checkpoint))(list(dataset))
    for name in ("disk", "disks", "rows.parquet"):
        arguments = finetune.DataArguments(dataset_name=str(tmp_path / name))
        rows = finetune.load_rows(arguments, arguments.dataset_name, "train")
        batch = finetune.DataCollatorForJinaVLM(AutoProcessor.from_pretrained(checkpoint))(list(rows))
        assert all(torch.equal(batch[key], expected[key]) for key in expected), name


def test_resumed_run_gives_the_same_weights(checkpoint, rows_folder, tmp_path):
    saving = ("--save_strategy", "steps", "--save_steps", "2", "--max_steps", "4")
    run(checkpoint, rows_folder, tmp_path / "straight", *saving)
    run(checkpoint, rows_folder, tmp_path / "resumed", *saving)
    (tmp_path / "resumed" / "checkpoint-4" / "trainer_state.json").unlink()
    run(checkpoint, rows_folder, tmp_path / "resumed", *saving, "--resume_from_checkpoint", "true")
    weights = [AutoModelForImageTextToText.from_pretrained(tmp_path / name) for name in ("straight", "resumed")]
    for name, tensor in weights[0].state_dict().items():
        assert torch.equal(tensor, weights[1].state_dict()[name]), name
