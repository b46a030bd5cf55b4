# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""verify: checkpoints with the same weights are equal, and a difference is found in the first stage it affects."""

import json
import math
import zlib

import PIL.Image
import pytest
import torch
from helpers import make_image
from safetensors.torch import load_file

from jvlm.conversion_scripts.convert_release import convert_release
from jvlm.conversion_scripts.verify import compare, examine, format_table, main, verify


STAGES = ["pixels", "prompt tokens", "vision features", "connector", "logits", "greedy tokens", "weights", "settings"]
CONNECTOR = "model.connector"


@pytest.fixture(scope="module")
def small() -> dict:
    """Arguments for a fast comparison: one image of one tile."""
    return {"image": [make_image(300, 300)], "prompt": "What is it?"}


@pytest.fixture(scope="module")
def findings(small):
    """A function that examines a checkpoint."""
    return lambda folder: examine(folder, None, small["image"], small["prompt"])


@pytest.fixture(scope="module")
def findings_before(findings, converted):
    return findings(converted)


@pytest.fixture
def differing_stages(findings, findings_before, converted, changed_copy):
    """A function (changes of weights or files) that returns the stages with a difference and their notes."""

    def compare_copy(weights=None, **files) -> dict[str, str]:
        stages = compare(findings_before, findings(changed_copy(converted, weights, **files)))
        assert [stage.name for stage in stages] == STAGES
        return {stage.name: stage.note for stage in stages if not stage.is_equal}

    return compare_copy


@pytest.fixture
def first_difference(differing_stages):
    """A function (changes of weights or files) that returns the first stage with a difference."""
    return lambda weights=None, **files: next(iter(differing_stages(weights, **files)), None)


def test_formats_of_one_checkpoint_are_equal(published, converted, small, tmp_path):
    back = convert_release(converted, tmp_path / "published", reverse=True)
    for other in (published, back, converted):
        stages = verify(converted, other, **small)
        assert all(stage.is_equal for stage in stages)
        assert format_table(stages).splitlines()[-1] == "equal"


def test_published_weights_without_effect(published, changed_copy, findings):
    def change(tensors):
        for name in ("layers.10.ffn.up.weight", "post_lnorm.bias"):
            tensors[f"model.vision_model.{name}"] += 1
        tensors["model.vision_model.vl_connector.pad_embed"][0] += 1

    stages = compare(findings(published), findings(changed_copy(published, change)))
    assert all(stage.is_equal and stage.difference == 0 for stage in stages)


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


def test_nan_is_equal_to_nan(converted, changed_copy, small):
    name = f"{CONNECTOR}.projector.down_proj.weight"
    folder = changed_copy(converted, lambda tensors: tensors[name][0].fill_(float("nan")))
    assert all(stage.is_equal for stage in verify(folder, folder, **small))


@pytest.mark.parametrize(
    ("file", "path", "value"),
    [
        ("config", "dtype", "bfloat16"),
        ("config", "text_config.dtype", "bfloat16"),
        ("generation_config", "eos_token_id", None),
        ("generation_config", "top_p", 0.5),
        ("processor_config", "image_processor.model_input_names", ["pixel_values"]),
        ("processor_config", "image_processor.min_pixels", 3137),
        ("tokenizer_config", "model_input_names", ["input_ids"]),
        ("tokenizer_config", "padding_side", "right"),
    ],
)
def test_changed_setting(differing_stages, file, path, value):
    *parents, name = path.split(".")

    def change(settings):
        for parent in parents:
            settings = settings[parent]
        assert settings.get(name) != value
        settings[name] = value

    assert name.removesuffix("_id") in differing_stages(**{file: change})["settings"]


def test_processor_of_another_class(differing_stages):
    message = r"cannot be compared: AutoProcessor finds a LlavaProcessor in .* Set `processor_class`"
    with pytest.raises(ValueError, match=message):
        differing_stages(processor_config=lambda settings: settings.update(processor_class="LlavaProcessor"))


@pytest.mark.parametrize(
    "edit",
    [
        lambda template: "{% if 'digit' in messages[-1]['content'] | string %}Count. {% endif %}" + template,
        lambda template: (
            template + "{%- if messages | length > 20 -%}{%- generation -%}x{%- endgeneration -%}{%- endif -%}"
        ),
    ],
)
def test_changed_chat_template(converted, changed_copy, findings, findings_before, edit):
    folder = changed_copy(converted)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(edit(template))
    stages = compare(findings_before, findings(folder))
    assert [stage.name for stage in stages if not stage.is_equal] == ["settings"]
    assert "chat_template" in stages[-1].note


