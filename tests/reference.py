# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Simple reference implementations that the image processor and the tile geometry are compared with."""

import numpy as np
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
    Thumbnail and tiles of an image, normalized so that 0 becomes -1 and `scale` becomes 1.

    The image is resized with PyTorch and cut in a loop. Resized 8-bit images are rounded to integers unless
    `in_float32`.

    Args:
        image (`torch.Tensor` of shape `[3, height, width]`): the image, uint8 for 8-bit images.
        geometry (`TileGeometry`): the tile geometry.
        first_size (`tuple[int, int]`, *optional*): height and width of the first resize, if there is one.
    """
    is_8bit = image.dtype == torch.uint8 and not in_float32

    def resize(image, size, is_rounded):
        if image.shape[1:] == size:
            return image.float()
        kwargs = {"size": size, "mode": mode, "align_corners": False, "antialias": antialias}
        # PyTorch's result for a single channel does not depend on the number of threads.
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


def reference_grid(geometry: TileGeometry, height: int, width: int, max_crops: int) -> tuple[int, int]:
    """
    Algorithm 1 of the paper as a loop in float32. Ties go to the first candidate by (rows·cols, rows).

    Every canvas enlarges a side that is not longer than the overlap: its scale is infinite. In the published code,
    whose grids the stitched layout keeps, it is negative for a side shorter than the overlap.
    """
    candidates = [
        (rows, cols)
        for area in range(1, max_crops + 1)
        for rows in range(1, area + 1)
        for cols in range(1, area + 1)
        if rows * cols == area
    ]
    scales = []
    for grid in candidates:
        axes = []
        for tiles, side in zip(grid, (height, width), strict=True):
            room = np.float32(side - geometry.overlap)
            span = np.float32(tiles * geometry.stride)
            is_infinite = room == 0 or (room < 0 and geometry.layout == "independent")
            axes.append(np.float32(np.inf) if is_infinite else span / room)
        scales.append(min(axes))
    largest = max(scales)
    best = largest if largest < 1 else min(scale for scale in scales if scale >= 1)
    return candidates[scales.index(best)]


def kept_patches(geometry: TileGeometry, tile: int, num_tiles: int) -> range:
    """The patches along one axis that a tile keeps: all except its margins, unless the margin is at the border."""
    before, after = geometry.overlap_margins
    return range(0 if tile == 0 else before, geometry.patches_per_side - (0 if tile == num_tiles - 1 else after))


def reference_positions(geometry: TileGeometry, grid: tuple[int, int]) -> list[list[int]]:
    """
    Token positions in the stitched layout, counted in reading order of the whole image.

    A tile keeps the minimum number of cells that cover its kept patches. It starts after the cells that lie completely
    in its margin.
    """
    rows, cols = geometry.pooled_grid
    positions = [list(range(rows * cols))] + [[-1] * (rows * cols) for _ in range(grid[0] * grid[1])]
    position = rows * cols

    def kept_cells(tile: int, num_tiles: int) -> range:
        patches = kept_patches(geometry, tile, num_tiles)
        start = patches.start // geometry.pooling_size
        return range(start, start + -(-len(patches) // geometry.pooling_size))

    for tile_row in range(grid[0]):
        for row in kept_cells(tile_row, grid[0]):
            for tile_col in range(grid[1]):
                for col in kept_cells(tile_col, grid[1]):
                    positions[1 + tile_row * grid[1] + tile_col][row * cols + col] = position
                    position += 1
    return positions
