# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""LoRA with PEFT and fine-tuning with TRL, without changes to either library."""

import datasets
import pytest
import torch
from helpers import CHECKPOINTING, losses
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText
from trl import SFTConfig, SFTTrainer

from jvlm.training import DataCollatorForJinaVLM, JinaVLMTrainer


TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def lora_model(build_model):
    config = LoraConfig(r=4, target_modules=TARGETS, modules_to_save=["connector"], task_type="CAUSAL_LM")
    torch.manual_seed(0)
    return get_peft_model(build_model(), config)


def train(model, processor, rows, args) -> JinaVLMTrainer:
    collator = DataCollatorForJinaVLM(processor)
    trainer = JinaVLMTrainer(
        model=model, args=args, train_dataset=rows, data_collator=collator, processing_class=processor
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_trains_adapters_and_connector(lora_model, build_processor, build_row, training_arguments, checkpointing):
    trainable = {name for name, parameter in lora_model.named_parameters() if parameter.requires_grad}
    adapted = {name for name in trainable if "lora_" in name}
    assert all("lora_" in name or "connector.modules_to_save" in name for name in trainable)
    for target in TARGETS:
        assert any("language_model.layers.0" in name and target in name for name in adapted), target
    assert not any("connector" in name for name in adapted)
    before = {name: parameter.detach().clone() for name, parameter in lora_model.named_parameters()}
    rows = [build_row(number, num_images=1 + number % 2) for number in range(8)]
    trainer = train(lora_model, build_processor(), rows, training_arguments(**{CHECKPOINTING: checkpointing}))
    for name, parameter in lora_model.named_parameters():
        # The gradient of the biases of keys is zero: softmax ignores them.
        if name in trainable and not name.endswith("k_proj.bias"):
            assert not torch.equal(parameter, before[name]), name
        elif name not in trainable:
            assert torch.equal(parameter, before[name]), name
    modules = {group["module"] for group in trainer.optimizer.optimizer.param_groups}
    assert modules == {"vision_tower", "connector", "language_model"}


def test_adapters_save_load_and_merge(
    lora_model, build_model, build_processor, build_row, collate, training_arguments, tmp_path
):
    rows = [build_row(number) for number in range(4)]
    trainer = train(lora_model, build_processor(), rows, training_arguments())
    batch = collate(rows[:2])
    lora_model.eval()
    with torch.no_grad():
        expected = lora_model(**batch).logits
        base_logits = build_model()(**batch).logits
    assert (expected - base_logits).abs().max() > 1e-2

    trainer.save_model(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(build_model(), tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, expected)
    merged = loaded.merge_and_unload()
    with torch.no_grad():
        torch.testing.assert_close(merged(**batch).logits, expected, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, merged(**batch).logits)


@pytest.mark.parametrize("num_images", [[1, 2, 1, 2], [1, 0, 2, 0]], ids=["images", "mixed"])
@pytest.mark.parametrize("assistant_only_loss", [False, True])
def test_sft_trainer_trains_model_and_processor(
    build_model, build_processor, build_row, row_features, tmp_path, num_images, assistant_only_loss
):
    rows = [build_row(number, num_images=count) for number, count in enumerate(num_images)]
    args = SFTConfig(
        output_dir=str(tmp_path),
        max_steps=8,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        max_length=None,
        assistant_only_loss=assistant_only_loss,
    )
    trainer = SFTTrainer(
        model=build_model(),
        args=args,
        train_dataset=datasets.Dataset.from_list(rows, features=row_features),
        processing_class=build_processor(),
    )
    trainer.train()
    assert len(losses(trainer)) == 8
    assert losses(trainer)[-1] < 0.7 * losses(trainer)[0]
