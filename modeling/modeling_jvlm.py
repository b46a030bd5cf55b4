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

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import AutoModel, Cache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.siglip.modeling_siglip import eager_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring, can_return_tuple, torch_compilable_check

from ..configuration.configuration_jvlm import JinaVLMConfig
from ..configuration.damaged_files import check_folder, naming_damaged_files


# Index of block 0 in `output_hidden_states=[...]`: since 5.23 the embeddings count as hidden state 0.
_FIRST_BLOCK = 1 if Version(transformers.__version__) >= Version("5.23.0.dev0") else 0


@auto_docstring(custom_intro="Outputs of the JinaVLM model, with the image features it used.")
@dataclass
class JinaVLMModelOutputWithPast(BaseModelOutputWithPast):
    r"""
    image_hidden_states (`torch.Tensor` of shape `(num_image_tokens, hidden_size)`, *optional*):
        What stands in place of the image tokens' embeddings, all images one after the other.
    """

    image_hidden_states: torch.Tensor | None = None


@auto_docstring(custom_intro="Outputs of the JinaVLM model with its head, with the image features it used.")
@dataclass
class JinaVLMCausalLMOutputWithPast(CausalLMOutputWithPast):
    r"""
    image_hidden_states (`torch.Tensor` of shape `(num_image_tokens, hidden_size)`, *optional*):
        What stands in place of the image tokens' embeddings, all images one after the other.
    """

    image_hidden_states: torch.Tensor | None = None


