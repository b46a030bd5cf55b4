# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The JSON files of the published checkpoint `jinaai/jina-vlm`, translated from and to ours by one table each.

A table has the structure of its JSON file. Its entries are

- a value, or a tuple of values: what JinaVLM implements; the first one is saved,
- a function of our settings by path that returns the same,
- a `Field`: the setting of ours that the value is translated to and from; `setting_kinds` has its type and range,
- `SaveOnly`: a value, or a function of our settings, that is saved for the published code and ignored when read.

The schema can express far more than the release uses. Any other value is an error, because JinaVLM would otherwise
run with lower accuracy and without a warning.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import PIL.Image
from transformers import BaseImageProcessor, PreTrainedConfig, ProcessorMixin

from ..configuration.setting_kinds import CONFIG, FLAG, IMAGE_PROCESSOR, PUBLISHED, check_settings, is_one_of, shown
from .published_template import read_template


# The release keeps its image tokens in a second embedding table of 128 rows, after the vocabulary.
NUM_ADDITIONAL_TOKENS = 128
IMAGE_TOKEN_IDS = ("image_start_token_id", "image_end_token_id", "image_token_id", "image_column_token_id")
TEXT_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

# Our settings that may change in a round trip: they have no effect, or the published format stores them elsewhere.
WITHOUT_EFFECT = {
    *("_from_model_config", "_name_or_path", "architectures", "auto_map", "dtype", "id2label", "label2id"),
    *(*TEXT_TOKEN_IDS, "initializer_range", "max_window_layers", "transformers_version", "use_cache"),
    "tie_word_embeddings",  # the published format always has an output head
    "use_last_tile_embedding",  # the published format has zeros instead of none
}


@dataclass(frozen=True)
class Field:
    """Path of a setting of ours. `read` and `save` take the value and all our settings by path."""

    path: str
    read: Callable = lambda value, ours: value
    save: Callable = lambda value, ours: value
    is_required: bool = True


@dataclass(frozen=True)
class SaveOnly:
    """A value, or a function of our settings to it."""

    value: Any


def _all(value: Any, *names: str) -> dict:
    return dict.fromkeys(names, value)


def _fields(prefix: str, **names: str) -> dict:
    """Settings that have the same value in both schemas, under the published names."""
    return {published: Field(f"{prefix}.{name}") for published, name in names.items()}


def _optional(*names: str) -> dict:
    """Settings that have the same name and value in both schemas."""
    return {name: Field(name, is_required=False) for name in names}


def _auto_map(**classes: str) -> SaveOnly:
    return SaveOnly({name: f"jinaai/jina-vlm--{path}" for name, path in classes.items()})


def _side(size: list[int], ours: dict) -> int:
    if size[0] != size[1]:
        raise ValueError("only squares are implemented")
    return size[0]


def _num_outputs(ours: dict) -> int:
    """The length of the list that `vit_layers` indexes: the outputs of all blocks and, last, of the final norm."""
    return ours["vision_config.num_hidden_layers"] + 1


def _blocks(indices: list[int], ours: dict) -> list[int]:
    if any(not -_num_outputs(ours) <= index < _num_outputs(ours) for index in indices):
        raise ValueError(f"there are {_num_outputs(ours)} outputs")
    blocks = [index % _num_outputs(ours) for index in indices]
    if _num_outputs(ours) - 1 in blocks:
        raise ValueError("the output of the final norm cannot be a feature")
    return blocks


_RMS_NORM = {"type": "rms", "eps": 1e-6, "bias": False, "with_affine": True}
_LAYER_NORM = {"type": "default", "eps": 1e-6, "bias": True, "with_affine": True}
_UNUSED_NORM = {"type": "default", "eps": (None, 1e-6), "bias": (None, True, False), "with_affine": True}


def _attention(bias: bool, norm: dict | None = None, **sizes) -> dict:
    return {
        **_all(bias, "q_bias", "k_bias", "v_bias", "o_bias"),
        **_all(norm is not None, "q_lnorm", "k_lnorm", "qkv_lnorm_on_heads"),
        **_all(False, "inner_lnorm", "o_lnorm", "v_lnorm"),
        **_all(None, "clip_qkv", "softmax_scale"),
        "lnorm_config": norm or _UNUSED_NORM,
        "dropout": 0.0,
        "fp32": (False, True),  # the attention backends compute scores in float32 anyway
        "sliding_window": (-1, None),
        **sizes,
    }


