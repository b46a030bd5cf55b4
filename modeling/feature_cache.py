# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Image features kept from call to call, under a hash of what they are made from."""

import itertools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from .image_plan import ImagePlan, digest


_NUM_SAMPLES = 16


class ImageFeatureCache:
    r"""
    Keeps the image features of earlier calls, for images that are asked about again: they go through neither the
    vision tower nor the connector. Set it on a model, or on [`JinaVLMModel`] for all models of the process:

    ```python
    model.model.image_cache = ImageFeatureCache(max_bytes=2**30)
    ```

    `model(...)`, `generate`, pipelines and servers then use it wherever gradients are off and the weights are not
    divided among processes (FSDP, ZeRO-3). Images are found by their pixels and by what their features depend on: the
    weights of tower and connector, their adapters, the attention implementation and autocast. The features that were
    used longest ago are dropped first. Threads and models may share a cache. The features stay on their device.

    Args:
        max_bytes (`int`): limit of the features' size. An image of 12 tiles takes 19 MB in the `"independent"` layout
            and 14 MB in `"stitched"`, in float32. The features of an image that is larger than the limit are not kept.

    Attributes:
        num_bytes (`int`): size of the features.
        num_hits, num_misses (`int`): number of images that were found, and that were not.

    Raises:
        ValueError: if `max_bytes` is not a positive integer.
    """

    def __init__(self, max_bytes: int):
        if not isinstance(max_bytes, int) or isinstance(max_bytes, bool) or max_bytes < 1:
            raise ValueError(f"`max_bytes` must be a positive integer, got {max_bytes!r}.")
        self.max_bytes = max_bytes
        self.num_bytes = self.num_hits = self.num_misses = 0
        self._features: OrderedDict[str, torch.Tensor] = OrderedDict()  # the last used ones last
        self._models: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._features)

    def __deepcopy__(self, memo) -> "ImageFeatureCache":
        """The cache itself: copies of a model share it."""
        return self

    def __reduce__(self):
        return type(self), (self.max_bytes,)  # a pickled model, as that of another process, begins with an empty one

    def clear(self) -> None:
        """Drops all features."""
        with self._lock:
            self._features.clear()
            self.num_bytes = 0

    def get(self, key: str) -> torch.Tensor | None:
        """The features of an image, `(image_tokens, hidden_size)`, if they are kept. They must not be changed."""
        with self._lock:
            features = self._features.get(key)
            if features is None:
                self.num_misses += 1
            else:
                self.num_hits += 1
                self._features.move_to_end(key)
            return features

    def put(self, key: str, features: torch.Tensor) -> None:
        """Keeps a copy of the features of an image."""
        if features.nbytes > self.max_bytes:
            return
        features = features.clone()  # a view would keep those of the whole batch
        with self._lock:
            if key not in self._features:
                self._features[key] = features
                self.num_bytes += features.nbytes
            while self.num_bytes > self.max_bytes:
                self.num_bytes -= self._features.popitem(last=False)[1].nbytes

    def get_or_compute(
        self, model: Any, tiles: torch.Tensor, plan: ImagePlan, compute: Callable[[ImagePlan], torch.Tensor]
    ) -> torch.Tensor:
        """The features of all images of a plan of the host. `compute` returns those of images that are not kept."""
        keys = self._keys(model, tiles, plan)
        features = {key: self.get(key) for key in keys}
        if new := {key: image for image, key in enumerate(keys) if features[key] is None}:
            new_plan = plan.select(list(new.values()))
            for key, computed in zip(new, new_plan.split(compute(new_plan)), strict=True):
                features[key] = computed
                self.put(key, computed)
        return torch.cat([features[key] for key in keys])  # type: ignore[misc]  # none of them is None

    def _keys(self, model: Any, tiles: torch.Tensor, plan: ImagePlan) -> list[str]:
        """The keys of the images of a plan: a hash of what each token is pooled from, and of the model."""
        with self._lock:
            number = self._models.setdefault(model, next(self._numbers))
        state = digest(*_samples(model), text=repr([number, str(tiles.dtype), *_settings(model, tiles.device.type)]))
        tile_indices, cells, is_last_tile, _, _, (_, columns) = plan.to_tuple()[:6]
        seen = [()] * len(tile_indices) if plan.encoded_cells is None else plan.encoded_cells[:, None]
        tile_keys = [
            bytes.fromhex(digest(tiles[index], *cells)) for index, cells in zip(tile_indices, seen, strict=True)
        ]
        table = torch.frombuffer(bytearray(b"".join(tile_keys)), dtype=torch.int64).view(len(tile_keys), -1)
        sources = [table[cells // columns], (cells % columns)[:, None], is_last_tile[:, None]]
        return [digest(image, text=state) for image in plan.split(torch.cat(sources, dim=1))]


def _modules(model: Any) -> Iterator[nn.Module]:
    yield from model.vision_tower.modules()
    yield from model.connector.modules()


def _weights(model: Any) -> Iterator[torch.Tensor]:
    for module in _modules(model):
        yield from module.parameters(recurse=False)
        yield from module.buffers(recurse=False)


def _settings(model: Any, device_type: str) -> Iterator[object]:
    """What features depend on besides pixels and values of weights."""
    yield model.config.vision_config._attn_implementation
    yield torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type)
    for weight in _weights(model):
        yield weight.dtype
        # In-place operations count versions, except on `.data`, where adapters are merged.
        yield None if weight.is_inference() else weight._version
    for module in _modules(model):  # the adapters of PEFT that are in use
        if hasattr(module, "active_adapters"):
            yield [getattr(module, name, None) for name in ("active_adapters", "disable_adapters", "scaling")]


def _samples(model: Any) -> list[torch.Tensor]:
    """Values of each weight, those that are neither quantized nor offloaded."""
    plain = [
        weight.detach().flatten()
        for weight in _weights(model)
        if type(weight) in (nn.Parameter, torch.Tensor)
        and weight.is_floating_point()
        and weight.layout == torch.strided
        and not weight.is_meta
    ]
    # One tensor, because each is copied to the host.
    return [torch.cat([values[:: -(-len(values) // _NUM_SAMPLES)].float() for values in plain])] if plain else []


__all__ = ["ImageFeatureCache"]
