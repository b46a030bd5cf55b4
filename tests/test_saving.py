# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Saving and loading of models: whole, in shards, in other dtypes, partly on disk, from the published format."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    Trainer,
    TrainingArguments,
)

from jvlm import JinaVLMConfig, JinaVLMForConditionalGeneration


LAYOUTS = ["independent", "stitched"]
layouts = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture
def build_inputs(build_processor, make_image):
    def build(layout: str):
        images = [[make_image(90, 130, 0)], [make_image(40, 40, 1), make_image(60, 200, 2)]]
        prompts = ["<|image|> Who is this?", "Between <|image|> and <|image|>?"]
        return build_processor(layout)(images=images, text=prompts, padding=True, return_tensors="pt")

    return build


@torch.no_grad
def logits(model, inputs) -> torch.Tensor:
    return model(**inputs).logits


def assert_same_weights(model, expected):
    weights, expected = model.state_dict(), expected.state_dict()
    assert set(weights) == set(expected)
    for name in expected:
        assert weights[name].dtype == expected[name].dtype
        assert torch.equal(weights[name], expected[name]), name


def settings_of(config) -> dict:
    """The configuration as a dict, without where it came from and the dtypes that saving notes."""
    settings = config.to_dict()
    for part in (settings, settings["vision_config"], settings["text_config"]):
        for name in ("_name_or_path", "dtype", "architectures", "transformers_version"):
            part.pop(name, None)
    return settings


def saved_names(folder: Path) -> set[str]:
    names = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names |= set(file.keys())
    return names


@layouts
def test_round_trip(build_model, build_processor, build_inputs, layout, tmp_path):
    model, inputs = build_model(layout), build_inputs(layout)
    model.save_pretrained(tmp_path)
    build_processor(layout).save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert not loaded.training
    assert_same_weights(loaded, model)
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))
    assert settings_of(loaded.config) == settings_of(model.config)
    assert saved_names(tmp_path) == set(model.state_dict())
    # The folder contains no code.
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} <= {".safetensors", ".json", ".jinja"}
    assert all("auto_map" not in json.loads(path.read_text()) for path in tmp_path.glob("*config.json"))


@layouts
def test_base_model_round_trip(build_model, build_inputs, layout, tmp_path):
    model, inputs = build_model(layout), build_inputs(layout)
    model.model.save_pretrained(tmp_path / "base")
    base = AutoModel.from_pretrained(tmp_path / "base")
    assert_same_weights(base, model.model)
    # The base model also loads from a checkpoint of the whole model.
    model.save_pretrained(tmp_path / "whole")
    base = AutoModel.from_pretrained(tmp_path / "whole")
    with torch.no_grad():
        assert torch.equal(base(**inputs).last_hidden_state, model.model(**inputs).last_hidden_state)


def test_shards(build_model, build_inputs, tmp_path):
    model, inputs = build_model("stitched"), build_inputs("stitched")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert (tmp_path / "model.safetensors.index.json").is_file()
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert_same_weights(loaded, model)
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))


def test_dtypes(build_model, build_inputs, tmp_path):
    inputs = build_inputs("independent").to(torch.bfloat16)
    build_model().save_pretrained(tmp_path / "float32")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "float32", dtype=torch.bfloat16)
    assert_same_weights(model, build_model().to(torch.bfloat16))
    model.save_pretrained(tmp_path / "bfloat16")
    assert json.loads((tmp_path / "bfloat16" / "config.json").read_text())["dtype"] == "bfloat16"
    for dtype in ("auto", "bfloat16", torch.bfloat16):
        loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "bfloat16", dtype=dtype)
        assert_same_weights(loaded, model)
        assert torch.equal(logits(loaded, inputs), logits(model, inputs))
    wide = AutoModelForImageTextToText.from_pretrained(tmp_path / "bfloat16", dtype=torch.float32)
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float32}
    assert_same_weights(wide.to(torch.bfloat16), model)


@pytest.mark.parametrize("kind", [*LAYOUTS, "published"])
def test_offload_to_disk(kind, build_model, build_inputs, release, tmp_path):
    if kind == "published":
        folder = release / "checkpoint"
        processor = AutoProcessor.from_pretrained(folder)
        inputs = processor(text="<|image|> Who?", images=[torch.zeros(3, 60, 90)], return_tensors="pt")
        expected = AutoModelForImageTextToText.from_pretrained(folder)
    else:
        folder, inputs, expected = tmp_path / "checkpoint", build_inputs(kind), build_model(kind)
        expected.save_pretrained(folder)
    size = sum(parameter.numel() for parameter in expected.parameters()) * 4
    loaded = AutoModelForImageTextToText.from_pretrained(
        folder, device_map="auto", max_memory={"cpu": size * 2 // 3}, offload_folder=tmp_path / "offload"
    )
    assert set(loaded.hf_device_map.values()) == {"cpu", "disk"}
    assert any(parameter.is_meta for parameter in loaded.parameters())
    torch.testing.assert_close(logits(loaded, inputs), logits(expected, inputs), rtol=0, atol=1e-5)
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    assert torch.equal(loaded.generate(**inputs, **settings), expected.generate(**inputs, **settings))


def test_device_map_on_one_device(build_model, build_inputs, tmp_path):
    model, inputs = build_model("stitched"), build_inputs("stitched")
    model.save_pretrained(tmp_path)
    for device_map in ("cpu", {"": "cpu"}):
        loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, device_map=device_map)
        assert torch.equal(logits(loaded, inputs), logits(model, inputs))


