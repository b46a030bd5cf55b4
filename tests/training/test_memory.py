# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The memory estimate, compared with a small model with weights."""

from types import SimpleNamespace

import pytest
import torch


pytest.importorskip("datasets")
pytest.importorskip("peft")
pytest.importorskip("matplotlib")

from examples.memory import STRATEGIES, activations, estimate, main
from jvlm.training.finetune import ModelArguments, add_adapters, load_model


ROWS = {"batch_size": 2, "tiles": 3, "length": 50}


def test_weights_gradients_and_adam_match_a_training_step(build_model, build_config):
    model = build_model().train()
    expected = estimate(build_config(), "one", **ROWS)
    assert expected["weights"] == sum(parameter.nbytes for parameter in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert expected["gradients"] == sum(parameter.grad.nbytes for parameter in model.parameters())
    states = [
        state for of_one in optimizer.state.values() for state in of_one.values() if state.ndim
    ]  # without step counters
    assert expected["adam"] == sum(state.nbytes for state in states)


def test_activations_match_a_model_with_weights(build_model, build_config):
    counted = sum(activations(build_model().train(), **ROWS).values())
    logits = 4 * ROWS["batch_size"] * ROWS["length"] * build_config().text_config.vocab_size
    assert estimate(build_config(), "one", **ROWS)["activations"] == counted + logits


def test_trained_parameters_and_activations_of_recipes(build_config, build_model):
    full, frozen, lora, qlora = (
        estimate(build_config(), "one", recipe=recipe, **ROWS) for recipe in ("full", "frozen_tower", "lora", "qlora")
    )
    assert frozen["weights"] == full["weights"]
    for part in ("gradients", "adam", "activations"):
        assert frozen[part] < full[part]
    assert lora["adam"] == 2 * lora["gradients"]
    adapted = add_adapters(build_model(), ModelArguments(model_name_or_path="", recipe="lora"))
    assert lora["gradients"] == sum(p.nbytes for p in adapted.parameters() if p.requires_grad)
    assert qlora["weights"] < lora["weights"]
    assert qlora["adam"] == lora["adam"]
    assert estimate(build_config(), "one", adam_bytes=2, **ROWS)["adam"] == full["adam"] / 4
    with pytest.raises(ValueError, match="qlora is estimated with the strategies one and ddp, not with fsdp2"):
        estimate(build_config(), "fsdp2", recipe="qlora", **ROWS)


@pytest.mark.parametrize("recipe", ["full", "frozen_tower", "lora"])
def test_recipes_of_sharded_strategies(build_config, build_model, recipe):
    """The bytes of the tensors that each strategy keeps, over the number of GPUs."""
    model = build_model()
    if recipe == "lora":
        model = add_adapters(model.bfloat16(), ModelArguments(model_name_or_path="", recipe="lora"))
    if recipe == "frozen_tower":
        model.model.vision_tower.requires_grad_(False)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    fsdp2, zero3 = (
        estimate(build_config(), strategy, gpus=2, recipe=recipe, **ROWS) for strategy in ("fsdp2", "deepspeed_zero3")
    )
    assert fsdp2["weights"] == sum(p.nbytes for p in model.parameters()) / 2
    assert fsdp2["gradients"] == 4 * trained / 2
    assert zero3["weights"] == (2 * sum(p.numel() for p in model.parameters()) + 4 * trained) / 2
    assert zero3["gradients"] == 2 * trained / 2
    assert fsdp2["adam"] == zero3["adam"] == 8 * trained / 2
    if recipe != "lora":  # whose adapters make the blocks of a small model the largest units
        assert fsdp2["unsharded"] == 2 * 4 * model.lm_head.weight.numel()  # embeddings and head


def test_weights_of_qlora_are_those_of_a_quantized_model(build_model, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    model = build_model(text_config=sizes, vision_config={**sizes, "num_attention_heads": 4})
    model.save_pretrained(tmp_path)
    arguments = ModelArguments(model_name_or_path=str(tmp_path), recipe="qlora", dtype="bfloat16")
    loaded = load_model(arguments, SimpleNamespace(bf16=True, fp16=False, freeze=None))
    states = [
        module.weight.quant_state for module in loaded.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)
    ]
    expected = sum(parameter.nbytes for parameter in loaded.parameters())
    expected += sum(state.absmax.nbytes for state in states)
    assert estimate(model.config, "one", recipe="qlora", **ROWS)["weights"] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_more_gpus_and_smaller_batches_need_less_memory(build_config, strategy):
    more = estimate(build_config(), strategy, gpus=2, **ROWS)
    less = estimate(build_config(), strategy, gpus=4, **{**ROWS, "batch_size": 1})
    is_sharded = strategy in ("fsdp2", "deepspeed_zero3")
    for part in ("weights", "gradients", "adam"):
        assert more[part] == less[part] * (2 if is_sharded else 1)
    assert less["activations"] < more["activations"]
    assert more["checkpointed"] < more["activations"]


def test_program(build_model, tmp_path, capsys):
    build_model().save_pretrained(tmp_path)
    main(["--model_name_or_path", str(tmp_path), "--strategy", "fsdp2", "--tiles", "2", "--length", "30"])
    output = capsys.readouterr().out
    assert f"P = {build_model().num_parameters():,} parameters" in output
    assert "| fsdp2 | full |" in output
    assert "| one |" not in output
    with pytest.raises(SystemExit):
        main(["--gpus", "0"])
    assert "--gpus is 0, but must be at least 1" in capsys.readouterr().err
