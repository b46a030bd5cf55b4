# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Settings of vLLM that JinaVLM needs, without flags."""

import functools
from typing import Any

from vllm.config import ModelConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from . import RENDERER


class JinaVLMSettings(VerifyAndUpdateConfig):
    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        """Sets the renderer and end tokens, and hands images to the processor as they are: it drops alpha channels."""
        model_config.tokenizer_mode = RENDERER
        model_config.try_get_generation_config = functools.partial(_generation_settings, model_config)
        given = model_config.multimodal_config.media_io_kwargs or {}
        image = {"image_mode": None, **given.get("image", {})}
        model_config.multimodal_config.media_io_kwargs = {**given, "image": image}


def _generation_settings(model_config: ModelConfig) -> dict[str, Any]:
    """Those of the checkpoint, with the end tokens of its model. The published file leaves them to its code."""
    settings = ModelConfig.try_get_generation_config(model_config)
    if (end_tokens := model_config.hf_config.text_config.eos_token_id) is not None:
        settings.setdefault("eos_token_id", end_tokens)
    return settings
