# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Our configuration and processor in the JSON schema of the published checkpoint `jinaai/jina-vlm`.

The translation the other way is in `configuration/published_checkpoint.py`; what it would not give back is refused.
"""

from typing import Any

from ..configuration.configuration_jvlm import JinaVLMConfig
from ..configuration.published_checkpoint import (
    _IMAGE_PROCESSOR_VALUES,
    _TEXT_VALUES,
    _VISION_VALUES,
    NUM_ADDITIONAL_TOKENS,
    SHARED_IMAGE_PROCESSOR_SETTINGS,
    translate_image_processor,
)
from ..processing.image_processing_jvlm import JinaVLMImageProcessor
from ..processing.processing_jvlm import JinaVLMProcessor


# The published code files, where they are not in the folder.
CODE_REPOSITORY = "jinaai/jina-vlm"

# Differences that change nothing in what the model computes, or that are written elsewhere.
WITHOUT_EFFECT = {
    "_from_model_config",
    "_name_or_path",
    "architectures",
    "auto_map",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "id2label",
    "initializer_range",
    "label2id",
    "max_window_layers",
    "pad_token_id",
    "tie_word_embeddings",  # the published output head is written in any case
    "transformers_version",
    "use_cache",
    "use_last_tile_embedding",  # one that is not used is written as zeros
}


def _defaults(values: dict) -> dict:
    """The first of the values that the model implements, for every setting of the published schema."""
    return {name: _defaults(value) if isinstance(value, dict) else value[0] for name, value in values.items()}


def _updated(settings: dict, updates: dict) -> dict:
    merged = dict(settings)
    for name, value in updates.items():
        merged[name] = _updated(merged[name], value) if isinstance(merged.get(name), dict) else value
    return merged


def _refuse_differences(ours: dict, back: dict, path: str) -> None:
    for name in sorted((ours.keys() | back.keys()) - WITHOUT_EFFECT):
        value, other = ours.get(name), back.get(name)
        if isinstance(value, dict) and isinstance(other, dict):
            _refuse_differences(value, other, f"{path}.{name}")
        elif value != other:
            raise ValueError(
                f"`{path}.{name}` is {value!r}, but a checkpoint in the published layout can only have {other!r}."
            )


def published_config(config: JinaVLMConfig) -> dict[str, Any]:
    """
    Translates a configuration to the published `config.json`.

    Raises:
        ValueError: if a field has a value that the published schema cannot express; the message names it.
    """
    vision, text = config.vision_config, config.text_config
    attention = {
        "head_dim": config.connector_head_dim,
        "n_heads": config.connector_num_attention_heads,
        "n_kv_heads": None,
    }
    text_config = {
        "block_config": {
            "attn_config": {
                "head_dim": text.head_dim,
                "n_heads": text.num_attention_heads,
                "n_kv_heads": text.num_key_value_heads,
            },
            "ffn_config": {"ratio": 4, "size": text.intermediate_size},
        },
        "embedding_size": text.vocab_size - NUM_ADDITIONAL_TOKENS,
        "hidden_size": text.hidden_size,
        "max_position_embeddings": None,
        "max_sequence_length": text.max_position_embeddings,
        "model_type": "jvlm",
        "n_layers": text.num_hidden_layers,
        "num_hidden_layers": text.num_hidden_layers,
        "rope_theta": text.rope_parameters["rope_theta"],
        "tie_word_embeddings": False,
        "vocab_size": text.vocab_size - NUM_ADDITIONAL_TOKENS,
    }
    vision_config = {
        "block_config": {
            "attn_config": {
                "head_dim": vision.hidden_size // vision.num_attention_heads,
                "n_heads": vision.num_attention_heads,
                "n_kv_heads": None,
            },
            "ffn_config": {"ratio": 4, "size": vision.intermediate_size},
        },
        "hidden_size": vision.hidden_size,
        "input_size": [vision.image_size, vision.image_size],
        "model_type": "jvlm",
        "n_channels": vision.num_channels,
        "n_layers": vision.num_hidden_layers,
        "output_size": text.hidden_size,
        "patch_size": vision.patch_size,
        # Counted from the end of a list that has the output of the final norm behind the blocks'.
        "vit_layers": [block - vision.num_hidden_layers - 1 for block in config.vision_feature_layer],
        "vl_connector_config": {
            "attn_pooling_config": attention,
            "mlp_projector_config": {"ratio": 4, "size": config.connector_intermediate_size},
            "pooling_h": config.pooling_size,
            "pooling_w": config.pooling_size,
            "spatial_merge_size": config.pooling_size,
        },
    }
    eos = text.eos_token_id[0] if isinstance(text.eos_token_id, list) else text.eos_token_id
    token_ids = {"bos_token_id": text.bos_token_id, "eos_token_id": eos, "pad_token_id": text.pad_token_id}
    published = {
        "architectures": ["JinaVLMForConditionalGeneration"],
        "auto_map": {
            "AutoConfig": f"{CODE_REPOSITORY}--configuration_jvlm.JinaVLMConfig",
            "AutoModelForCausalLM": f"{CODE_REPOSITORY}--modeling_jvlm.JinaVLMForConditionalGeneration",
        },
        **{name: token_id for name, token_id in token_ids.items() if token_id is not None},
        "model_type": "jvlm",
        "text_config": _updated(_defaults(_TEXT_VALUES), text_config),
        "tie_word_embeddings": False,
        "vision_config": _updated(_defaults(_VISION_VALUES), vision_config),
    }
    _refuse_differences(config.to_dict(), JinaVLMConfig.from_dict(published).to_dict(), "config")
    return published


def published_image_processor(image_processor: JinaVLMImageProcessor, config: JinaVLMConfig) -> dict[str, Any]:
    """
    Translates an image processor to the published `preprocessor_config.json`.

    Raises:
        ValueError: if a setting has a value that the published schema cannot express; the message names it.
    """
    mean, std = image_processor.image_mean[0], image_processor.image_std[0]
    side, patch_size = image_processor.size["height"], image_processor.patch_size
    patches, pooling_size = side // patch_size, image_processor.pooling_size
    cells = -(-patches // pooling_size)
    published = {
        **_defaults(_IMAGE_PROCESSOR_VALUES),
        "auto_map": {
            "AutoImageProcessor": f"{CODE_REPOSITORY}--image_processing_jvlm.JinaVLMImageProcessor",
            "AutoProcessor": f"{CODE_REPOSITORY}--processing_jvlm.JinaVLMProcessor",
        },
        "base_input_size": [side, side],
        "column_token_id": config.image_column_token_id,
        "crop_size": side,
        "end_token_id": config.image_end_token_id,
        "image_base_patch_h": patches,
        "image_base_patch_w": patches,
        "image_max": (1 - mean) / std,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],  # CLIP's; they stand in the release and are not used
        "image_min": -mean / std,
        "image_processor_type": "JinaVLMImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": {2: "bilinear", 3: "bicubic"}[image_processor.resample],
        "patch_token_id": config.image_token_id,
        "pooling_h": pooling_size,
        "pooling_w": pooling_size,
        "processor_class": "JinaVLMProcessor",
        "size": {"longest_edge": image_processor.max_pixels, "shortest_edge": image_processor.min_pixels},
        "start_token_id": config.image_start_token_id,
        "token_length_h": cells,
        "token_length_w": cells,
        "tokens_per_image": cells * cells,
        **{name: getattr(image_processor, name) for name in SHARED_IMAGE_PROCESSOR_SETTINGS},
    }
    back = JinaVLMImageProcessor(**translate_image_processor(published))
    _refuse_differences(image_processor.to_dict(), back.to_dict(), "image_processor")
    return published


def published_processor(processor: JinaVLMProcessor) -> dict[str, Any]:
    """
    Translates a processor to the published `processor_config.json`.

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


__all__ = ["published_config", "published_image_processor", "published_processor"]
