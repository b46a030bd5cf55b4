# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""What the values of settings may be, by path. The published schema and ours are checked by the same tables.

The limits are far above any real model. They keep a wrong number from asking for gigabytes before another check fails.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


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
    dtype = getattr(torch, value, None) if isinstance(value, str) else value
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point


def _is_labels(value: Any) -> bool:
    return isinstance(value, dict) and all(str(key).isdecimal() for key in value)


def _is_rope(value: Any) -> bool:
    # Transformers replaces missing values by its defaults, but not these two if they are null.
    return isinstance(value, dict) and all(value.get(name, "") is not None for name in ("rope_type", "rope_theta"))


FLAG = Kind(lambda value: isinstance(value, bool), "true or false")
NAME = Kind(lambda value: isinstance(value, str), "a string")
OBJECT = Kind(lambda value: isinstance(value, dict), "a JSON object")
SIZE = whole(1, 2**20)
BLOCKS = whole(1, 2**10)  # a list of them is built before any weight is compared
LENGTH = whole(1, 2**31 - 1)
TOKEN_ID = whole(0, 2**31 - 1)
TOKEN_IDS = either(TOKEN_ID, several(TOKEN_ID))
SHARE = number(0, 1)
ACTIVATION = Kind(
    lambda value: isinstance(value, str) and value in ACT2FN, 'the name of an activation in Transformers, like "silu"'
)
DTYPE = Kind(_is_dtype, 'the name of a floating-point dtype of PyTorch, like "bfloat16"')
PAIR = several(whole(0, 2**12), 2)

_COMMON = {
    **dict.fromkeys(("dtype", "torch_dtype"), DTYPE),
    **dict.fromkeys(("output_attentions", "output_hidden_states"), FLAG),
    "id2label": Kind(_is_labels, "an object from integers to names"),
    "is_encoder_decoder": one_of(False),
}
_TOWER = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads"), SIZE),
    **{"num_hidden_layers": BLOCKS, "hidden_act": ACTIVATION, "attention_dropout": SHARE},
    "return_dict": one_of(True),  # JinaVLM reads the outputs by name
}
_VISION = {
    **_COMMON,
    **_TOWER,
    **dict.fromkeys(("image_size", "patch_size"), whole(1, 2**12)),
    **{"num_channels": SIZE, "layer_norm_eps": SHARE},
}
_ROPE_NUMBERS = ("attention_factor", "beta_fast", "beta_slow", "factor", "high_freq_factor", "low_freq_factor")
_TEXT = {
    **_COMMON,
    **_TOWER,
    **dict.fromkeys(("num_key_value_heads", "head_dim"), SIZE),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "sliding_window"), LENGTH),
    **dict.fromkeys(("bos_token_id", "pad_token_id"), TOKEN_ID),
    "eos_token_id": TOKEN_IDS,
    **{"initializer_range": number(0, 1e3), "rms_norm_eps": SHARE, "max_window_layers": whole(0, 2**31 - 1)},
    **dict.fromkeys(("attention_bias", "tie_word_embeddings", "use_cache", "use_sliding_window"), FLAG),
    "layer_types": several(one_of("full_attention", "sliding_attention")),
    "rope_parameters": Kind(_is_rope, "an object with `rope_type` and `rope_theta`"),
    "rope_parameters.rope_type": one_of("default", *ROPE_INIT_FUNCTIONS),
    "rope_parameters.rope_theta": number(1, 1e18),
    **{f"rope_parameters.{name}": number(1e-6, 1e6) for name in _ROPE_NUMBERS},
    "rope_parameters.original_max_position_embeddings": LENGTH,
    **{f"rope_parameters.{name}": several(number(1e-6, 1e6)) for name in ("long_factor", "short_factor")},
}
_OURS = {
    **_COMMON,
    "return_dict": FLAG,
    **dict.fromkeys(("connector_num_attention_heads", "connector_head_dim", "connector_intermediate_size"), SIZE),
    **{"connector_hidden_act": ACTIVATION, "layout": one_of("independent", "stitched")},
    **dict.fromkeys(
        ("image_token_id", "image_start_token_id", "image_end_token_id", "image_column_token_id"), TOKEN_ID
    ),
    **dict.fromkeys(("tie_word_embeddings", "use_last_tile_embedding"), FLAG),
    **{"pooling_size": whole(1, 2**12), "pooled_grid": PAIR, "initializer_range": number(0, 1e3)},
    "vision_feature_layer": several(whole(-(2**10), 2**10)),
}
CONFIG = {
    **_OURS,
    **{f"vision_config.{name}": kind for name, kind in _VISION.items()},
    **{f"text_config.{name}": kind for name, kind in _TEXT.items()},
}
IMAGE_PROCESSOR = {
    **dict.fromkeys(("antialias", "do_convert_rgb", "do_normalize", "do_rescale", "do_resize"), FLAG),
    **{"resize_in_float32": FLAG, "layout": one_of("independent", "stitched"), "max_crops": whole(1, 2**10)},
    **{"max_pixels": LENGTH, "min_pixels": whole(1, 2**24)},  # images are enlarged to the second one
    **{"overlap_margins": PAIR, "pooled_grid": either(PAIR, one_of(None))},
    **dict.fromkeys(("patch_size", "pooling_size", "size.height", "size.width"), whole(1, 2**12)),
    **{"resample": one_of(2, 3), "max_aspect_ratio": number(1, 1e9), "rescale_factor": number(-1e6, 1e6)},
    **{"image_mean": several(number(-1e6, 1e6), 3), "image_std": several(number(1e-6, 1e6), 3)},
    **{"image_processor_type": one_of("JinaVLMImageProcessor"), "processor_class": NAME, "size": OBJECT},
}
GENERATION = {
    **dict.fromkeys(("bos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id"), TOKEN_ID),
    **dict.fromkeys(("eos_token_id", "forced_eos_token_id"), TOKEN_IDS),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), either(several(TOKEN_ID), one_of([]))),
    **dict.fromkeys(("max_length", "max_new_tokens"), LENGTH),
    **dict.fromkeys(("num_beams", "num_return_sequences"), whole(1, 2**10)),
    **dict.fromkeys(("min_length", "min_new_tokens", "no_repeat_ngram_size", "top_k"), whole(0, 2**31 - 1)),
    **dict.fromkeys(("min_p", "top_p", "typical_p", "top_h", "epsilon_cutoff", "eta_cutoff"), SHARE),
    **{"assistant_ensemble_weight": SHARE, "watermarking_config": OBJECT},
    **dict.fromkeys(("temperature", "repetition_penalty", "max_time"), number(1e-6, 1e6)),
    **dict.fromkeys(("length_penalty", "guidance_scale"), number(-1e6, 1e6)),
    **dict.fromkeys(("do_sample", "use_cache", "renormalize_logits", "remove_invalid_values"), FLAG),
    **dict.fromkeys(("output_attentions", "output_hidden_states", "output_logits", "output_scores"), FLAG),
    **{"return_dict_in_generate": FLAG, "early_stopping": either(FLAG, one_of("never")), "cache_implementation": NAME},
}


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
