# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""convert_release: conversion between the published format and the format of Transformers, in both directions."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig
from transformers.image_utils import load_image

from jvlm.conversion_scripts.convert_release import convert_release, main
from jvlm.published_format.published_template import MARKED_TEMPLATE, PUBLISHED_TEMPLATE


UNUSED_BLOCKS = ("model.vision_model.layers.9.", "model.vision_model.layers.10.", "model.vision_model.post_lnorm.")


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def content(folder, name) -> dict:
    return json.loads((folder / name).read_text())


def assert_same_weights(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    different = [name for name in a if a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name])]
    assert different == []


@torch.inference_mode()
@pytest.mark.parametrize("name", ["astronaut", "two_images", "padded_batch", "black_tile"])
def test_converted_folder_gives_the_published_outputs(converted, release, name):
    golden = load_file(release / "golden.safetensors")
    case = next(case for case in json.loads((release / "golden.json").read_text())["cases"] if case["name"] == name)
    model = AutoModelForImageTextToText.from_pretrained(converted).eval()
    processor = AutoProcessor.from_pretrained(converted)
    images = [[load_image(str(release / file)) for file in files] for files in case["images"]]
    inputs = processor(images=images, text=case["prompts"], return_tensors="pt", padding=True, **case["kwargs"])

    mask = golden[f"{name}.attention_mask"].bool()
    assert torch.equal(inputs["attention_mask"].bool(), mask)
    assert torch.equal(inputs["input_ids"][mask], golden[f"{name}.input_ids"][mask].long())
    logits = model(**inputs).logits[..., :512]
    kept = mask[:, -24:]
    torch.testing.assert_close(logits[:, -24:][kept], golden[f"{name}.logits_last"][kept], atol=2e-4, rtol=0)
    tokens = model.generate(**inputs, max_new_tokens=12, min_new_tokens=12, do_sample=False, eos_token_id=-1)
    assert tokens[:, inputs["input_ids"].shape[1] :].tolist() == case["greedy"]


def test_converted_folder_has_the_transformers_format(converted):
    config = content(converted, "config.json")
    assert config["text_config"]["model_type"] == "qwen3"
    assert all(
        name.startswith(("model.vision_tower.", "model.connector.", "model.language_model.", "lm_head."))
        for name in weights(converted)
    )
    # The configuration must not refer to code files that are not in the folder.
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        assert "auto_map" not in (converted / name).read_text()
    generation = GenerationConfig.from_pretrained(converted)
    assert generation.suppress_tokens == list(range(512, 516))
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (392, 392, 392)
    assert "CC BY-NC 4.0" in (converted / "README.md").read_text()


def test_chat_template_and_processor_are_converted(published, converted, tmp_path):
    back = convert_release(converted, tmp_path / "published", reverse=True)
    folders = (published, converted, back)
    templates = [(folder / "chat_template.jinja").read_text() for folder in folders]
    # Labels need the marks, which programs that read the published format may not know.
    assert templates == [PUBLISHED_TEMPLATE, MARKED_TEMPLATE, PUBLISHED_TEMPLATE]
    processors = [AutoProcessor.from_pretrained(folder) for folder in folders]
    settings = [processor.image_processor.to_dict() for processor in processors]
    assert settings[0] == settings[1] == settings[2]
    assert [processor.add_bos_token for processor in processors] == [True] * 3
    vocabularies = [processor.tokenizer.get_vocab() for processor in processors]
    assert vocabularies[0] == vocabularies[1] == vocabularies[2]


def test_round_trip_from_transformers_format_is_bitwise_equal(converted, tmp_path, capsys):
    back = convert_release(converted, tmp_path / "published", reverse=True)
    listed = capsys.readouterr().out
    again = convert_release(back, tmp_path / "ours")
    assert_same_weights(converted, again)
    assert content(converted, "config.json") == content(again, "config.json")
    # The vision blocks that Transformers' format drops, because they are unused, are saved as zeros and listed.
    zeros = {name: tensor for name, tensor in weights(back).items() if name.startswith(UNUSED_BLOCKS)}
    assert len(zeros) == 30
    assert not any(tensor.any() for tensor in zeros.values())
    assert all(name in listed for name in zeros)
    assert not weights(back)["model.vision_model.vl_connector.pad_embed"][0].any()