def _multi_head(heads: str, **sizes) -> dict:
    """Attention with biases and as many key-value heads as query heads."""
    return _attention(True, n_heads=Field(heads), n_kv_heads=lambda ours: (None, ours[heads]), **sizes)


def _feed_forward(inner: str, outer: str, **settings) -> dict:
    """A feed-forward layer. `ratio` sets its inner width as a multiple of the outer one, unless `size` does."""
    ratio = Field(inner, lambda ratio, ours: ours.get(inner) or int(ratio * ours[outer]), lambda size, ours: 4)
    return {"size": Field(inner), "ratio": ratio, "inner_lnorm": False, "lnorm_config": _UNUSED_NORM, **settings}


def _block(attention: dict, feed_forward: dict, norm: dict) -> dict:
    return {
        **{"attn_config": attention, "ffn_config": feed_forward, "lnorm_config": norm, "postnorm": False},
        **_all(None, "attn_lscale_init", "ffn_lscale_init"),
        **_all(0.0, "residual_dropout", "residual_path_dropout", "residual_response_dropout"),
    }


_TEXT, _VISION = "text_config", "vision_config"
_SWIGLU = {"activation_type": "silu", "gated_activation": True, "bias": False}
_GELU = {"activation_type": "gelu_pytorch_tanh", "gated_activation": False, "bias": True}
_VOCABULARY = Field(
    "text_config.vocab_size", lambda n, _: n + NUM_ADDITIONAL_TOKENS, lambda n, _: n - NUM_ADDITIONAL_TOKENS
)
_TEXT_HEADS = {"n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads", "head_dim": "head_dim"}
_CONFIG = {
    "model_type": SaveOnly("jvlm"),
    "architectures": SaveOnly(["JinaVLMForConditionalGeneration"]),
    "auto_map": _auto_map(
        AutoConfig="configuration_jvlm.JinaVLMConfig",
        AutoModelForCausalLM="modeling_jvlm.JinaVLMForConditionalGeneration",
    ),
    "tie_word_embeddings": SaveOnly(False),
    "text_config": {
        **_fields(_TEXT, hidden_size="hidden_size", max_sequence_length="max_position_embeddings"),
        **_fields(_TEXT, n_layers="num_hidden_layers", num_hidden_layers="num_hidden_layers"),
        "block_config": _block(
            _attention(False, _RMS_NORM, **_fields(_TEXT, **_TEXT_HEADS)),
            _feed_forward("text_config.intermediate_size", "text_config.hidden_size", **_SWIGLU),
            _RMS_NORM,
        ),
        "max_position_embeddings": lambda ours: (None, ours["text_config.max_position_embeddings"]),
        "rope_theta": Field("text_config.rope_parameters.rope_theta", lambda theta, _: float(theta)),
        **_all(_VOCABULARY, "vocab_size", "embedding_size"),
        "additional_vocab_size": NUM_ADDITIONAL_TOKENS,
        **_optional("tie_word_embeddings"),
        **{"model_type": "jvlm", "rope": True, "rope_scaling": None, "partial_rotary_factor": 1.0},
        **{"embedding_dropout": 0.0, "normalize_input_embeds": False},
    },
    "vision_config": {
        **_fields(_VISION, hidden_size="hidden_size", n_layers="num_hidden_layers", patch_size="patch_size"),
        "block_config": _block(
            _multi_head(
                "vision_config.num_attention_heads",
                head_dim=lambda ours: ours["vision_config.hidden_size"] // ours["vision_config.num_attention_heads"],
            ),
            _feed_forward("vision_config.intermediate_size", "vision_config.hidden_size", **_GELU),
            _LAYER_NORM,
        ),
        "vit_layers": Field(
            "vision_feature_layer", _blocks, lambda blocks, ours: [b - _num_outputs(ours) for b in blocks]
        ),
        "input_size": Field("vision_config.image_size", _side, lambda side, _: [side, side]),
        "n_channels": Field("vision_config.num_channels", is_required=False),
        "output_size": Field("text_config.hidden_size"),
        **{"model_type": "jvlm", "positional_interpolation": "bicubic", "patch_dropout": 0.0},
        **_all(True, "linear_patch_embedding", "patch_embedding_bias", "use_absolute_positional_embeddings"),
        **_all(False, "pre_lnorm", "use_cls_token"),
        "post_lnorm": (True, False),  # never applied to the features in use
        "vl_connector_config": {
            "attn_pooling_config": _multi_head("connector_num_attention_heads", head_dim=Field("connector_head_dim")),
            "mlp_projector_config": _feed_forward("connector_intermediate_size", "text_config.hidden_size", **_SWIGLU),
            **_all(Field("pooling_size"), "pooling_h", "pooling_w", "spatial_merge_size"),
            **_all(0.0, "feature_dropout", "projector_dropout"),
            **{"padding_embed_type": "pad_and_partial_pad", "pooling_type": "attention_meanq"},
            "projector_type": "mlp",
        },
    },
}


