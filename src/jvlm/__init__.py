# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""JinaVLM for Transformers 5. Importing this package registers its classes with the Auto classes."""

from .configuration.configuration_jvlm import JinaVLMConfig
from .evidence import EvidenceMeasurement, find_evidence, measure_evidence
from .modeling.feature_cache import ImageFeatureCache
from .modeling.image_plan import ImagePlan, plan_images
from .modeling.modeling_jvlm import JinaVLMForConditionalGeneration, JinaVLMModel, JinaVLMPreTrainedModel
from .prefix_cache import PrefixCache
from .processing.drawing import draw_evidence, draw_tiles
from .processing.image_processing_jvlm import JinaVLMImageProcessor
from .processing.processing_jvlm import JinaVLMProcessor
from .processing.prompt_format import add_image_tokens
from .registration import AutoModelForVision2Seq, register


__version__ = "0.1.0"

register()

__all__ = [
    "AutoModelForVision2Seq",
    "EvidenceMeasurement",
    "ImageFeatureCache",
    "ImagePlan",
    "JinaVLMConfig",
    "JinaVLMForConditionalGeneration",
    "JinaVLMImageProcessor",
    "JinaVLMModel",
    "JinaVLMPreTrainedModel",
    "JinaVLMProcessor",
    "PrefixCache",
    "add_image_tokens",
    "draw_evidence",
    "draw_tiles",
    "find_evidence",
    "measure_evidence",
    "plan_images",
]
