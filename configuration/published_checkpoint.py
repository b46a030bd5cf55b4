# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The JSON schema of the published checkpoint `jinaai/jina-vlm`, translated to ours.

The schema can express far more than the release uses. Whatever the model does not implement is refused with an error
that names the field: a silent difference would cost accuracy, not a crash.
"""

from typing import Any


# The release keeps its image tokens in a second embedding table, behind the vocabulary.
NUM_ADDITIONAL_TOKENS = 128
ADDITIONAL_TOKENS = ("image_start_token_id", "image_end_token_id", "image_token_id", "image_column_token_id")

_UNUSED_NORM = {"bias": (None, True, False), "eps": (None, 1e-6), "type": ("default",), "with_affine": (True,)}


def _attention(**settings) -> dict:
    return {
        "clip_qkv": (None,),
        "dropout": (0.0,),
        # Attention scores in float32 is what the attention backends compute internally.
        "fp32": (False, True),
        "inner_lnorm": (False,),
        "o_lnorm": (False,),
        "v_lnorm": (False,),
        "sliding_window": (-1, None),
        "softmax_scale": (None,),
        "k_lnorm": (False,),
        "q_lnorm": (False,),
        "qkv_lnorm_on_heads": (False,),
        "lnorm_config": _UNUSED_NORM,
        "q_bias": (True,),
        "k_bias": (True,),
        "v_bias": (True,),
        "o_bias": (True,),
        **settings,
    }


def _feed_forward(activation: str, gated: bool, bias: bool) -> dict:
    return {
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
        "attn_lscale_init": (None,),
        "ffn_lscale_init": (None,),
        "postnorm": (False,),
        "residual_dropout": (0.0,),
        "residual_path_dropout": (0.0,),
        "residual_response_dropout": (0.0,),
    }


_RMS_NORM = {"type": ("rms",), "eps": (1e-6,), "bias": (False,), "with_affine": (True,)}
_LAYER_NORM = {"type": ("default",), "eps": (1e-6,), "bias": (True,), "with_affine": (True,)}

# Values the model implements, for every setting that is not a size. What is not listed here is read below.
_TEXT_VALUES = {
    "block_config": _block(
        _attention(
            q_lnorm=(True,),
            k_lnorm=(True,),
            qkv_lnorm_on_heads=(True,),
            lnorm_config=_RMS_NORM,
            q_bias=(False,),
            k_bias=(False,),
            v_bias=(False,),
            o_bias=(False,),
        ),
        _feed_forward("silu", gated=True, bias=False),
        _RMS_NORM,
    ),
    "embedding_dropout": (0.0,),
    "normalize_input_embeds": (False,),
    "partial_rotary_factor": (1.0,),
    "rope": (True,),
    "rope_scaling": (None,),
    "additional_vocab_size": (NUM_ADDITIONAL_TOKENS,),
}
_VISION_VALUES = {
    "block_config": _block(_attention(), _feed_forward("gelu_pytorch_tanh", gated=False, bias=True), _LAYER_NORM),
    "linear_patch_embedding": (True,),
    "patch_dropout": (0.0,),
    "patch_embedding_bias": (True,),
    "positional_interpolation": ("bicubic",),
    "post_lnorm": (True, False),  # never applied to the features in use
    "pre_lnorm": (False,),
    "use_absolute_positional_embeddings": (True,),
    "use_cls_token": (False,),
    "vl_connector_config": {
        "attn_pooling_config": _attention(),
        "mlp_projector_config": _feed_forward("silu", gated=True, bias=False),
        "feature_dropout": (0.0,),
        "padding_embed_type": ("pad_and_partial_pad",),
        "pooling_type": ("attention_meanq",),
        "projector_dropout": (0.0,),
        "projector_type": ("mlp",),
    },
}
# Settings that both image processors have under the same name.
SHARED_IMAGE_PROCESSOR_SETTINGS = (
    "antialias",
    "do_convert_rgb",
    "do_resize",
    "max_crops",
    "max_pixels",
    "min_pixels",
    "overlap_margins",
    "patch_size",
    "resize_in_float32",
)
_IMAGE_PROCESSOR_VALUES = {
    "cropping_method": ("overlap-and-resize",),
    "interpolation": ("bilinear", "bicubic"),
    "normalization_method": ("minmax",),
    "padding_mask": (False,),
    "padding_value": (0.0,),
    "preserve_aspect_ratio": (False,),
    "random_interpolation": (False,),
    "use_column_tokens": (True,),
}


def _refuse_unknown_values(settings: dict, allowed: dict, path: str) -> None:
    """Raises `ValueError` for the first setting whose value is not among the `allowed` ones."""
    for name, value in settings.items():
        values = allowed.get(name)
        if isinstance(values, dict):
            _refuse_unknown_values(value or {}, values, f"{path}.{name}")
        elif values is not None and value not in values:
            raise ValueError(
                f"`{path}.{name}` is {value!r} in this published-layout checkpoint; JinaVLM implements only "
                f"{' or '.join(map(repr, values))}. The checkpoint needs other model code."
            )


def is_published_config(text_config: Any) -> bool:
    """Whether a `text_config` is one of the published schema."""
    return isinstance(text_config, dict) and "block_config" in text_config


def _width(settings: dict, hidden_size: int) -> int:
    """Inner width of a feed-forward block: its size, where given, wins over its ratio."""
    return settings.get("size") or int(settings["ratio"] * hidden_size)


def translate_config(vision: dict, text: dict, common: dict) -> dict[str, Any]:
    """
    Translates the published `config.json`.

    Args:
        vision (`dict`): its `vision_config`.
        text (`dict`): its `text_config`.
        common (`dict`): what else stands at its top level; token ids are looked up there.

    Returns:
        `dict`: fields of [`JinaVLMConfig`].

    Raises:
        ValueError: if a setting has a value that the model does not implement; the message names it.
    """
    _refuse_unknown_values(text, _TEXT_VALUES, "text_config")
    _refuse_unknown_values(vision, _VISION_VALUES, "vision_config")

    vision_block, connector = vision["block_config"], vision["vl_connector_config"]
    pooling, projector = connector["attn_pooling_config"], connector["mlp_projector_config"]
    hidden_size, num_blocks = vision["hidden_size"], vision["n_layers"]
    for path, attention in (
        ("block_config.attn_config", vision_block["attn_config"]),
        ("vl_connector_config.attn_pooling_config", pooling),
    ):
        if attention.get("n_kv_heads") not in (None, attention["n_heads"]):
            raise ValueError(
                f"`vision_config.{path}.n_kv_heads` is {attention['n_kv_heads']}, but JinaVLM implements only as many "
                f"as `n_heads` ({attention['n_heads']}). The checkpoint needs other model code."
            )
    attention = vision_block["attn_config"]
    if attention["n_heads"] * attention["head_dim"] != hidden_size:
        raise ValueError(
            f"`vision_config.block_config.attn_config.head_dim` is {attention['head_dim']}, but times `n_heads` "
            f"({attention['n_heads']}) it must be `vision_config.hidden_size` ({hidden_size})."
        )
    height, width = vision["input_size"]
    if height != width:
        raise ValueError(f"`vision_config.input_size` is {vision['input_size']}, but tiles must be square.")
    if connector["pooling_h"] != connector["pooling_w"]:
        raise ValueError(
            "`vision_config.vl_connector_config.pooling_h` and `pooling_w` must be equal, got "
            f"{connector['pooling_h']} and {connector['pooling_w']}."
        )
    if vision["output_size"] != text["hidden_size"]:
        raise ValueError(
            f"`vision_config.output_size` is {vision['output_size']}, but `text_config.hidden_size` is "
            f"{text['hidden_size']}: the connector must end in the language model's width."
        )
    if text["embedding_size"] not in (None, text["vocab_size"]):
        raise ValueError(f"`text_config.embedding_size` must be `vocab_size`, got {text['embedding_size']}.")
    # The list that `vit_layers` indexes ends with the output of the final norm, which the release does not use.
    layers = [layer % (num_blocks + 1) for layer in vision["vit_layers"]]
    if num_blocks in layers:
        raise ValueError(f"`vision_config.vit_layers` is {vision['vit_layers']}: the final norm cannot be a feature.")

    text_block, vocab_size = text["block_config"], text["vocab_size"]
    attention = text_block["attn_config"]
    end_of_text = 151643 if vocab_size > 151645 else None  # the release's files may leave it to their code
    token_ids = {
        name: common.pop(name, None) or text.get(name) or default
        for name, default in (
            ("bos_token_id", end_of_text),
            ("pad_token_id", end_of_text),
            ("eos_token_id", end_of_text),
        )
    }
    if token_ids["eos_token_id"] == 151643:
        token_ids["eos_token_id"] = [151643, 151645]
    return {
        "layout": "stitched",
        "use_last_tile_embedding": True,
        "vision_feature_layer": layers,
        "pooling_size": connector["pooling_h"],
        "connector_num_attention_heads": pooling["n_heads"],
        "connector_head_dim": pooling["head_dim"],
        "connector_intermediate_size": _width(projector, text["hidden_size"]),
        "tie_word_embeddings": bool(text.get("tie_word_embeddings", False)),
        **{name: vocab_size + index for index, name in enumerate(ADDITIONAL_TOKENS)},
        "vision_config": {
            "hidden_size": hidden_size,
            "intermediate_size": _width(vision_block["ffn_config"], hidden_size),
            "num_hidden_layers": num_blocks,
            "num_attention_heads": vision_block["attn_config"]["n_heads"],
            "num_channels": vision.get("n_channels", 3),
            "image_size": height,
            "patch_size": vision["patch_size"],
            "vision_use_head": False,
        },
        "text_config": {
            "vocab_size": vocab_size + NUM_ADDITIONAL_TOKENS,
            "hidden_size": text["hidden_size"],
            "intermediate_size": _width(text_block["ffn_config"], text["hidden_size"]),
            "num_hidden_layers": text["n_layers"],
            "num_attention_heads": attention["n_heads"],
            "num_key_value_heads": attention["n_kv_heads"],
            "head_dim": attention["head_dim"],
            "max_position_embeddings": text.get("max_position_embeddings") or text["max_sequence_length"],
            "rope_parameters": {"rope_type": "default", "rope_theta": float(text["rope_theta"])},
            "tie_word_embeddings": bool(text.get("tie_word_embeddings", False)),
            **token_ids,
        },
    }


def translate_image_processor(settings: dict[str, Any]) -> dict[str, Any]:
    """
    Translates the published `preprocessor_config.json`.

    Args:
        settings (`dict`): its content; other image processor dicts are returned as they are.

    Returns:
        `dict`: arguments of [`JinaVLMImageProcessor`].

    Raises:
        ValueError: if a setting has a value that is not implemented; the message names it.
    """
    if "base_input_size" not in settings:
        return settings
    _refuse_unknown_values(settings, _IMAGE_PROCESSOR_VALUES, "preprocessor_config")
    height, width = settings["base_input_size"]
    patches, pooling = height // settings["patch_size"], settings["pooling_h"]
    if height != width or pooling != settings["pooling_w"]:
        raise ValueError(
            "`preprocessor_config.base_input_size` and `pooling_h`, `pooling_w` must be square, got "
            f"{settings['base_input_size']} and {pooling} × {settings['pooling_w']}."
        )
    for name in ("token_length_h", "token_length_w"):
        if settings[name] != -(-patches // pooling):
            raise ValueError(f"`preprocessor_config.{name}` is {settings[name]}: {-(-patches // pooling)} expected.")
    low, high = settings["image_min"], settings["image_max"]
    return {
        "layout": "stitched",
        "size": {"height": height, "width": width},
        # minmax normalisation is (x - mean) / std: x in [0, 1] goes to [low, high].
        "image_mean": [low / (low - high)] * 3,
        "image_std": [1 / (high - low)] * 3,
        "resample": {"bilinear": 2, "bicubic": 3}[settings["interpolation"]],
        "pooling_size": pooling,
        **{name: settings[name] for name in SHARED_IMAGE_PROCESSOR_SETTINGS if name in settings},
        **{name: settings[name] for name in ("image_processor_type", "processor_class") if name in settings},
    }