def _size(size: Any, ours: dict) -> dict[str, int]:
    return _all(_side(size, ours), "height", "width")


def _patches_per_side(ours: dict) -> int:
    return ours["size"]["height"] // ours["patch_size"]


def _cells_per_side(ours: dict) -> int:
    return -(-_patches_per_side(ours) // ours["pooling_size"])


# The published code scales [0, 1] to [image_min, image_max] and does not use its `image_mean` and `image_std`.
_IMAGE_PROCESSOR = {
    **_optional("antialias", "do_convert_rgb", "do_resize", "max_crops", "max_pixels", "min_pixels"),
    **_optional("overlap_margins", "resize_in_float32", "image_processor_type", "processor_class"),
    "patch_size": Field("patch_size"),
    "base_input_size": Field("size", _size, lambda size, _: [size["height"], size["width"]]),
    **_all(Field("pooling_size"), "pooling_h", "pooling_w"),
    **_all(_cells_per_side, "token_length_h", "token_length_w"),
    "interpolation": Field(
        "resample",
        lambda name, _: {"bilinear": 2, "bicubic": 3}[name],
        lambda resample, _: PIL.Image.Resampling(resample).name.lower(),
    ),
    "image_min": Field("low", save=lambda _, ours: -ours["image_mean"][0] / ours["image_std"][0]),
    "image_max": Field("high", save=lambda _, ours: (1 - ours["image_mean"][0]) / ours["image_std"][0]),
    **{"cropping_method": "overlap-and-resize", "normalization_method": "minmax"},
    **_all(False, "padding_mask", "preserve_aspect_ratio", "random_interpolation"),
    **{"padding_value": 0.0, "use_column_tokens": True},
    "image_mean": SaveOnly([0.48145466, 0.4578275, 0.40821073]),
    "image_std": SaveOnly([0.26862954, 0.26130258, 0.27577711]),
    "crop_size": SaveOnly(lambda ours: ours["size"]["height"]),
    "size": SaveOnly(lambda ours: {"longest_edge": ours["max_pixels"], "shortest_edge": ours["min_pixels"]}),
    **_all(SaveOnly(_patches_per_side), "image_base_patch_h", "image_base_patch_w"),
    "tokens_per_image": SaveOnly(lambda ours: _cells_per_side(ours) ** 2),
    "auto_map": _auto_map(
        AutoImageProcessor="image_processing_jvlm.JinaVLMImageProcessor",
        AutoProcessor="processing_jvlm.JinaVLMProcessor",
    ),
}

_PROCESSOR = {
    "always_start_with_space": True,
    "auto_map": _auto_map(AutoProcessor="processing_jvlm.JinaVLMProcessor"),
    "processor_class": SaveOnly("JinaVLMProcessor"),
}


def is_published_config(part: Any) -> bool:
    """Whether a `text_config` or `vision_config` is one of the published schema."""
    return isinstance(part, dict) and ("block_config" in part or part.get("model_type") == "jvlm")


def by_path(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of all nested settings, except those without effect."""
    if isinstance(value, dict):
        for name, part in value.items():
            if name not in WITHOUT_EFFECT:
                yield from by_path(part, f"{path}.{name}".removeprefix("."))
    else:
        yield path, value


def _refuse(path: str, value: Any, reason: str) -> ValueError:
    return ValueError(
        f"`{path}` is {shown(value)} in this published checkpoint: {reason}. The file was changed, or the "
        "checkpoint needs other model code."
    )


def _values(entry: Any, ours: dict) -> tuple:
    """The values that an entry of a table allows."""
    values = entry(ours) if callable(entry) else entry
    return values if isinstance(values, tuple) else (values,)


def _entries(table: dict, settings: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Path, value and entry of every leaf of a table; values that are missing are `None`."""
    if not isinstance(settings, dict):
        raise ValueError(f"`{path}` must be an object of settings, got {shown(settings)}.")
    for name, entry in table.items():
        entry_path = f"{path}.{name}".removeprefix(".")
        if isinstance(entry, dict):
            yield from _entries(entry, settings.get(name, {}), entry_path)
        elif name in settings or isinstance(entry, Field):
            yield entry_path, settings.get(name), entry


_KINDS = {**CONFIG, **IMAGE_PROCESSOR}


def _read(table: dict, settings: dict, path: str = "") -> dict[str, Any]:
    """Our settings by path."""
    ours: dict[str, Any] = {}
    sources: dict[str, str] = {}
    entries = list(_entries(table, settings, path))
    fields = [each for each in entries if isinstance(each[2], Field)]
    given = {field.path for _, value, field in fields if value is not None}
    for path, _, field in fields:
        if field.is_required and field.path not in given:
            raise ValueError(f"`{path}` is missing in this published checkpoint. Download its file again.")
    for path, value, field in fields:
        if value is not None:
            kind = PUBLISHED.get(path.rpartition(".")[2]) or _KINDS[field.path]
            if not kind.allows(value):
                raise _refuse(path, value, f"it must be {kind.description}")
            try:
                translated = field.read(value, ours)
            except ValueError as error:
                raise _refuse(path, value, f"JinaVLM cannot read it ({error})") from error
            source = sources.setdefault(field.path, f"`{path}`, which is {value!r}")
            if ours.setdefault(field.path, translated) != translated:
                raise _refuse(path, value, f"it must agree with {source}")
    for path, value, entry in entries:
        if not isinstance(entry, (Field, SaveOnly)) and not is_one_of(value, allowed := _values(entry, ours)):
            raise _refuse(path, value, f"JinaVLM implements only {' or '.join(map(repr, allowed))}")
    return ours


def _save(table: dict, ours: dict[str, Any]) -> dict[str, Any]:
    settings = {}
    for name, entry in table.items():
        if isinstance(entry, dict):
            settings[name] = _save(entry, ours)
        elif not isinstance(entry, Field):
            settings[name] = _values(entry.value if isinstance(entry, SaveOnly) else entry, ours)[0]
        elif entry.is_required or entry.path in ours:
            settings[name] = entry.save(ours.get(entry.path), ours)
    return settings


def _check_round_trip(ours: dict, back: dict, path: str) -> None:
    before, after = dict(by_path(ours, path)), dict(by_path(back, path))
    for name in sorted(before.keys() | after.keys()):
        if (value := before.get(name)) != (saved := after.get(name)):
            raise ValueError(f"`{name}` is {value!r}, but the published format can only store {saved!r}.")


def read_config(published: dict[str, Any]) -> dict[str, Any]:
    """
    Translates the published `config.json` to fields of [`JinaVLMConfig`].

    Raises:
        ValueError: if a setting is missing or has a value that the model does not implement; the message names it.
    """
    ours: dict[str, Any] = {"layout": "stitched", "use_last_tile_embedding": True, "tie_word_embeddings": False}
    ours |= {"text_config.rope_parameters.rope_type": "default", **_read(_CONFIG, published)}
    text, vocab_size = published["text_config"], ours["text_config.vocab_size"] - NUM_ADDITIONAL_TOKENS
    ours |= {name: vocab_size + index for index, name in enumerate(IMAGE_TOKEN_IDS)}
    ours["text_config.tie_word_embeddings"] = ours["tie_word_embeddings"]
    end_of_text = 151643 if vocab_size > 151645 else None  # the release's files may leave it to their code
    for name in TEXT_TOKEN_IDS:
        given = [settings[name] for settings in (published, text) if settings.get(name) is not None]
        ours[f"text_config.{name}"] = given[0] if given else end_of_text
    if ours["text_config.eos_token_id"] == 151643:
        ours["text_config.eos_token_id"] = [151643, 151645]
    fields: dict[str, Any] = {}
    for path, value in ours.items():
        *parents, name = path.split(".")
        reduce(lambda part, parent: part.setdefault(parent, {}), parents, fields)[name] = value
    return fields


def write_config(config: PreTrainedConfig) -> dict[str, Any]:
    """
    Translates a [`JinaVLMConfig`] to the published `config.json`.

    Raises:
        ValueError: if a field has a value that the published schema cannot express; the message names it.
    """
    ours = config.to_dict()
    published = _save(_CONFIG, {**dict(by_path(ours)), "tie_word_embeddings": False})
    for name in TEXT_TOKEN_IDS:
        token_id = ours["text_config"][name]
        if token_id is not None:
            published[name] = token_id[0] if isinstance(token_id, list) else token_id
    _check_round_trip(ours, type(config).from_dict(published).to_dict(), "config")
    return published


def read_image_processor(settings: dict[str, Any]) -> dict[str, Any]:
    """
    Translates the published `preprocessor_config.json` to arguments of [`JinaVLMImageProcessor`]; settings of any
    other schema are returned as they are.

    Raises:
        ValueError: if a setting is missing or has a value that is not implemented; the message names it.
    """
    if {"base_input_size", "cropping_method"} & settings.keys():
        settings = {"layout": "stitched", **_read(_IMAGE_PROCESSOR, settings, "preprocessor_config")}
        low, high = settings.pop("low"), settings.pop("high")
        if low >= high:
            raise _refuse("preprocessor_config.image_max", high, f"it must be more than `image_min`, which is {low}")
        settings |= {"image_mean": [low / (low - high)] * 3, "image_std": [1 / (high - low)] * 3}
    check_settings(settings, IMAGE_PROCESSOR, null=False)
    fewest, most = settings.get("min_pixels"), settings.get("max_pixels")
    if fewest and most and fewest > most:
        raise ValueError(f"`image_processor.min_pixels` ({fewest}) must not be more than `max_pixels` ({most}).")
    return settings


def write_image_processor(image_processor: BaseImageProcessor, config: PreTrainedConfig) -> dict[str, Any]:
    """
    Translates a [`JinaVLMImageProcessor`] to the published `preprocessor_config.json`.

    Raises:
        ValueError: if a setting has a value that the published schema cannot express; the message names it.
    """
    ours = image_processor.to_dict()
    published = _save(_IMAGE_PROCESSOR, {**ours, "processor_class": "JinaVLMProcessor"})
    token_ids = ("start_token_id", "end_token_id", "patch_token_id", "column_token_id")
    published |= {name: getattr(config, ours) for name, ours in zip(token_ids, IMAGE_TOKEN_IDS, strict=True)}
    back = type(image_processor)(**read_image_processor(published))
    _check_round_trip(ours, back.to_dict(), "image_processor")
    return published


def read_processor(settings: dict[str, Any]) -> dict[str, Any]:
    """
    Translates the published `processor_config.json` and its chat template to arguments of [`JinaVLMProcessor`];
    settings of any other schema are returned as they are.

    Raises:
        ValueError: if `always_start_with_space` is not true, or `add_bos_token` neither true nor false.
    """
    check_settings(settings, {"add_bos_token": FLAG}, "processor_config.", null=False)
    if not {"always_start_with_space", "auto_map"} & settings.keys() or "add_bos_token" in settings:
        return settings
    _read(_PROCESSOR, settings, "processor_config")
    rest = {name: value for name, value in settings.items() if name not in ("always_start_with_space", "auto_map")}
    if "chat_template" in rest:
        rest["chat_template"] = read_template(rest["chat_template"])
    return {"add_bos_token": True, **rest}  # the published code always prepends a BOS token


def write_processor(processor: ProcessorMixin) -> dict[str, Any]:
    """
    Translates a [`JinaVLMProcessor`] to the published `processor_config.json`.

    Raises:
        ValueError: if `add_bos_token` is false, because the published code always adds the BOS token.
    """
    if not processor.add_bos_token:
        raise ValueError("`processor.add_bos_token` is False, but the published code always adds the BOS token.")
    return _save(_PROCESSOR, {})
