# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Training with Trainer: gradients, frozen modules, gradient accumulation, resuming and the paper's recipe."""

import math
import os
import re
import shutil
import signal

import datasets
import pytest
import torch
from accelerate import ParallelismConfig
from helpers import CHECKPOINTING, LAYOUTS, checkpoint_activations, losses
from transformers import AutoModelForImageTextToText, TrainingArguments

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


def count_first_blocks(model) -> list:
    """A list that gets the first feed-forward layer of tower and decoder in each of its calls."""
    calls: list = []
    for part in (model.model.vision_tower.encoder, model.model.language_model):
        part.layers[0].mlp.register_forward_pre_hook(lambda module, args: calls.append(module))
    return calls


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_checkpointing_gives_the_same_gradients(build_model, collate, build_row, layout, use_reentrant):
    batch = collate([build_row(0), build_row(1, num_images=2)], layout)
    model = build_model(layout).train()
    loss, gradients = loss_and_gradients(model, batch)
    checkpoint_activations(model, {"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    calls = count_first_blocks(model)
    loss_again, gradients_again = loss_and_gradients(model, batch)
    # The backward pass recomputes the blocks.
    assert [calls.count(module) for module in dict.fromkeys(calls)] == [2, 2]
    assert torch.equal(loss, loss_again)
    assert_close(gradients_again, gradients)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("trained", ["language_model", "connector"])
def test_checkpointing_does_not_run_a_frozen_tower_again(build_model, collate, build_row, trained, use_reentrant):
    """Gradient checkpointing hooks the embeddings of all parts, so a backward pass would reach the frozen tower."""
    batch = collate([build_row(0), build_row(1, num_images=2)])
    model = build_model().train().requires_grad_(False)
    getattr(model.model, trained).requires_grad_(True)
    loss, gradients = loss_and_gradients(model, batch)
    checkpoint_activations(model, {"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    calls = count_first_blocks(model)
    needs_grad = []
    model.model.connector.register_forward_pre_hook(lambda module, args: needs_grad.append(args[0].requires_grad))
    loss_again, gradients_again = loss_and_gradients(model, batch)
    assert [calls.count(module) for module in dict.fromkeys(calls)] == [1, 2]
    assert needs_grad == [False]
    assert torch.equal(loss, loss_again)
    assert_close(gradients_again, gradients)


def test_gradients_of_pixels_pass_a_frozen_tower(build_model, collate, build_row):
    batch = collate([build_row(0)])
    batch["pixel_values"].requires_grad_(True)
    model = build_model().requires_grad_(False)
    model(**batch).loss.backward()
    assert batch["pixel_values"].grad.any()


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


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_rows_train_like_padded_ones(build_model, build_processor, build_row, layout, attn_implementation):
    rows = [build_row(0, num_turns=2), build_row(1, num_images=0), build_row(2, num_images=2), build_row(3)]
    processor = build_processor(layout)
    padded = DataCollatorForJinaVLM(processor)(rows)
    packed = DataCollatorForJinaVLM(processor, packing=True)(rows)
    assert packed["input_ids"].shape == (1, padded["attention_mask"].sum())
    assert torch.equal(packed["input_ids"][0], padded["input_ids"][padded["attention_mask"].bool()])
    assert (packed["position_ids"] == 0).sum() == len(rows)
    model = build_model(layout, attn_implementation).train()
    loss, gradients = loss_and_gradients(model, padded)
    packed_loss, packed_gradients = loss_and_gradients(model, packed)
    torch.testing.assert_close(packed_loss, loss, rtol=1e-6, atol=0)
    assert_close(packed_gradients, gradients)
    # Neither padding at the end nor the order of rows plays a role.
    more = DataCollatorForJinaVLM(processor, packing=True, pad_to_multiple_of=64)(rows[::-1])
    assert more["input_ids"].shape[1] % 64 == 0
    torch.testing.assert_close(model(**more).loss.detach(), loss, rtol=1e-6, atol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_training_and_evaluation_equal_padded_ones(build_trainer, build_row, checkpointing):
    rows = [build_row(number, num_images=number % 3, num_turns=1 + number % 2) for number in range(8)]
    settings = {"per_device_train_batch_size": 3, "per_device_eval_batch_size": 3, "learning_rate": 1e-3}
    trainers = [build_trainer(rows, **{CHECKPOINTING: checkpointing}, **settings) for _ in range(2)]
    trainers[1].data_collator.packing = True
    for trainer in trainers:
        trainer.train()
    assert losses(trainers[1]) == pytest.approx(losses(trainers[0]), rel=1e-5)
    evaluations = [trainer.evaluate(rows)["eval_loss"] for trainer in trainers]
    assert evaluations[1] == pytest.approx(evaluations[0], rel=1e-5)
    assert trainers[1].data_collator.packing


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


@pytest.mark.parametrize("frozen", [list(MODULES), []])
def test_nothing_to_train_is_an_error(build_trainer, frozen):
    trainer = build_trainer(freeze=frozen)
    if not frozen:
        trainer.model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train: all parameters are frozen" + ".*`freeze`" * bool(frozen)):
        trainer.train()


def test_liger_kernels_and_context_parallelism_are_refused(build_trainer, monkeypatch):
    with pytest.raises(ValueError, match="`use_liger_kernel` would change nothing"):
        build_trainer(use_liger_kernel=True)
    with pytest.raises(ValueError, match="`cp_size` of the parallelism configuration is 2, but must be 1"):
        build_trainer(parallelism_config=ParallelismConfig(cp_size=2))
    # What `accelerate launch` sets.
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    monkeypatch.setenv("PARALLELISM_CONFIG_CP_SIZE", "4")
    with pytest.raises(ValueError, match="`cp_size` of the parallelism configuration is 4"):
        build_trainer()


def test_plain_training_arguments_train_all_modules(build_model, build_processor, build_row, row_features, tmp_path):
    """They remove all columns that the model does not know, unless the trainer keeps them for the collator."""
    args = TrainingArguments(
        str(tmp_path), max_steps=2, learning_rate=1e-3, use_cpu=True, report_to="none", save_strategy="no"
    )
    rows = [build_row(number) for number in range(4)]
    trainer = JinaVLMTrainer(
        model=build_model(),
        args=args,
        train_dataset=datasets.Dataset.from_list(rows, features=row_features),
        eval_dataset=rows,
        data_collator=DataCollatorForJinaVLM(build_processor()),
    )
    before = weights(trainer.model)
    trainer.train()
    assert math.isfinite(trainer.evaluate()["eval_loss"])
    assert "language_model" in trainer.describe_run(2)
    trainer.create_model_card()
    assert "connector_learning_rate: 0.001" in (tmp_path / "README.md").read_text()
    for name, tensor in weights(trainer.model).items():
        assert not torch.equal(tensor, before[name]) or name.endswith("k_proj.bias"), name


def test_neftune_gives_every_token_its_own_noise(build_trainer, build_row):
    trainer = build_trainer([build_row(0), build_row(3)], neftune_noise_alpha=5.0, max_steps=1)
    seen = []

    def keep(module, args, kwargs):
        seen.append(kwargs["inputs_embeds"].detach())

    trainer.model.model.language_model.register_forward_pre_hook(keep, with_kwargs=True)
    batch = trainer.data_collator([build_row(0), build_row(3)])
    with torch.no_grad():
        trainer.model.train()(**batch)
    trainer.train()
    noise = seen[1] - seen[0]  # both batches have the same rows
    is_image = batch["input_ids"] == trainer.model.config.image_token_id
    assert is_image[0].sum() > 1
    assert is_image[1].any()
    assert len(noise[is_image].unique(dim=0)) == is_image.sum()  # of all image tokens, in both rows
    assert len(noise.flatten(0, 1).unique(dim=0)) == noise.shape[0] * noise.shape[1]


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


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_the_evaluation_loss_is_the_mean_over_tokens(build_trainer, build_row, label_smoothing):
    """The rows have different numbers of label tokens, so means of batches would depend on the batch size."""
    rows = [build_row(number, num_images=number % 2, num_turns=1 + number % 3) for number in range(7)]
    trainer = build_trainer(label_smoothing_factor=label_smoothing)
    batch = trainer.data_collator(rows)
    with torch.no_grad():
        logits = trainer.model(**batch).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), label_smoothing=label_smoothing
    ).item()
    for batch_size in (1, 3, 8):
        trainer = build_trainer(label_smoothing_factor=label_smoothing, per_device_eval_batch_size=batch_size)
        assert trainer.evaluate(rows)["eval_loss"] == pytest.approx(expected, rel=1e-5)
        assert trainer.predict(rows).metrics["test_loss"] == pytest.approx(expected, rel=1e-5)


def test_smoothed_labels_are_those_of_the_next_token(build_trainer, build_row):
    """The loss of a training step with accumulation, from PyTorch's own label smoothing."""
    rows = [build_row(number, num_turns=1 + number % 3) for number in range(4)]
    trainer = build_trainer(rows, label_smoothing_factor=0.3, max_steps=1, gradient_accumulation_steps=2)
    batch = trainer.data_collator(rows)
    with torch.no_grad():
        logits = trainer.model(**batch).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), label_smoothing=0.3
    )
    trainer.train()
    assert losses(trainer) == pytest.approx([expected.item()], rel=1e-4)


def test_metrics_of_the_user_are_computed(build_trainer, build_model, build_processor, build_row, training_arguments):
    rows = [build_row(number, num_images=number % 3) for number in range(5)]
    seen = {}

    def compute_metrics(prediction) -> dict:
        seen["labels"], seen["tokens"] = prediction.label_ids, prediction.predictions
        is_label = prediction.label_ids[:, 1:] != -100
        return {"accuracy": (prediction.predictions[:, :-1] == prediction.label_ids[:, 1:])[is_label].mean()}

    processor = build_processor()
    trainer = JinaVLMTrainer(
        model=build_model(),
        args=training_arguments(per_device_eval_batch_size=2),
        eval_dataset=rows,
        data_collator=DataCollatorForJinaVLM(processor),
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(dim=-1),
    )
    metrics = trainer.evaluate()
    assert 0 <= metrics["eval_accuracy"] <= 1
    assert seen["labels"].shape == seen["tokens"].shape
    assert len(seen["labels"]) == 5


def test_the_rates_of_all_modules_are_logged(build_trainer):
    trainer = build_trainer(
        learning_rate=1e-3, connector_learning_rate=2e-3, vision_tower_warmup_steps=2, lr_scheduler_type="linear"
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["connector_learning_rate"] for entry in logged] == pytest.approx([2e-3, 1.5e-3, 1e-3, 5e-4])
    assert [entry["vision_tower_learning_rate"] for entry in logged] == pytest.approx([0, 5e-4, 1e-3, 5e-4])
    assert [entry["language_model_learning_rate"] for entry in logged] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_predictions_are_only_logits(build_trainer, build_row):
    trainer = build_trainer(prediction_loss_only=False, per_device_eval_batch_size=2, use_cache=True)
    rows = [build_row(0, num_images=1), build_row(1, num_images=2), build_row(2, num_images=1)]
    predictions = trainer.predict(rows).predictions
    assert predictions.shape[0] == 3
    assert predictions.shape[2] == trainer.model.config.text_config.vocab_size


def test_steps_without_labels_give_no_nan(build_trainer, build_row, caplog):
    """Skipped rows have no label: a step of them is no NaN, and they are counted at the end."""
    rows = [build_row(number, num_images=0) for number in range(4)]
    rows[1]["messages"].pop()
    rows[2]["messages"].pop()
    trainer = build_trainer(rows, per_device_train_batch_size=1, train_sampling_strategy="sequential")
    trainer.data_collator.skip_bad_rows = True
    with caplog.at_level("WARNING", logger="jvlm"):
        trainer.train()
    assert [loss > 0 for loss in losses(trainer)] == [True, False, False, True]
    assert all(torch.isfinite(tensor).all() for tensor in weights(trainer.model).values())
    assert "2 rows were skipped" in caplog.text


def test_model_card_states_the_rates_of_all_modules(build_trainer, tmp_path):
    trainer = build_trainer(stage="instruction", learning_rate=None, freeze=["vision_tower"], global_batch_size=2)
    trainer.create_model_card(model_name="tuned")
    card = (tmp_path / "run" / "README.md").read_text()
    settings = dict(re.findall("^- ([a-z_]+): (.*)$", card, flags=re.MULTILINE))
    rates = {group["module"]: group["lr"] for group in trainer.create_optimizer().param_groups}
    assert rates.keys() == {"connector", "language_model"}
    for module, rate in rates.items():
        assert float(settings[f"{module}_learning_rate"]) == rate
        assert float(settings[f"{module}_warmup_steps"]) == 0.1
    assert "frozen" in settings["vision_tower_learning_rate"]
    assert settings["stage"] == "instruction"
    assert settings["freeze"] == "vision_tower"
    assert "learning_rate" not in settings
    assert "lr_scheduler_warmup_steps" not in settings


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


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"num_train_epochs": 3}, {"num_train_epochs": 3, "max_steps": -1}),  # 3 is the default of Transformers
        ({"max_steps": 7}, {"max_steps": 7}),
        ({"learning_rate": 5e-5}, {f"{module}_learning_rate": None for module in MODULES} | {"learning_rate": 5e-5}),
        ({"connector_learning_rate": 1e-3}, {"connector_learning_rate": 1e-3, "vision_tower_learning_rate": 5e-6}),
        ({"warmup_steps": 0}, {f"{module}_warmup_steps": None for module in MODULES} | {"warmup_steps": 0}),
        ({"gradient_accumulation_steps": 1}, {"gradient_accumulation_steps": 1, "global_batch_size": None}),
        ({"global_batch_size": 16}, {"gradient_accumulation_steps": 4}),
        ({"lr_scheduler_type": "linear"}, {"lr_scheduler_type": "linear"}),
    ],
)
def test_what_a_user_gives_wins_over_the_stage(tmp_path, given, expected):
    args = JinaVLMTrainingArguments(
        output_dir=str(tmp_path), stage="instruction", per_device_train_batch_size=4, use_cpu=True, **given
    )
    assert {name: getattr(args, name) for name in expected} == expected


