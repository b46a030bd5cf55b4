# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Training with Trainer: gradients, frozen modules, gradient accumulation, resuming and the paper's recipe."""

import math
import os
import shutil
import signal

import pytest
import torch
from helpers import LAYOUTS, checkpoint_activations, losses
from transformers import AutoModelForImageTextToText

from jvlm.training import (
    STAGES,
    DataCollatorForJinaVLM,
    JinaVLMTrainer,
    JinaVLMTrainingArguments,
    last_complete_checkpoint,
)


MODULES = ("vision_tower", "connector", "language_model")


@pytest.fixture
def build_trainer(build_model, build_processor, build_row, training_arguments):
    """A function (rows, **training arguments) that builds a trainer. The default rows have none, one or two images."""

    def build(rows=None, **arguments) -> JinaVLMTrainer:
        processor = build_processor()
        return JinaVLMTrainer(
            model=build_model(),
            args=training_arguments(**arguments),
            train_dataset=rows or [build_row(number, num_images=number % 3, num_turns=2) for number in range(8)],
            data_collator=DataCollatorForJinaVLM(processor),
            processing_class=processor,
        )

    return build


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def loss_and_gradients(model, batch, **kwargs):
    model.zero_grad()
    loss = model(**batch, **kwargs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(gradients, expected, atol=1e-6):
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=atol), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_reach_every_parameter(build_model, collate, build_row, layout):
    model = build_model(layout).train()
    _, gradients = loss_and_gradients(model, collate([build_row(0, num_images=2)], layout))
    assert gradients.keys() == dict(model.named_parameters()).keys()
    # The biases of keys add the same value to all scores of a query, which softmax ignores. Their gradient is zero.
    assert all(gradient.abs().max() > 0 for name, gradient in gradients.items() if not name.endswith("k_proj.bias"))
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_checkpointing_gives_the_same_gradients(build_model, collate, build_row, layout, use_reentrant):
    batch = collate([build_row(0), build_row(1, num_images=2)], layout)
    model = build_model(layout).train()
    loss, gradients = loss_and_gradients(model, batch)
    checkpoint_activations(model, {"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    calls = []
    for part in (model.model.vision_tower.encoder, model.model.language_model):
        part.layers[0].mlp.register_forward_pre_hook(lambda module, args: calls.append(module))
    loss_again, gradients_again = loss_and_gradients(model, batch)
    # The backward pass recomputes the blocks.
    assert [calls.count(module) for module in dict.fromkeys(calls)] == [2, 2]
    assert torch.equal(loss, loss_again)
    assert_close(gradients_again, gradients)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_do_not_depend_on_padding_or_batching(build_model, collate, build_row, layout):
    rows = [build_row(0, num_turns=2), build_row(1, num_images=0), build_row(2, num_images=3)]
    model = build_model(layout).train()
    left = collate(rows, layout, "left")
    loss, gradients = loss_and_gradients(model, left)
    loss_right, gradients_right = loss_and_gradients(model, collate(rows, layout, "right"))
    torch.testing.assert_close(loss_right, loss)
    assert_close(gradients_right, gradients)
    # Rows one at a time, normalized by the number of labels of the whole batch.
    num_items = (left["labels"] != -100).sum()
    single = [loss_and_gradients(model, collate([row], layout), num_items_in_batch=num_items) for row in rows]
    torch.testing.assert_close(sum(loss for loss, _ in single), loss)
    total = {name: sum(part.get(name, 0) for _, part in single) for name in gradients}
    assert_close(total, gradients)


def test_gradient_accumulation_equals_a_large_batch(build_trainer):
    at_once = build_trainer(per_device_train_batch_size=4)
    at_once.train()
    accumulated = build_trainer(per_device_train_batch_size=1, gradient_accumulation_steps=4)
    accumulated.train()
    assert losses(at_once) == pytest.approx(losses(accumulated), rel=1e-4)
    assert losses(at_once)[-1] < losses(at_once)[0]


@pytest.mark.parametrize(
    "frozen", [["vision_tower"], ["connector"], ["language_model"], ["vision_tower.encoder.layers.0", "lm_head"]]
)
def test_frozen_modules_do_not_change(build_trainer, frozen):
    trainer = build_trainer(freeze=frozen)
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)

    def is_frozen(name):
        parts = [*frozen, "lm_head"] if frozen == ["language_model"] else frozen
        return any(f"{part}." in name for part in parts)

    assert {is_frozen(name) for name in before} == {True, False}
    for name, tensor in before.items():
        if is_frozen(name):
            assert torch.equal(after[name], tensor), name
        # The gradient of the biases of keys is zero.
        elif not name.endswith("k_proj.bias"):
            assert not torch.equal(after[name], tensor), name


def test_freezing_an_unknown_module_is_an_error(build_trainer):
    with pytest.raises(ValueError, match="'vision_model'"):
        build_trainer(freeze=["vision_model"])


def test_training_without_images_changes_the_language_model_only(build_trainer, build_row):
    trainer = build_trainer(rows=[build_row(number, num_images=0) for number in range(8)])
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("language_model" in name for name in changed)
    assert not any("vision_tower" in name for name in changed)
    assert losses(trainer)[-1] < losses(trainer)[0]


def test_evaluation_returns_a_finite_loss(build_trainer, build_row):
    trainer = build_trainer(per_device_eval_batch_size=2)
    # The number of tiles differs between batches.
    metrics = trainer.evaluate([build_row(number, num_images=number % 3) for number in range(5)])
    assert math.isfinite(metrics["eval_loss"])


def test_predictions_are_only_logits(build_trainer, build_row):
    trainer = build_trainer(prediction_loss_only=False, per_device_eval_batch_size=2, use_cache=True)
    rows = [build_row(0, num_images=1), build_row(1, num_images=2), build_row(2, num_images=1)]
    predictions = trainer.predict(rows).predictions
    assert predictions.shape[0] == 3
    assert predictions.shape[2] == trainer.model.config.text_config.vocab_size


# Resuming


def test_resumed_training_gives_the_same_weights(build_trainer, tmp_path):
    straight = build_trainer(max_steps=20, save_strategy="steps", save_steps=10)
    straight.train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-20")
    resumed = build_trainer(max_steps=20, save_strategy="steps", save_steps=10)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(straight)
    expected = weights(straight.model)
    for name, tensor in weights(resumed.model).items():
        assert torch.equal(tensor, expected[name]), name


def kill_while_saving(trainer, step: int) -> None:
    """Makes the trainer kill its process while it saves the checkpoint of a step."""
    save = trainer._save_optimizer_and_scheduler

    def save_or_die(output_dir):
        if trainer.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        save(output_dir)

    trainer._save_optimizer_and_scheduler = save_or_die


def test_a_run_killed_while_saving_resumes_from_the_last_complete_checkpoint(build_trainer, tmp_path):
    arguments = {"max_steps": 9, "save_strategy": "steps", "save_steps": 3}
    process = os.fork()
    if process == 0:
        trainer = build_trainer(**arguments)
        kill_while_saving(trainer, step=6)
        trainer.train()
        os._exit(0)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert (tmp_path / "run" / "checkpoint-6" / "model.safetensors").is_file()
    assert last_complete_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-3")

    resumed = build_trainer(**arguments)
    resumed.train(resume_from_checkpoint=True)
    straight = build_trainer(**arguments, output_dir=str(tmp_path / "straight"))
    straight.train()
    assert losses(resumed) == losses(straight)
    for name, tensor in weights(resumed.model).items():
        assert torch.equal(tensor, straight.model.state_dict()[name]), name


def test_a_checkpoint_with_a_truncated_state_is_incomplete(tmp_path):
    for step, text in ((5, '{"global_step": 5}'), (10, '{"global_st')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(text)
    (tmp_path / "checkpoint-15").mkdir()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")
    assert last_complete_checkpoint(tmp_path / "checkpoint-15") is None


def test_saved_model_loads(build_trainer, tmp_path):
    trainer = build_trainer()
    trainer.train()
    trainer.save_model()
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "run")
    for name, tensor in weights(trainer.model).items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert (tmp_path / "run" / "processor_config.json").is_file()
    assert (tmp_path / "run" / "chat_template.jinja").is_file()


# The recipe


def test_modules_have_their_own_learning_rates_and_warm_ups(build_trainer):
    trainer = build_trainer(
        max_steps=40,
        learning_rate=1e-3,
        vision_tower_learning_rate=1e-4,
        vision_tower_warmup_steps=0.5,
        connector_warmup_steps=4,
    )
    trainer.create_optimizer_and_scheduler(40)
    optimizer, scheduler = trainer.optimizer, trainer.lr_scheduler
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    seen = set()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            module = next((module for module in MODULES if f".{module}." in names[parameter]), "language_model")
            assert module == group["module"], names[parameter]
            seen.add(names[parameter])
    assert seen == set(names.values())
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, trainer.args.weight_decay}
    rates = {module: [] for module in MODULES}
    for _ in range(41):
        for group in optimizer.param_groups:
            rates[group["module"]].append(group["lr"])
        optimizer.step()
        scheduler.step()
    peak = {module: max(values) for module, values in rates.items()}
    assert peak == pytest.approx({"vision_tower": 1e-4, "connector": 1e-3, "language_model": 1e-3})
    per_step = {module: values[:: len(values) // 41] for module, values in rates.items()}
    assert per_step["vision_tower"].index(peak["vision_tower"]) == 20
    assert per_step["connector"].index(peak["connector"]) == 4
    assert per_step["language_model"].index(peak["language_model"]) == 0
    for module in MODULES:
        assert per_step[module][-1] == pytest.approx(0.1 * peak[module])


@pytest.mark.parametrize("stage", list(STAGES))
def test_stages_set_defaults(tmp_path, stage):
    args = JinaVLMTrainingArguments(output_dir=str(tmp_path), stage=stage, per_device_train_batch_size=4, use_cpu=True)
    for name, value in STAGES[stage].items():
        assert getattr(args, name) == value
    assert args.gradient_accumulation_steps * 4 == STAGES[stage]["global_batch_size"]
    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (0.9, 0.95, 1e-6)
    given = JinaVLMTrainingArguments(
        output_dir=str(tmp_path), stage=stage, connector_learning_rate=1e-3, num_train_epochs=1, use_cpu=True
    )
    assert given.connector_learning_rate == 1e-3
    assert given.max_steps == -1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"stage": "pretraining"}, "'pretraining'.*'alignment', 'instruction'"),
        ({"global_batch_size": 10, "per_device_train_batch_size": 4}, "10, but must be a multiple of 4:"),
    ],
)
def test_invalid_arguments_are_an_error(tmp_path, arguments, problem):
    with pytest.raises(ValueError, match=problem):
        JinaVLMTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **arguments)
