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
"""JinaVLM model configuration."""

import os
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, Qwen3Config, SiglipVisionConfig
from transformers.utils import auto_docstring

from ..published_format.published_schema import (
    IMAGE_TOKEN_IDS,
    TEXT_TOKEN_IDS,
    is_published_config,
    read_config,
)
from .config_files import check_config_files
from .setting_kinds import CONFIG, check_settings, raises_value_errors, value_errors


# SigLIP2 so400m/14 at 378 pixels.
VISION_DEFAULTS = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 378,
    "patch_size": 14,
    "vision_use_head": False,
}

# Qwen3-1.7B with untied embeddings; 151936 rows of its own vocabulary and 128 for the image tokens.
TEXT_DEFAULTS = {
    "vocab_size": 152064,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    "bos_token_id": 151643,
    "eos_token_id": [151643, 151645],
    "pad_token_id": 151643,
}

# In `image_token_positions`, a cell without an image token whose patches the vision tower does not see.
UNSEEN = -2


def default_pooled_grid(layout: str, tile_size: int, patch_size: int, pooling_size: int) -> list[int]:
    """Rows and columns of pooled cells in a square tile of `tile_size` pixels: all patches, but for the independent
    layout an incomplete last row.

    Raises:
        ValueError: if a size is less than 1.
    """
    for name, size in (("patch_size", patch_size), ("pooling_size", pooling_size)):
        if size < 1:
            raise ValueError(f"`{name}` must be at least 1, got {size}.")
    patches = tile_size // patch_size
    full = -(-patches // pooling_size)
    return [patches // pooling_size if layout == "independent" else full, full]


@auto_docstring(
    custom_intro="""
    Configuration of [`JinaVLMModel`] and [`JinaVLMForConditionalGeneration`]. The defaults are the system of figure 1
    of *jina-vlm: Small Multilingual Vision Language Model* (arXiv 2512.04032). A `config.json` in the schema of the
    published checkpoint `jinaai/jina-vlm` is recognised and translated.
    """
)
@raises_value_errors
@strict
class JinaVLMConfig(PreTrainedConfig):
    r"""
    vision_config (`SiglipVisionConfig` or `dict`, *optional*):
        The vision tower; SigLIP2 so400m/14 at 378 pixels when not given. The model builds its blocks only up to
        the deepest one in `vision_feature_layer`.
    text_config (`Qwen3Config` or `dict`, *optional*):
        The language model; Qwen3-1.7B when not given.
    layout (`"independent"` or `"stitched"`, *optional*, defaults to `"independent"`):
        How the pooled cells of the tiles become image tokens: every tile keeps all of its own (the figure), or
        the overlap of neighbouring tiles is dropped and the rest is put in reading order between marker tokens
        (the published checkpoint). It sets the defaults of `pooled_grid` and `use_last_tile_embedding`; the
        model reads it only to refuse a prompt of the other layout.
    vision_feature_layer (`list[int]`, *optional*):
        Vision blocks whose outputs are concatenated for the connector, in this order, counted from 0; negative
        ones from the last of `vision_config.num_hidden_layers`. `[24, 18]` when not given.
    pooling_size (`int`, *optional*, defaults to 2):
        Side of the window that the connector pools to one image token, in patches.
    pooled_grid (`list[int]`, *optional*):
        Rows and columns of pooled cells in a tile. The patch grid is zero-padded or cropped at the bottom and the
        right to `pooling_size` times this. When not given, `"independent"` leaves out an incomplete last row and
        pads an incomplete last column (13 × 14 of 27 × 27 patches), `"stitched"` pads both (14 × 14).
    connector_num_attention_heads (`int`, *optional*, defaults to 16):
        Heads of the connector's attention pooling.
    connector_head_dim (`int`, *optional*, defaults to 72):
        Width of one of these heads.
    connector_intermediate_size (`int`, *optional*, defaults to 6144):
        Inner width of the connector's gated projector.
    connector_hidden_act (`str`, *optional*, defaults to `"silu"`):
        Activation of the projector's gate.
    use_last_tile_embedding (`bool`, *optional*):
        Whether a learned embedding is added to the features of each image's last tile, as the published
        checkpoint does. When not given, true for the `"stitched"` layout only.
    image_token_id (`int`, *optional*, defaults to 151938):
        Id of `<im_patch>`, the image token, to whose embeddings the image features are added.
    image_start_token_id (`int`, *optional*, defaults to 151936):
        Id of the marker `<im_start>`.
    image_end_token_id (`int`, *optional*, defaults to 151937):
        Id of the marker `<im_end>`.
    image_column_token_id (`int`, *optional*, defaults to 151939):
        Id of the marker `<im_col>`, which ends a row of image tokens.
    tie_word_embeddings (`bool`, *optional*, defaults to `False`):
        Whether input and output embeddings are one table.
    initializer_range (`float`, *optional*, defaults to 0.02):
        Standard deviation of the initial weights of the output head; the connector's follow from its widths.

    Raises:
        ValueError: if a field has a value of another type or out of range, contradicts another field or, in the
            published schema, has a value the model does not implement; the message names the field. Also raised when
            a field is set to such a value later, by `validate` and `save_pretrained`, and by `from_pretrained` if
            `config.json` is damaged.
    """

    model_type = "jvlm"
    sub_configs = {"vision_config": SiglipVisionConfig, "text_config": Qwen3Config}
    keys_to_ignore_at_inference = ["past_key_values", "cache", "image_hidden_states", "image_outputs"]
    # The language model brings its own plan; the vision tower has none and is replicated.
    base_model_tp_plan = {
        "connector.pooling.q_proj": "colwise",
        "connector.pooling.k_proj": "colwise",
        "connector.pooling.v_proj": "colwise",
        "connector.pooling.out_proj": "rowwise",
        "connector.projector.gate_proj": "colwise",
        "connector.projector.up_proj": "colwise",
        "connector.projector.down_proj": "rowwise",
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    layout: Literal["independent", "stitched"] = "independent"
    vision_feature_layer: list[int] | None = None
    pooling_size: int = 2
    pooled_grid: list[int] | tuple[int, ...] | None = None
    connector_num_attention_heads: int = 16
    connector_head_dim: int = 72
    connector_intermediate_size: int = 6144
    connector_hidden_act: str = "silu"
    use_last_tile_embedding: bool | None = None
    image_token_id: int = 151938
    image_start_token_id: int = 151936
    image_end_token_id: int = 151937
    image_column_token_id: int = 151939
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        if is_published_config(self.text_config) or is_published_config(self.vision_config):
            published = {"vision_config": self.vision_config, "text_config": self.text_config, **kwargs}
            for name, value in read_config(published).items():
                setattr(self, name, value)
            # The token ids are in the text config now, and what is saved again holds none of the published code.
            for name in ("auto_map", "bos_token_id", "eos_token_id", "pad_token_id"):
                kwargs.pop(name, None)
        check_settings({**kwargs, **vars(self)}, CONFIG)
        check_settings(kwargs, {"num_labels": CONFIG["num_labels"]}, null=False)
        self.vision_config = self._sub_config("vision_config", VISION_DEFAULTS)
        self.text_config = self._sub_config("text_config", TEXT_DEFAULTS)
        # The connector pools, so a pooling head on the tower would be unused weights.
        self.vision_config.vision_use_head = False
        image_size, patch_size = self.vision_config.image_size, self.vision_config.patch_size
        if self.vision_feature_layer is None:
            self.vision_feature_layer = [24, 18]
        num_blocks = self.vision_config.num_hidden_layers
        self.vision_feature_layer = [block + num_blocks if block < 0 else block for block in self.vision_feature_layer]
        if self.pooled_grid is None:
            self.pooled_grid = default_pooled_grid(self.layout, image_size, patch_size, self.pooling_size)
        self.pooled_grid = list(self.pooled_grid)
        if self.use_last_tile_embedding is None:
            self.use_last_tile_embedding = self.layout == "stitched"
        super().__post_init__(**kwargs)

    def _sub_config(self, name: str, defaults: dict) -> PreTrainedConfig:
        value = getattr(self, name)
        if isinstance(value, PreTrainedConfig):
            return value
        config_class = self.sub_configs[name]
        # Partial dicts are not merged with our defaults: what they leave out is the default of their class.
        value = dict(defaults if value is None else value)
        model_type = value.pop("model_type", config_class.model_type)
        if model_type != config_class.model_type:
            raise ValueError(
                f"`{name}.model_type` is {model_type!r}, but JinaVLM is built of {config_class.model_type!r}: "
                f"give `{name}` as a {config_class.__name__} or a dict of its fields."
            )
        try:
            return config_class(**value)
        except Exception as error:  # Transformers checks the fields with errors of many classes
            raise ValueError(f"`{name}` is not valid: {error.__cause__ or error}") from error

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        r"""See [`~PreTrainedConfig.from_pretrained`]. Overridden to name a damaged `config.json`."""
        folder = os.path.join(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        check_config_files(folder, "config.json")
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        r"""See [`~PreTrainedConfig.from_dict`]. Overridden to check the fields that `kwargs` change, too."""
        with value_errors():
            result = super().from_dict(config_dict, **kwargs)
        (result[0] if isinstance(result, tuple) else result).validate()
        return result

    @property
    def patches_per_side(self) -> int:
        """Patches along one side of a tile (27 in the figure)."""
        return self.vision_config.image_size // self.vision_config.patch_size

    @property
    def num_vision_blocks(self) -> int:
        """Blocks of the vision tower that are built: up to the deepest one that feeds the connector."""
        return max(self.vision_feature_layer or [0]) + 1

    @property
    def pooled_shape(self) -> tuple[int, int]:
        """Rows and columns of pooled cells in a tile: `pooled_grid` as a tuple."""
        rows, cols = self.pooled_grid or (0, 0)
        return rows, cols

    @property
    def feature_size(self) -> int:
        """Width of the concatenated features that enter the connector."""
        return self.vision_config.hidden_size * len(self.vision_feature_layer or [])

    @property
    def suppressed_token_ids(self) -> list[int]:
        """Ids of the image tokens, sorted. They are never generated."""
        return sorted(
            {self.image_token_id, self.image_start_token_id, self.image_end_token_id, self.image_column_token_id}
        )

    def tokens_to_suppress(self, given: list[int] | None = None) -> list[int]:
        """
        `suppress_tokens` of a generation configuration: the `given` ids and the image tokens.

        Version 0.1.0 saved all ids from the first image token to the end of the vocabulary. Such a list bans tokens
        that were added later, so it is dropped.

        Raises:
            ValueError: if `given` is no list of integers.
        """
        given = [] if given is None else given
        if not isinstance(given, (list, tuple)) or any(type(token) is not int for token in given):
            raise ValueError(f"`suppress_tokens` must be a list of token ids, got {str(given)[:100]!r}.")
        image_tokens = self.suppressed_token_ids
        first = image_tokens[0]
        # The placeholder `<|image|>` is an image token too, but no configuration names it.
        is_longer = len(given) > len(image_tokens) + 1
        if is_longer and list(given) == list(range(first, first + len(given))):
            given = []
        return sorted({*given, *image_tokens})

    def validate_architecture(self):
        """Checks fields against each other; `@strict` calls it after `__post_init__`."""
        super().validate_architecture()
        if (file := getattr(self, "transformers_weights", None)) is not None:
            # Transformers would load this file instead, even if it is a pickle.
            raise ValueError(f"`transformers_weights` is {file!r}: remove it, and name the file model.safetensors.")
        check_settings(vars(self), CONFIG)
        vision, text = self.vision_config, self.text_config
        if vision.image_size % vision.patch_size:
            raise ValueError(
                f"`vision_config.image_size` ({vision.image_size}) must be a multiple of "
                f"`vision_config.patch_size` ({vision.patch_size})."
            )
        blocks = range(vision.num_hidden_layers)
        if any(block not in blocks for block in self.vision_feature_layer):
            raise ValueError(
                f"`vision_feature_layer` is {self.vision_feature_layer}, but must name one or more of the "
                f"{len(blocks)} blocks of `vision_config`, 0 to {len(blocks) - 1}."
            )
        if any(
            cells < 1 or abs(cells * self.pooling_size - self.patches_per_side) >= self.pooling_size
            for cells in self.pooled_grid
        ):
            raise ValueError(
                f"`pooled_grid` is {self.pooled_grid}, but must be two numbers of cells that cover the "
                f"{self.patches_per_side} patches of a tile's side, {self.pooling_size} patches each, to less than "
                "one cell."
            )
        heads, groups = text.num_attention_heads, text.num_key_value_heads
        for name, size, reason, divisor in (
            ("vision_config.hidden_size", vision.hidden_size, "`num_attention_heads`", vision.num_attention_heads),
            ("text_config.num_attention_heads", heads, "`num_key_value_heads`", groups),
            ("text_config.head_dim", text.head_dim, "the halves that RoPE rotates", 2),
        ):
            if size % divisor:
                raise ValueError(f"`{name}` ({size}) must be a multiple of {divisor} ({reason}).")

    def validate_token_ids(self):
        """Checks the ids of tokens, which Transformers only warns about; `@strict` calls it after `__post_init__`."""
        text = self.text_config
        token_ids = {name: getattr(self, name) for name in IMAGE_TOKEN_IDS}
        if len(set(token_ids.values())) < len(token_ids):
            raise ValueError(f"The image tokens must have different ids, got {token_ids}.")
        token_ids |= {f"text_config.{name}": getattr(text, name) for name in TEXT_TOKEN_IDS}
        for name, value in token_ids.items():
            for token_id in value if isinstance(value, list) else [value]:
                if token_id is not None and not 0 <= token_id < text.vocab_size:
                    raise ValueError(
                        f"`{name}` is {token_id}, outside the {text.vocab_size} tokens of `text_config.vocab_size`."
                    )


__all__ = ["JinaVLMConfig"]
