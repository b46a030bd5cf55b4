# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The parts of a model that are exported to runtimes, each a module whose inputs and outputs are tensors."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from ..cache_argument import cache_argument
from ..modeling.modeling_jvlm import JinaVLMForConditionalGeneration, JinaVLMModel
from ..runtimes.cache_tensors import cache_names, fill_cache, read_cache


# Numbers of elements of dynamic axes in the example inputs: different, so that no two axes are taken for one.
_TILES, _CELLS, _BATCH, _NEW, _PAST = 3, 5, 2, 4, 7
_MAX_TILES, _MAX_BATCH = 26, 4


@dataclass
class Component:
    """
    A part of a model, ready for `torch.export`.

    Args:
        module (`nn.Module`): takes and returns tensors.
        inputs (`dict`): example inputs by name, in the order of the module's arguments.
        axes (`dict[str, dict[int, int]]`): the dynamic axes of the inputs, each with its largest size for runtimes
            that reserve memory for it.
        outputs (`list[str]`): names of the outputs.
        num_cached (`int`, *optional*): number of inputs, at the end, that are keys and values of the cache.
    """

    module: nn.Module
    inputs: dict
    axes: dict[str, dict[int, int]]
    outputs: list[str]
    num_cached: int = 0

    @torch.no_grad()
    def export(self, is_bounded: bool = False) -> torch.export.ExportedProgram:
        """The part as a program with dynamic axes, on request of a limited size."""
        dynamic: Any = torch.export.Dim.DYNAMIC
        shapes: list = [
            {axis: dynamic(max=limit) if is_bounded else dynamic for axis, limit in axes.items()}
            for axes in self.axes.values()
        ]
        if self.num_cached:
            shapes = [*shapes[: -self.num_cached], tuple(shapes[-self.num_cached :])]  # `*past` is one argument
        return torch.export.export(self.module, (*self.inputs.values(),), dynamic_shapes=(*shapes,), strict=False)


class _Vision(nn.Module):
    """[`~JinaVLMModel.get_vision_features`], without the rest of the model."""

    def __init__(self, model: JinaVLMModel):
        super().__init__()
        self.config, self.vision_tower = model.config, model.vision_tower

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return JinaVLMModel.get_vision_features(self, pixel_values).last_hidden_state  # type: ignore[arg-type]


class _Decoder(nn.Module):
    """The language model without its embeddings: one graph for the prompt and for every further token."""

    def __init__(self, language_model: PreTrainedModel):
        super().__init__()
        self.language_model = copy.copy(language_model)
        self.language_model._modules = {**language_model._modules}
        del self.language_model.embed_tokens

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        *past: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        cache = DynamicCache(config=self.language_model.config)
        fill_cache(cache, list(past))
        # Written out: that of Transformers depends on whether tokens are masked at all.
        num_new, total = inputs_embeds.shape[1], attention_mask.shape[1]
        index = torch.arange(total, device=attention_mask.device)
        is_causal = index[None, :] <= index[total - num_new :, None]  # [new, total]
        is_attended = is_causal[None, None] & (attention_mask != 0)[:, None, None]  # [batch, 1, new, total]
        mask = (~is_attended).to(inputs_embeds.dtype) * torch.finfo(inputs_embeds.dtype).min
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask={"full_attention": mask},
            position_ids=position_ids,
            use_cache=True,
            **{cache_argument(): cache},
        )
        return outputs.last_hidden_state, *read_cache(cache)


def mask_bytes(max_position_embeddings: int) -> int:
    """Size of the largest attention mask of a program for a limited number of tokens, in float32."""
    return 4 * _MAX_BATCH * max_position_embeddings * 2 * max_position_embeddings


def components(model: JinaVLMForConditionalGeneration) -> dict[str, Component]:
    """
    The parts of a model: `vision` (tiles to features of patches), `connector` (to features of cells), `embedding`,
    `decoder` (with the cache as inputs and outputs) and `head`. All numbers of tiles, cells, prompts and tokens are
    dynamic.

    Raises:
        ValueError: if the language model has layers with another kind of attention than the full one.
    """
    config, text, vision = model.config, model.config.text_config, model.config.vision_config
    if others := set(text.layer_types) - {"full_attention"}:
        raise ValueError(f"Layers with {', '.join(others)} cannot be exported, only those with full_attention.")
    dtype = model.dtype
    features = torch.zeros(_TILES, config.patches_per_side**2, config.feature_size, dtype=dtype)
    tokens = torch.zeros(_BATCH, _NEW, dtype=torch.long)
    hidden = torch.zeros(_BATCH, _NEW, text.hidden_size, dtype=dtype)
    past = torch.zeros(_BATCH, text.num_key_value_heads, _PAST, text.head_dim, dtype=dtype)
    cached = cache_names("past", text.num_hidden_layers)
    new = {0: _MAX_BATCH, 1: text.max_position_embeddings}
    max_cells = _MAX_TILES * math.prod(config.pooled_shape)
    return {
        "vision": Component(
            _Vision(model.model),
            {"pixel_values": torch.zeros(_TILES, vision.num_channels, *2 * [vision.image_size], dtype=dtype)},
            {"pixel_values": {0: _MAX_TILES}},
            ["features"],
        ),
        "connector": Component(
            model.model.connector,
            {
                "features": features,
                "cell_indices": torch.arange(_CELLS),
                "is_last_tile": torch.arange(_CELLS) > 2,
            },
            {"features": {0: _MAX_TILES}, "cell_indices": {0: max_cells}, "is_last_tile": {0: max_cells}},
            ["image_features"],
        ),
        "embedding": Component(
            model.get_input_embeddings(), {"input_ids": tokens}, {"input_ids": new}, ["inputs_embeds"]
        ),
        "decoder": Component(
            _Decoder(model.model.language_model),
            {
                "inputs_embeds": hidden,
                "attention_mask": torch.ones(_BATCH, _PAST + _NEW, dtype=torch.long),
                "position_ids": tokens,
                **{name: past.clone() for name in cached},
            },
            {
                "inputs_embeds": new,
                "attention_mask": {0: _MAX_BATCH, 1: 2 * text.max_position_embeddings},
                "position_ids": new,
                **{name: {0: _MAX_BATCH, 2: text.max_position_embeddings} for name in cached},
            },
            ["hidden_states", *cache_names("present", text.num_hidden_layers)],
            num_cached=len(cached),
        ),
        "head": Component(model.lm_head, {"hidden_states": hidden}, {"hidden_states": new}, ["logits"]),
    }


__all__ = ["Component", "components", "mask_bytes"]
