# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The JSON files of the published checkpoint `jinaai/jina-vlm`, translated from and to ours by one table each.

A table has the structure of its JSON file. Its entries are

- a tuple: the values that JinaVLM implements; the first one is written,
- a function of our settings to such a tuple,
- a `Field`: the setting of ours that the value is translated to and from,
- `Written`: a value that is written for the published code and not read.

The schema can express far more than the release uses. Any other value is refused: a silent difference would cost
accuracy, not a crash.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedConfig, ProcessorMixin


# The release keeps its image tokens in a second embedding table of 128 rows, after the vocabulary.
NUM_ADDITIONAL_TOKENS = 128
IMAGE_TOKEN_IDS = ("image_start_token_id", "image_end_token_id", "image_token_id", "image_column_token_id")
CODE_REPOSITORY = "jinaai/jina-vlm"

# Fields of ours whose difference after a round trip does not matter: without effect, or written elsewhere.
WITHOUT_EFFECT = {
    *("_from_model_config", "_name_or_path", "architectures", "auto_map", "dtype", "id2label", "label2id"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "max_window_layers", "use_cache"),
    "transformers_version",
    "tie_word_embeddings",  # the published output head is always written
    "use_last_tile_embedding",  # without one, zeros are written
}


@dataclass(frozen=True)
class Field:
    """Path of a setting of ours. `read` and `write` take the value and all our settings by path."""

    path: str
    read: Callable = lambda value, ours: value
    write: Callable = lambda value, ours: value
    is_required: bool = True


@dataclass(frozen=True)
class Written:
    """A function of our settings to the value that is written."""

    value: Callable


def _side(value: Any, ours: dict) -> int:
    if not isinstance(value, (list, tuple)) or len(value) != 2 or value[0] != value[1]:
        raise ValueError("only squares are implemented")
    return value[0]


def _ratio(path: str, width_path: str) -> Field:
    """The inner width of a feed-forward layer as a multiple of its outer width; `size` wins over it."""
    return Field(path, lambda value, ours: ours.get(path) or int(value * ours[width_path]), lambda value, ours: 4)


def _block_indices(value: list[int], ours: dict) -> list[int]:
    # Indices into the outputs of all blocks and, last, of the final norm.
    num_blocks = ours["vision_config.num_hidden_layers"]
    layers = [layer % (num_blocks + 1) for layer in value]
    if num_blocks in layers:
        raise ValueError("the output of the final norm cannot be a feature")
    return layers


_UNUSED_NORM = {"bias": (None, True, False), "eps": (None, 1e-6), "type": ("default",), "with_affine": (True,)}
_RMS_NORM = {"type": ("rms",), "eps": (1e-6,), "bias": (False,), "with_affine": (True,)}
_LAYER_NORM = {"type": ("default",), "eps": (1e-6,), "bias": (True,), "with_affine": (True,)}


def _attention(bias: bool, norm: dict | None = None, **sizes) -> dict:
    return {
        **sizes,
        **dict.fromkeys(("q_bias", "k_bias", "v_bias", "o_bias"), (bias,)),
        **dict.fromkeys(("q_lnorm", "k_lnorm", "qkv_lnorm_on_heads"), (norm is not None,)),
        **dict.fromkeys(("inner_lnorm", "o_lnorm", "v_lnorm"), (False,)),
        "lnorm_config": norm or _UNUSED_NORM,
        "clip_qkv": (None,),
        "dropout": (0.0,),
        "fp32": (False, True),  # the attention backends compute scores in float32 anyway
        "sliding_window": (-1, None),
        "softmax_scale": (None,),
    }


def _feed_forward(path: str, width_path: str, activation: str, gated: bool, bias: bool) -> dict:
    return {
        "size": Field(path),
        "ratio": _ratio(path, width_path),
        "activation_type": (activation,),
        "gated_activation": (gated,),
        "bias": (bias,),
        "inner_lnorm": (False,),
        "lnorm_config": _UNUSED_NORM,
    }


