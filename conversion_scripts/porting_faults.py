# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""What known faults of ports lead to, stage by stage, so that `check_port` can name the cause of a difference."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image
import torch

from ..modeling.image_plan import plan_images
from ..processing.image_loading import load_image
from .reference_port import ReferencePort


@torch.inference_mode()
def wrong_values(
    port: ReferencePort, stage: str, values: dict[str, np.ndarray], request: dict[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """The values of a stage with known faults, each with a name that `check_port` prints."""
    if stage == "pixels":
        yield from _wrong_pixels(port, request["images"])
    elif stage == "features":
        pixels, config = torch.from_numpy(values["pixels"]), port.config
        for cause, layers in {
            "the vision blocks are counted without the final norm: one too early": [-1, -1],
            "hidden states are counted from the blocks, not from the embeddings: one too late": [1, 1],
        }.items():
            blocks = config.vision_feature_layer
            shifted = [max(0, block + shift) for block, shift in zip(blocks or [], layers, strict=True)]
            if max(shifted) < config.num_vision_blocks:
                with _changed(config, "vision_feature_layer", shifted):
                    yield cause, port.features({"pixels": pixels}, {}).numpy()
        half = port.config.vision_config.hidden_size
        yield "the features of the blocks are concatenated in the wrong order", np.roll(values["features"], half, -1)
        yield "the features of an all-black tile must be 0", port.features({"pixels": pixels + 1e-7}, {}).numpy()
    elif stage == "connector":
        yield from _wrong_connector(port, values)
    elif stage == "embeddings":
        is_image = values["input_ids"] == port.config.image_token_id
        wrong = values["embeddings"].copy()
        wrong[is_image] = values["connector"]
        yield "a feature replaces the embedding of <im_patch> instead of being added to it", wrong
    elif stage == "logits":
        embeddings = torch.from_numpy(values["embeddings"])
        with _swapped(layer.mlp for layer in port.model.model.language_model.layers):
            wrong = port.logits({"embeddings": embeddings}, {}).numpy()
        yield "value and gate are swapped in the language model", wrong[: len(values["logits"])]
        wrong = port.model(inputs_embeds=embeddings[None]).logits[0, 0].numpy()
        yield "these are the logits of the first position, not of the last one", wrong[: len(values["logits"])]


def _wrong_pixels(port: ReferencePort, images: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    processor = port.processor.image_processor
    loaded = [load_image(image) for image in images]
    opened = [PIL.Image.open(image) for image in images]

    def pixels(images: Sequence[PIL.Image.Image], **settings) -> np.ndarray:
        arrays = [np.asarray(image.convert("RGBA").convert("RGB")) for image in images]  # without EXIF
        return processor(arrays, return_tensors="np", **settings)["pixel_values"]

    yield "bicubic interpolation instead of bilinear", pixels(loaded, resample=PIL.Image.Resampling.BICUBIC)
    yield "resized with an antialiasing filter, which Pillow's `resize` always uses", pixels(loaded, antialias=True)
    bicubic = pixels(loaded, resample=PIL.Image.Resampling.BICUBIC, antialias=True)
    yield "bicubic interpolation with an antialiasing filter, as Pillow's `resize` has it", bicubic
    first = "the first resize is left out" if processor.do_resize else "a first resize that this checkpoint has not"
    yield first, pixels(loaded, do_resize=not processor.do_resize)
    yield "the result of the first resize is not rounded to 8 bits", pixels(loaded, resize_in_float32=True)
    if any(image.getexif().get(PIL.ExifTags.Base.Orientation, 1) != 1 for image in opened):
        yield "the EXIF orientation is not applied", pixels(opened)
    if any(image.has_transparency_data for image in opened):
        for colour in ("white", "black"):
            flat = [PIL.Image.new("RGBA", image.size, colour) for image in loaded]
            for background, image in zip(flat, loaded, strict=True):
                background.alpha_composite(image.convert("RGBA"))
            yield f"transparent pixels are composited on {colour} instead of dropping the alpha channel", pixels(flat)


def _wrong_connector(port: ReferencePort, values: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    connector, plan = port.model.model.connector, plan_images(torch.from_numpy(values["positions"]))
    assert plan.cell_indices is not None
    assert plan.is_last_tile is not None
    features = torch.from_numpy(values["features"])[plan.tile_indices]
    with _swapped([connector.projector]):
        wrong = connector(features, plan.cell_indices, plan.is_last_tile)
        yield "value and gate of the projector are swapped; the gate is the second half of `up`", wrong.numpy()
    if connector.last_tile_embedding is None:
        return
    tile = plan.cell_indices // values["positions"].shape[1]
    for cause, is_marked in {
        "the embedding of the last tile is missing": tile < 0,
        "the embedding of the last tile is added to all tiles": tile >= 0,
        "the embedding of the last tile is added to the thumbnail": tile == 0,
        "the embedding of the last tile is added to the first tile": tile == 1,
    }.items():
        yield cause, connector(features, plan.cell_indices, is_marked).numpy()
    by_tile = plan.cell_indices.sort().indices
    wrong = connector(features, plan.cell_indices[by_tile], plan.is_last_tile[by_tile])
    yield "the vectors come tile by tile instead of row by row over the whole image", wrong.numpy()


@contextmanager
def _changed(target: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(target, name)
    setattr(target, name, value)
    try:
        yield
    finally:
        setattr(target, name, before)


@contextmanager
def _swapped(layers: Iterable) -> Iterator[None]:
    """Swaps the value and the gate of gated feed-forward layers."""
    layers = list(layers)

    def swap() -> None:
        for layer in layers:
            layer.gate_proj, layer.up_proj = layer.up_proj, layer.gate_proj

    swap()
    try:
        yield
    finally:
        swap()
