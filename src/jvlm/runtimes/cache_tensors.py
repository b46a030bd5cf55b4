# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The cache of a language model as the tensors that a runtime takes and returns."""

import torch
from transformers import DynamicCache


def cache_names(prefix: str, num_layers: int) -> list[str]:
    """The names of the cached keys and values of all layers: `past.0.key`, `past.0.value`, `past.1.key`, …"""
    return [f"{prefix}.{layer}.{kind}" for layer in range(num_layers) for kind in ("key", "value")]


def read_cache(cache: DynamicCache) -> list[torch.Tensor]:
    """Keys and values of all layers, each `(batch, heads, tokens, head_dim)`."""
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def fill_cache(cache: DynamicCache, tensors: list[torch.Tensor]) -> None:
    """Replaces the keys and values of all layers. `DynamicCache.update` would append and copy them."""
    for layer, keys, values in zip(cache.layers, tensors[::2], tensors[1::2], strict=True):
        layer.keys, layer.values = keys, values
        layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True


__all__ = ["cache_names", "fill_cache", "read_cache"]