def _block(attention: dict, feed_forward: dict, norm: dict) -> dict:
    return {
        "attn_config": attention,
        "ffn_config": feed_forward,
        "lnorm_config": norm,
        **dict.fromkeys(("attn_lscale_init", "ffn_lscale_init"), (None,)),
        "postnorm": (False,),
        **dict.fromkeys(("residual_dropout", "residual_path_dropout", "residual_response_dropout"), (0.0,)),
    }


def _multi_head(heads_path: str, **sizes) -> dict:
    """Attention with biases and as many key-value heads as query heads."""
    return _attention(bias=True, n_heads=Field(heads_path), n_kv_heads=lambda ours: (None, ours[heads_path]), **sizes)


_VOCABULARY = Field(
    "text_config.vocab_size",
    lambda value, ours: value + NUM_ADDITIONAL_TOKENS,
    lambda value, ours: value - NUM_ADDITIONAL_TOKENS,
)
_CONFIG = {
    "text_config": {
        "hidden_size": Field("text_config.hidden_size"),
        "block_config": _block(
            _attention(
                bias=False,
                norm=_RMS_NORM,
                n_heads=Field("text_config.num_attention_heads"),
                n_kv_heads=Field("text_config.num_key_value_heads"),
                head_dim=Field("text_config.head_dim"),
            ),
            _feed_forward("text_config.intermediate_size", "text_config.hidden_size", "silu", gated=True, bias=False),
            _RMS_NORM,
        ),
        "n_layers": Field("text_config.num_hidden_layers"),
        "num_hidden_layers": Field("text_config.num_hidden_layers"),
        "max_sequence_length": Field("text_config.max_position_embeddings"),
        "max_position_embeddings": lambda ours: (None, ours["text_config.max_position_embeddings"]),
        "model_type": ("jvlm",),
        "rope": (True,),
        "rope_scaling": (None,),
        "rope_theta": Field(
            "text_config.rope_parameters",
            lambda value, ours: {"rope_type": "default", "rope_theta": float(value)},
            lambda value, ours: value["rope_theta"],
        ),
        "partial_rotary_factor": (1.0,),
        "vocab_size": _VOCABULARY,
        "embedding_size": _VOCABULARY,
        "additional_vocab_size": (NUM_ADDITIONAL_TOKENS,),
        "embedding_dropout": (0.0,),
        "normalize_input_embeds": (False,),
        "tie_word_embeddings": Field("tie_word_embeddings", write=lambda value, ours: False, is_required=False),
    },
    "vision_config": {
        "hidden_size": Field("vision_config.hidden_size"),
        "block_config": _block(
            _multi_head(
                "vision_config.num_attention_heads",
                head_dim=lambda ours: (
                    ours["vision_config.hidden_size"] // ours["vision_config.num_attention_heads"],
                ),
            ),
            _feed_forward(
                "vision_config.intermediate_size",
                "vision_config.hidden_size",
                "gelu_pytorch_tanh",
                gated=False,
                bias=True,
            ),
            _LAYER_NORM,
        ),
        "n_layers": Field("vision_config.num_hidden_layers"),
        "vit_layers": Field(
            "vision_feature_layer",
            _block_indices,
            lambda value, ours: [block - ours["vision_config.num_hidden_layers"] - 1 for block in value],
        ),
        "input_size": Field("vision_config.image_size", _side, lambda value, ours: [value, value]),
        "patch_size": Field("vision_config.patch_size"),
        "n_channels": Field("vision_config.num_channels", is_required=False),
        "output_size": Field("text_config.hidden_size"),
        "model_type": ("jvlm",),
        "linear_patch_embedding": (True,),
        "patch_dropout": (0.0,),
        "patch_embedding_bias": (True,),
        "positional_interpolation": ("bicubic",),
        "post_lnorm": (True, False),  # never applied to the features in use
        "pre_lnorm": (False,),
        "use_absolute_positional_embeddings": (True,),
        "use_cls_token": (False,),
        "vl_connector_config": {
            "attn_pooling_config": _multi_head("connector_num_attention_heads", head_dim=Field("connector_head_dim")),
            "mlp_projector_config": _feed_forward(
                "connector_intermediate_size", "text_config.hidden_size", "silu", gated=True, bias=False
            ),
            **dict.fromkeys(("pooling_h", "pooling_w", "spatial_merge_size"), Field("pooling_size")),
            **dict.fromkeys(("feature_dropout", "projector_dropout"), (0.0,)),
            "padding_embed_type": ("pad_and_partial_pad",),
            "pooling_type": ("attention_meanq",),
            "projector_type": ("mlp",),
        },
    },
}