class JinaVLMAttentionPooling(nn.Module):
    """Multi-head attention over the patches of a window, asked with their mean."""

    def __init__(self, config: JinaVLMConfig):
        super().__init__()
        # A part of the vision side: it follows the attention implementation of the vision tower.
        self.config = config.vision_config
        self.head_dim = config.connector_head_dim
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        width = config.connector_num_attention_heads * self.head_dim
        feature_size = config.vision_config.hidden_size * len(config.vision_feature_layer)
        self.q_proj = nn.Linear(feature_size, width)
        self.k_proj = nn.Linear(feature_size, width)
        self.v_proj = nn.Linear(feature_size, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        # hidden_states: [cells, patches of a cell, features]
        heads = (-1, self.head_dim)
        query = self.q_proj(hidden_states.mean(dim=1)).unflatten(-1, heads).unsqueeze(2)  # [cells, heads, 1, head_dim]
        key = self.k_proj(hidden_states).unflatten(-1, heads).transpose(1, 2)
        value = self.v_proj(hidden_states).unflatten(-1, heads).transpose(1, 2)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, _ = attention_interface(
            self, query, key, value, None, is_causal=self.is_causal, scaling=self.scaling, dropout=0.0, **kwargs
        )
        return self.out_proj(output.flatten(1))  # [cells, width]


class JinaVLMProjector(nn.Module):
    """Gated feed-forward layer (SwiGLU) into the language model's width."""

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
    """Pools neighbouring patches and projects them into the language model's width."""

    def __init__(self, config: JinaVLMConfig):
        super().__init__()
        self.patches_per_side = config.patches_per_side
        self.pooling_size = config.pooling_size
        self.pooled_grid = config.pooled_grid
        self.last_tile_embedding = None
        # CODEPATH: jinaai/jina-vlm has the embedding; models of the figure ("independent" layout) have none.
        if config.use_last_tile_embedding:
            feature_size = config.vision_config.hidden_size * len(config.vision_feature_layer)
            self.last_tile_embedding = nn.Parameter(torch.zeros(feature_size))
        self.pooling = JinaVLMAttentionPooling(config)
        self.projector = JinaVLMProjector(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        is_last_tile: torch.Tensor,
        cell_indices: torch.Tensor,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        r"""
        Args:
            hidden_states (`torch.Tensor` of shape `(tiles, patches, features)`):
                Concatenated features of the vision tower.
            is_last_tile (`torch.BoolTensor` of shape `(tiles,)`):
                Which tiles are the last of their image.
            cell_indices (`torch.LongTensor` of shape `(cells,)`):
                Pooled cells to compute, as indices into all tiles' cells in row-major order.

        Returns:
            `torch.Tensor` of shape `(cells, hidden_size)`.
        """
        side, size, (rows, cols) = self.patches_per_side, self.pooling_size, self.pooled_grid
        patch_rows = torch.arange(rows * size, device=hidden_states.device).view(rows, 1, size, 1)
        patch_cols = torch.arange(cols * size, device=hidden_states.device).view(1, cols, 1, size)
        # Where the pooled grid is larger than the tile, there are zeros at the bottom and the right.
        is_outside = (patch_rows >= side) | (patch_cols >= side)  # [rows, cols, size, size]
        patches = (patch_rows * side + patch_cols).masked_fill(is_outside, 0)
        is_outside, patches = (table.flatten(2).flatten(0, 1) for table in (is_outside, patches))  # [cells, patches]

        tile, cell = cell_indices // (rows * cols), cell_indices % (rows * cols)
        hidden_states = hidden_states[tile[:, None], patches[cell]]  # [cells, size * size, features], the only copy
        if self.last_tile_embedding is not None:
            # The release's weights learned it so: its padding mask ended up one tile too late.
            hidden_states.add_(is_last_tile[tile, None, None] * self.last_tile_embedding)
        hidden_states.masked_fill_(is_outside[cell][:, :, None], 0)
        return self.projector(self.pooling(hidden_states, **kwargs))


@auto_docstring
class JinaVLMPreTrainedModel(PreTrainedModel):
    config: JinaVLMConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["JinaVLMConnector"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def is_custom_code(cls) -> bool:
        # Custom code may write over loaded weights, so Transformers skips modules that hold none of their own, such as
        # the ones below. Ours initialises with `transformers.initialization`, which leaves loaded weights alone.
        return False

    def post_init(self):
        super().post_init()
        # FSDP by Accelerate fails if there are none of one of these, and SigLIP names parts of its text model too.
        self._no_split_modules = {type(module).__name__ for module in self.modules()} & set(self._no_split_modules)

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, JinaVLMConnector) and module.last_tile_embedding is not None:
            init.zeros_(module.last_tile_embedding)
        elif isinstance(module, (JinaVLMAttentionPooling, JinaVLMProjector)):
            # Features keep their size through the connector at any width, so that they are heard from the first step.
            for layer in module.children():
                if isinstance(layer, nn.Linear):
                    init.normal_(layer.weight, std=layer.in_features**-0.5)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        r"""
        Loads a checkpoint, ours or one in the published layout; see [`~PreTrainedModel.from_pretrained`].

        Raises:
            ValueError: if a file is damaged, or if the checkpoint lacks weights of the model or holds others. With
                `output_loading_info=True` the latters' names are returned instead, for those who know what they do.
        """
        folder = os.path.join(pretrained_model_name_or_path or "", kwargs.get("subfolder") or "")
        check_folder(folder, needs_config=kwargs.get("config") is None)
        kwargs.setdefault("use_safetensors", True)  # a missing file is no reason to look for a pickle
        with naming_damaged_files(folder):
            model, loading_info = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
            )
        if model.can_generate():
            generation, text_config = model.generation_config, model.config.text_config
            if generation.suppress_tokens is None:
                # The published generation config leaves it to its output head, which has no rows for image tokens.
                generation.suppress_tokens = model.config.input_only_token_ids
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                if getattr(generation, name) is None:  # without an end, answers would go on to `max_new_tokens`
                    setattr(generation, name, getattr(text_config, name))
        if output_loading_info:
            return model, loading_info
        if pretrained_model_name_or_path is not None:
            for kind, keys in (("lacks", "missing_keys"), ("holds unknown", "unexpected_keys")):
                if names := sorted(loading_info[keys]):
                    raise ValueError(
                        f"{pretrained_model_name_or_path} {kind} weights: {', '.join(names[:5])}"
                        f"{f' and {len(names) - 5} more' if len(names) > 5 else ''}. Check that all its files are "
                        "complete and belong together, or pass `output_loading_info=True` to load what there is."
                    )
        return model

    @staticmethod
    def _finalize_model_loading(model, load_config, loading_info):
        if isinstance(model, JinaVLMModel):
            # A whole model's output head. Were it among the keys to ignore, vLLM would not load it into its own head.
            loading_info.unexpected_keys = {
                name for name in loading_info.unexpected_keys if not name.startswith("lm_head.")
            }
        try:
            return PreTrainedModel._finalize_model_loading(model, load_config, loading_info)
        except RuntimeError as error:
            # Transformers logs a report; the error itself must name what does not fit.
            problems = [
                f"{name} ({message.splitlines()[-2]})" for name, message in loading_info.conversion_errors.items()
            ]
            problems += [
                f"{name} has the shape {list(found)}, {list(expected)} expected"
                for name, found, expected in loading_info.mismatched_keys
            ]
            if not problems:
                raise
            raise ValueError(
                f"Weights of {load_config.pretrained_model_name_or_path} do not fit: {'; '.join(problems[:5])}. "
                "Check that configuration and weights belong together."
            ) from error

    def save_pretrained(self, save_directory, *args, save_original_format: bool = False, **kwargs):
        r"""
        Saves the model in its own layout, whatever layout it was loaded from; see
        [`~PreTrainedModel.save_pretrained`]. To write the published layout use
        `python -m jvlm.conversion_scripts.convert_release --reverse`.
        """
        return super().save_pretrained(save_directory, *args, save_original_format=save_original_format, **kwargs)


def _places_of_images(image_token_positions: torch.LongTensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image of every tile, number of tokens of every image, and its first one among those of all images."""
    # A thumbnail keeps all of its cells, so it is the only tile of its image whose first cell comes first.
    is_first_tile = image_token_positions[:, 0] == 0
    image_index = is_first_tile.cumsum(0) - 1  # [tiles]
    num_tokens = image_token_positions.new_zeros(int(is_first_tile.sum()))
    num_tokens = num_tokens.index_add(0, image_index, (image_token_positions >= 0).sum(dim=1))  # [images]
    return image_index, num_tokens, num_tokens.cumsum(0) - num_tokens


def _is_divided_by_fsdp(model: nn.Module) -> bool:
    # Whoever called it. Not every build of PyTorch has these.
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    return any(isinstance(module, (FSDPModule, FullyShardedDataParallel)) for module in model.modules())


@auto_docstring(
    custom_intro="""
    The JinaVLM model: vision tower, connector and language model, without a language modeling head.
    """
)
class JinaVLMModel(JinaVLMPreTrainedModel):
    # Parts of the published checkpoint that no feature comes from.
    _keys_to_ignore_on_load_unexpected = [r"vision_tower\.post_layernorm\.", r"vision_tower\.head\."]

    def __init__(self, config: JinaVLMConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        # The tower ends at the deepest block in use: no later block and no final norm.
        num_blocks = max(config.vision_feature_layer) + 1
        self.vision_tower.encoder.layers = self.vision_tower.encoder.layers[:num_blocks]
        self.vision_tower.post_layernorm = nn.Identity()
        self.connector = JinaVLMConnector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        unused = range(num_blocks, config.vision_config.num_hidden_layers)
        self._keys_to_ignore_on_load_unexpected = [
            *type(self)._keys_to_ignore_on_load_unexpected,
            *(rf"vision_tower\.encoder\.layers\.{block}\." for block in unused),
        ]
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.language_model.set_input_embeddings(value)

    @can_return_tuple
    @auto_docstring(
        custom_intro="Encodes tiles. Returns, for every image token in sequence order, what stands in place of its "
        "embedding."
    )
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        image_token_positions: torch.LongTensor,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        r"""
        pixel_values (`torch.Tensor` of shape `(tiles, channels, height, width)`):
            All tiles of all images, each image's thumbnail first.
        image_token_positions (`torch.LongTensor` of shape `(tiles, pooled cells)`):
            Place of every pooled cell among the image tokens of its image, -1 where it is dropped.

        Returns:
            The `pooler_output` is a tuple with one `(num_image_tokens, hidden_size)` tensor per image;
            `last_hidden_state` holds the vision tower's concatenated features, `(tiles, patches, features)`.
        """
        if image_token_positions is None:
            raise ValueError("`pixel_values` needs `image_token_positions`; pass both as the processor returned them.")
        rows, cols = self.config.pooled_grid
        if image_token_positions.shape[1] != rows * cols:
            raise ValueError(
                f"`image_token_positions` has {image_token_positions.shape[1]} pooled cells a tile, but the model's "
                f"`config.pooled_grid` is {rows} × {cols} = {rows * cols}: the image processor's layout is not the "
                f'model\'s ("{self.config.layout}"). Load both from the same checkpoint or set '
                f'`image_processor.layout = "{self.config.layout}"`.'
            )
        if len(pixel_values) != len(image_token_positions):
            raise ValueError(
                f"`pixel_values` has {len(pixel_values)} tiles, but `image_token_positions` has "
                f"{len(image_token_positions)} rows; pass both as the processor returned them."
            )
        # Kept are the hidden states of the blocks in use, or on request all of them, the embeddings first.
        keep_all = bool(kwargs.pop("output_hidden_states", None) or self.vision_tower.config.output_hidden_states)
        first_block = 1 if keep_all else _FIRST_BLOCK
        layers = [block + first_block for block in self.config.vision_feature_layer]
        vision_outputs = self._encode_tiles(pixel_values, output_hidden_states=keep_all or layers, **kwargs)
        features = torch.cat([vision_outputs.hidden_states[layer] for layer in layers], dim=-1)
        hidden_states, attentions = vision_outputs.hidden_states if keep_all else None, vision_outputs.attentions
        del vision_outputs  # which holds the features a second time
        # A black tile says nothing: the release hides it from the connector.
        is_black = (pixel_values == -1).flatten(1).all(dim=1)
        features.masked_fill_(is_black[:, None, None], 0)  # [tiles, patches, features]

        image_index, num_tokens, first_token = _places_of_images(image_token_positions)
        is_kept = image_token_positions >= 0
        order = (image_token_positions + first_token[image_index][:, None])[is_kept]
        cell_indices = torch.empty_like(order)
        cell_indices[order] = is_kept.flatten().nonzero().squeeze(1)

        is_last_tile = (image_token_positions[:, 0] == 0).roll(-1)
        image_features = self.connector(features, is_last_tile, cell_indices)
        image_token = torch.full((), self.config.image_token_id, dtype=torch.long, device=image_features.device)
        image_features = image_features + self.get_input_embeddings()(image_token).to(image_features)
        return BaseModelOutputWithPooling(
            last_hidden_state=features,
            pooler_output=torch.split(image_features, num_tokens.tolist()),
            hidden_states=hidden_states,
            attentions=attentions,
        )

    def _encode_tiles(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """
        The vision tower's outputs for all tiles. Neighbours of equal pixels go through it once: an image of one tile
        has it as its thumbnail too.
        """
        is_new = torch.ones(len(pixel_values), dtype=torch.bool, device=pixel_values.device)
        # The first row of pixels tells most tiles apart, without a mask as large as all of them.
        alike = (pixel_values[1:, :, 0] == pixel_values[:-1, :, 0]).flatten(1).all(dim=1).nonzero().squeeze(1)
        is_new[alike + 1] = (pixel_values[alike + 1] != pixel_values[alike]).flatten(1).any(dim=1)
        if is_new.all():
            return self.vision_tower(pixel_values, **kwargs)
        outputs = self.vision_tower(pixel_values[is_new], **kwargs)
        index = is_new.cumsum(0) - 1
        for name in ("hidden_states", "attentions"):
            if states := outputs.get(name):
                outputs[name] = tuple(state if state is None else state[index.to(state.device)] for state in states)
        return outputs

    def get_placeholder_mask(
        self, input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor, image_features: torch.Tensor
    ) -> torch.BoolTensor:
        """
        The places of the image tokens, `[batch, sequence, 1]`, checked to be as many as the image features. Without
        `input_ids` they are found by their embedding.
        """
        if input_ids is None:
            image_token = torch.full((), self.config.image_token_id, dtype=torch.long, device=inputs_embeds.device)
            mask = (inputs_embeds == self.get_input_embeddings()(image_token)).all(dim=-1)
        else:
            mask = input_ids == self.config.image_token_id
        num_tokens = mask.sum()
        torch_compilable_check(
            num_tokens == image_features.shape[0],
            f"Image features and image tokens do not match, tokens: {num_tokens}, features: "
            f"{image_features.shape[0]}. Prepare prompt and images in one call of the processor, and check that its "
            f"`image_token_id` is the model's ({self.config.image_token_id}).",
        )
        return mask.unsqueeze(-1).to(inputs_embeds.device)

    def _needs_unused_image(self, past_key_values: Cache | None) -> bool:
        """Whether the vision side must run though there is no image."""
        is_training = self.training and torch.is_grad_enabled()
        if is_training and not any(parameter.requires_grad for parameter in self.language_model.parameters()):
            return True  # or the loss would depend on nothing that is trained
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return False
        is_decoding = past_key_values is not None and past_key_values.get_seq_length() > 0
        if is_decoding or torch.distributed.get_world_size() == 1:
            return False
        # Other processes, whose batches may have images, wait for this one's gradients or its part of the weights.
        return is_training or is_deepspeed_zero3_enabled() or _is_divided_by_fsdp(self)

    def _with_unused_image(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """The same embeddings, with a grey tile behind them that no place takes: its gradients are zero."""
        vision_config, (rows, cols) = self.config.vision_config, self.config.pooled_grid
        side = vision_config.image_size
        pixel_values = inputs_embeds.new_zeros(1, vision_config.num_channels, side, side)
        image_token_positions = torch.arange(rows * cols, device=inputs_embeds.device)[None]
        image_outputs = self.get_image_features(pixel_values, image_token_positions, return_dict=True)
        no_place = torch.zeros_like(inputs_embeds[..., :1], dtype=torch.bool)
        return inputs_embeds.masked_scatter(no_place, image_outputs.pooler_output[0].to(inputs_embeds))

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_token_positions: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        mm_token_type_ids: torch.LongTensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | JinaVLMModelOutputWithPast:
        r"""
        pixel_values (`torch.Tensor` of shape `(tiles, channels, height, width)`, *optional*):
            All tiles of all images, each image's thumbnail first.
        image_token_positions (`torch.LongTensor` of shape `(tiles, pooled cells)`, *optional*):
            Place of every pooled cell among the image tokens of its image, -1 where it is dropped.
        mm_token_type_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Accepted because processors can return it; image tokens attend like all others.
        """
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if pixel_values is not None and mm_encoder_outputs:
            raise ValueError("You cannot specify both pixel_values and mm_encoder_outputs at the same time")

        if use_cache is None:
            # Trainer turns the cache off here, not in the decoder's own configuration.
            use_cache = getattr(self.config, "use_cache", None)

        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        image_outputs = (mm_encoder_outputs or {}).get("image")
        if pixel_values is not None:
            image_outputs = self.get_image_features(pixel_values, image_token_positions, return_dict=True)
        image_features = None
        if image_outputs is not None:
            image_features = torch.cat(list(image_outputs.pooler_output)).to(inputs_embeds)
            image_mask = self.get_placeholder_mask(input_ids, inputs_embeds, image_features)
            inputs_embeds = inputs_embeds.masked_scatter(image_mask, image_features)
        elif self._needs_unused_image(past_key_values):
            inputs_embeds = self._with_unused_image(inputs_embeds)

        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        return JinaVLMModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_features,
        )


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
        self.generation_config.suppress_tokens = config.input_only_token_ids

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def generate(self, inputs: torch.Tensor | None = None, *args, **kwargs):
        r"""
        Generates tokens, see [`~GenerationMixin.generate`]. A chat can go on from `past_key_values` with the inputs of
        all of it: images that the cache holds are not encoded again.

        Raises:
            ValueError: if `past_key_values` ends within an image.
        """
        cache, input_ids = kwargs.get("past_key_values"), kwargs.get("input_ids") if inputs is None else inputs
        if cache is not None and input_ids is not None and kwargs.get("pixel_values") is not None:
            attention_mask = kwargs.get("attention_mask")
            is_whole_chat = attention_mask is None or attention_mask.shape[1] == input_ids.shape[1]
            if is_whole_chat and (num_cached := int(cache.get_seq_length())):
                is_new = self._is_new_tile(input_ids, num_cached, kwargs["image_token_positions"])
                for name in ("pixel_values", "image_token_positions"):
                    tiles = kwargs.pop(name)
                    if is_new.any():
                        kwargs[name] = tiles[is_new.to(tiles.device)]
        return super().generate(inputs, *args, **kwargs)

    def _is_new_tile(
        self, input_ids: torch.LongTensor, num_cached: int, image_token_positions: torch.LongTensor
    ) -> torch.BoolTensor:
        """Which tiles are of images whose tokens come after the `num_cached` first of their sequence, `[tiles]`."""
        image_index, num_tokens, first_token = _places_of_images(image_token_positions)
        is_cached = (torch.arange(input_ids.shape[1], device=input_ids.device) < num_cached).expand_as(input_ids)
        is_cached = is_cached[input_ids == self.config.image_token_id].to(first_token.device)  # [image tokens]
        if len(is_cached) != num_tokens.sum():
            return torch.ones_like(image_index, dtype=torch.bool)  # the model will say what does not match
        if not torch.equal(is_cached[first_token], is_cached[first_token + num_tokens - 1]):
            raise ValueError(
                f"`past_key_values` holds {num_cached} tokens and ends within an image; crop it to the end or the "
                "start of one."
            )
        return ~is_cached[first_token][image_index]

    @auto_docstring
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        image_token_positions: torch.LongTensor,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        r"""
        pixel_values (`torch.Tensor` of shape `(tiles, channels, height, width)`):
            All tiles of all images, each image's thumbnail first.
        image_token_positions (`torch.LongTensor` of shape `(tiles, pooled cells)`):
            Place of every pooled cell among the image tokens of its image, -1 where it is dropped.
        """
        return self.model.get_image_features(pixel_values, image_token_positions, **kwargs)

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_token_positions: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_token_type_ids: torch.LongTensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | JinaVLMCausalLMOutputWithPast:
        r"""
        pixel_values (`torch.Tensor` of shape `(tiles, channels, height, width)`, *optional*):
            All tiles of all images, each image's thumbnail first.
        image_token_positions (`torch.LongTensor` of shape `(tiles, pooled cells)`, *optional*):
            Place of every pooled cell among the image tokens of its image, -1 where it is dropped.
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Tokens to predict, `-100` where none; the loss is the mean over the others.
        mm_token_type_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Accepted because processors can return it; image tokens attend like all others.

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
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            mm_token_type_ids=mm_token_type_ids,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden_states[:, kept, :])

        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return JinaVLMCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )


__all__ = ["JinaVLMForConditionalGeneration", "JinaVLMModel", "JinaVLMPreTrainedModel"]
