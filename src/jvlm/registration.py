# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Makes Transformers' Auto classes and weight loading know JinaVLM."""

import transformers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.models import auto
from transformers.models.auto import modeling_auto
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING

from .configuration.configuration_jvlm import JinaVLMConfig
from .modeling.modeling_jvlm import JinaVLMForConditionalGeneration, JinaVLMModel
from .processing.image_processing_jvlm import JinaVLMImageProcessor
from .processing.processing_jvlm import JinaVLMProcessor
from .published_format.published_weights import published_weights


if hasattr(transformers, "AutoModelForVision2Seq"):
    AutoModelForVision2Seq = transformers.AutoModelForVision2Seq
else:

    class AutoModelForVision2Seq(AutoModelForImageTextToText):  # type: ignore[no-redef]
        """The name that Transformers 4 had for [`AutoModelForImageTextToText`], and the same models."""


def register() -> None:
    """Registers the classes under `model_type = "jvlm"`. Doing it twice changes nothing."""
    AutoConfig.register("jvlm", JinaVLMConfig, exist_ok=True)
    AutoImageProcessor.register(JinaVLMConfig, image_processor_classes={"pil": JinaVLMImageProcessor}, exist_ok=True)
    # There is no video processor; without an entry the pipeline asks to run a published folder's code for one.
    VIDEO_PROCESSOR_MAPPING.register(JinaVLMConfig, {}, exist_ok=True)
    AutoProcessor.register(JinaVLMConfig, JinaVLMProcessor, exist_ok=True)
    AutoModel.register(JinaVLMConfig, JinaVLMModel, exist_ok=True)
    AutoModelForImageTextToText.register(JinaVLMConfig, JinaVLMForConditionalGeneration, exist_ok=True)
    # The published model card loads the checkpoint with this class.
    AutoModelForCausalLM.register(JinaVLMConfig, JinaVLMForConditionalGeneration, exist_ok=True)
    # `transformers serve` loads models with this class and looks up their task by names that `register` leaves out.
    AutoModelForMultimodalLM.register(JinaVLMConfig, JinaVLMForConditionalGeneration, exist_ok=True)
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["jvlm"] = JinaVLMForConditionalGeneration.__name__
    modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES["jvlm"] = JinaVLMForConditionalGeneration.__name__
    # TRL looks up the class that a configuration names, to load a model from a path.
    setattr(transformers, JinaVLMForConditionalGeneration.__name__, JinaVLMForConditionalGeneration)
    register_checkpoint_conversion_mapping("jvlm", published_weights(), overwrite=True)
    for module in (transformers, auto, modeling_auto):
        if not hasattr(module, "AutoModelForVision2Seq"):
            module.AutoModelForVision2Seq = AutoModelForVision2Seq
