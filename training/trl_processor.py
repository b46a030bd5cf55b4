# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""A processor for TRL's `GRPOTrainer` and `RLOOTrainer`, which pass on only the inputs that they know by name."""

import copy

import torch

from ..processing import image_processing_jvlm, processing_jvlm


def processor_for_trl(processor: processing_jvlm.JinaVLMProcessor) -> processing_jvlm.JinaVLMProcessor:
    """
    A copy of a processor for `GRPOTrainer(processing_class=...)` and `RLOOTrainer(processing_class=...)`.

    These trainers cut batches by tiles for the inputs of LFM2-VL only: `pixel_values`, `pixel_attention_mask` and
    `spatial_shapes`, each with one row per tile. The copy returns `image_token_positions` as `pixel_attention_mask`,
    which the model takes for them. What the copy saves is the processor. Other trainers of TRL take the processor as
    it is.
    """
    processor = copy.copy(processor)
    processor.__class__ = JinaVLMProcessor
    processor.image_processor = copy.copy(processor.image_processor)
    processor.image_processor.__class__ = JinaVLMImageProcessor
    return processor


def _without_none(images):
    # TRL has `None` for a row without images.
    return [[] if row is None else row for row in images] if isinstance(images, list) else images


# The classes have the names of their base classes, because saved processors hold the names of their classes.
class JinaVLMProcessor(processing_jvlm.JinaVLMProcessor):
    def __call__(self, images=None, *args, **kwargs):
        inputs = super().__call__(_without_none(images), *args, **kwargs)
        if "image_token_positions" in inputs:
            positions = inputs.pop("image_token_positions")
            inputs["pixel_attention_mask"] = positions
            inputs["spatial_shapes"] = torch.zeros(len(positions), 2, dtype=torch.long)  # only its rows count
        return inputs


class JinaVLMImageProcessor(image_processing_jvlm.JinaVLMImageProcessor):
    # TRL adds a thumbnail to images of several tiles only, so the tiles below include it.
    use_thumbnail = False

    def __call__(self, images, *args, return_row_col_info: bool = False, **kwargs):
        if return_row_col_info:
            images = [image for row in _without_none(images) for image in row]
        inputs = super().__call__(images, *args, **kwargs)
        if return_row_col_info:  # TRL multiplies them to the number of tiles of an image
            inputs["image_rows"] = 1 + torch.as_tensor(inputs["image_grids"]).prod(dim=1)
            inputs["image_cols"] = torch.ones_like(inputs["image_rows"])
        return inputs


__all__ = ["processor_for_trl"]
