# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""What the values of settings may be, by path. The published schema and ours are checked by the same tables.

The limits are far above any real model, so that a wrong setting is an error before it takes gigabytes of memory.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, WatermarkingConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


MAX_CROPS = 2**10
MAX_TILE_SIZE = 2**12  # pixels


@dataclass(frozen=True)
class Kind:
    """Values that a setting may have: a test, and words for the error message."""

    allows: Callable[[Any], bool]
    description: str


def whole(low: int, high: int) -> Kind:
    """Integers from `low` to `high`."""
    return Kind(
        lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high,
        f"an integer from {low} to {high}",
    )


def number(low: float, high: float) -> Kind:
    """Integers and floats from `low` to `high`; NaN is none of them."""
    return Kind(
        lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high,
        f"a number from {low:g} to {high:g}",
    )


def one_of(*values: Any) -> Kind:
    """Some values. 1 and 0 are neither `True` nor `False`."""
    return Kind(lambda value: is_one_of(value, values), " or ".join(map(repr, values)))


def several(kind: Kind, count: int | None = None) -> Kind:
    """Lists of one kind of values, `count` or at least one of them."""
    return Kind(
        lambda value: (
            isinstance(value, (list, tuple))
            and (len(value) == count if count else len(value) > 0)
            and all(map(kind.allows, value))
        ),
        f"a list of {count or 'one or more'} values, each {kind.description}",
    )


def either(first: Kind, second: Kind) -> Kind:
    """Values of two kinds."""
    return Kind(
        lambda value: first.allows(value) or second.allows(value), f"{first.description} or {second.description}"
    )


def is_one_of(value: Any, values: tuple) -> bool:
    """Whether a value is one of several. 1 and 0 are neither `True` nor `False`."""
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in values)


def _is_dtype(value: Any) -> bool:
    if value == "auto":  # an argument of `from_pretrained` that passes through configurations
        return True
    dtype = getattr(torch, value, None) if isinstance(value, str) else value
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point


def _is_list_of_ids(value: Any) -> bool:
    return isinstance(value, list) and all(map(_COUNT.allows, value))


def _is_labels(value: Any) -> bool:
    return isinstance(value, dict) and all(str(key).isdecimal() for key in value)