def test_round_trip_from_published_format_is_bitwise_equal(published, converted, tmp_path, capsys):
    back = convert_release(converted, tmp_path / "published", reverse=True, source=published)
    assert_same_weights(published, back)
    listed = capsys.readouterr().out
    # The zero biases of the language model are copied from the source.
    assert "model.language_model.layers.2.attn.q_b" in listed
    assert "model.vision_model.layers.10.ffn.up.weight" in listed


def test_published_files_equal_those_of_the_source(published, converted, tmp_path):
    back = convert_release(converted, tmp_path / "published", reverse=True, source=published)
    for name in ("config.json", "preprocessor_config.json", "processor_config.json"):
        ours, theirs = content(back, name), content(published, name)
        for settings in (ours, theirs):
            settings.pop("auto_map")
            settings.pop("transformers_version", None)
        assert ours == theirs
    # The fixture lacks the published code files, so the configuration refers to their repository.
    code = content(back, "config.json")["auto_map"]["AutoConfig"]
    assert code == "jinaai/jina-vlm--configuration_jvlm.JinaVLMConfig"
    # The name in Transformers 4.
    assert content(back, "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_code_files_are_copied(published, converted, changed_copy, tmp_path):
    source = changed_copy(published)
    (source / "configuration_jvlm.py").write_text("# code\n")
    back = convert_release(converted, tmp_path / "published", reverse=True, source=source)
    assert (back / "configuration_jvlm.py").read_text() == "# code\n"
    assert content(back, "config.json")["auto_map"] == content(published, "config.json")["auto_map"]


def test_folder_converted_to_the_published_format_loads(converted, tmp_path):
    back = convert_release(converted, tmp_path / "published", reverse=True)
    model = AutoModelForImageTextToText.from_pretrained(back)
    expected = weights(converted)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("reverse", [False, True])
def test_dtype(published, converted, reverse, tmp_path):
    source = converted if reverse else published
    folder = convert_release(source, tmp_path / "half", dtype="bfloat16", reverse=reverse)
    assert {tensor.dtype for tensor in weights(folder).values()} == {torch.bfloat16}
    assert AutoConfig.from_pretrained(folder).dtype == torch.bfloat16
    name = "lm_head.weight"
    assert torch.equal(weights(folder)[name][:512], weights(source)[name][:512].bfloat16())


def test_shards_and_index(published, converted, tmp_path, monkeypatch):
    import jvlm.conversion_scripts.convert_release as module

    monkeypatch.setattr(module, "MAX_SHARD_SIZE", "200KB")
    folder = convert_release(published, tmp_path / "ours")
    back = convert_release(folder, tmp_path / "published", reverse=True, source=published)
    for sharded in (folder, back):
        index = content(sharded, "model.safetensors.index.json")["weight_map"]
        assert len(set(index.values())) == len(list(sharded.glob("*.safetensors"))) > 3
    model = AutoModelForImageTextToText.from_pretrained(back)
    expected = weights(converted)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_dropped_rows_of_the_head_are_reported(converted, changed_copy, tmp_path, capsys):
    trained = changed_copy(converted, lambda tensors: tensors["lm_head.weight"][600].fill_(0.5))
    convert_release(trained, tmp_path / "published", reverse=True)
    assert "output head's rows of the image tokens (up to 0.5)" in capsys.readouterr().out


def test_generation_settings_are_kept(published, changed_copy, tmp_path):
    source = changed_copy(published, generation_config=lambda settings: settings.update(repetition_penalty=1.5))
    ours = convert_release(source, tmp_path / "ours")
    back = convert_release(ours, tmp_path / "published", reverse=True)
    assert GenerationConfig.from_pretrained(ours).repetition_penalty == 1.5
    generation = GenerationConfig.from_pretrained(back)
    assert (generation.repetition_penalty, generation.suppress_tokens) == (1.5, None)


@pytest.mark.parametrize("saved", [[7, 3], list(range(512, 640))])
def test_own_suppressed_tokens_are_kept(published, changed_copy, saved, tmp_path):
    """Unlike the list of all ids from the first image token on, which version 0.1.0 saved."""
    own = [3, 7] if 7 in saved else []
    source = changed_copy(published, generation_config=lambda settings: settings.update(suppress_tokens=saved))
    ours = convert_release(source, tmp_path / "ours")
    assert GenerationConfig.from_pretrained(ours).suppress_tokens == [*own, *range(512, 516)]
    back = convert_release(ours, tmp_path / "published", reverse=True)
    assert GenerationConfig.from_pretrained(back).suppress_tokens == (own or None)


def test_added_tokens_have_no_place_in_the_published_format(converted, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(converted, source)
    processor = AutoProcessor.from_pretrained(source)
    processor.tokenizer.add_tokens(["<answer>"])
    processor.save_pretrained(source)
    with pytest.raises(ValueError, match=r"tokenizer's <answer> come after the vocabulary.*could not generate them"):
        convert_release(source, tmp_path / "published", reverse=True)
    assert not (tmp_path / "published").exists()


def test_repository_on_the_hub(published, converted, tmp_path, monkeypatch):
    # The cache layout of huggingface_hub for a downloaded repository.
    repository = tmp_path / "cache" / "models--somebody--small"
    shutil.copytree(published, repository / "snapshots" / "0123abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert_same_weights(convert_release("somebody/small", tmp_path / "ours"), converted)


def test_command_line(published, tmp_path, capsys):
    main(["--checkpoint", str(published), "--output", str(tmp_path / "ours")])
    main(["--checkpoint", str(tmp_path / "ours"), "--output", str(tmp_path / "back"), "--reverse"])
    assert str(tmp_path / "back") in capsys.readouterr().out
    assert len(weights(tmp_path / "back")) == len(weights(published)) - 9  # the zero biases


@pytest.mark.parametrize(
    ("layout", "fields", "message"),
    [
        ("independent", {}, "independent"),
        ("stitched", {"connector_hidden_act": "gelu"}, "connector_hidden_act.*'gelu'"),
        ("stitched", {"text_config": {"attention_bias": True}}, r"text_config\.attention_bias.*True"),
        ("stitched", {"vision_config": {"layer_norm_eps": 1e-5}}, r"vision_config\.layer_norm_eps.*1e-05"),
    ],
)
def test_unsupported_configurations_are_an_error(
    build_model, build_processor, bare_tokenizer, layout, fields, message, tmp_path
):
    from jvlm import add_image_tokens

    add_image_tokens(bare_tokenizer, first_token_id=320)
    processor = build_processor(layout, tokenizer=bare_tokenizer, add_bos_token=True)
    names = ("image_start_token_id", "image_end_token_id", "image_token_id", "image_column_token_id")
    token_ids = dict(zip(names, range(320, 324), strict=True))
    fields = {**fields, "text_config": {"vocab_size": 448, **fields.get("text_config", {})}}
    build_model(layout, **token_ids, **fields).save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=message):
        convert_release(tmp_path / "ours", tmp_path / "published", reverse=True)
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_wrong_direction_is_an_error(published, converted, tmp_path):
    with pytest.raises(ValueError, match="published format already"):
        convert_release(published, tmp_path / "a", reverse=True)
    with pytest.raises(ValueError, match="use --reverse"):
        convert_release(converted, tmp_path / "a")
    with pytest.raises(ValueError, match="--source requires --reverse"):
        convert_release(published, tmp_path / "a", source=published)
    with pytest.raises(ValueError, match="--source must be"):
        convert_release(converted, tmp_path / "a", reverse=True, source=converted)


def test_source_of_another_architecture_is_an_error(published, converted, changed_copy, tmp_path):
    def narrow(tensors):
        tensors["model.vision_model.layers.10.ffn.up.weight"] = torch.zeros(7, 32)

    source = changed_copy(published, narrow)
    with pytest.raises(ValueError, match=r"layers.10.ffn.up.weight has the shape \(7, 32\).*same architecture"):
        convert_release(converted, tmp_path / "a", reverse=True, source=source)