def test_without_a_stage_defaults_are_those_of_transformers(tmp_path):
    args = JinaVLMTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    for name in ("learning_rate", "warmup_steps", "num_train_epochs", "gradient_accumulation_steps", "max_steps"):
        assert getattr(args, name) == getattr(TrainingArguments, name)
    assert {getattr(args, f"{module}_learning_rate") for module in MODULES} == {None}


def test_the_run_is_described_before_it_starts(build_trainer, capsys):
    trainer = build_trainer(
        stage="instruction",
        learning_rate=None,
        connector_learning_rate=1e-3,
        max_steps=20,
        gradient_accumulation_steps=2,
        freeze=["vision_tower"],
    )
    optimizer = trainer.create_optimizer()
    text = trainer.describe_run(20)
    assert "20 steps of 4 rows (2 per device × 1 devices × 2 batches), 10 epochs" in text
    assert "stage instruction" in text
    lines = {line.split()[0]: line for line in text.splitlines()[1:]}
    assert list(lines) == list(MODULES)
    assert lines["vision_tower"].endswith("0 trainable parameters, frozen")
    assert "learning rate 0.001, warm-up 2 steps" in lines["connector"]
    assert "learning rate 1e-05, warm-up 2 steps" in lines["language_model"]
    for module in ("connector", "language_model"):
        groups = [group for group in optimizer.param_groups if group["module"] == module]
        number = sum(parameter.numel() for group in groups for parameter in group["params"])
        assert f" {number:,} trainable" in lines[module]
    for disable_tqdm in (False, True):
        trainer = build_trainer(max_steps=1, disable_tqdm=disable_tqdm)
        trainer.train()
        assert (trainer.describe_run(1) in capsys.readouterr().out) is not disable_tqdm


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"stage": "pretraining"}, "'pretraining'.*'alignment', 'instruction'"),
        ({"global_batch_size": 10, "per_device_train_batch_size": 4}, "10, but must be a multiple of 4:"),
        ({"global_batch_size": 16, "gradient_accumulation_steps": 1}, r"`global_batch_size` \(16\) needs 2 .* is 1;"),
        ({"remove_unused_columns": True}, "`remove_unused_columns` must be false"),
    ],
)
def test_invalid_arguments_are_an_error(tmp_path, arguments, problem):
    with pytest.raises(ValueError, match=problem):
        JinaVLMTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **arguments)