def _is_watermarking(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() <= vars(WatermarkingConfig()).keys()


def _is_rope(value: Any) -> bool:
    # Transformers replaces missing values by its defaults, but not these two if they are null.
    return isinstance(value, dict) and all(value.get(name, "") is not None for name in ("rope_type", "rope_theta"))


def _by_name(kinds: dict[Kind, str], prefix: str = "") -> dict[str, Kind]:
    return {prefix + name: kind for kind, names in kinds.items() for name in names.split()}


FLAG = Kind(lambda value: isinstance(value, bool), "true or false")
NAME = Kind(lambda value: isinstance(value, str), "a string")
OBJECT = Kind(lambda value: isinstance(value, dict), "a JSON object")
_SIZE, _PIXELS, _LENGTH = whole(1, 2**20), whole(1, MAX_TILE_SIZE), whole(1, 2**31 - 1)
_BLOCKS = whole(1, 2**10)  # a list of them is built before any weight is compared
_COUNT = whole(0, 2**31 - 1)  # also ids of tokens
_IDS = either(_COUNT, several(_COUNT))
_PAIR = several(whole(0, 2**12), 2)
_SHARE, _STD, _FACTOR = number(0, 1), number(0, 1000), number(1e-6, 1e6)
_LAYOUT = one_of("independent", "stitched")
_ACTIVATION = Kind(
    lambda value: isinstance(value, str) and value in ACT2FN, 'the name of an activation in Transformers, like "silu"'
)

# The fields of `PreTrainedConfig` that have an effect.
_COMMON = {
    Kind(_is_dtype, 'the name of a floating-point dtype of PyTorch, like "bfloat16"'): "dtype torch_dtype",
    FLAG: "output_attentions output_hidden_states",
    Kind(_is_labels, "an object from integers to names"): "id2label",
    one_of(False): "is_encoder_decoder",
    either(NAME, OBJECT): "attn_implementation experts_implementation",
    whole(0, 2**12): "num_labels",  # a list of labels is built
}
_TOWER = {
    **_COMMON,
    _SIZE: "hidden_size intermediate_size num_attention_heads",
    _BLOCKS: "num_hidden_layers",
    _ACTIVATION: "hidden_act",
    _SHARE: "attention_dropout layer_norm_eps rms_norm_eps",
    one_of(True): "return_dict",  # JinaVLM reads the outputs by name
}
CONFIG = {
    **_by_name(_TOWER, "vision_config."),
    **_by_name({_PIXELS: "image_size patch_size", _SIZE: "num_channels"}, "vision_config."),
    **_by_name(_TOWER, "text_config."),
    **_by_name(
        {
            _SIZE: "num_key_value_heads head_dim",
            _LENGTH: "vocab_size max_position_embeddings sliding_window",
            _COUNT: "bos_token_id pad_token_id max_window_layers",
            _IDS: "eos_token_id",
            _STD: "initializer_range",
            FLAG: "attention_bias tie_word_embeddings use_cache use_sliding_window",
            several(one_of("full_attention", "sliding_attention")): "layer_types",
            Kind(_is_rope, "an object with `rope_type` and `rope_theta`"): "rope_parameters",
        },
        "text_config.",
    ),
    **_by_name(
        {
            one_of("default", *ROPE_INIT_FUNCTIONS): "rope_type",
            number(1, 1e18): "rope_theta",
            _FACTOR: "attention_factor beta_fast beta_slow factor high_freq_factor low_freq_factor",
            several(_FACTOR): "long_factor short_factor",
            _LENGTH: "original_max_position_embeddings",
        },
        "text_config.rope_parameters.",
    ),
    **_by_name(_COMMON),
    **_by_name(
        {
            _SIZE: "connector_num_attention_heads connector_head_dim connector_intermediate_size",
            _ACTIVATION: "connector_hidden_act",
            _LAYOUT: "layout",
            _COUNT: "image_token_id image_start_token_id image_end_token_id image_column_token_id",
            FLAG: "return_dict tie_word_embeddings use_last_tile_embedding",
            _PIXELS: "pooling_size",
            _PAIR: "pooled_grid",
            several(whole(-(2**10), 2**10)): "vision_feature_layer",
            _STD: "initializer_range",
        }
    ),
}
IMAGE_PROCESSOR = _by_name(
    {
        FLAG: (
            "antialias do_convert_rgb do_normalize do_rescale do_resize drop_uniform_cells drop_uniform_patches "
            "resize_in_float32"
        ),
        _LAYOUT: "layout",
        whole(1, MAX_CROPS): "max_crops",
        _LENGTH: "max_pixels",
        whole(1, MAX_TILE_SIZE**2): "min_pixels",  # smaller images are enlarged to it
        _PAIR: "overlap_margins",
        either(_PAIR, one_of(None)): "pooled_grid",
        number(0, 255): "uniform_tolerance",
        either(_LENGTH, one_of(None)): "max_image_tokens",
        OBJECT: "size",
        _PIXELS: "patch_size pooling_size size.height size.width",
        Kind(lambda value: is_one_of(value, (2, 3)), "2 (BILINEAR) or 3 (BICUBIC)"): "resample",
        number(1, 1e9): "max_aspect_ratio",
        either(_FACTOR, number(-1e6, -1e-6)): "rescale_factor",
        either(number(-1e6, 1e6), several(number(-1e6, 1e6), 3)): "image_mean",
        either(_FACTOR, several(_FACTOR, 3)): "image_std",
        one_of("JinaVLMImageProcessor"): "image_processor_type",
        NAME: "processor_class",
    }
)
# Settings of the published schema whose values are translated, by name.
PUBLISHED = _by_name(
    {
        number(1, 2**10): "ratio",
        several(_PIXELS, 2): "input_size base_input_size",
        one_of("bilinear", "bicubic"): "interpolation",
        number(-1000, 1000): "image_min image_max",
    }
)
GENERATION = _by_name(
    {
        _COUNT: "bos_token_id pad_token_id min_length min_new_tokens no_repeat_ngram_size top_k",
        _IDS: "eos_token_id",
        Kind(_is_list_of_ids, "a list of token ids"): "begin_suppress_tokens suppress_tokens",
        _LENGTH: "max_length max_new_tokens",
        _BLOCKS: "num_beams num_return_sequences",
        _SHARE: "min_p top_p typical_p top_h epsilon_cutoff eta_cutoff assistant_ensemble_weight",
        _FACTOR: "temperature repetition_penalty max_time",
        number(-1e6, 1e6): "length_penalty guidance_scale",
        FLAG: (
            "do_sample use_cache renormalize_logits remove_invalid_values output_attentions output_hidden_states "
            "output_logits output_scores return_dict_in_generate"
        ),
        either(FLAG, one_of("never")): "early_stopping",
        NAME: "cache_implementation",
        Kind(_is_watermarking, "an object of the fields of `WatermarkingConfig`"): "watermarking_config",
    }
)


def shown(value: Any) -> str:
    """A value in an error message, not longer than a line."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


_MISSING = object()


def _setting(settings: Any, path: str) -> Any:
    """The value of a nested setting, `_MISSING` if there is none."""
    for name in path.split("."):
        settings = vars(settings) if isinstance(settings, PreTrainedConfig) else settings
        settings = settings.get(name, _MISSING) if isinstance(settings, dict) else _MISSING
    return settings


def check_settings(settings: dict[str, Any], kinds: dict[str, Kind], prefix: str = "", null: bool = True) -> None:
    """
    Checks the types and ranges of settings. Missing ones are not checked, and `None` only without `null`.

    Raises:
        ValueError: for the first setting that has another value than its kind allows; the message names it.
    """
    for path, kind in kinds.items():
        value = _setting(settings, path)
        if not (value is _MISSING or (null and value is None) or kind.allows(value)):
            raise ValueError(f"`{prefix}{path}` must be {kind.description}, got {shown(value)}.")


@contextmanager
def value_errors() -> Iterator[None]:
    """Turns errors of `@strict`, which are no `ValueError`s, into a `ValueError` with their reason."""
    try:
        yield
    except StrictDataclassError as error:
        raise ValueError(str(error.__cause__ or error)) from error


def raises_value_errors(cls: type) -> type:
    """A decorator for a class above `@strict`: wrong values raise `ValueError`, as other wrong arguments do."""
    for name in ("__init__", "__setattr__", "validate"):
        setattr(cls, name, value_errors()(getattr(cls, name)))
    return cls