def test_published_checkpoint_is_saved_in_transformers_format(
    release, released_model, released_processor, make_image, tmp_path
):
    released_model.save_pretrained(tmp_path)
    released_processor.save_pretrained(tmp_path)
    names = saved_names(tmp_path)
    assert names == set(released_model.state_dict())
    assert not any("vision_model" in name or "vl_connector" in name or "qkv_w" in name for name in names)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["vision_config"]["model_type"] == "siglip_vision_model"
    assert "block_config" not in config["text_config"]
    assert config["layout"] == "stitched"
    for path in tmp_path.glob("*config.json"):
        assert "auto_map" not in json.loads(path.read_text()), path.name

    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded.config) is JinaVLMConfig
    assert settings_of(loaded.config) == settings_of(released_model.config)
    assert_same_weights(loaded, released_model)
    processor = AutoProcessor.from_pretrained(tmp_path)
    call = {"images": make_image(300, 500), "text": " User: <|image|>a red circle Assistant:", "return_tensors": "pt"}
    before, after = released_processor(**call), processor(**call)
    assert torch.equal(logits(loaded, after), logits(released_model, before))
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    assert torch.equal(loaded.generate(**after, **settings), released_model.generate(**before, **settings))


def test_published_format_in_shards(release, released_model, make_image, tmp_path):
    """The published weights are in several files."""
    weights = load_file(release / "checkpoint" / "model.safetensors")
    names = sorted(weights)
    index = {"metadata": {"total_size": sum(weight.nbytes for weight in weights.values())}, "weight_map": {}}
    for part in range(3):
        file = f"model-{part + 1:05}-of-00003.safetensors"
        # Every third weight, so that weights that are converted together are in different files.
        save_file({name: weights[name] for name in names[part::3]}, tmp_path / file, {"format": "pt"})
        index["weight_map"].update(dict.fromkeys(names[part::3], file))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text((release / "checkpoint" / "config.json").read_text())
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert_same_weights(loaded, released_model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_published_format_in_other_dtypes(release, released_model, dtype):
    loaded = AutoModelForImageTextToText.from_pretrained(release / "checkpoint", dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    for name, weight in released_model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.to(dtype)), name


def test_zero_biases_may_be_missing(release, released_model, tmp_path):
    """The decoder's attention biases may or may not be in a published file."""
    weights = load_file(release / "checkpoint" / "model.safetensors")
    biases = [name for name in weights if "language_model" in name and name.endswith(("q_b", "k_b", "v_b"))]
    changed = dict(weights)
    if biases:
        changed = {name: weight for name, weight in weights.items() if name not in biases}
    else:
        for layer in range(3):
            for part, rows in (("q_b", 64), ("k_b", 32), ("v_b", 32)):
                changed[f"model.language_model.layers.{layer}.attn.{part}"] = torch.zeros(rows)
    assert set(changed) != set(weights)
    save_file(changed, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((release / "checkpoint" / "config.json").read_text())
    assert_same_weights(AutoModelForImageTextToText.from_pretrained(tmp_path), released_model)


def test_generation_config(released_model, build_model, tmp_path):
    """Image tokens are never generated. tests/test_generated_tokens.py shows it."""
    for folder, model in (("released", released_model), ("small", build_model())):
        config = model.config
        markers = {config.image_token_id, config.image_start_token_id}
        markers |= {config.image_end_token_id, config.image_column_token_id}
        assert model.generation_config.suppress_tokens == sorted(markers)
        model.save_pretrained(tmp_path / folder)
        saved = GenerationConfig.from_pretrained(tmp_path / folder)
        assert saved.suppress_tokens == model.generation_config.suppress_tokens
        loaded = type(model).from_pretrained(tmp_path / folder)
        assert loaded.generation_config.suppress_tokens == saved.suppress_tokens


def test_checkpoints_of_the_trainer(build_model, build_processor, build_inputs, tmp_path):
    """A checkpoint of `transformers.Trainer` loads like any other."""
    inputs = build_inputs("stitched")
    batch = {**inputs, "labels": inputs["input_ids"]}
    model = build_model("stitched")
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        save_steps=1,
        per_device_train_batch_size=1,
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=[0],
        data_collator=lambda rows: dict(batch),
        processing_class=build_processor("stitched"),
    )
    trainer.train()
    loaded = JinaVLMForConditionalGeneration.from_pretrained(tmp_path / "checkpoint-1")
    assert_same_weights(loaded, model)
    processor = AutoProcessor.from_pretrained(tmp_path / "checkpoint-1")
    assert processor.image_processor.layout == AutoConfig.from_pretrained(tmp_path / "checkpoint-1").layout
