# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""verify: checkpoints with the same weights are equal, and a difference is found in the first stage it affects."""

import math

import pytest
import torch

from jvlm.conversion_scripts.convert_release import convert_release
from jvlm.conversion_scripts.verify import format_table, main, verify


STAGES = ["pixels", "prompt tokens", "vision features", "connector", "logits", "greedy tokens", "weights", "settings"]
CONNECTOR = "model.connector"


@pytest.fixture
def small(make_image) -> dict:
    """Arguments for a fast comparison: one image of one tile."""
    return {"image": [make_image(300, 300)], "prompt": "What is it?"}


@pytest.fixture
def first_difference(converted, changed_copy, small):
    """A function (changes of weights or files) that returns the first stage with a difference."""

    def compare(weights=None, **files) -> str | None:
        stages = verify(converted, changed_copy(converted, weights, **files), **small)
        assert [stage.name for stage in stages] == STAGES
        return next((stage.name for stage in stages if not stage.is_equal), None)

    return compare


def test_formats_of_one_checkpoint_are_equal(published, converted, small, tmp_path):
    back = convert_release(converted, tmp_path / "published", reverse=True)
    for other in (published, back, converted):
        stages = verify(converted, other, **small)
        assert all(stage.is_equal for stage in stages)
        assert format_table(stages).splitlines()[-1] == "equal"


def test_changed_connector_weight(first_difference):
    def perturb(tensors):
        tensors[f"{CONNECTOR}.projector.down_proj.weight"][3, 5] += 0.01

    assert first_difference(perturb) == "connector"


def test_swapped_value_and_gate(first_difference):
    def swap(tensors):
        names = (f"{CONNECTOR}.projector.up_proj.weight", f"{CONNECTOR}.projector.gate_proj.weight")
        tensors[names[0]], tensors[names[1]] = tensors[names[1]], tensors[names[0]]

    assert first_difference(swap) == "connector"


def test_swapped_value_and_gate_in_the_published_format(published, converted, changed_copy, small):
    def swap(tensors):
        name = "model.vision_model.vl_connector.projector.up.weight"
        tensors[name] = tensors[name].roll(len(tensors[name]) // 2, dims=0)

    stages = verify(published, changed_copy(published, swap), **small)
    assert next(stage.name for stage in stages if not stage.is_equal) == "connector"


def test_feature_blocks_shifted_by_one(first_difference):
    def shift(config):
        config["vision_feature_layer"] = [block - 1 for block in config["vision_feature_layer"]]

    def drop(tensors):  # the last block is unused then
        for name in [name for name in tensors if ".encoder.layers.8." in name]:
            del tensors[name]

    assert first_difference(drop, config=shift) == "vision features"


def test_dropped_last_tile_embedding(first_difference):
    assert first_difference(lambda tensors: tensors[f"{CONNECTOR}.last_tile_embedding"].zero_()) == "connector"


def test_changed_decoder_weight(first_difference):
    assert first_difference(lambda tensors: tensors["lm_head.weight"].mul_(1.01)) == "logits"


def test_changed_pixels(first_difference):
    def shift(settings):
        settings["image_processor"]["image_mean"] = [0.5, 0.5, 0.51]

    assert first_difference(processor_config=shift) == "pixels"


def test_different_shapes(converted, changed_copy, make_image):
    def fewer(settings):
        settings["image_processor"]["max_crops"] = 1

    stages = verify(converted, changed_copy(converted, processor_config=fewer), image=[make_image(300, 600)])
    assert not stages[0].is_equal
    assert math.isinf(stages[0].difference)
    assert "shapes" in format_table(stages)


def test_nan_is_different(first_difference):
    name = f"{CONNECTOR}.projector.down_proj.weight"
    assert first_difference(lambda tensors: tensors[name].fill_(float("nan"))) == "connector"


def test_dtype(converted, small, tmp_path):
    half = convert_release(converted, tmp_path / "published", reverse=True, dtype="bfloat16")
    assert not all(stage.is_equal for stage in verify(converted, half, dtype="float32", **small))
    stages = verify(half, half, **small)
    assert all(stage.is_equal for stage in stages)
    assert stages[4].tolerance > verify(half, half, dtype="float32", **small)[4].tolerance * 10


def test_exit_status_and_table(published, converted, changed_copy, make_image, tmp_path, capsys):
    make_image(300, 300).save(tmp_path / "image.png")
    options = ["--image", str(tmp_path / "image.png"), "--prompt", "What?", "--dtype", "float32"]
    assert main([str(published), str(converted), *options]) == 0
    table = capsys.readouterr().out
    assert all(stage in table for stage in STAGES)
    assert table.endswith("equal\n")

    other = changed_copy(converted, lambda tensors: tensors["lm_head.weight"].mul_(2))
    assert main([str(converted), str(other), *options]) == 1
    assert capsys.readouterr().out.endswith("different from here on: logits\n")

    for arguments, message in (
        ([str(converted), str(tmp_path / "absent")], "absent is neither a folder"),
        ([str(converted), str(converted), "--image", str(tmp_path / "absent.png")], "absent.png"),
    ):
        with pytest.raises(SystemExit) as error:
            main(arguments)
        assert error.value.code == 2
        assert message in capsys.readouterr().err


def test_default_image_has_several_tiles(converted):
    stages = verify(converted, converted)
    assert all(stage.is_equal and stage.difference == 0 for stage in stages)


def test_tolerance_scales_with_the_values_of_a_stage():
    from jvlm.conversion_scripts.verify import _compare

    a = torch.full((4,), 100.0)
    assert _compare("x", a, a + 5e-4, 1e-5).is_equal
    assert not _compare("x", a, a + 5e-3, 1e-5).is_equal
    assert not _compare("x", a / 100, a / 100 + 5e-4, 1e-5).is_equal
