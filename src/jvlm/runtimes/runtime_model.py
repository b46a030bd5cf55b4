# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The model whose vision tower, connector and language model run in another runtime."""

import functools
import math
from collections import OrderedDict
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, GenerationConfig
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.auto import modeling_auto

from ..cache_argument import cache_argument
from ..configuration.configuration_jvlm import JinaVLMConfig
from ..modeling.modeling_jvlm import _FIRST_BLOCK, JinaVLMForConditionalGeneration
from .cache_tensors import fill_cache, read_cache
from .manifest import Manifest, read_manifest
from .sessions import Session, open_session


# Number of tiles whose features are kept: two images of the most tiles.
_KEPT_TILES = 26


class JinaVLMRuntimeModel(JinaVLMForConditionalGeneration):
    r"""
    A model that was exported to a runtime. It takes the inputs of [`JinaVLMForConditionalGeneration`], has its
    methods, `generate` among them, and returns the same, on the CPU and without gradients.

    The features of the last tiles are kept, so that another question about an image does not encode it again.

    Args:
        config (`JinaVLMConfig`): the configuration of the exported model.
        manifest ([`Manifest`]): the description of the folder.
        sessions (`dict`): the function of each graph, see [`open_session`].
    """

    def __init__(self, config: JinaVLMConfig, manifest: Manifest, sessions: dict[str, Session]):
        with torch.device("meta"):
            super().__init__(config)
        self.manifest = manifest
        model: Any = self.model
        dtype = getattr(torch, manifest.dtype)
        model.vision_tower = _VisionTower(config, sessions["vision"], dtype)
        model.connector = _Graph(sessions["connector"])
        if manifest.runtime == "executorch":  # its programs have memory for as many
            model.tiles_per_group = _KEPT_TILES
            model.connector = _Connector(sessions["connector"], _KEPT_TILES * math.prod(config.pooled_shape))
        model.language_model = _LanguageModel(model.language_model.config, sessions["decoder"])
        model.embed_tokens = _Graph(sessions["embedding"])  # where `get_input_embeddings` looks first
        self.lm_head = _Graph(sessions["head"])  # type: ignore[assignment]
        # Transformers reads device and dtype of a model from its first parameter.
        self.placeholder = nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)
        self.eval()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, runtime: str | None = None, num_threads: int | None = None
    ) -> "JinaVLMRuntimeModel":
        r"""
        Loads a folder that `jvlm export-runtime` wrote.

        Args:
            pretrained_model_name_or_path (`str` or `Path`): the folder.
            runtime (`str`, *optional*): `"onnx"`, `"openvino"`, `"torch"` or `"executorch"`, if the folder must be
                for this one.
            num_threads (`int`, *optional*): number of threads, by default the runtime's choice.

        Raises:
            FileNotFoundError: if it is no such folder.
            ImportError: if the package of its runtime is not installed.
            ValueError: if the folder is for another runtime, damaged or mixed from several exports, or cannot be
                loaded by the installed version of the runtime.
        """
        folder = Path(pretrained_model_name_or_path)
        manifest = read_manifest(folder, runtime)
        config = JinaVLMConfig.from_pretrained(folder)
        sessions = {
            name: open_session(manifest.runtime, folder / file, num_threads) for name, file in manifest.graphs.items()
        }
        model = cls(config, manifest, sessions)
        model.generation_config = GenerationConfig.from_pretrained(folder)
        model._set_generation_defaults()
        model.config.name_or_path = str(folder)
        return model

    @functools.wraps(JinaVLMForConditionalGeneration.forward)
    @torch.no_grad()
    def forward(self, *args, **kwargs):
        for name in ("output_attentions", "output_hidden_states"):
            if kwargs.get(name):
                raise ValueError(
                    f"`{name}` is not available: the graphs of {self.manifest.runtime} do not return them. Load the "
                    "checkpoint with `JinaVLMForConditionalGeneration` for that."
                )
        return super().forward(*args, **kwargs)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Raises a `ValueError`: the weights are in the files of the runtime. Copy the folder instead."""
        raise ValueError(f"A model of {self.manifest.runtime} cannot be saved; copy its folder instead.")


class _Graph(nn.Module):
    """A part of the model with tensors as inputs and one tensor as output."""

    def __init__(self, session: Session):
        super().__init__()
        self.session = session

    def forward(self, *inputs: torch.Tensor, **_: Any) -> torch.Tensor:
        return self.session(*inputs)[0]


class _Connector(_Graph):
    """The connector, for at most `max_cells` cells at once."""

    def __init__(self, session: Session, max_cells: int):
        super().__init__(session)
        self.max_cells = max_cells

    def forward(self, *inputs: torch.Tensor, **_: Any) -> torch.Tensor:
        hidden_states, cell_indices, is_last_tile = inputs
        parts = zip(cell_indices.split(self.max_cells), is_last_tile.split(self.max_cells), strict=True)
        return torch.cat([self.session(hidden_states, *part)[0].clone() for part in parts])


class _VisionTower(nn.Module):
    """Looks like the vision tower; its graph returns the concatenated hidden states of the blocks in use."""

    def __init__(self, config: JinaVLMConfig, session: Session, dtype: torch.dtype):
        super().__init__()
        self.config, self.session, self.dtype = config.vision_config, session, dtype
        self.states = [block + _FIRST_BLOCK for block in config.vision_feature_layer or ()]
        self.kept: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    @property
    def embeddings(self):
        raise ValueError("The graph encodes whole tiles; leave out `drop_uniform_patches`.")

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> SimpleNamespace:
        pixel_values = pixel_values.to(self.dtype)
        keys = [sha256(tile.contiguous().view(torch.uint8).numpy().data).digest() for tile in pixel_values]
        new = {key: index for index, key in enumerate(keys) if key not in self.kept}
        if new:
            features = self.session(pixel_values[list(new.values())])[0]
            self.kept.update(zip(new, features.clone(), strict=True))
        for key in keys:
            self.kept.move_to_end(key)
        features = torch.stack([self.kept[key] for key in keys])  # [tiles, patches, feature_size]
        while len(self.kept) > _KEPT_TILES:
            self.kept.popitem(last=False)
        states = dict(zip(self.states, features.chunk(len(self.states), dim=-1), strict=True))
        return SimpleNamespace(hidden_states=states, attentions=None)


class _LanguageModel(nn.Module):
    """Looks like the language model; keys and values of the cache are inputs and outputs of its graph."""

    def __init__(self, config: Any, session: Session):
        super().__init__()
        self.config, self.session = config, session

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        cache = kwargs.get(cache_argument())
        if cache is None:
            cache = DynamicCache(config=self.config)
        if not isinstance(cache, DynamicCache):
            raise ValueError(
                f"The cache is a {type(cache).__name__}, but an exported model works with a DynamicCache; leave out "
                "`cache_implementation`."
            )
        num_rows, num_new, _ = inputs_embeds.shape
        num_past, text = cache.get_seq_length(), self.config
        if attention_mask is None:
            attention_mask = torch.ones(num_rows, num_past + num_new, dtype=torch.long)
        if attention_mask.shape != (num_rows, num_past + num_new):
            raise ValueError(
                f"`attention_mask` has the shape {tuple(attention_mask.shape)}, but must have a value for all of the "
                f"{num_past} tokens in the cache and {num_new} new ones in {num_rows} rows."
            )
        if position_ids is None:
            position_ids = torch.arange(num_past, num_past + num_new)[None]
        if num_past:
            past = read_cache(cache)
        else:
            past = (
                2
                * text.num_hidden_layers
                * [inputs_embeds.new_empty(num_rows, text.num_key_value_heads, 0, text.head_dim)]
            )
        position_ids = position_ids.expand(num_rows, num_new).contiguous()
        hidden_states, *present = self.session(inputs_embeds, attention_mask.long(), position_ids, *past)
        fill_cache(cache, present)
        return BaseModelOutputWithPast(hidden_states, **{cache_argument(): cache if use_cache else None})


modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["jvlm_runtime"] = JinaVLMRuntimeModel.__name__

__all__ = ["JinaVLMRuntimeModel"]
