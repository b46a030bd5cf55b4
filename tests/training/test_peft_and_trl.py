# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""LoRA with PEFT and fine-tuning with TRL, without changes to either library."""

import contextlib

import datasets
import pytest
import torch
from helpers import CHECKPOINTING, losses
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig
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


def test_adapters_under_a_stage_have_higher_rates(
    lora_model, build_processor, build_row, training_arguments, tmp_path
):
    """The rates of a stage are for full weights, of which the connector has some. A given rate is for both."""
    for given, (adapters, full) in ((None, (20 * 1e-5, 5e-6)), (3e-4, (3e-4, 3e-4))):
        args = training_arguments(stage="instruction", learning_rate=given, global_batch_size=2, max_steps=1)
        trainer = train(lora_model, build_processor(), [build_row()] * 2, args)
        assert trainer._rate("language_model", is_adapter=True) == pytest.approx(adapters)
        assert trainer._rate("connector") == full
        groups = trainer.optimizer.param_groups
        assert {group["initial_lr"] for group in groups if group["module"] == "language_model"} == {adapters}
        assert {group["initial_lr"] for group in groups if group["module"] == "connector"} == {full}
        assert f"adapter parameters, learning rate {adapters:g}" in trainer.describe_run(1)
        trainer.create_model_card()
        card = (tmp_path / "run" / "README.md").read_text()
        assert f"- language_model_adapters_learning_rate: {adapters}" in card
        assert f"- connector_learning_rate: {full}" in card


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


def test_all_linear_reaches_every_layer_of_tower_and_decoder(build_model):
    """It is the default to give: names of the decoder's layers alone leave out half of the tower's."""
    model = build_model()
    linear = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "connector" not in name and name != "lm_head"
    }
    assert len({name.split(".")[-1] for name in linear if "vision_tower" in name}) == 6
    config = LoraConfig(r=2, target_modules="all-linear", modules_to_save=["connector"], task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    found = {name.split(".lora_A")[0] for name, _ in adapted.named_parameters() if ".lora_A." in name}
    assert found == {f"base_model.model.{name}" for name in linear}


def test_adapters_load_from_another_folder(build_model, build_processor, build_row, training_arguments, tmp_path):
    """A base model that was given by a relative path is found from everywhere."""
    build_model().save_pretrained(tmp_path / "base")
    with contextlib.chdir(tmp_path):
        model = AutoModelForImageTextToText.from_pretrained("base")
        config = LoraConfig(r=2, target_modules="all-linear", modules_to_save=["connector"], task_type="CAUSAL_LM")
        trainer = train(
            get_peft_model(model, config), build_processor(), [build_row()] * 2, training_arguments(max_steps=1)
        )
        trainer.save_model("adapter")
    # Not by the Auto class: that of Transformers 5.24 asks for PEFT 0.22.
    base = PeftConfig.from_pretrained(tmp_path / "adapter").base_model_name_or_path
    loaded = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), tmp_path / "adapter")
    assert loaded.active_adapters == ["default"]


def test_qlora_trains_adapters_and_connector(
    build_model, build_processor, build_row, training_arguments, collate, tmp_path
):
    """The connector is trained as a whole, so it must not be quantized; only its full name matches all its layers."""
    pytest.importorskip("bitsandbytes")
    build_model(text_config={"hidden_size": 64, "intermediate_size": 64}).save_pretrained(tmp_path / "base")
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["model.connector", "lm_head"],
    )
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "base", quantization_config=quantization)
    layers = {type(module).__name__ for module in model.model.language_model.modules()}
    assert "Linear4bit" in layers
    model = prepare_model_for_kbit_training(model)
    config = LoraConfig(r=2, target_modules="all-linear", modules_to_save=["connector"], task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    assert {"connector" in name for name in before} == {True, False}
    trainer = train(model, build_processor(), [build_row(number) for number in range(4)], training_arguments())
    assert losses(trainer)[-1] < losses(trainer)[0]
    for name, parameter in model.named_parameters():
        if name in before and not name.endswith("k_proj.bias"):
            assert not torch.equal(parameter, before[name]), name
    trainer.save_model(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(tmp_path / "base", quantization_config=quantization),
        tmp_path / "adapter",
    ).eval()
    batch = collate([build_row(0)])
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, model.eval()(**batch).logits, rtol=1e-4, atol=1e-4)


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
