# Copyright 2026 The jvlm authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""JinaVLM: SigLIP2 vision tower, attention-pooling connector, Qwen3 language model."""

import contextlib
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask, packed_sequence_mask_function
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.siglip.modeling_siglip import eager_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring, can_return_tuple, torch_compilable_check
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from ..configuration.checkpoint_files import check_folder, name_damaged_file
from ..configuration.config_files import check_config_files
from ..configuration.configuration_jvlm import JinaVLMConfig
from .feature_cache import ImageFeatureCache
from .image_plan import (
    ImagePlan,
    check_positions,
    check_prompt,
    check_tiles,
    comparable,
    pack_patches,
    pick_tiles,
    plan_images,
    trace_plan,
)
from .loaded_weights import check_loaded_weights, raise_for_weights


# Since Transformers 5.23, `output_hidden_states=[...]` counts the embeddings as hidden state 0.
_FIRST_BLOCK = 1 if Version(transformers.__version__) >= Version("5.23.0.dev0") else 0
# The tower takes as many patches at once as the largest image of the published model has.
_PATCHES_PER_GROUP = 13 * 27**2


@auto_docstring(custom_intro="Outputs of the JinaVLM model, with the image features it used.")
@dataclass
class JinaVLMModelOutputWithPast(BaseModelOutputWithPast):
    r"""
    image_hidden_states (`torch.Tensor` of shape `(image_tokens, hidden_size)`, *optional*):
        Image features in sequence order, as the connector or the given `mm_encoder_outputs` has them.
    image_outputs (`BaseModelOutputWithPooling`, *optional*):
        `pooler_output` as [`~JinaVLMModel.get_image_features`] returns it and, on request, hidden states and
        attentions of the vision tower; or the given `mm_encoder_outputs`.
    """

    image_hidden_states: torch.Tensor | None = None
    image_outputs: BaseModelOutputWithPooling | None = None


@auto_docstring(custom_intro="Outputs of the JinaVLM model with its head, with the image features it used.")
@dataclass
class JinaVLMCausalLMOutputWithPast(CausalLMOutputWithPast):
    r"""
    image_hidden_states (`torch.Tensor` of shape `(image_tokens, hidden_size)`, *optional*):
        Image features in sequence order, as the connector or the given `mm_encoder_outputs` has them.
    image_outputs (`BaseModelOutputWithPooling`, *optional*):
        `pooler_output` as [`~JinaVLMModel.get_image_features`] returns it and, on request, hidden states and
        attentions of the vision tower; or the given `mm_encoder_outputs`.
    """

    image_hidden_states: torch.Tensor | None = None
    image_outputs: BaseModelOutputWithPooling | None = None


