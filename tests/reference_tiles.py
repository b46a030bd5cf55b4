# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Tiles by hand: what the image processor's are compared with."""

import torch
from torch.nn import functional as F

from jvlm.processing.tiling import TileGeometry


def expected_tiles(
    image: torch.Tensor,
    geometry: TileGeometry,
    max_crops: int = 12,
    first_size: tuple[int, int] | None = None,
    mode: str = "bilinear",
    antialias: bool = False,
    scale: float = 255,
    in_float32: bool = False,
) -> torch.Tensor:
    """
    Thumbnail and tiles of an image, normalised to -1 for 0 and 1 for `scale`.

    Resized with PyTorch, the first resize of 8-bit images rounded to their levels unless `in_float32`; windows cut
    in a loop.

    Args:
        image (`torch.Tensor` of shape `[3, height, width]`): the image; uint8 is 8-bit.
        geometry (`TileGeometry`): what is cut.
        first_size (`tuple[int, int]`, *optional*): height and width of the first resize, where there is one.
    """
    is_8bit = image.dtype == torch.uint8 and not in_float32

    def resize(image, size, is_rounded):
        if image.shape[1:] == size:
            return image.float()
        kwargs = {"size": size, "mode": mode, "align_corners": False, "antialias": antialias}
        # One channel at a time, which PyTorch resizes in the same way on any number of threads.
        resized = torch.cat([F.interpolate(channel[None, None].float(), **kwargs)[0] for channel in image])
        if mode == "bicubic" and is_rounded:
            resized = resized.clamp(0, 255)
        elif mode == "bicubic" and image.dtype != torch.uint8:
            resized = resized.clamp(image.float().min(), image.float().max())
        return resized.round() if is_rounded else resized

    if in_float32:
        image = image.float() / scale
    if first_size is not None:
        image = resize(image, first_size, is_8bit)
        image, is_8bit = image if in_float32 else image / scale, False
    is_scaled = in_float32 or first_size is not None
    grid = geometry.select_grid(*image.shape[1:], max_crops)
    canvas = resize(image, geometry.canvas_size(grid), is_8bit)
    tiles = [resize(image, (geometry.tile_size, geometry.tile_size), is_8bit)]
    for row in range(grid[0]):
        for column in range(grid[1]):
            top, left = row * geometry.stride, column * geometry.stride
            tiles.append(canvas[:, top : top + geometry.tile_size, left : left + geometry.tile_size])
    tiles = torch.stack(tiles)
    return (tiles if is_scaled else tiles / scale) * 2 - 1
