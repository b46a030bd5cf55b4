# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The benchmarked models at three sizes, with random weights: JinaVLM, its components and other models."""

import gc
from functools import cached_property

import numpy as np
import PIL.Image
import torch
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    Lfm2Config,
    Lfm2VlConfig,
    LlamaConfig,
    PreTrainedModel,
    Qwen3ForCausalLM,
    Siglip2VisionConfig,
    SiglipVisionModel,
    SmolVLMConfig,
)
from transformers import initialization as init

from jvlm import JinaVLMConfig, JinaVLMImageProcessor
from jvlm.processing.tiling import TileGeometry


# Fields of JinaVLMConfig. "full" is the model of the figure, "medium" has about an eighth of its parameters.
SIZES = {
    "tiny": {
        "vision_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": 112,
            "patch_size": 14,
        },
        "text_config": {
            "vocab_size": 1024,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "eos_token_id": 1,
            "pad_token_id": 0,
        },
        "vision_feature_layer": [2, 1],
        "connector_num_attention_heads": 2,
        "connector_head_dim": 32,
        "connector_intermediate_size": 128,
    },
    "medium": {
        "vision_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 378,
            "patch_size": 14,
        },
        "text_config": {
            "vocab_size": 38144,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "eos_token_id": 1,
            "pad_token_id": 0,
        },
        "vision_feature_layer": [10, 7],
        "connector_num_attention_heads": 12,
        "connector_head_dim": 64,
        "connector_intermediate_size": 3072,
    },
    "full": {},
}
TEXT_TOKENS = 12
OTHERS = ("Molmo2", "SmolVLM", "LFM2-VL")


def build_config(size: str) -> JinaVLMConfig:
    """The configuration of a size. The last 64 tokens of its vocabulary are reserved for images."""
    fields = SIZES[size]
    if not fields:
        return JinaVLMConfig()
    first = fields["text_config"]["vocab_size"] - 64
    names = ("image_start_token_id", "image_end_token_id", "image_token_id", "image_column_token_id")
    return JinaVLMConfig(**fields, **{name: first + index for index, name in enumerate(names)})


