# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Transformers' common tests of image processors, on both layouts."""

import unittest
from unittest.mock import patch

import PIL.Image
import upstream
from tests import test_image_processing_common as common

from jvlm import JinaVLMImageProcessor


class JinaVLMImageProcessingTester(common.ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        kwargs.setdefault("size", {"height": 56, "width": 56})
        kwargs.setdefault("patch_size", 8)
        kwargs.setdefault("overlap_margins", [1, 1])
        kwargs.setdefault("max_crops", 4)
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self):
        # The common tester looks for the name of the test's folder among Transformers' own models.
        return {"pil": JinaVLMImageProcessor}


class JinaVLMImageProcessingTest(common.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = JinaVLMImageProcessingTester
    test_cast_dtype = True

    def _check_call(self, **kind):
        tester = self.image_processor_tester
        processor = JinaVLMImageProcessor(**self.image_processor_dict)
        images = tester.prepare_image_inputs(**kind)
        num_tiles = []
        for image in images:
            if isinstance(image, PIL.Image.Image):
                height, width = image.height, image.width
            else:
                height, width = image.shape[-2:] if kind.get("torchify") else image.shape[:2]
            rows, cols = processor.get_image_grid(height, width)
            num_tiles.append(1 + rows * cols)
            pixel_values = processor(image, return_tensors="pt").pixel_values
            self.assertEqual(tuple(pixel_values.shape), (num_tiles[-1], *tester.expected_output_image_shape([image])))
        pixel_values = processor(images, return_tensors="pt").pixel_values
        self.assertEqual(tuple(pixel_values.shape), (sum(num_tiles), *tester.expected_output_image_shape(images)))

    @upstream.overrides("as many tiles as its size asks for, not one, of every image")
    def test_call_pil(self):
        self._check_call()

    @upstream.overrides("as many tiles as its size asks for, not one, of every image")
    def test_call_numpy(self):
        self._check_call(numpify=True)

    @upstream.overrides("as many tiles as its size asks for, not one, of every image")
    def test_call_pytorch(self):
        self._check_call(torchify=True)

    @upstream.overrides("the vision tower reads three channels: four are an error unless they are converted")
    def test_call_numpy_4_channels(self):
        processor = JinaVLMImageProcessor(**self.image_processor_dict)
        image, *_ = self.image_processor_tester.prepare_image_inputs(num_channels=4, numpify=True)
        with self.assertRaisesRegex(ValueError, "reads 3 channels, got an image of shape"):
            processor(image, do_convert_rgb=False, input_data_format="channels_last")
        self.assertEqual(processor(image, return_tensors="pt").pixel_values.shape[1], 3)

    @upstream.overrides(
        "its script imports no class outside Transformers and compares arrays; ours resizes in PyTorch"
    )
    def test_pil_can_run_without_torchvision(self):
        def adapted(script):
            script = dedent(script).replace("from transformers", "import jvlm\nfrom transformers")
            return script.replace("return_tensors=None", 'return_tensors="np"')

        dedent = common.textwrap.dedent
        with patch.object(common.textwrap, "dedent", adapted):
            super().test_pil_can_run_without_torchvision()

    @upstream.overrides("no torchvision by design: Pillow decodes and PyTorch resizes")
    def test_new_models_require_torchvision_backend(self):
        self.assertEqual(list(self.image_processing_classes), ["pil"])


class JinaVLMStitchedImageProcessingTester(JinaVLMImageProcessingTester):
    def __init__(self, parent, **kwargs):
        super().__init__(parent, layout="stitched", antialias=True, do_resize=True, **kwargs)


class JinaVLMStitchedImageProcessingTest(JinaVLMImageProcessingTest):
    image_processor_tester_class = JinaVLMStitchedImageProcessingTester
