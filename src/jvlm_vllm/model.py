# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""JinaVLM in vLLM: the model and processor of this package in vLLM's Transformers backend."""

import copy
from collections.abc import Iterable, Mapping

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
from vllm.multimodal.parse import ImageSize

import jvlm
from jvlm.modeling.loaded_weights import raise_for_weights
from jvlm.published_format.published_schema import is_published_config


class JinaVLMProcessingInfo(MultiModalProcessingInfo):
    def get_image_size_with_most_features(self) -> ImageSize:
        """The smallest of the images with most tokens. vLLM tries squares only; ours has 3 × 4 tiles by default."""
        processor = self.get_hf_processor()
        kwargs = self.ctx.get_merged_mm_kwargs({})
        sizes = processor.image_processor.canvas_sizes({**kwargs, **kwargs.get("images_kwargs", {})})
        num_tokens = processor._get_num_multimodal_tokens(image_sizes=sizes, **kwargs)["num_image_tokens"]
        _, (height, width) = max(
            zip(num_tokens, sizes, strict=True), key=lambda entry: (entry[0], -entry[1][0] * entry[1][1])
        )
        return ImageSize(width=width, height=height)


class JinaVLMMultiModalProcessor(MultiModalProcessor):
    def _get_num_image_patches(
        self, hf_inputs: BatchFeature, mm_data: Mapping[str, object], num_images: int
    ) -> torch.Tensor:
        """Tiles of each image. vLLM would compute them without the arguments of the request, such as `max_crops`."""
        return torch.tensor(jvlm.plan_images(hf_inputs["image_token_positions"]).num_tiles)


class AdapterNames(WeightsMapper):
    def map_name(self, key: str) -> str | None:
        """Also refuses adapters of modules that vLLM would silently run without them."""
        name = super().map_name(key)
        if name is not None and ".lora_" in name and not name.startswith("model.language_model."):
            raise ValueError(
                f"The adapter changes {name.partition('.lora_')[0]}, but vLLM runs adapters of JinaVLM's language "
                "model only. Merge it into the model: `PeftModel.from_pretrained(model, adapter).merge_and_unload()`."
            )
        return name


@MULTIMODAL_REGISTRY.register_processor(
    JinaVLMMultiModalProcessor, info=JinaVLMProcessingInfo, dummy_inputs=MultiModalDummyInputsBuilder
)
class JinaVLMForConditionalGeneration(TransformersMultiModalForCausalLM):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.hf_to_vllm_mapper = AdapterNames(**vars(self.hf_to_vllm_mapper))
        generation = self.model_config.try_get_generation_config()
        self.suppressed_tokens = self.config.tokens_to_suppress(generation.get("suppress_tokens"))

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Also does what `generate` does: suppresses tokens, and those with zero rows in the output head."""
        logits = super().compute_logits(hidden_states)
        if logits is not None:
            logits[:, self.suppressed_tokens] = -torch.inf
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
