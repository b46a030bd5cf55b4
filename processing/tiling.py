# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Which grid, which windows, which pooled cell goes where: the geometry of tiles, in integers.

Source: appendix, algorithm 1 of arXiv 2512.04032. Sizes are (height, width) and (rows, columns) throughout.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@lru_cache
def _grids(max_crops: int) -> np.ndarray:
    """All (rows, columns) of at most `max_crops` tiles, smaller grids and flatter ones first: [grids, 2]."""
    grids = [(rows, cols) for rows in range(1, max_crops + 1) for cols in range(1, max_crops // rows + 1)]
    return np.array(sorted(grids, key=lambda grid: (grid[0] * grid[1], grid[0])))


@dataclass(frozen=True)
class TileGeometry:
    """
    How an image of any size is cut into overlapping square tiles, and how their pooled cells become image tokens.

    Args:
        tile_size (`int`): side of a tile, in pixels.
        patch_size (`int`): side of a patch, in pixels; divides `tile_size`.
        overlap_margins (`tuple[int, int]`): patches at the left (top) and the right (bottom) of a tile that belong
            to its surroundings; neighbouring tiles overlap by their sum.
        pooling_size (`int`): side of the window that is pooled to one cell, in patches.
        pooled_grid (`tuple[int, int]`): rows and columns of pooled cells in a tile.
        layout (`str`): `"independent"`: every tile keeps all of its cells; `"stitched"`: cells that a neighbour
            sees better are dropped, the rest is placed in reading order of the whole image.

    Raises:
        ValueError: if the sizes do not fit together; the message names the argument.
    """

    tile_size: int
    patch_size: int
    overlap_margins: tuple[int, int]
    pooling_size: int
    pooled_grid: tuple[int, int]
    layout: str

    def __post_init__(self):
        if self.layout not in ("independent", "stitched"):
            raise ValueError(f'`layout` must be "independent" or "stitched", got {self.layout!r}.')
        if self.patch_size < 1 or self.tile_size < 1 or self.tile_size % self.patch_size:
            raise ValueError(f"`size` ({self.tile_size}) must be a multiple of `patch_size` ({self.patch_size}).")
        if self.pooling_size < 1:
            raise ValueError(f"`pooling_size` must be at least 1, got {self.pooling_size}.")
        if len(self.overlap_margins) != 2 or min(self.overlap_margins) < 0 or self.stride < self.patch_size:
            raise ValueError(
                f"`overlap_margins` is {list(self.overlap_margins)}, but must be two numbers of patches, at least 0, "
                f"that leave something of a tile of {self.patches_per_side} patches."
            )
        if len(self.pooled_grid) != 2 or min(self.pooled_grid) < 1:
            raise ValueError(
                f"`pooled_grid` must be two numbers of cells, at least 1, got {list(self.pooled_grid)}; "
                f"`pooling_size` is {self.pooling_size}, a tile has {self.patches_per_side} patches a side."
            )
        full = -(-self.patches_per_side // self.pooling_size)
        if self.layout == "stitched" and self.pooled_grid != (full, full):
            raise ValueError(
                f'`pooled_grid` is {list(self.pooled_grid)}, but layout "stitched" pools all patches: '
                f"[{full}, {full}]."
            )

    @property
    def patches_per_side(self) -> int:
        """Patches along one side of a tile."""
        return self.tile_size // self.patch_size

    @property
    def overlap(self) -> int:
        """Pixels that neighbouring tiles share."""
        return sum(self.overlap_margins) * self.patch_size

    @property
    def stride(self) -> int:
        """Pixels from one tile to the next."""
        return self.tile_size - self.overlap

    @property
    def cells_per_tile(self) -> int:
        """Pooled cells of one tile."""
        return self.pooled_grid[0] * self.pooled_grid[1]

    def canvas_size(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Height and width, in pixels, of the canvas that a grid of tiles covers."""
        return grid[0] * self.stride + self.overlap, grid[1] * self.stride + self.overlap

    def select_grid(self, height: int, width: int, max_crops: int) -> tuple[int, int]:
        """
        The grid of at most `max_crops` tiles to whose canvas an image of this size, in pixels, is resized with the
        least change of scale: the smallest enlargement where there is one, else the mildest reduction.
        """
        if max_crops < 1:
            raise ValueError(f"`max_crops` must be at least 1, got {max_crops}.")
        grids = _grids(max_crops)
        # In float32, so that ties fall as in the published code; a side as long as the overlap gives infinity.
        with np.errstate(divide="ignore"):
            scales = np.float32(grids * self.stride) / np.float32([height - self.overlap, width - self.overlap])
        scales = scales.min(axis=1)
        enlarges = scales >= 1
        best = np.where(enlarges, scales, np.inf).argmin() if enlarges.any() else scales.argmax()
        return int(grids[best, 0]), int(grids[best, 1])

    def windows(self, grid: tuple[int, int]) -> np.ndarray:
        """Top and left edge, in pixels on the canvas, of every tile, row by row: [rows * columns, 2]."""
        return np.indices(grid).reshape(2, -1).T * self.stride

    def _kept_cells(self, num_tiles: int) -> tuple[np.ndarray, np.ndarray]:
        """Along one axis of the stitched grid, the first cell each tile keeps and how many: two of [num_tiles]."""
        before, after = self.overlap_margins
        first, last = np.arange(num_tiles) == 0, np.arange(num_tiles) == num_tiles - 1
        patches = self.patches_per_side - np.where(first, 0, before) - np.where(last, 0, after)
        return np.where(first, 0, before // self.pooling_size), -(-patches // self.pooling_size)

    def stitched_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of pooled cells that the tiles of a grid keep together in the stitched layout."""
        return int(self._kept_cells(grid[0])[1].sum()), int(self._kept_cells(grid[1])[1].sum())

    def _axis_positions(self, num_tiles: int, num_cells: int) -> np.ndarray:
        """Place of every cell along one axis of the stitched grid, -1 where dropped: [num_tiles, num_cells]."""
        first, count = self._kept_cells(num_tiles)
        cell = np.arange(num_cells) - first[:, None]
        place = cell + (count.cumsum() - count)[:, None]
        return np.where((cell >= 0) & (cell < count[:, None]), place, -1)

    @lru_cache  # noqa: B019 - a geometry is a small frozen value; there are few of them and few grids
    def token_positions(self, grid: tuple[int, int]) -> np.ndarray:
        """
        Place of every pooled cell among the image tokens of its image, -1 where it is dropped.

        Args:
            grid (`tuple[int, int]`): rows and columns of tiles.

        Returns:
            `np.ndarray` of shape `[1 + rows * columns, cells per tile]`, int64, read-only: the thumbnail first, then
            the tiles row by row.
        """
        num_tiles = grid[0] * grid[1]
        if self.layout == "independent":
            positions = np.arange((1 + num_tiles) * self.cells_per_tile).reshape(1 + num_tiles, -1)
        else:
            rows = self._axis_positions(grid[0], self.pooled_grid[0])[:, None, :, None]
            cols = self._axis_positions(grid[1], self.pooled_grid[1])[None, :, None, :]
            tiles = np.where((rows >= 0) & (cols >= 0), rows * self.stitched_grid(grid)[1] + cols, -1)
            tiles = np.where(tiles >= 0, tiles + self.cells_per_tile, -1)
            thumbnail = np.arange(self.cells_per_tile)[None]
            positions = np.concatenate([thumbnail, tiles.reshape(num_tiles, self.cells_per_tile)])
        positions.flags.writeable = False
        return positions

    def num_tokens(self, grid: tuple[int, int]) -> tuple[int, int]:
        """
        Length of what an image of this grid expands to.

        Returns:
            `tuple[int, int]`: all tokens, markers included, and those of them that stand for a pooled cell.
        """
        if self.layout == "independent":
            num_cells = (1 + grid[0] * grid[1]) * self.cells_per_tile
            return num_cells, num_cells
        frames = [self.pooled_grid, self.stitched_grid(grid)]
        num_cells = sum(rows * cols for rows, cols in frames)
        # Each frame: a start and an end marker, and a column marker after each row.
        return num_cells + sum(rows + 2 for rows, _ in frames), num_cells


__all__ = ["TileGeometry"]
