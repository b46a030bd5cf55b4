# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
The vLLM plugin of JinaVLM: the entry point `jvlm` in the group `vllm.general_plugins`. vLLM calls [`register`] in each
of its processes. The package lies outside `jvlm`, whose import takes seconds.
"""

import warnings


ARCHITECTURE = "JinaVLMForConditionalGeneration"
RENDERER = "jvlm"


def register() -> None:
    """Makes vLLM know JinaVLM. vLLM does not import the model's module before it serves one."""
    try:
        from vllm import ModelRegistry
        from vllm.model_executor.models.config import MODELS_CONFIG_MAP
        from vllm.renderers.registry import RENDERER_REGISTRY
        from vllm.tokenizers.registry import TokenizerRegistry

        import jvlm  # noqa: F401 - registers the classes with Transformers

        from .settings import JinaVLMSettings
    except ImportError as error:
        # vLLM calls the plugins of all packages, whatever model it serves, and stops at an error of one of them.
        warnings.warn(f"vLLM cannot serve JinaVLM: {error}. The installed versions do not fit together.", stacklevel=2)
        return
    ModelRegistry.register_model(ARCHITECTURE, f"{__name__}.model:{ARCHITECTURE}")
    MODELS_CONFIG_MAP[ARCHITECTURE] = JinaVLMSettings
    TokenizerRegistry.register(RENDERER, "vllm.tokenizers.hf", "CachedHfTokenizer")
    RENDERER_REGISTRY.register(RENDERER, f"{__name__}.renderer", "JinaVLMRenderer")
