# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Transformers' common tests of processors, on the small model's and on one of the published format."""

import unittest
from pathlib import Path
from unittest.mock import patch

import upstream
from parameterized import parameterized
from tests.test_processing_common import MODALITY_INPUT_DATA, ProcessorTesterMixin

from jvlm import JinaVLMProcessor


ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "tests" / "fixtures" / "release_tiny" / "checkpoint"


class JinaVLMProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = JinaVLMProcessor
    model_id = str(ROOT / "examples" / "digits" / "model")
    # More than an image's tokens.
    images_text_kwargs_max_length = images_text_kwargs_override_max_length = images_unstructured_max_length = 500

    @parameterized.expand([(1, "pt"), (2, "pt")])
    @upstream.overrides("pixel_values has a row for every tile; image_grids is what has one for every image")
    def test_apply_chat_template_image(self, batch_size, return_tensors):
        images = MODALITY_INPUT_DATA["images"]
        with (
            patch.object(JinaVLMProcessor, "unused_input_names", []),
            patch.object(self, "images_input_name", "image_grids"),
        ):
            self._test_apply_chat_template(
                "image", batch_size, return_tensors, "images_input_name", "image_processor", images
            )


class JinaVLMPublishedProcessorTest(JinaVLMProcessorTest):
    model_id = str(PUBLISHED)

    @staticmethod
    def prepare_processor_dict():
        # As `export_to_hub` writes it: the processor puts a BOS token before every prompt, so the template has it.
        template = (PUBLISHED / "chat_template.jinja").read_text()
        return {"add_bos_token": True, "chat_template": "<|endoftext|>" + template}

    @upstream.overrides("the processor, not its tokenizer, puts a BOS token before the prompt")
    def test_subprocessor_defaults_0_text(self):
        processor, text = self.get_processor(), self.prepare_text_inputs()
        expected = [processor.tokenizer.eos_token_id, *processor.tokenizer(text).input_ids]
        self.assertEqual(processor(text=text).input_ids, [expected])