def test_weights_are_compared_as_they_are_stored(converted, changed_copy, differing_stages, small):
    scaled = changed_copy(converted, lambda tensors: [tensor.mul_(1.0001) for tensor in tensors.values()])
    stages = verify(converted, scaled, dtype="bfloat16", **small)
    assert [stage.name for stage in stages if not stage.is_equal][-1:] == ["weights"]

    def store_in_float64(tensors):
        tensors.update({name: tensor.double() for name, tensor in tensors.items()})

    assert list(differing_stages(store_in_float64)) == ["weights"]


def test_change_that_a_checksum_misses(converted, changed_copy, findings, findings_before):
    name = "model.language_model.embed_tokens.weight"
    # The polynomial of CRC-32, lowest bit of a byte first. Adding it to any data does not change the checksum.
    bits = [int(bit) for bit in f"{0x104C11DB7:033b}"]
    pattern = [sum(bit << place for place, bit in enumerate(bits[start : start + 8])) for start in range(0, 33, 8)]

    def change(tensors):
        tensors[name][7].view(torch.uint8)[:5] ^= torch.tensor(pattern, dtype=torch.uint8)

    folder = changed_copy(converted, change)
    before, after = (load_file(path / "model.safetensors")[name].numpy().tobytes() for path in (converted, folder))
    assert before != after
    assert zlib.crc32(before) == zlib.crc32(after)
    differing = [stage for stage in compare(findings_before, findings(folder)) if not stage.is_equal]
    assert [(stage.name, stage.note) for stage in differing] == [("weights", name)]


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


def edit_json(name: str, **settings):
    def edit(folder):
        content = json.loads((folder / f"{name}.json").read_text())
        (folder / f"{name}.json").write_text(json.dumps(content | settings))

    return edit


def write(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    "damage",
    [
        write("config.json", "[" * 100_000),
        write("config.json", "[]"),
        write("generation_config.json", "3"),
        write("processor_config.json", '{"image_processor": 3}'),
        write("tokenizer.json", "{}"),
        write("tokenizer_config.json", '{"added_tokens_decoder": 3}'),
        write("model.safetensors", "{}"),
        write("chat_template.jinja", "{{ 1 / 0 }}"),
        write("chat_template.jinja", "{{ messages.x.y }}"),
        write("chat_template.jinja", "{{ messages + 1 }}"),
        write("chat_template.jinja", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
        write("chat_template.jinja", "{% for %}"),
        edit_json("config", text_config=3),
        edit_json("config", vision_config={"patch_size": 0}),
        edit_json("config", pooling_size="2"),
        edit_json("config", dtype="int7"),
        edit_json("config", connector_hidden_act="none"),
        edit_json("config", text_config={"hidden_size": 10**12}),
        edit_json("generation_config", eos_token_id="x"),
    ],
)
def test_damaged_checkpoint_gives_status_2_and_one_line(converted, changed_copy, capsys, damage):
    folder = changed_copy(converted)
    damage(folder)
    with pytest.raises(SystemExit) as error:
        main([str(folder), str(converted)])
    assert error.value.code == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith(f"jvlm verify: error: {folder} cannot be compared: ")


def test_what_cannot_be_opened_gives_status_2_and_one_line(converted, tmp_path, capsys, monkeypatch):
    PIL.Image.new("L", (300, 300)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    same, closed = [str(converted), str(converted)], "http://127.0.0.1:9/image.png"
    for arguments, words in (
        ([str(tmp_path / "absent"), str(converted)], ["absent cannot be compared", "absent is neither a folder"]),
        ([*same, "--image", str(tmp_path / "absent.png")], ["the image", "absent.png"]),
        ([*same, "--image", str(tmp_path / "bomb.png")], ["bomb.png cannot", "DecompressionBombError"]),
        ([*same, "--image", closed], [f"the image {closed} cannot be compared"]),
    ):
        with pytest.raises(SystemExit) as error:
            main(arguments)
        assert error.value.code == 2
        *_, last = capsys.readouterr().err.splitlines()
        assert last.startswith("jvlm verify: error: ")
        assert all(word in last for word in words), last


def test_default_image_has_several_tiles(converted):
    stages = verify(converted, converted)
    assert all(stage.is_equal and stage.difference == 0 for stage in stages)


def test_tolerance_scales_with_the_values_of_a_stage():
    from jvlm.conversion_scripts.verify import _compare

    a = torch.full((4,), 100.0)
    assert _compare("x", a, a + 5e-4, 1e-5).is_equal
    assert not _compare("x", a, a + 5e-3, 1e-5).is_equal
    assert not _compare("x", a / 100, a / 100 + 5e-4, 1e-5).is_equal