class JinaVLMAttentionPooling(nn.Module):
    """Multi-head attention over the patches of a window; the query is the mean of the window."""

    def __init__(self, config: JinaVLMConfig):
        super().__init__()
        self.config = config.vision_config  # the connector uses the attention implementation of the vision tower
        self.head_dim = config.connector_head_dim
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        width = config.connector_num_attention_heads * self.head_dim
        self.q_proj = nn.Linear(config.feature_size, width)
        self.k_proj = nn.Linear(config.feature_size, width)
        self.v_proj = nn.Linear(config.feature_size, width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        # hidden_states: [cells, patches per window, feature_size]
        heads = (-1, self.head_dim)
        query = self.q_proj(hidden_states.mean(dim=1)).unflatten(-1, heads).unsqueeze(2)  # [cells, heads, 1, head_dim]
        key = self.k_proj(hidden_states).unflatten(-1, heads).transpose(1, 2)
        value = self.v_proj(hidden_states).unflatten(-1, heads).transpose(1, 2)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention_interface(
            self, query, key, value, None, is_causal=self.is_causal, scaling=self.scaling, dropout=0.0, **kwargs
        )
        # [cells, width]; the weights, of eager attention only, are [cells, heads, 1, patches per window]
        return self.out_proj(output.flatten(1)), weights


class JinaVLMProjector(nn.Module):
    """Gated feed-forward layer (SwiGLU) into the width of the language model."""

    def __init__(self, config: JinaVLMConfig):
        super().__init__()
        width = config.connector_num_attention_heads * config.connector_head_dim
        self.gate_proj = nn.Linear(width, config.connector_intermediate_size, bias=False)
        self.up_proj = nn.Linear(width, config.connector_intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.connector_intermediate_size, config.text_config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.connector_hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class JinaVLMConnector(nn.Module):
    """Pools windows of patches to cells and projects the cells into the width of the language model."""

    def __init__(self, config: JinaVLMConfig):
        super().__init__()
        self.config = config
        self.last_tile_embedding = None
        # CODEPATH: jinaai/jina-vlm has the embedding; models of the figure ("independent" layout) have none.
        if config.use_last_tile_embedding:
            self.last_tile_embedding = nn.Parameter(torch.zeros(config.feature_size))
        self.pooling = JinaVLMAttentionPooling(config)
        self.projector = JinaVLMProjector(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        cell_indices: torch.Tensor,
        is_last_tile: torch.Tensor,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        r"""
        Args:
            hidden_states (`torch.Tensor` of shape `(tiles, patches, feature_size)`):
                Concatenated features of the vision tower.
            cell_indices (`torch.LongTensor` of shape `(cells,)`):
                Cells to pool, as indices into the pooled cells of all tiles.
            is_last_tile (`torch.BoolTensor` of shape `(cells,)`):
                Whether a cell lies in the last tile of its image.

        Returns:
            `torch.Tensor` of shape `(cells, hidden_size)`.
        """
        side, size, (rows, cols) = self.config.patches_per_side, self.config.pooling_size, self.config.pooled_shape
        patch_rows = torch.arange(rows * size, device=hidden_states.device).view(rows, 1, size, 1)
        patch_cols = torch.arange(cols * size, device=hidden_states.device).view(1, cols, 1, size)
        # Windows that reach beyond the tile are zero-padded at the bottom and the right.
        is_padding = (patch_rows >= side) | (patch_cols >= side)  # [rows, cols, size, size]
        patches = (patch_rows * side + patch_cols).masked_fill(is_padding, 0)
        is_padding, patches = (
            table.flatten(2).flatten(0, 1) for table in (is_padding, patches)
        )  # [grid cells, window]

        tile, cell = cell_indices // (rows * cols), cell_indices % (rows * cols)
        hidden_states = hidden_states[tile[:, None], patches[cell]]  # [cells, window, feature_size], the only copy
        if self.last_tile_embedding is not None:
            # The published code marks the last tile, not the padding, so the weights were trained with that.
            hidden_states.add_(is_last_tile[:, None, None] * self.last_tile_embedding)
        hidden_states.masked_fill_(is_padding[cell][:, :, None], 0)
        return self.projector(self.pooling(hidden_states, **kwargs)[0])


@auto_docstring
class JinaVLMPreTrainedModel(PreTrainedModel):
    config: JinaVLMConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["JinaVLMConnector"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def is_custom_code(cls) -> bool:
        # Transformers does not initialise modules without own parameters in custom code; SiglipAttention needs it.
        return False

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, JinaVLMConnector) and module.last_tile_embedding is not None:
            init.zeros_(module.last_tile_embedding)
        # Vision tower and language model initialise themselves, which leaves the connector and the head.
        elif isinstance(module, nn.Linear) and module is not self.get_output_embeddings():
            # LeCun initialisation keeps the variance at any width.
            init.normal_(module.weight, std=module.in_features**-0.5)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        r"""
        Loads a checkpoint, ours or one in the published format. See [`~PreTrainedModel.from_pretrained`].

        Raises:
            ValueError: if a file is damaged, if a setting has a wrong value, or if weights are missing, unknown, of
                another shape or cannot be converted. With `output_loading_info=True` the names of missing, unknown
                and misshapen weights are returned instead.
        """
        folder = os.path.join(pretrained_model_name_or_path or "", kwargs.get("subfolder") or "")
        check_folder(pretrained_model_name_or_path, kwargs)
        check_config_files(folder, "config.json", "generation_config.json")
        kwargs.setdefault("use_safetensors", True)  # never fall back to a pickle
        is_strict = pretrained_model_name_or_path is not None and not output_loading_info
        kwargs["ignore_mismatched_sizes"] = not is_strict or kwargs.get("ignore_mismatched_sizes", False)
        with name_damaged_file(folder):
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
            )
        model._set_generation_defaults()
        # The base model leaves the output head of a whole checkpoint aside.
        unknown = {name for name in info["unexpected_keys"] if model.can_generate() or not name.startswith("lm_head.")}
        if is_strict:
            problems = {"lacks weights": info["missing_keys"], "holds unknown weights": unknown}
            raise_for_weights(pretrained_model_name_or_path, problems)
        return (model, info) if output_loading_info else model

    @staticmethod
    def _finalize_model_loading(model, load_config, loading_info):
        # Before weights that were not loaded get memory: a wrong size in config.json may ask for gigabytes.
        check_loaded_weights(model, load_config, loading_info)
        return PreTrainedModel._finalize_model_loading(model, load_config, loading_info)

    def _set_generation_defaults(self):
        # The published generation config leaves these to its code: answers would not end or contain image tokens.
        if self.can_generate():
            generation, text_config = self.generation_config, self.config.text_config
            defaults = {name: getattr(text_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
            for name, value in defaults.items():
                if getattr(generation, name) is None:
                    setattr(generation, name, value)
            generation.suppress_tokens = self.config.tokens_to_suppress(generation.suppress_tokens)

    def save_pretrained(self, save_directory, *args, save_original_format: bool = False, **kwargs):
        r"""
        Saves weights under their Transformers names, also those loaded from the published format. To write the
        published format use `python -m jvlm.conversion_scripts.convert_release --reverse`.
        """
        return super().save_pretrained(save_directory, *args, save_original_format=save_original_format, **kwargs)


@auto_docstring(
    custom_intro="""
    The JinaVLM model: vision tower, connector and language model, without a language modeling head.
    """
)
class JinaVLMModel(JinaVLMPreTrainedModel):
    # Features of earlier calls; None is no cache.
    image_cache: ImageFeatureCache | None = None
    # How many tiles the vision tower takes at once without gradients; None is by their size.
    tiles_per_group: int | None = None

    def __init__(self, config: JinaVLMConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        # The tower ends at the deepest block that feeds the connector, so it needs no final norm either. Transformers
        # expects submodels to share the sub-configurations, so the blocks are cut here and not by a copy of them.
        self.vision_tower.encoder.layers = self.vision_tower.encoder.layers[: config.num_vision_blocks]
        self.vision_tower.post_layernorm = nn.Identity()
        # Otherwise the first forward pass does it, within a lock that torch.compile cannot trace.
        maybe_install_capturing_hooks(self.vision_tower)
        self.connector = JinaVLMConnector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        unused_blocks = range(config.num_vision_blocks, config.vision_config.num_hidden_layers)
        unused = ["(post_layernorm|head)", *(rf"encoder\.layers\.{block}" for block in unused_blocks)]
        self._keys_to_ignore_on_load_unexpected = [rf"vision_tower\.{name}\." for name in unused]
        self._keys_to_ignore_on_load_unexpected.append(r"vision_model\.post_lnorm\.")
        self.post_init()

    @can_return_tuple
    @auto_docstring(custom_intro="Encodes images to one feature vector per image token, in sequence order.")
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        image_token_positions: torch.LongTensor | None = None,
        image_plan: ImagePlan | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        r"""
        pixel_values (`torch.Tensor` of shape `(tiles, channels, height, width)`):
            All tiles of all images, each image's thumbnail first.
        image_token_positions (`torch.LongTensor` of shape `(tiles, pooled_cells)`, *optional*):
            Index of every pooled cell among the image tokens of its image, -1 where the cell is dropped.
        image_plan (`ImagePlan`, *optional*):
            Plan made from the positions by [`plan_images`]; it wins over them. `torch.export` needs it as an input.

        Returns:
            `pooler_output` is a tuple of one `(image_tokens, hidden_size)` tensor per image, or one tensor for all if
            the plan has no `num_tokens`. The vectors replace the embeddings of the image tokens.
            `last_hidden_state` holds the features of the distinct tiles, `(tiles, patches, feature_size)`.
        """
        if image_plan is None:
            if torch.compiler.is_compiling():
                raise ValueError("A traced `get_image_features` needs `image_plan`; make it outside of the trace.")
            check_tiles(self.config, pixel_values, getattr(image_token_positions, "shape", None))
            image_plan = plan_images(check_positions(image_token_positions), comparable(pixel_values))
        outputs = self._encode_images(
            pixel_values, image_plan, keep_features=image_plan.keep_tile_features is not False, **kwargs
        )
        image_token = torch.full((1, 1), self.config.image_token_id, device=outputs.pooler_output.device)
        embedding = self.get_input_embeddings()(image_token)[0].to(outputs.pooler_output)
        # In place, because these are the largest tensors of a prompt with many images.
        outputs.pooler_output = image_plan.split(outputs.pooler_output.add_(embedding))
        return outputs

    def get_vision_features(
        self, pixel_values: torch.Tensor, encoded_cells: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        r"""
        Encodes tiles `(tiles, channels, height, width)` to the features that the connector pools, `last_hidden_state`
        of shape `(tiles, patches, feature_size)`. [`forward`] takes them as `vision_features`.

        With `encoded_cells` of shape `(tiles, pooled_cells)`, on the CPU, the vision tower sees only the patches of
        these cells, and the features of the others are 0. Hidden states and attentions are not available then.
        """
        # Only the hidden states of the blocks in use are kept, or on request all of them, the embeddings first.
        keep_all = bool(kwargs.pop("output_hidden_states", None) or self.vision_tower.config.output_hidden_states)
        layers = [block + (1 if keep_all else _FIRST_BLOCK) for block in self.config.vision_feature_layer]
        # A frozen tower needs no backward pass, which gradient checkpointing would run to reach its hooked embeddings.
        is_trained = pixel_values.requires_grad or any(p.requires_grad for p in self.vision_tower.parameters())
        with contextlib.nullcontext() if is_trained else torch.no_grad():
            if encoded_cells is None:
                outputs = self.vision_tower(pixel_values, output_hidden_states=keep_all or layers, **kwargs)
                features = torch.cat([outputs.hidden_states[layer] for layer in layers], dim=-1)
            else:
                if keep_all or kwargs.get("output_attentions") or self.vision_tower.config.output_attentions:
                    raise ValueError("`drop_uniform_patches` is not available with hidden states and attentions.")
                outputs = None
                features = self._encode_patches(pixel_values, encoded_cells)
        # The published code zeroes the features of all-black tiles.
        is_black = (pixel_values == -1).flatten(1).all(dim=1)
        return BaseModelOutputWithPooling(
            last_hidden_state=features.masked_fill_(is_black[:, None, None], 0),  # [tiles, patches, feature_size]
            hidden_states=outputs.hidden_states if keep_all else None,
            attentions=None if outputs is None else outputs.attentions,
        )

    def _encode_patches(self, pixel_values: torch.Tensor, encoded_cells: torch.Tensor) -> torch.Tensor:
        """Features `(tiles, patches, feature_size)` of the patches of some cells, with several tiles in a row."""
        tower, device = self.vision_tower, pixel_values.device
        if torch.compiler.is_compiling():
            raise ValueError("`drop_uniform_patches` is not available in a compiled vision tower.")
        (rows, cols), side = self.config.pooled_shape, self.config.patches_per_side
        index = torch.arange(side) // self.config.pooling_size  # patches beyond the last cell count as those of it
        cell = index.clamp(max=rows - 1)[:, None] * cols + index.clamp(max=cols - 1)
        patches, tiles = pack_patches(encoded_cells[:, cell.flatten()])  # [rows, length]
        is_patch = (tiles >= 0).flatten().nonzero()[:, 0].to(device)
        patches, tiles = patches.to(device), tiles.to(device)

        embeddings = tower.embeddings(pixel_values)  # [tiles, patches, width]
        num_tiles, num_patches, _ = embeddings.shape
        hidden_states = embeddings.flatten(0, 1)[patches]  # [rows, length, width]
        mask = create_bidirectional_mask(
            tower.config, hidden_states, None, and_mask_function=packed_sequence_mask_function(tiles)
        )
        if mask is None:  # as for flash attention
            raise ValueError(
                '`drop_uniform_patches` needs attention with a mask; load with `attn_implementation="sdpa"`.'
            )
        layers = self.config.vision_feature_layer or []
        states = {}
        for number, block in enumerate(tower.encoder.layers):
            hidden_states = block(hidden_states, mask)
            if number in layers:
                states[number] = hidden_states
        features = torch.cat([states[layer] for layer in layers], dim=-1)
        features = features.flatten(0, 1)[is_patch]
        unpacked = features.new_zeros(num_tiles * num_patches, features.shape[-1])
        return unpacked.index_copy(0, patches.flatten()[is_patch], features).unflatten(0, (num_tiles, num_patches))

    def _encode_images(
        self,
        tiles: torch.Tensor,
        plan: ImagePlan,
        are_features: bool = False,
        keep_features: bool = False,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """
        Vision tower and connector. `pooler_output` has one row per image token, without the token's embedding. With
        `keep_features`, `last_hidden_state` has the features of the distinct tiles.
        """

        def encode(plan: ImagePlan) -> BaseModelOutputWithPooling:
            part = tiles[plan.tile_indices.to(tiles.device)]
            if are_features and plan.encoded_cells is not None:
                raise ValueError("`vision_features` are those of whole tiles; leave out `drop_uniform_patches`.")
            if are_features:
                outputs = BaseModelOutputWithPooling(part)
            else:
                outputs = self.get_vision_features(part, plan.encoded_cells, **kwargs)
            features = outputs.last_hidden_state
            pooled = self.connector(
                features, plan.cell_indices.to(features.device), plan.is_last_tile.to(features.device)
            )
            # A field of a `ModelOutput` that is set to None would stay in memory.
            features = features if keep_features else None
            return BaseModelOutputWithPooling(features, pooled, outputs.hidden_states, outputs.attentions)

        settings = self.config.vision_config
        has_states = any(
            kwargs.get(name) or getattr(settings, name) for name in ("output_hidden_states", "output_attentions")
        )
        # FSDP and ZeRO-3 divide the weights: all processes must run the modules equally often, whatever their images.
        weight = next(self.vision_tower.parameters(), None)
        is_divided = hasattr(weight, "device_mesh") or hasattr(weight, "ds_id")
        # With gradients, everything stays in memory anyway.
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or has_states or is_divided or not plan.is_on_host:
            return encode(plan)
        if self.image_cache is None or are_features or keep_features or not plan.num_tokens:
            return self._encode_groups(encode, plan)
        if not isinstance(self.image_cache, ImageFeatureCache):
            raise TypeError(f"`image_cache` must be an `ImageFeatureCache` or None, got {self.image_cache!r}.")
        features = self.image_cache.get_or_compute(
            self, tiles, plan, lambda plan: self._encode_groups(encode, plan).pooler_output
        )
        return BaseModelOutputWithPooling(pooler_output=features)

    def _encode_groups(self, encode: Callable, plan: ImagePlan) -> BaseModelOutputWithPooling:
        """The outputs of `encode` for groups of tiles, so that its memory does not grow with their number."""
        size = self.tiles_per_group
        if size is None:
            size = max(1, _PATCHES_PER_GROUP // self.config.patches_per_side**2)
        elif size < 1:
            raise ValueError(f"`tiles_per_group` must be at least 1, got {size}.")
        if plan.tile_indices.shape[0] <= size:
            return encode(plan)
        pooled, features = None, []
        for rows, group in plan.groups(size):
            outputs = encode(group)
            if pooled is None:
                pooled = outputs.pooler_output.new_empty(plan.cell_indices.shape[0], outputs.pooler_output.shape[-1])
            pooled[rows.to(pooled.device)] = outputs.pooler_output
            features += [] if outputs.last_hidden_state is None else [outputs.last_hidden_state]
        return BaseModelOutputWithPooling(torch.cat(features) if features else None, pooled)

    def _find_image_tokens(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """The positions of the image tokens, `[batch, sequence]`; without `input_ids` found by their embedding."""
        if input_ids is not None:
            return input_ids == self.config.image_token_id
        image_token = torch.full((1, 1), self.config.image_token_id, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(image_token)).all(dim=-1)

    def _plan_prompt(
        self,
        positions: torch.Tensor | None,
        input_ids: torch.Tensor | None,
        image_mask: torch.Tensor,
        plan: ImagePlan | None = None,
        pixel_values: torch.Tensor | None = None,
    ) -> ImagePlan:
        """The plan of the images of a prompt, checked against it with one device-to-host copy for both."""
        counts = image_mask.sum(dim=1)  # [batch]
        if input_ids is not None:
            counts = torch.cat([counts, (input_ids == self.config.image_start_token_id).sum()[None]])
        if plan is None:
            positions = check_positions(positions)
            host = torch.cat([counts, positions.flatten().to(counts.device)]).cpu()
            plan = plan_images(host[len(counts) :].view(positions.shape), comparable(pixel_values))
            counts = host[: len(counts)]
        image_tokens, starts = counts.tolist()[: len(image_mask)], counts.tolist()[len(image_mask) :]
        check_prompt(plan, image_tokens, starts[0] if starts else None, self.config.layout)
        return plan

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_token_positions: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_token_type_ids: torch.LongTensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        image_plan: ImagePlan | None = None,
        vision_features: torch.Tensor | None = None,
        pixel_attention_mask: torch.LongTensor | None = None,
        spatial_shapes: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | JinaVLMModelOutputWithPast:
        r"""
        pixel_values (`torch.Tensor` of shape `(tiles, channels, height, width)`, *optional*):
            All tiles of all images, each image's thumbnail first.
        image_token_positions (`torch.LongTensor` of shape `(tiles, pooled_cells)`, *optional*):
            Index of every pooled cell among the image tokens of its image, -1 where the cell is dropped.
        mm_token_type_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Accepted because processors can return it; image tokens attend like all others.
        image_plan (`ImagePlan`, *optional*):
            Plan made from the positions by [`plan_images`]; it wins over them.
        vision_features (`torch.Tensor` of shape `(tiles, patches, feature_size)`, *optional*):
            Features of all tiles in place of `pixel_values`, see [`~JinaVLMModel.get_vision_features`]. The vision
            tower is not run, so it must be frozen.
        pixel_attention_mask (`torch.LongTensor` of shape `(tiles, pooled_cells)`, *optional*):
            `image_token_positions` under a name that TRL passes on, see `jvlm.training.processor_for_trl`.
        spatial_shapes (`torch.LongTensor` of shape `(tiles, 2)`, *optional*):
            Not used; TRL passes it on with `pixel_attention_mask`.
        """
        image_token_positions = pixel_attention_mask if image_token_positions is None else image_token_positions
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        tiles = pick_tiles(self.config, self.vision_tower, pixel_values, vision_features, mm_encoder_outputs)

        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        image_features = image_outputs = None
        if tiles is not None:
            image_mask = self._find_image_tokens(input_ids, inputs_embeds)  # [batch, sequence]
            given = getattr(image_token_positions, "shape", None) if image_plan is None else image_plan.positions_shape
            if image_plan is None or given is not None:
                check_tiles(self.config, tiles, given)
            is_traced = torch.compiler.is_compiling()
            if image_plan is None and is_traced:
                image_plan = trace_plan(check_positions(image_token_positions), image_mask.sum())
            elif image_plan is None or (image_plan.num_tokens is not None and not is_traced):
                image_plan = self._plan_prompt(image_token_positions, input_ids, image_mask, image_plan, pixel_values)
            if is_traced or image_plan.num_tokens is None:
                has_features = image_mask.sum() <= image_plan.cell_indices.shape[0]
                torch_compilable_check(has_features, "`image_plan` has fewer image tokens than the prompt.")
            flags = {name: kwargs[name] for name in ("output_hidden_states", "output_attentions") if name in kwargs}
            outputs = self._encode_images(tiles, image_plan, vision_features is not None, **flags)
            image_features = outputs.pooler_output.to(inputs_embeds)
            embedding = inputs_embeds.flatten(0, 1)[image_mask.flatten().int().argmax()[None]]  # of an image token
            # Without `last_hidden_state`: it would stay in memory while the language model runs.
            image_outputs = BaseModelOutputWithPooling(
                pooler_output=image_plan.split(image_features + embedding),
                hidden_states=outputs.hidden_states,
                attentions=outputs.attentions,
            )
            # A feature is added to the embedding of its image token.
            placed_features = torch.zeros_like(inputs_embeds).masked_scatter(image_mask.unsqueeze(-1), image_features)
            inputs_embeds = inputs_embeds + placed_features
        elif (image_outputs := (mm_encoder_outputs or {}).get("image")) is not None:
            image_mask = self._find_image_tokens(input_ids, inputs_embeds)
            # `get_image_features` has added the embedding.
            # Without images, as of a blank tile that only keeps processes in step, there is nothing to concatenate.
            features = image_outputs.pooler_output
            image_features = torch.cat(features).to(inputs_embeds) if len(features) else inputs_embeds[:0, 0]
            torch_compilable_check(
                image_mask.sum() == len(image_features),
                lambda: (
                    f"Image features and image tokens do not match, tokens: {image_mask.sum()}, features: "
                    f"{len(image_features)}. Prepare prompt and images in one call of the processor."
                ),
            )
            inputs_embeds = inputs_embeds.masked_scatter(image_mask.unsqueeze(-1), image_features)

        # Trainer turns the cache off here and not in the text config; activation checkpointing of FSDP fails with one.
        kwargs.setdefault("use_cache", getattr(self.config, "use_cache", None))
        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        return JinaVLMModelOutputWithPast(**outputs, image_hidden_states=image_features, image_outputs=image_outputs)


@auto_docstring(
    custom_intro="""
    The JinaVLM model: vision tower, connector and language model, with a language modeling head.
    """
)
class JinaVLMForConditionalGeneration(JinaVLMPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: JinaVLMConfig):
        super().__init__(config)
        self.model = JinaVLMModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()
        self._set_generation_defaults()

    def generate(self, inputs: torch.Tensor | None = None, *args, **kwargs):
        r"""
        Generates tokens, see [`~GenerationMixin.generate`]. A chat can go on from a cache with the inputs of the whole
        chat: images whose tokens are in the cache are not encoded again.

        Raises:
            ValueError: if the cache ends within an image.
        """
        if kwargs.pop("spatial_shapes", None) is not None:  # the names that TRL passes on
            kwargs["image_token_positions"] = kwargs.pop("pixel_attention_mask")
        if kwargs.get("tokenizer") is not None:  # `transformers serve` passes the processor, also for stop strings
            kwargs["tokenizer"] = getattr(kwargs["tokenizer"], "tokenizer", kwargs["tokenizer"])
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        input_ids = kwargs.get("input_ids") if inputs is None else inputs
        positions, attention_mask = kwargs.get("image_token_positions"), kwargs.get("attention_mask")
        if input_ids is not None and kwargs.get("pixel_values") is not None and positions is not None:
            check_tiles(self.config, kwargs["pixel_values"], check_positions(positions).shape)
            image_mask, plan = input_ids == self.config.image_token_id, kwargs.get("image_plan")
            plan = self.model._plan_prompt(positions, input_ids, image_mask, plan, kwargs["pixel_values"])
            num_cached = 0 if cache is None else int(cache.get_seq_length())
            is_whole_chat = attention_mask is None or attention_mask.shape[1] == input_ids.shape[1]
            kwargs["image_plan"] = replace(plan, keep_tile_features=False)
            if is_whole_chat and 0 < num_cached < input_ids.shape[1]:
                self._drop_cached_images(kwargs, input_ids, num_cached)
        return super().generate(inputs, *args, **kwargs)

    @functools.wraps(GenerationMixin.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(self, *args, **kwargs):
        # Beam search normalises the logits before any logits processor sees them.
        return {**super().prepare_inputs_for_generation(*args, **kwargs), "mask_unused_rows": True}

    def _drop_cached_images(self, model_kwargs: dict, input_ids: torch.Tensor, num_cached: int):
        """Drops the tiles of images whose tokens are among the first `num_cached` ones from the arguments."""
        plan = model_kwargs.pop("image_plan")  # the images that are left get one of their own
        is_image = (input_ids == self.config.image_token_id).cpu()
        is_cached = (torch.arange(input_ids.shape[1]) < num_cached).expand_as(is_image)[is_image]  # [image tokens]
        images = [tokens.numpy() for tokens in is_cached.split(plan.num_tokens)]
        if any(image.any() and not image.all() for image in images):
            raise ValueError(
                f"The cache holds {num_cached} tokens and ends within an image; crop it to an end of one."
            )
        is_new = torch.from_numpy(np.repeat([not image.any() for image in images], plan.num_tiles or ()))  # [tiles]
        for name in ("pixel_values", "image_token_positions"):
            tiles = model_kwargs.pop(name)
            if is_new.any():
                model_kwargs[name] = tiles[is_new.to(tiles.device)]

    @auto_docstring
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        image_token_positions: torch.LongTensor | None = None,
        image_plan: ImagePlan | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        r"""
        pixel_values (`torch.Tensor` of shape `(tiles, channels, height, width)`):
            All tiles of all images, each image's thumbnail first.
        image_token_positions (`torch.LongTensor` of shape `(tiles, pooled_cells)`, *optional*):
            Index of every pooled cell among the image tokens of its image, -1 where the cell is dropped.
        image_plan (`ImagePlan`, *optional*):
            Plan made from the positions by [`plan_images`]; it wins over them.
        """
        return self.model.get_image_features(pixel_values, image_token_positions, image_plan, **kwargs)

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_token_positions: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_token_type_ids: torch.LongTensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        image_plan: ImagePlan | None = None,
        vision_features: torch.Tensor | None = None,
        mask_unused_rows: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | JinaVLMCausalLMOutputWithPast:
        r"""
        pixel_values (`torch.Tensor` of shape `(tiles, channels, height, width)`, *optional*):
            All tiles of all images, each image's thumbnail first.
        image_token_positions (`torch.LongTensor` of shape `(tiles, pooled_cells)`, *optional*):
            Index of every pooled cell among the image tokens of its image, -1 where the cell is dropped.
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Tokens to predict, `-100` for positions that do not count; the loss is the mean over the others.
        mm_token_type_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Accepted because processors can return it; image tokens attend like all others.
        image_plan (`ImagePlan`, *optional*):
            Plan made from the positions by [`plan_images`]; it wins over them.
        vision_features (`torch.Tensor` of shape `(tiles, patches, feature_size)`, *optional*):
            Features of all tiles in place of `pixel_values`, see [`~JinaVLMModel.get_vision_features`]. The vision
            tower is not run, so it must be frozen.
        mask_unused_rows (`bool`, *optional*, defaults to `False`):
            Whether logits that are exactly 0 become -inf. These are logits of zero rows of the output head, which no
            token has: the published head has no rows for them. `generate` sets it.

        Example:

        ```python
        >>> import jvlm
        >>> from transformers import AutoModelForImageTextToText, AutoProcessor

        >>> model = AutoModelForImageTextToText.from_pretrained("jinaai/jina-vlm", dtype="bfloat16")
        >>> processor = AutoProcessor.from_pretrained("jinaai/jina-vlm")

        >>> messages = [
        ...     {
        ...         "role": "user",
        ...         "content": [
        ...             {"type": "image", "path": "photo.jpg"},
        ...             {"type": "text", "text": "What is in this image?"},
        ...         ],
        ...     }
        ... ]
        >>> inputs = processor.apply_chat_template(
        ...     messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ... )
        >>> output = model.generate(**inputs, max_new_tokens=64)
        >>> print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
        ```"""
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            image_token_positions=image_token_positions,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            mm_token_type_ids=mm_token_type_ids,
            mm_encoder_outputs=mm_encoder_outputs,
            image_plan=image_plan,
            vision_features=vision_features,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden_states[:, kept, :])
        if mask_unused_rows:
            logits = logits.masked_fill(logits == 0, -torch.inf)

        loss = None
        if labels is not None:
            vocab_size = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
        # Transformers 5.24 renames the field of the cache, so all fields but the first are passed on as they are.
        rest = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return JinaVLMCausalLMOutputWithPast(loss=loss, logits=logits, **rest)


__all__ = ["JinaVLMForConditionalGeneration", "JinaVLMModel", "JinaVLMPreTrainedModel"]
