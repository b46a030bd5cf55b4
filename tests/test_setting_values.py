# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Every setting of every JSON file with every kind of wrong value: it loads as it should, or the error names it."""

import copy
import dataclasses
import json
import resource
import shutil
import time
import tracemalloc
from typing import Any

import PIL.Image
import pytest
from transformers import AutoConfig, Qwen3Config, SiglipVisionConfig
from wrong_values import MISSING, VALUES, changed, leaves

from jvlm import JinaVLMConfig, JinaVLMForConditionalGeneration, JinaVLMImageProcessor, JinaVLMProcessor
from jvlm.published_format.published_schema import by_path, read_config, read_processor


# JinaVLM and Transformers use none of them.
UNUSED = {"chunk_size_feed_forward", "problem_type"}


def has_type_of(value: Any, original: Any) -> bool:
    """Whether a value may stand for another one. Null and missing stand for a default."""
    if value is None or value is MISSING or original is None:
        return True
    if isinstance(original, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is type(original)


def check_all_values(settings: dict, load, related: dict[str, str]) -> int:
    """
    Loads settings with every value in every place. They load if the value has the right type or no effect. Otherwise
    there is a `ValueError` that names the setting, or another one that contradicts it (`related`), within half a
    second and without large allocations. Returns the number of errors.
    """

    def result(settings: dict) -> dict | Exception:
        try:
            return {path: repr(value) for path, value in by_path(load(settings)) if not UNUSED & set(path.split("."))}
        except Exception as error:
            return error

    expected, errors = result(settings), 0
    assert isinstance(expected, dict)
    for path in leaves(settings):
        original = settings
        for name in path:
            original = original[name]
        for name, value in VALUES.items():
            case, start = f"{'.'.join(path)}, {name}", time.process_time()
            if name == "large":
                tracemalloc.start()
            found = result(changed(settings, path, value))
            assert time.process_time() - start < 0.5, case
            if name == "large":
                assert tracemalloc.get_traced_memory()[1] < 10e6, case
                tracemalloc.stop()
            if isinstance(found, Exception):
                message = str(found)
                assert isinstance(found, ValueError), f"{case}: {type(found).__name__}: {message}"
                assert path[-1] in message or related.get(path[-1], path[-1]) in message, f"{case}: {message}"
                assert len(message) < 1000, case
                errors += 1
            else:
                # Transformers allows one number for all channels.
                is_mean = path[-1] in ("image_mean", "image_std") and has_type_of(value, 1.0)
                assert found == expected or has_type_of(value, original) or is_mean, f"{case} is accepted"
    return errors


def config_fields(settings: dict) -> dict:
    return JinaVLMConfig(**settings).to_dict()


def test_published_config(release):
    settings = json.loads((release / "checkpoint/config.json").read_text())
    settings |= {"eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0}
    # These set the number of outputs to choose from, and the size of a head.
    related = {"n_layers": "vit_layers", "hidden_size": "head_dim", "n_heads": "head_dim"}
    known: dict[str, dict] = {}

    def load(settings: dict) -> dict:
        # To save time: the same fields make the same configuration.
        others = {name: value for name, value in settings.items() if name not in ("text_config", "vision_config")}
        key = repr((read_config(settings), others))
        if key not in known:
            known[key] = config_fields(settings)
        return known[key]

    assert check_all_values(settings, load, related) > 1700
    for part in ("text_config", "vision_config"):
        for value in (MISSING, None, {}, {"block_config": 3}, {"model_type": "jvlm"}):
            with pytest.raises(ValueError, match=part):
                JinaVLMConfig(**changed(settings, (part,), value))


def test_config(build_config):
    settings = json.loads(build_config("stitched").to_json_string())
    related = {
        "num_hidden_layers": "vision_feature_layer",
        **dict.fromkeys(("pooling_size", "image_size", "patch_size", "vision_config"), "pooled_grid"),
        "vocab_size": "image_token_id",
        "text_config": "token_id",
    }
    for part in ("vision_config", "text_config"):
        settings[part] = {name: value for name, value in settings[part].items() if "label" not in name}
    assert check_all_values(settings, config_fields, related) > 600


def test_accepted_values_are_saved(build_config):
    """What is accepted can be saved and loaded again."""
    settings = json.loads(build_config("stitched").to_json_string())
    for path, value in (
        ("text_config.rope_parameters.rope_theta", 1),
        ("text_config.max_position_embeddings", 10**9),
        ("text_config.rms_norm_eps", 0.0),
        ("text_config.eos_token_id", [0, 1]),
        ("connector_head_dim", 2**20),
        ("vision_config.hidden_act", "gelu"),
        ("dtype", "bfloat16"),
    ):
        fields = config_fields(changed(settings, tuple(path.split(".")), value))
        assert config_fields(fields) == fields


# Not checked, because they have no effect on JinaVLM.
LABELS = {"architectures", "id2label", "label2id", "problem_type", "transformers_version", "chunk_size_feed_forward"}


def set_and_check(config: JinaVLMConfig, name: str, value: Any) -> None:
    setattr(config, name, value)
    config.validate()


@pytest.mark.parametrize(
    ("part", "config_class"),
    [("", JinaVLMConfig), ("vision_config", SiglipVisionConfig), ("text_config", Qwen3Config)],
)
def test_fields_of_other_types(build_config, part, config_class):
    """Documented and raised is `ValueError`, when a configuration is built and when a field is set later."""
    settings = json.loads(build_config("stitched").to_json_string())
    fields = [field for field in dataclasses.fields(config_class) if field.name not in LABELS]
    assert len(fields) > 10
    config = JinaVLMConfig(**settings)
    for field in fields:
        for value in (object(), "x", b"x", {1}, [1, "a"], 1 + 1j, float("inf"), 10**30):
            changed_settings = copy.deepcopy(settings)
            (changed_settings[part] if part else changed_settings)[field.name] = value
            with pytest.raises(ValueError, match=field.name):
                JinaVLMConfig(**changed_settings)
            if not part:
                before = getattr(config, field.name)
                with pytest.raises(ValueError, match=field.name):
                    set_and_check(config, field.name, value)
                setattr(config, field.name, before)


def test_changed_fields_are_checked(build_config, tmp_path):
    build_config().save_pretrained(tmp_path)
    for changes, words in (
        ({"pooling_size": 0}, "`pooling_size` must be an integer from 1"),
        ({"pooled_grid": [9, 9]}, r"`pooled_grid` is \[9, 9\]"),
        ({"vision_feature_layer": [-1]}, r"`vision_feature_layer` is \[-1\]"),
        ({"text_config": {"hidden_size": "x"}}, "hidden_size.*expected int, got str"),
    ):
        with pytest.raises(ValueError, match=words):
            AutoConfig.from_pretrained(tmp_path, **changes)
    config = build_config()
    config.text_config.num_hidden_layers = -1
    for call in (config.validate, lambda: config.save_pretrained(tmp_path)):
        with pytest.raises(
            ValueError, match=r"`text_config.num_hidden_layers` must be an integer from 1 to 1024, got -1"
        ):
            call()


def image_settings(known: dict[str, dict]):
    """A function that loads an image processor, uses it and returns its settings."""

    def load(settings: dict) -> dict:
        processor = JinaVLMImageProcessor.from_dict(settings)
        key = repr(processor.to_dict())
        if key not in known:
            processor(PIL.Image.new("RGB", (70, 50)))
            known[key] = processor.to_dict()
        return known[key]

    return load


def test_published_image_processor(release):
    settings = json.loads((release / "checkpoint/preprocessor_config.json").read_text())
    related = {"patch_size": "token_length_h", "base_input_size": "token_length_h"}
    assert check_all_values(settings, image_settings({}), related) > 280


def test_image_processor(build_processor):
    settings = json.loads(build_processor("stitched", max_aspect_ratio=200.0).image_processor.to_json_string())
    assert check_all_values(settings, image_settings({}), {"height": "size", "width": "size"}) > 150


def test_pixel_limits_contradict(release):
    settings = json.loads((release / "checkpoint/preprocessor_config.json").read_text())
    with pytest.raises(
        ValueError, match=r"`image_processor.min_pixels` \(3136\) must not be more than `max_pixels` \(5\)"
    ):
        JinaVLMImageProcessor.from_dict({**settings, "max_pixels": 5})
    with pytest.raises(ValueError, match=r"`preprocessor_config.image_max` is -1.0.*more than `image_min`"):
        JinaVLMImageProcessor.from_dict({**settings, "image_max": -1.0})


def test_processor_config(release, build_processor):
    published = json.loads((release / "checkpoint/processor_config.json").read_text())
    for value in (1, 1.0, "x", None, [], False):
        with pytest.raises(ValueError, match=r"`processor_config.always_start_with_space` is"):
            read_processor({**published, "always_start_with_space": value})
    # The published code adds a BOS token, whether this is in its file or not.
    assert read_processor(changed(published, ("always_start_with_space",), MISSING))["add_bos_token"] is True
    for value in (1, "x", None, []):
        with pytest.raises(ValueError, match=r"`processor_config.add_bos_token` must be true or false"):
            read_processor({"add_bos_token": value, "processor_class": "JinaVLMProcessor"})


# JSON files


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, release):
    """A function (name, content) that makes a copy of the published fixture with another content of a file."""

    def make(name: str, content: str | bytes):
        folder = tmp_path_factory.mktemp("checkpoint") / "checkpoint"
        shutil.copytree(release / "checkpoint", folder)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder

    return make


DAMAGED = {
    "list": "[1]",
    "number": "3",
    "null": "null",
    "string": '"model_type"',
    "empty": "",
    "truncated": '{"model_type": "jv',
    "deep": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "twice": '{"max_crops": 4, "max_crops": 12}',
    "NaN": '{"model_type": "jvlm", "rope_theta": NaN}',
    "Infinity": '{"model_type": "jvlm", "rope_theta": -Infinity}',
    "UTF-16": '{"model_type": "jvlm"}'.encode("utf-16"),
    "digits": '{"hidden_size": ' + "1" * 6000 + "}",
}
READERS = {
    "config.json": (JinaVLMConfig, JinaVLMForConditionalGeneration, JinaVLMProcessor),
    "generation_config.json": (JinaVLMForConditionalGeneration,),
    "preprocessor_config.json": (JinaVLMImageProcessor, JinaVLMProcessor),
    "processor_config.json": (JinaVLMImageProcessor, JinaVLMProcessor),
    "tokenizer_config.json": (JinaVLMProcessor,),
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("name", READERS)
def test_damaged_json(checkpoint, name, damage):
    folder = checkpoint(name, DAMAGED[damage])
    for reader in READERS[name]:
        with pytest.raises(ValueError, match=f"{name} is damaged or truncated") as error:
            reader.from_pretrained(folder)
        assert len(str(error.value)) < 500
        reason = {"twice": "'max_crops' is there twice", "list": "must hold a JSON object, not list"}
        assert reason.get(damage, "") in str(error.value)


def test_wrong_generation_settings(checkpoint):
    for name, value in (
        ("suppress_tokens", "x"),
        ("suppress_tokens", [-1]),
        ("eos_token_id", [1, "a"]),
        ("pad_token_id", True),
        ("max_new_tokens", "4"),
        ("num_beams", 10**9),
        ("temperature", [1.0]),
        ("top_p", 2),
        ("do_sample", 1),
        ("early_stopping", "x"),
        ("watermarking_config", "x"),
        ("watermarking_config", {"a": 1}),
    ):
        folder = checkpoint("generation_config.json", json.dumps({name: value}))
        with pytest.raises(ValueError, match=rf"`{name}` must be .*generation_config\.json"):
            JinaVLMForConditionalGeneration.from_pretrained(folder)


def test_classes_named_in_processor_files(checkpoint):
    """Transformers would ask for permission to run code of the folder, or fail without a name."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        for settings in ({"auto_map": 3}, {"auto_map": {"AutoProcessor": 3}}):
            with pytest.raises(ValueError, match=rf"`auto_map[.\w]*` must be .*{name}"):
                JinaVLMProcessor.from_pretrained(checkpoint(name, json.dumps(settings)))
    for value in ("Qwen2VLImageProcessor", 3, None):
        folder = checkpoint("preprocessor_config.json", json.dumps({"image_processor_type": value}))
        with pytest.raises(ValueError, match=r"`image_processor_type` must be 'JinaVLMImageProcessor'"):
            JinaVLMProcessor.from_pretrained(folder)


# Sizes and weights


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("text_config.block_config.ffn_config.size", 2**20, r"another shape: .*mlp\.\w+_proj"),
        ("vision_config.block_config.ffn_config.size", 2**20, r"another shape: .*mlp\.fc1"),
        ("vision_config.vl_connector_config.mlp_projector_config.size", 2**20, r"another shape: .*projector"),
        ("text_config.n_layers", 200, r"lacks weights: model\.language_model\.layers\.1\d+"),
    ],
)
def test_absurd_sizes_get_no_memory(release, checkpoint, path, value, words):
    settings = json.loads((release / "checkpoint/config.json").read_text())
    settings = changed(settings, tuple(path.split(".")), value)
    if path.endswith("n_layers"):
        settings["text_config"]["num_hidden_layers"] = value
    folder = checkpoint("config.json", json.dumps(settings))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=words):
        JinaVLMForConditionalGeneration.from_pretrained(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # kilobytes on Linux