@torch.no_grad
def random_model(
    model_class, config, dtype: torch.dtype, device: torch.device, block: torch.Tensor | None = None
) -> PreTrainedModel:
    """
    A model with normal weights of standard deviation 0.02. For speed, the values repeat after 2**20. With a `block`,
    weights are views of it, one after the other and from its start again, so that several models fit into memory.
    """
    with init.no_init_weights():
        build = model_class.from_config if hasattr(model_class, "from_config") else model_class._from_config
        model = build(config, dtype=dtype).to(device).eval()
    noise = 0.02 * torch.randn(2**20, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    start = 0
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and block is not None:
            start = start if start + parameter.numel() <= len(block) else 0
            parameter.data = block[start : start + parameter.numel()].view(parameter.shape)
            start += parameter.numel()
        elif parameter.ndim > 1:
            rows, rest = divmod(parameter.numel(), len(noise))
            flat = parameter.view(-1)
            flat[: rows * len(noise)].view(rows, len(noise)).copy_(noise)
            flat[rows * len(noise) :].copy_(noise[:rest])
        else:
            parameter.fill_(float(name.endswith("weight")))  # norms are one, biases zero
    return model


class Bench:
    """
    Models and inputs of the stages. Models are built on first access.

    Args:
        size (`str`): one of `SIZES`.
        dtype (`torch.dtype`): dtype of weights and pixels.
        device (`torch.device`): device of the models.
        max_seconds (`float`): approximate time limit of a comparison.
        share_weights (`bool`): whether the models share a block of weights, many times as large as processor caches.
    """

    def __init__(
        self,
        size: str,
        dtype: torch.dtype,
        device: torch.device,
        max_seconds: float = 240.0,
        share_weights: bool = False,
    ):
        self.size, self.dtype, self.device, self.max_seconds = size, dtype, device, max_seconds
        self.config, self.share_weights = build_config(size), share_weights
        self._blocks: dict[torch.dtype, torch.Tensor] = {}

    def block(self, dtype: torch.dtype) -> torch.Tensor | None:
        """The block of weights that models of a dtype share, if they do."""
        if self.share_weights and dtype not in self._blocks:
            text, generator = self.config.text_config, torch.Generator().manual_seed(0)
            noise = 0.02 * torch.randn(text.vocab_size * text.hidden_size, generator=generator)
            self._blocks[dtype] = noise.to(self.device, dtype)
        return self._blocks.get(dtype)

    @cached_property
    def geometry(self) -> TileGeometry:
        """The tile geometry of the model's layout."""
        tile_size = self.config.vision_config.image_size
        size = {"height": tile_size, "width": tile_size}
        return JinaVLMImageProcessor(size=size, overlap_margins=self.margins).geometry()

    @property
    def margins(self) -> list[int]:
        """The overlap margins of the tiles, in patches."""
        return [4, 4] if self.config.vision_config.image_size == 378 else [1, 1]

    @cached_property
    def model(self) -> PreTrainedModel:
        """JinaVLM."""
        return self.random_model(self.config)

    def random_model(self, config, dtype: torch.dtype | None = None) -> PreTrainedModel:
        """A model of another configuration, or dtype."""
        dtype = dtype or self.dtype
        return random_model(AutoModelForImageTextToText, config, dtype, self.device, self.block(dtype))

    @cached_property
    def tower(self) -> SiglipVisionModel:
        """A `SiglipVisionModel` with the blocks and weights of `model`, plus a final norm."""
        used = self.model.model.vision_tower
        with torch.device("meta"):
            tower = SiglipVisionModel._from_config(used.config)
        tower.post_layernorm = torch.nn.LayerNorm(used.config.hidden_size, dtype=self.dtype, device=self.device)
        tower.embeddings, tower.encoder = used.embeddings, used.encoder
        return tower.eval()

    @cached_property
    def decoder(self) -> Qwen3ForCausalLM:
        """A `Qwen3ForCausalLM` with the weights of `model`."""
        with torch.device("meta"):
            decoder = Qwen3ForCausalLM._from_config(self.model.config.text_config)
        decoder.model, decoder.lm_head = self.model.model.language_model, self.model.lm_head
        return decoder.eval()

    def tiles(self, num_tiles: int, num_images: int = 1) -> dict[str, torch.Tensor]:
        """Random pixels and token positions of images with `num_tiles` tiles each, including the thumbnail."""
        positions = torch.tensor(self.geometry.token_positions((1, max(1, num_tiles - 1))))[:num_tiles]
        side, shape = self.geometry.tile_size, (num_images * num_tiles, 3)
        return {
            "pixel_values": torch.empty(*shape, side, side, device=self.device, dtype=self.dtype).uniform_(-1, 1),
            "image_token_positions": positions.repeat(num_images, 1).to(self.device),
        }

    def text(self, length: int, batch_size: int = 1) -> torch.Tensor:
        """Random text tokens `[batch, length]`."""
        return torch.randint(2, min(self.config.suppressed_token_ids), (batch_size, length), device=self.device)

    def prompt(self, tiles: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Model inputs for one sequence: image tokens, then a random question."""
        num_image_tokens = int((tiles["image_token_positions"] >= 0).sum())
        image_tokens = torch.full((1, num_image_tokens), self.config.image_token_id, device=self.device)
        return {"input_ids": torch.cat([image_tokens, self.text(TEXT_TOKENS)], dim=1), **tiles}

    def embeddings(self, batch_size: int, length: int) -> torch.Tensor:
        """Random embeddings `[batch, length, hidden_size]`."""
        shape = (batch_size, length, self.config.text_config.hidden_size)
        return torch.randn(*shape, device=self.device, dtype=self.dtype)

    def curve(self, axis: str, value: int, records: list[dict]) -> list[dict]:
        """Adds the coordinates of a growth curve to records."""
        return [{**record, "axis": axis, "value": value} for record in records]

    def forget(self) -> None:
        """Frees the models."""
        for name in ("decoder", "tower", "model"):
            self.__dict__.pop(name, None)
        gc.collect()

    def other(self, name: str) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
        """One of `OTHERS`, with the widths and depths of `model`, and its inputs for an image of 3 × 4 tiles."""
        return {"Molmo2": self._molmo2, "SmolVLM": self._smolvlm, "LFM2-VL": self._lfm2_vl}[name]()

    @property
    def text_fields(self) -> dict:
        """Widths and depth of the language model, for other models."""
        text = self.config.text_config
        return {
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_hidden_layers,
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": text.num_key_value_heads,
        }

    @property
    def _vision_fields(self) -> dict:
        vision = self.config.vision_config
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size")
        return {name: getattr(vision, name) for name in names}

    def _other(self, config, num_image_tokens: int, **inputs) -> tuple[PreTrainedModel, dict]:
        model = self.random_model(config)
        model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=1)
        image_tokens = torch.full((1, num_image_tokens), self.config.image_token_id, device=self.device)
        inputs["input_ids"] = torch.cat([image_tokens, self.text(TEXT_TOKENS)], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        return model, inputs

    def _pixels(self, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, device=self.device, dtype=self.dtype) * 2 - 1

    def _molmo2(self) -> tuple[PreTrainedModel, dict]:
        from transformers import Molmo2Config  # missing in the oldest supported Transformers

        vision, config = self._vision_fields, self.config
        heads = {
            "num_attention_heads": vision["num_attention_heads"],
            "num_key_value_heads": vision["num_attention_heads"],
        }
        heads["head_dim"] = vision["hidden_size"] // vision["num_attention_heads"]
        side = config.patches_per_side
        vision["num_hidden_layers"] = max(config.vision_feature_layer) + 1
        molmo2 = Molmo2Config(
            vision_config={**vision, **heads, "image_size": [config.vision_config.image_size] * 2},
            adapter_config={
                **heads,
                "hidden_size": vision["hidden_size"],
                "vision_feature_layer": config.vision_feature_layer,
                "intermediate_size": config.connector_intermediate_size,
                "text_hidden_size": config.text_config.hidden_size,
            },
            text_config={
                **self.text_fields,
                "vocab_size": config.text_config.vocab_size - 128,
                "head_dim": config.text_config.head_dim,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            },
            image_patch_id=config.image_token_id,
        )
        # Pooled cells of the thumbnail and of all tiles without overlaps.
        cells = -(-side // 2)
        grid = (cells, cells, 3 * cells - 8, 4 * cells - 12) if side == 27 else (cells, cells, 3 * cells, 4 * cells)
        num_tokens = grid[0] * grid[1] + grid[2] * grid[3]
        return self._other(
            molmo2,
            num_tokens,
            pixel_values=self._pixels(13, side * side, 3 * vision["patch_size"] ** 2),
            image_token_pooling=torch.randint(13 * side * side, (num_tokens, 4), device=self.device),
            image_grids=torch.tensor([grid], device=self.device),
            image_num_crops=torch.tensor([13], device=self.device),
        )

    def _smolvlm(self) -> tuple[PreTrainedModel, dict]:
        vision = self._vision_fields
        side = self.config.patches_per_side
        scale = 3 if side % 3 == 0 else 2
        smolvlm = SmolVLMConfig(
            vision_config={**vision, "image_size": side * vision["patch_size"]},
            text_config=LlamaConfig(**self.text_fields, head_dim=self.config.text_config.head_dim),
            scale_factor=scale,
            image_token_id=self.config.image_token_id,
        )
        pixel_values = self._pixels(1, 17, 3, side * vision["patch_size"], side * vision["patch_size"])
        return self._other(smolvlm, 17 * (side // scale) ** 2, pixel_values=pixel_values)

    def _lfm2_vl(self) -> tuple[PreTrainedModel, dict]:
        vision, layers = {**self._vision_fields, "patch_size": 16}, self.config.text_config.num_hidden_layers
        side = 32 if self.config.patches_per_side == 27 else 8
        text_config = Lfm2Config(
            **self.text_fields, block_auto_adjust_ff_dim=False, full_attn_idxs=list(range(1, layers, 3))
        )
        lfm2_vl = Lfm2VlConfig(
            vision_config=Siglip2VisionConfig(**vision, num_patches=256, vision_use_head=False),
            text_config=text_config,
            image_token_id=self.config.image_token_id,
            projector_hidden_size=text_config.hidden_size,
        )
        return self._other(
            lfm2_vl,
            7 * (side // 2) ** 2,
            pixel_values=self._pixels(7, side * side, 3 * 16 * 16),
            pixel_attention_mask=torch.ones(7, side * side, dtype=torch.long, device=self.device),
            spatial_shapes=torch.tensor([[side, side]] * 7, device=self.device),
        )


def random_image(height: int, width: int, seed: int = 0) -> PIL.Image.Image:
    """An RGB image of random noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)