_SHARED = ("antialias", "do_convert_rgb", "do_resize", "max_crops", "max_pixels", "min_pixels")
_SHARED += ("overlap_margins", "resize_in_float32", "image_processor_type", "processor_class")


def _side_patches(ours: dict) -> int:
    return ours["size"]["height"] // ours["patch_size"]


def _side_cells(ours: dict) -> int:
    return -(-_side_patches(ours) // ours["pooling_size"])


# Normalisation is x in [0, 1] to [image_min, image_max] there, (x - mean) / std here.
_IMAGE_PROCESSOR = {
    **{name: Field(name, is_required=False) for name in _SHARED},
    "patch_size": Field("patch_size"),
    "base_input_size": Field(
        "size",
        lambda value, ours: dict.fromkeys(("height", "width"), _side(value, ours)),
        lambda value, ours: [value["height"], value["width"]],
    ),
    **dict.fromkeys(("pooling_h", "pooling_w"), Field("pooling_size")),
    **dict.fromkeys(("token_length_h", "token_length_w"), lambda ours: (_side_cells(ours),)),
    "interpolation": Field(
        "resample",
        lambda value, ours: {"bilinear": 2, "bicubic": 3}[value],
        lambda value, ours: {2: "bilinear", 3: "bicubic"}[value],
    ),
    "image_min": Field("low", write=lambda value, ours: -ours["image_mean"][0] / ours["image_std"][0]),
    "image_max": Field("high", write=lambda value, ours: (1 - ours["image_mean"][0]) / ours["image_std"][0]),
    "cropping_method": ("overlap-and-resize",),
    "normalization_method": ("minmax",),
    "padding_mask": (False,),
    "padding_value": (0.0,),
    "preserve_aspect_ratio": (False,),
    "random_interpolation": (False,),
    "use_column_tokens": (True,),
    "image_mean": Written(lambda ours: [0.48145466, 0.4578275, 0.40821073]),  # CLIP's, which "minmax" does not use
    "image_std": Written(lambda ours: [0.26862954, 0.26130258, 0.27577711]),
    "crop_size": Written(lambda ours: ours["size"]["height"]),
    "size": Written(lambda ours: {"longest_edge": ours["max_pixels"], "shortest_edge": ours["min_pixels"]}),
    **dict.fromkeys(("image_base_patch_h", "image_base_patch_w"), Written(_side_patches)),
    "tokens_per_image": Written(lambda ours: _side_cells(ours) ** 2),
}


def is_published_config(text_config: Any) -> bool:
    """Whether a `text_config` is one of the published schema."""
    return isinstance(text_config, dict) and "block_config" in text_config


def _refuse(path: str, value: Any, reason: str) -> ValueError:
    return ValueError(
        f"`{path}` is {value!r} in this checkpoint of the published format: {reason}. It needs other model code."
    )


def _entries(table: dict, settings: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Path, value and entry of every leaf of a table; values that are missing are `None`."""
    if not isinstance(settings, dict):
        raise ValueError(f"`{path}` must be an object of settings, got {settings!r}.")
    for name, entry in table.items():
        entry_path = f"{path}.{name}".removeprefix(".")
        if isinstance(entry, dict):
            yield from _entries(entry, settings.get(name, {}), entry_path)
        elif name in settings or isinstance(entry, Field):
            yield entry_path, settings.get(name), entry


def _read(table: dict, settings: dict, path: str) -> dict[str, Any]:
    """Our settings by path."""
    ours: dict[str, Any] = {}
    sources: dict[str, str] = {}
    entries = list(_entries(table, settings, path))
    for entry_path, value, entry in entries:
        if isinstance(entry, Field) and value is not None:
            try:
                translated = entry.read(value, ours)
            except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
                raise _refuse(entry_path, value, f"JinaVLM cannot read it ({error})") from error
            if ours.setdefault(entry.path, translated) != translated:
                other = sources[entry.path]
                raise _refuse(entry_path, value, f"it must agree with `{other}`, which makes it {ours[entry.path]!r}")
            sources.setdefault(entry.path, entry_path)
    for entry_path, value, entry in entries:
        if isinstance(entry, Field) and entry.is_required and entry.path not in ours:
            raise ValueError(f"`{entry_path}` is missing in this checkpoint of the published format.")
        if not isinstance(entry, (Field, Written)):
            allowed = entry if isinstance(entry, tuple) else entry(ours)
            if value not in allowed:
                raise _refuse(entry_path, value, f"JinaVLM implements only {' or '.join(map(repr, allowed))}")
    return ours


def _write(table: dict, ours: dict[str, Any]) -> dict[str, Any]:
    settings = {}
    for name, entry in table.items():
        if isinstance(entry, dict):
            settings[name] = _write(entry, ours)
        elif isinstance(entry, Written):
            settings[name] = entry.value(ours)
        elif not isinstance(entry, Field):
            settings[name] = (entry if isinstance(entry, tuple) else entry(ours))[0]
        elif entry.path in ours:
            settings[name] = entry.write(ours[entry.path], ours)
    return settings


def _refuse_differences(ours: dict, back: dict, path: str) -> None:
    for name in sorted((ours.keys() | back.keys()) - WITHOUT_EFFECT):
        value, other = ours.get(name), back.get(name)
        if isinstance(value, dict) and isinstance(other, dict):
            _refuse_differences(value, other, f"{path}.{name}")
        elif value != other:
            raise ValueError(
                f"`{path}.{name}` is {value!r}, but a checkpoint in the published format can only have {other!r}."
            )


def read_config(published: dict[str, Any]) -> dict[str, Any]:
    """
    Translates the published `config.json` to fields of [`JinaVLMConfig`].

    Raises:
        ValueError: if a setting is missing or has a value that the model does not implement; the message names it.
    """
    ours = _read(_CONFIG, published, "")
    fields: dict[str, Any] = {"layout": "stitched", "use_last_tile_embedding": True, "tie_word_embeddings": False}
    fields |= {"vision_config": {"vision_use_head": False}, "text_config": {}}
    for path, value in ours.items():
        *parts, name = path.split(".")
        (fields[parts[0]] if parts else fields)[name] = value
    text, vocab_size = published["text_config"], published["text_config"]["vocab_size"]
    fields |= {name: vocab_size + index for index, name in enumerate(IMAGE_TOKEN_IDS)}
    fields["text_config"]["tie_word_embeddings"] = fields["tie_word_embeddings"]
    end_of_text = 151643 if vocab_size > 151645 else None  # the release's files may leave it to their code
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        fields["text_config"][name] = published.get(name) or text.get(name) or end_of_text
    if fields["text_config"]["eos_token_id"] == 151643:
        fields["text_config"]["eos_token_id"] = [151643, 151645]
    return fields


def write_config(config: "PreTrainedConfig") -> dict[str, Any]:
    """
    Translates a [`JinaVLMConfig`] to the published `config.json`.

    Raises:
        ValueError: if a field has a value that the published schema cannot express; the message names it.
    """
    ours = config.to_dict()
    sub_configs = {name: ours[name] for name in config.sub_configs}
    ours |= {f"{name}.{field}": value for name, fields in sub_configs.items() for field, value in fields.items()}
    published = _write(_CONFIG, ours)
    eos = config.text_config.eos_token_id
    token_ids = {"eos_token_id": eos[0] if isinstance(eos, list) else eos}
    token_ids |= {name: getattr(config.text_config, name) for name in ("bos_token_id", "pad_token_id")}
    published |= {name: token_id for name, token_id in token_ids.items() if token_id is not None}
    published |= {"model_type": "jvlm", "tie_word_embeddings": False}
    published["architectures"] = ["JinaVLMForConditionalGeneration"]
    published["auto_map"] = {
        "AutoConfig": f"{CODE_REPOSITORY}--configuration_jvlm.JinaVLMConfig",
        "AutoModelForCausalLM": f"{CODE_REPOSITORY}--modeling_jvlm.JinaVLMForConditionalGeneration",
    }
    _refuse_differences(config.to_dict(), type(config).from_dict(published).to_dict(), "config")
    return published


def read_image_processor(settings: dict[str, Any]) -> dict[str, Any]:
    """
    Translates the published `preprocessor_config.json` to arguments of [`JinaVLMImageProcessor`]; settings of any
    other schema are returned as they are.

    Raises:
        ValueError: if a setting is missing or has a value that is not implemented; the message names it.
    """
    if "base_input_size" not in settings:
        return settings
    ours = _read(_IMAGE_PROCESSOR, settings, "preprocessor_config")
    low, high = ours.pop("low"), ours.pop("high")
    return {"layout": "stitched", "image_mean": [low / (low - high)] * 3, "image_std": [1 / (high - low)] * 3, **ours}


def write_image_processor(image_processor: "BaseImageProcessor", config: "PreTrainedConfig") -> dict[str, Any]:
    """
    Translates a [`JinaVLMImageProcessor`] to the published `preprocessor_config.json`.

    Raises:
        ValueError: if a setting has a value that the published schema cannot express; the message names it.
    """
    ours = image_processor.to_dict()
    published = _write(_IMAGE_PROCESSOR, {**ours, "low": None, "high": None, "processor_class": "JinaVLMProcessor"})
    token_ids = ("start_token_id", "end_token_id", "patch_token_id", "column_token_id")
    published |= {name: getattr(config, ours) for name, ours in zip(token_ids, IMAGE_TOKEN_IDS, strict=True)}
    published["auto_map"] = {
        "AutoImageProcessor": f"{CODE_REPOSITORY}--image_processing_jvlm.JinaVLMImageProcessor",
        "AutoProcessor": f"{CODE_REPOSITORY}--processing_jvlm.JinaVLMProcessor",
    }
    back = type(image_processor)(**read_image_processor(published))
    _refuse_differences(ours, back.to_dict(), "image_processor")
    return published


def read_processor(settings: dict[str, Any]) -> dict[str, Any]:
    """
    Translates the published `processor_config.json` to arguments of [`JinaVLMProcessor`]; settings of any other schema
    are returned as they are.

    Raises:
        ValueError: if `always_start_with_space` is not true.
    """
    if "always_start_with_space" not in settings:
        return settings
    value = settings["always_start_with_space"]
    if value is not True:
        raise _refuse("processor_config.always_start_with_space", value, "JinaVLM implements only True")
    rest = {name: value for name, value in settings.items() if name not in ("always_start_with_space", "auto_map")}
    return {"add_bos_token": True, **rest}  # the published code always prepends a BOS token


def write_processor(processor: "ProcessorMixin") -> dict[str, Any]:
    """
    Translates a [`JinaVLMProcessor`] to the published `processor_config.json`.

    Raises:
        ValueError: if `add_bos_token` is false: the published code always starts with the BOS token.
    """
    if not processor.add_bos_token:
        raise ValueError(
            "`processor.add_bos_token` is False, but the published code always starts with the BOS token; set it "
            "if the model was trained so."
        )
    return {
        "always_start_with_space": True,
        "auto_map": {"AutoProcessor": f"{CODE_REPOSITORY}--processing_jvlm.JinaVLMProcessor"},
        "processor_class": "JinaVLMProcessor",
    }


__all__ = [
    "is_published_config",
    "read_config",
    "read_image_processor",
    "read_processor",
    "write_config",
    "write_image_processor",
    "write_processor",
]
