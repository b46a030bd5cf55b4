# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Transformers' pipeline mixin on the small model. What it asks of the pipeline is ours: see the class below."""

import unittest

import numpy as np
import PIL.Image
import upstream
from tests import test_pipeline_mixin as common
from transformers import ImageTextToTextPipeline

from jvlm import JinaVLMForConditionalGeneration


common.PROCESSOR_MAPPING_NAMES = {**common.PROCESSOR_MAPPING_NAMES, "jvlm": "AutoProcessor"}


class ImageTextToTextPipelineTests:
    """In place of the class of this name that the mixin drives, which the source distribution lacks."""

    def get_test_pipeline(self, model, tokenizer, dtype, **processors):
        pipeline = ImageTextToTextPipeline(
            model=model, tokenizer=tokenizer, dtype=dtype, max_new_tokens=5, **processors
        )
        image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
        return pipeline, [
            {"images": image, "text": "<|image|> Which number?"},
            {"images": [image, image], "text": "<|image|><|image|> Which is larger?"},
        ]

    def run_pipeline_test(self, pipeline, examples):
        for example in examples:
            (answer,) = pipeline(**example, return_full_text=False)
            assert answer["input_text"] == example["text"]
            assert isinstance(answer["generated_text"], str)
        content = [{"type": "image", "image": examples[0]["images"]}, {"type": "text", "text": "Which number?"}]
        chat = [{"role": "user", "content": content}]
        for answer in (pipeline(chat), *pipeline([chat, chat], batch_size=2)):
            assert answer[0]["generated_text"][-1]["role"] == "assistant"


upstream.stand_in(
    "tests.pipelines.test_pipelines_image_text_to_text", ImageTextToTextPipelineTests=ImageTextToTextPipelineTests
)


class JinaVLMPipelineTest(common.PipelineTesterMixin, unittest.TestCase):
    pipeline_model_mapping = {"image-text-to-text": JinaVLMForConditionalGeneration}
