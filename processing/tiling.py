# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Tile geometry: the grid and the windows of an image's tiles, and the order of its image tokens.

Source: appendix, algorithm 1 of arXiv 2512.04032. All sizes are (height, width) or (rows, columns).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..configuration.configuration_jvlm import default_pooled_grid
from ..configuration.setting_kinds import MAX_CROPS, MAX_TILE_SIZE


MAX_PATCHES_PER_SIDE = 256  # more would take gigabytes of memory


@lru_cache
def possible_grids(max_crops: int) -> np.ndarray:
    """All (rows, columns) of at most `max_crops` tiles, `[grids, 2]`, sorted by number of tiles, then by rows."""
    grids = [(rows, cols) for rows in range(1, max_crops + 1) for cols in range(1, max_crops // rows + 1)]
    return np.array(sorted(grids, key=lambda grid: (grid[0] * grid[1], grid[0])))


@dataclass(frozen=True)
class TileGeometry:
    """
    Splits an image into overlapping square tiles, and maps the pooled cells of the tiles to image tokens.

    Args:
        tile_size (`int`): side of a tile, in pixels.
        patch_size (`int`): side of a patch, in pixels; divides `tile_size`.
        overlap_margins (`tuple[int, int]`): margins of a tile at its left (top) and right (bottom) edge, in patches.
            Neighbouring tiles overlap by the sum of the two.
        pooling_size (`int`): side of the window that is pooled to one cell, in patches.
        pooled_grid (`tuple[int, int]`): rows and columns of pooled cells in a tile.
        layout (`str`): `"independent"` keeps all cells, tile by tile. `"stitched"` drops the cells in the margins
            between tiles, and orders the others row by row over the whole image.

    Raises:
        ValueError: if arguments are inconsistent; the message names the argument.
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
        # Also raises if `patch_size` or `pooling_size` is less than 1.
        full_grid = tuple(default_pooled_grid(self.layout, self.tile_size, self.patch_size, self.pooling_size))
        if not 1 <= self.tile_size <= MAX_TILE_SIZE or self.tile_size % self.patch_size:
            raise ValueError(
                f"`size` ({self.tile_size}) must be a multiple of `patch_size` ({self.patch_size}), at most "
                f"{MAX_TILE_SIZE} pixels."
            )
        if self.patches_per_side > MAX_PATCHES_PER_SIDE:
            raise ValueError(
                f"`size` ({self.tile_size}) has {self.patches_per_side} patches of `patch_size` ({self.patch_size}), "
                f"but must have at most {MAX_PATCHES_PER_SIDE}."
            )
        if len(self.overlap_margins) != 2 or min(self.overlap_margins) < 0 or self.stride < self.patch_size:
            raise ValueError(
                f"`overlap_margins` is {list(self.overlap_margins)}, but must be two numbers of patches, at least 0, "
                f"whose sum is less than the {self.patches_per_side} patches of a tile's side."
            )
        max_cells = -(-self.patches_per_side // self.pooling_size)
        if len(self.pooled_grid) != 2 or not all(1 <= cells <= max_cells for cells in self.pooled_grid):
            raise ValueError(
                f"`pooled_grid` must be two numbers of cells from 1 to {max_cells}, got {list(self.pooled_grid)}; "
                f"`pooling_size` is {self.pooling_size}, the side of a tile has {self.patches_per_side} patches."
            )
        if self.layout == "stitched" and self.pooled_grid != full_grid:
            raise ValueError(
                f'`pooled_grid` is {list(self.pooled_grid)}, but layout "stitched" needs {list(full_grid)}, which '
                "covers all patches."
            )

    @property
    def patches_per_side(self) -> int:
        """Number of patches along a side of a tile."""
        return self.tile_size // self.patch_size

    @property
    def overlap(self) -> int:
        """Overlap of neighbouring tiles, in pixels."""
        return sum(self.overlap_margins) * self.patch_size

    @property
    def stride(self) -> int:
        """Distance between the left (top) edges of neighbouring tiles, in pixels."""
        return self.tile_size - self.overlap

    @property
    def cells_per_tile(self) -> int:
        """Number of pooled cells of a tile."""
        return self.pooled_grid[0] * self.pooled_grid[1]

    def canvas_size(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the canvas that a grid of tiles covers, in pixels."""
        return grid[0] * self.stride + self.overlap, grid[1] * self.stride + self.overlap

    def select_grid(self, height: int, width: int, max_crops: int) -> tuple[int, int]:
        """
        Selects the grid of at most `max_crops` tiles whose canvas changes the scale of an image least.

        Both lengths are counted without the overlap: a canvas scales a side by `tiles * stride / (side - overlap)`.
        The scale of a canvas is the smaller one of its two sides. A side that is not longer than the overlap is
        enlarged by every canvas, so only the other side counts. If a canvas can upsample the image, the smallest such
        scale wins, otherwise the largest scale. The first grid wins a tie, by number of tiles, then by rows.

        The `"stitched"` layout keeps the grids of the published code: there, the scale of a side shorter than the
        overlap is negative, so that such an image gets a single tile.

        Args:
            height (`int`), width (`int`): size of the image, in pixels.
            max_crops (`int`): maximum number of tiles, at most 1024.

        Returns:
            `tuple[int, int]`: rows and columns of tiles.

        Raises:
            ValueError: if `max_crops` is less than 1 or more than 1024.
        """
        if not 1 <= max_crops <= MAX_CROPS:
            raise ValueError(f"`max_crops` must be from 1 to {MAX_CROPS}, got {max_crops}.")
        grids = possible_grids(max_crops)
        size_without_overlap = np.array([height - self.overlap, width - self.overlap], np.float32)
        if self.layout == "independent":
            size_without_overlap = size_without_overlap.clip(min=0)
        # float32 breaks ties as the published code does. A side of the size of the overlap gives infinity.
        with np.errstate(divide="ignore"):
            scales = ((grids * self.stride).astype(np.float32) / size_without_overlap).min(axis=1)
        upsamples = scales >= 1
        best = np.where(upsamples, scales, np.inf).argmin() if upsamples.any() else scales.argmax()
        return int(grids[best, 0]), int(grids[best, 1])

    def limit_grid(self, height: int, width: int, grid: tuple[int, int], max_tokens: int | None) -> tuple[int, int]:
        """The first grid from `grid` on to ever fewer tiles that [`select_grid`] selects and `max_tokens` allows."""
        while max_tokens is not None and self.num_tokens(grid)[0] > max_tokens:
            grid = self.select_grid(height, width, grid[0] * grid[1] - 1)
        return grid

    def windows(self, grid: tuple[int, int]) -> np.ndarray:
        """Top and left edges of the tiles on the canvas, in pixels and row-major order: `[rows * columns, 2]`."""
        return np.indices(grid).reshape(2, -1).T * self.stride

    def _kept_cells(self, num_tiles: int) -> tuple[np.ndarray, np.ndarray]:
        """First cell that each tile keeps along an axis of the stitched grid, and their number: each `[num_tiles]`."""
        before, after = self.overlap_margins
        first, last = np.arange(num_tiles) == 0, np.arange(num_tiles) == num_tiles - 1
        patches = self.patches_per_side - np.where(first, 0, before) - np.where(last, 0, after)
        return np.where(first, 0, before // self.pooling_size), -(-patches // self.pooling_size)

    def stitched_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of all pooled cells that the tiles of a grid keep in the stitched layout."""
        return int(self._kept_cells(grid[0])[1].sum()), int(self._kept_cells(grid[1])[1].sum())

    def _axis_positions(self, num_tiles: int, num_cells: int) -> np.ndarray:
        """Positions of cells along an axis of the stitched grid, -1 for dropped cells: `[num_tiles, num_cells]`."""
        first, count = self._kept_cells(num_tiles)
        cell = np.arange(num_cells) - first[:, None]
        position = cell + (count.cumsum() - count)[:, None]
        return np.where((cell >= 0) & (cell < count[:, None]), position, -1)

    @lru_cache(maxsize=64)  # noqa: B019 - the cache keeps geometries alive, but they are small and few
    def token_positions(self, grid: tuple[int, int]) -> np.ndarray:
        """
        Index of each pooled cell among the image tokens of its image, -1 for dropped cells.

        Args:
            grid (`tuple[int, int]`): rows and columns of tiles.

        Returns:
            `np.ndarray` of shape `[1 + rows * columns, cells per tile]`, int64, read-only: the thumbnail, then the
            tiles in row-major order.
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

    def drop_cells(self, grid: tuple[int, int], is_dropped: np.ndarray) -> np.ndarray:
        """
        `token_positions` without some cells. The thumbnail keeps all of its cells, and every tile its first one.

        Args:
            grid (`tuple[int, int]`): rows and columns of tiles.
            is_dropped (`np.ndarray` of shape `[1 + rows * columns, cells per tile]`): which cells to drop.
        """
        positions = self.token_positions(grid)
        is_first = np.arange(self.cells_per_tile) == (positions >= 0).argmax(axis=1)[:, None]
        is_thumbnail = np.arange(len(positions))[:, None] == 0
        is_kept = (positions >= 0) & (~is_dropped | is_first | is_thumbnail)
        is_token = np.zeros(self.num_tokens(grid)[1], int)
        is_token[positions[is_kept]] = 1
        return np.where(is_kept, is_token.cumsum()[positions] - 1, -1)

    def row_lengths(self, grid: tuple[int, int], positions: np.ndarray) -> tuple[list[int], list[int]]:
        """Numbers of kept cells in each row of the thumbnail and of the stitched grid, from an image's positions."""
        rows, cols = self.pooled_grid
        is_kept = positions[1:] >= 0
        full_positions = self.token_positions(grid)[1:][is_kept] - self.cells_per_tile
        num_rows, num_cols = self.stitched_grid(grid)
        return [cols] * rows, np.bincount(full_positions // num_cols, minlength=num_rows).tolist()

    def num_tokens(self, grid: tuple[int, int]) -> tuple[int, int]:
        """
        Number of tokens of an image with this grid of tiles if no cells are dropped because of their pixels.

        Returns:
            `tuple[int, int]`: number of all tokens including markers, and number of tokens for pooled cells.
        """
        if self.layout == "independent":
            num_cells = (1 + grid[0] * grid[1]) * self.cells_per_tile
            return num_cells, num_cells
        grids = [self.pooled_grid, self.stitched_grid(grid)]  # of cells: the thumbnail and the tiles
        num_cells = sum(rows * cols for rows, cols in grids)
        # Markers: start and end of each grid, and one after each row.
        return num_cells + sum(rows + 2 for rows, _ in grids), num_cells

    def _pixel_shares(self, num_tiles: int, num_pixels: int) -> np.ndarray:
        """
        Along an axis of an image with this number of tiles and pixels: the share of each patch that each pixel shows,
        `[num_tiles, patches, num_pixels]`.
        """
        patch = num_pixels * self.patch_size / (num_tiles * self.stride + self.overlap)  # its side in pixels
        patches = np.arange(num_tiles)[:, None] * (self.stride // self.patch_size) + np.arange(self.patches_per_side)
        start, pixel = (patches * patch)[..., None], np.arange(num_pixels)
        return (np.minimum(start + patch, pixel + 1) - np.maximum(start, pixel)).clip(min=0) / patch

    def patches_to_pixels(self, weights: np.ndarray, grid: tuple[int, int], height: int, width: int) -> np.ndarray:
        """
        Spreads weights of patches over the pixels of the image that they show. Weights of tiles that overlap, and of
        the thumbnail, add up.

        Args:
            weights (`np.ndarray` of shape `[..., 1 + rows * columns, patches, patches]`): a weight for every patch of
                the thumbnail and the tiles, by row and column of the patch.
            grid (`tuple[int, int]`): rows and columns of tiles.
            height (`int`), width (`int`): size of the image, in pixels.

        Returns:
            `np.ndarray` of shape `[..., height, width]`: the weight of each pixel. The sum is that of `weights`.
        """
        tiles = np.indices(grid).reshape(2, -1)  # row and column of every tile
        rows, cols = (
            np.concatenate([self._pixel_shares(1, size), self._pixel_shares(count, size)[indices]])
            for count, size, indices in zip(grid, (height, width), tiles, strict=True)
        )
        return np.einsum("tph,...tpq,tqw->...hw", rows, weights, cols, optimize=True)


__all__ = ["TileGeometry", "possible_grids"]
