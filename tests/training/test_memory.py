# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The memory estimate, compared with a small model with weights."""

import pytest
import torch


pytest.importorskip("datasets")
pytest.importorskip("peft")
pytest.importorskip("matplotlib")

from examples.memory import STRATEGIES, activations, estimate, main


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
    assert "| fsdp2 |" in output
    assert "| one |" not in output
    with pytest.raises(SystemExit):
        main(["--gpus", "0"])
    assert "--gpus is 0, but must be at least 1" in capsys.readouterr().err
