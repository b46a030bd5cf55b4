# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
The trainer table of docs/training.md: `Trainer`, `JinaVLMTrainer` and TRL's trainers, as they are, with all weights
and LoRA, with an image, several, none, and rows of all of these. TRL's trainers take the model, and for LoRA its path.
"""

import re
from itertools import product
from pathlib import Path

import datasets
import pytest
import torch
from helpers import encode_image, losses, make_image
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)

from jvlm.training import DataCollatorForJinaVLM, JinaVLMTrainer, JinaVLMTrainingArguments, processor_for_trl


# Images of the rows by name. The rows of a batch have different numbers of tiles.
IMAGES = {"one": [1, 1, 1, 1], "several": [2, 1, 2, 1], "none": [0, 0, 0, 0], "mixed": [1, 0, 2, 0]}
GENERATION = {"num_generations": 2, "max_completion_length": 4, "beta": 0.1, "per_device_train_batch_size": 4}
OF_TRANSFORMERS = {"remove_unused_columns": False, "weight_decay": 0.0}
TRAINERS = {
    "trainer": (Trainer, TrainingArguments, OF_TRANSFORMERS),
    "jinavlm": (JinaVLMTrainer, JinaVLMTrainingArguments, OF_TRANSFORMERS),
    "sft": (SFTTrainer, SFTConfig, {"max_length": None}),
    "dpo": (DPOTrainer, DPOConfig, {"max_length": None}),
    "kto": (KTOTrainer, KTOConfig, {"max_length": None}),
    # Generated batches are shuffled and used for several steps.
    "grpo": (GRPOTrainer, GRPOConfig, {**GENERATION, "steps_per_generation": 2, "num_iterations": 2}),
    "rloo": (RLOOTrainer, RLOOConfig, GENERATION),
}


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trl")


@pytest.fixture
def checkpoint(module_folder, build_model, build_processor):
    """The folder of a small model and its processor, for all tests."""
    if not (module_folder / "checkpoint").exists():
        build_model().save_pretrained(module_folder / "checkpoint")
        build_processor().save_pretrained(module_folder / "checkpoint")
    return str(module_folder / "checkpoint")


def text(role: str, *parts) -> list[dict]:
    return [
        {"role": role, "content": [{"type": "text", "text": part} if part else {"type": "image"} for part in parts]}
    ]


def data_set(kind: str, num_images: list[int]) -> datasets.Dataset:
    """Rows in the format of a trainer."""
    rows = []
    for number, count in enumerate(num_images):
        images = [make_image(70 + 60 * number, 60 + 50 * index, seed=number + index) for index in range(count)]
        prompt = text("user", *[None] * count, f"Which image is darker {number}?")
        good, bad = text("assistant", "The first one."), text("assistant", "Her name is Ada.")
        columns = {
            "dpo": {"prompt": prompt, "chosen": good, "rejected": bad},
            "kto": {"prompt": prompt, "completion": good if number % 2 else bad, "label": bool(number % 2)},
            "grpo": {"prompt": prompt},
            "rloo": {"prompt": prompt},
        }.get(kind, {"messages": prompt + good})
        rows.append({**columns, "images": [{"bytes": encode_image(image), "path": None} for image in images]})
    rows = datasets.Dataset.from_list(rows)
    return rows.cast_column("images", datasets.List(datasets.Image()))


def reward(completions, **kwargs) -> list[float]:
    return [float(len(set(completion[0]["content"]))) for completion in completions]


@pytest.fixture
def build_trainer(checkpoint, tmp_path):
    """A function (kind, images, is_lora, **settings) that builds a trainer."""

    def build(kind: str, images: str, is_lora: bool = False, **settings):
        trainer_class, config_class, defaults = TRAINERS[kind]
        arguments = {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
        }
        args, rows = config_class(**{**arguments, **defaults, **settings}), data_set(kind, IMAGES[images])
        processor = AutoProcessor.from_pretrained(checkpoint)
        adapters = LoraConfig(r=2, target_modules="all-linear", modules_to_save=["connector"], task_type="CAUSAL_LM")
        if trainer_class in (Trainer, JinaVLMTrainer):
            model = AutoModelForImageTextToText.from_pretrained(checkpoint)
            return trainer_class(
                model=get_peft_model(model, adapters) if is_lora else model,
                args=args,
                train_dataset=rows,
                data_collator=DataCollatorForJinaVLM(processor),
            )
        is_generating = kind in ("grpo", "rloo")
        return trainer_class(
            model=checkpoint if is_lora else AutoModelForImageTextToText.from_pretrained(checkpoint),
            args=args,
            train_dataset=rows,
            processing_class=processor_for_trl(processor) if is_generating else processor,
            peft_config=adapters if is_lora else None,
            **({"reward_funcs": reward} if is_generating else {}),
        )

    return build


@pytest.mark.parametrize(("kind", "images", "is_lora"), list(product(TRAINERS, IMAGES, [False, True])))
def test_trainers_change_the_weights(build_trainer, kind, images, is_lora):
    trainer = build_trainer(kind, images, is_lora, max_steps=1)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert len(losses(trainer)) == 1
    changed = {
        name for name, p in trainer.model.named_parameters() if name in before and not torch.equal(p, before[name])
    }
    assert any("language_model" in name for name in changed)
    assert any("vision_tower" in name for name in changed) == any(IMAGES[images])


def test_the_trainer_table_is_complete():
    guide = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    table = guide[guide.index("| trainer | ") :].split("\n\n")[0].splitlines()
    assert [cell.strip() for cell in table[0].split("|")[2:6]] == ["one image", "several", "none", "some rows without"]
    named = {name for row in table[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == {trainer.__name__ for trainer, _, _ in TRAINERS.values()} | {"RewardTrainer"}
    for row in table[2:]:
        expected = "no" if "RewardTrainer" in row else "full, LoRA"
        assert [cell.strip() for cell in row.split("|")[2:6]] == [expected] * 4


def test_reward_trainer_refuses_a_model_without_a_classification_head(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="num_labels"):
        RewardTrainer(
            model=AutoModelForImageTextToText.from_pretrained(checkpoint),
            args=RewardConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False),
            train_dataset=data_set("dpo", IMAGES["none"]),
            processing_class=AutoProcessor.from_pretrained(checkpoint),
        )


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_images_stay_with_their_rows(build_trainer, kind):
    """Without a learning rate the model equals the reference, whose values are computed before rows are shuffled."""
    trainer = build_trainer(kind, "several", learning_rate=0.0)
    trainer.train()
    divergences = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert divergences == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize("layout", ["independent", "stitched"])
def test_the_processor_for_trl_gives_the_same_logits_and_tokens(build_processor, build_model, layout, tmp_path):
    processor = build_processor(layout)
    renamed = processor_for_trl(processor)
    model = build_model(layout)
    images, prompts = [[make_image(90, 130, 0)], [make_image(60, 200, 2), make_image(40, 40, 1)]], ["Who?", "Between?"]
    inputs = processor(images=images, text=prompts, padding=True, return_tensors="pt")
    trl_inputs = renamed(images=images, text=prompts, padding=True, return_tensors="pt")
    assert "image_token_positions" not in trl_inputs
    with torch.no_grad():
        assert torch.equal(model(**trl_inputs).logits, model(**inputs).logits)
        settings = {"max_new_tokens": 3, "do_sample": False}
        assert torch.equal(model.generate(**trl_inputs, **settings), model.generate(**inputs, **settings))
    # TRL multiplies rows and columns to tiles.
    counts = renamed.image_processor(images=[*images, None], return_row_col_info=True, return_tensors="pt")
    num_tiles = counts["image_rows"] * counts["image_cols"]
    assert num_tiles.sum() == len(inputs["pixel_values"])
    assert len(num_tiles) == 3
    # It saves as what it is a copy of, and leaves that alone.
    renamed.save_pretrained(tmp_path)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is type(processor)
    assert "image_token_positions" in processor(images=images, text=prompts, return_tensors=None)
