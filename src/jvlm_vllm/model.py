# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""JinaVLM in vLLM: the model and processor of this package in vLLM's Transformers backend."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import PIL.Image
import torch
from transformers import BatchFeature, PreTrainedConfig
from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.models.transformers import TransformersMultiModalForCausalLM
from vllm.model_executor.models.transformers.multimodal import (
    MultiModalDummyInputsBuilder,
    MultiModalProcessingInfo,
    MultiModalProcessor,
)
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import ImageProcessorItems, ImageSize, MultiModalDataItems, MultiModalDataParser

import jvlm
from jvlm.modeling.loaded_weights import raise_for_weights
from jvlm.published_format.published_schema import is_published_config


class JinaVLMDataParser(MultiModalDataParser):
    def _parse_image_data(self, data):
        """Keeps images as they are. vLLM would put transparent ones on white."""
        items = super()._parse_image_data(data)
        if isinstance(items, ImageProcessorItems):
            given = data if isinstance(data, (list, tuple)) else [data]
            items.data = [
                image if isinstance(image, PIL.Image.Image) else parsed
                for image, parsed in zip(given, items.data, strict=False)
            ]
        return items


class JinaVLMProcessingInfo(MultiModalProcessingInfo):
    def get_data_parser(self) -> MultiModalDataParser:
        return JinaVLMDataParser(
            expected_hidden_size=self._get_expected_hidden_size(),
            allow_missing_mm_embeddings=self.allow_missing_mm_embeddings,
        )

    def get_hf_processor(self, **kwargs: object) -> jvlm.JinaVLMProcessor:
        """The processor without the arguments of a request, with which it is called anyway."""
        return super().get_hf_processor()

    def images_kwargs(self, kwargs: Mapping[str, object]) -> dict[str, Any]:
        """Arguments of the image processor in a request with `kwargs`, those of the server included."""
        merged: dict[str, Any] = self.ctx.get_merged_mm_kwargs(kwargs)
        return {**merged, **merged.get("images_kwargs", {})}

    def get_max_image_tokens(self) -> int:
        """Tokens that any image may have. vLLM tries squares only, but the largest grid is 3 × 4 or so."""
        return self.get_hf_processor().image_processor.max_num_tokens(self.images_kwargs({}))

    def get_image_size_with_most_features(self) -> ImageSize:
        """The image that memory is measured with: the smallest one of those that have most tokens."""
        processor, kwargs = self.get_hf_processor(), self.images_kwargs({})
        sizes = processor.image_processor.canvas_sizes(kwargs)
        num_tokens = processor._get_num_multimodal_tokens(image_sizes=sizes, **kwargs)["num_image_tokens"]
        _, _, (height, width) = max(
            (count, -size[0] * size[1], size) for count, size in zip(num_tokens, sizes, strict=True)
        )
        return ImageSize(width=width, height=height)


class JinaVLMMultiModalProcessor(MultiModalProcessor):
    def _apply_hf_processor_main(self, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, object]) -> BatchFeature:
        """Also refuses arguments that change the tiles themselves, at which the engine would stop."""
        image_processor = self.info.get_hf_processor().image_processor
        try:
            is_same = image_processor.geometry(self.info.images_kwargs(hf_kwargs)) == image_processor.geometry()
        except ValueError:  # it suggests other tiles, which would be refused, too
            is_same = False
        if not is_same:
            raise ValueError(
                f"`mm_processor_kwargs` is {dict(hf_kwargs)}, but the model is made for one size, overlap and layout "
                "of tiles. Leave out the arguments that change them. `max_crops`, `max_image_tokens` and those of the "
                "first resize (`do_resize`, `min_pixels`, `max_pixels`) can be passed."
            )
        try:
            return super()._apply_hf_processor_main(mm_items, hf_kwargs)
        except ValueError as error:
            # The text of vLLM's error shows the images, but not the reason.
            raise error.__cause__ if isinstance(error.__cause__, ValueError) else error from None

    def _get_num_image_patches(
        self, hf_inputs: BatchFeature, mm_data: Mapping[str, object], num_images: int
    ) -> torch.Tensor:
        """Tiles of each image. vLLM would compute them without the arguments of the request, such as `max_crops`."""
        return torch.tensor(jvlm.plan_images(hf_inputs["image_token_positions"]).num_tiles)


class AdapterNames(WeightsMapper):
    def map_name(self, key: str) -> str | None:
        """Also refuses adapters of modules that vLLM would silently run without them."""
        name = super().map_name(key)
        if name is not None and ".lora_" in name and name.startswith(("model.vision_tower.", "model.connector.")):
            raise ValueError(
                f"The adapter changes {name.partition('.lora_')[0]}, but vLLM runs no adapters of vision tower and "
                "connector. Merge it into the model: `PeftModel.from_pretrained(model, adapter).merge_and_unload()`."
            )
        return name


@MULTIMODAL_REGISTRY.register_processor(
    JinaVLMMultiModalProcessor, info=JinaVLMProcessingInfo, dummy_inputs=MultiModalDummyInputsBuilder
)
class JinaVLMForConditionalGeneration(TransformersMultiModalForCausalLM):
    hf_to_vllm_mapper: WeightsMapper

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.hf_to_vllm_mapper = AdapterNames(**vars(self.hf_to_vllm_mapper))
        given = self.model_config.try_get_generation_config().get("suppress_tokens")
        suppressed = torch.tensor(self.config.tokens_to_suppress(given))
        self.register_buffer("suppressed_tokens", suppressed, persistent=False)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Also does what `generate` does: suppresses tokens, and those with zero rows in the output head."""
        logits = super().compute_logits(hidden_states)
        if logits is not None:
            logits.index_fill_(-1, self.suppressed_tokens, -torch.inf)
            logits.masked_fill_(logits == 0, -torch.inf)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Also loads the published format."""
        settings, _ = PreTrainedConfig.get_config_dict(self.model_config.model, revision=self.model_config.revision)
        if is_published_config(settings.get("text_config")):
            weights = _converted(weights, self.model_config)
        return super().load_weights(weights)


def _converted(
    weights: Iterable[tuple[str, torch.Tensor]], model_config: ModelConfig
) -> Iterable[tuple[str, torch.Tensor]]:
    """Published weights under the names of Transformers, converted by `from_pretrained`, which needs all of them."""
    config = copy.deepcopy(model_config.hf_config)
    config._attn_implementation = "eager"  # not vLLM's
    model, info = jvlm.JinaVLMForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=dict(weights), dtype=model_config.dtype, output_loading_info=True
    )
    problems = {
        "lacks weights": info["missing_keys"],
        "holds unknown weights": info["unexpected_keys"],
        "holds weights of another shape": {name for name, *_ in info["mismatched_keys"]},
    }
    raise_for_weights(model_config.model, problems)
    return model.state_dict().items()
