# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The tile geometry compared with the paper's figure, the published checkpoint and a reference implementation."""

import itertools

import numpy as np
import pytest
from reference import reference_grid, reference_positions

from jvlm.processing.tiling import MAX_CROPS, TileGeometry, possible_grids


FIGURE = TileGeometry(378, 14, (4, 4), 2, (13, 14), "independent")
RELEASE = TileGeometry(378, 14, (4, 4), 2, (14, 14), "stitched")
GRIDS = [(rows, cols) for rows in range(1, 13) for cols in range(1, 13) if rows * cols <= 12]
GEOMETRIES = [
    FIGURE,
    RELEASE,
    TileGeometry(378, 14, (4, 4), 3, (9, 9), "stitched"),
    TileGeometry(378, 14, (3, 4), 2, (14, 14), "stitched"),
    TileGeometry(378, 14, (4, 3), 2, (14, 14), "stitched"),
    TileGeometry(378, 14, (5, 2), 2, (14, 14), "stitched"),
    TileGeometry(378, 14, (0, 0), 2, (14, 14), "stitched"),
    TileGeometry(378, 14, (0, 3), 1, (27, 27), "stitched"),
    TileGeometry(384, 16, (2, 2), 2, (12, 12), "stitched"),
    TileGeometry(384, 16, (4, 2), 4, (6, 6), "stitched"),
    TileGeometry(56, 8, (1, 1), 2, (4, 4), "stitched"),
    TileGeometry(56, 8, (1, 1), 2, (3, 4), "independent"),
    TileGeometry(224, 16, (1, 2), 3, (4, 5), "independent"),
]


@pytest.mark.parametrize(
    ("grid", "num_tokens", "num_cells"),
    [
        ((1, 1), 424, 392),
        ((1, 2), 564, 532),
        ((2, 1), 574, 532),
        ((2, 2), 814, 772),
        ((2, 3), 1054, 1012),
        ((3, 4), 1744, 1692),
        ((4, 3), 1754, 1692),
        ((1, 12), 1964, 1932),
        ((12, 1), 2074, 1932),
    ],
)
def test_published_token_counts(grid, num_tokens, num_cells):
    assert RELEASE.num_tokens(grid) == (num_tokens, num_cells)
    assert (RELEASE.token_positions(grid) >= 0).sum() == num_cells


def test_numbers_of_the_figure():
    assert (FIGURE.patches_per_side, FIGURE.patches_per_side**2) == (27, 729)
    assert (FIGURE.overlap, FIGURE.stride) == (112, 266)
    grid = FIGURE.select_grid(910, 1176, 12)
    assert grid == (3, 4)
    assert FIGURE.canvas_size(grid) == (910, 1176)
    assert FIGURE.cells_per_tile == 182
    assert FIGURE.num_tokens(grid) == (2366, 2366)
    assert FIGURE.token_positions(grid).shape == (13, 182)
    windows = FIGURE.windows(grid)
    assert windows.tolist() == [[top, left] for top in (0, 266, 532) for left in (0, 266, 532, 798)]
    assert (windows.max(axis=0) + 378).tolist() == [910, 1176]


@pytest.mark.parametrize("max_crops", [1, 2, 5, 12, 24])
@pytest.mark.parametrize(
    "geometry",
    [FIGURE, RELEASE, GEOMETRIES[8], GEOMETRIES[10], GEOMETRIES[11], GEOMETRIES[12]],
    ids=["figure", "release", "384 stitched", "56 stitched", "56 independent", "224 independent"],
)
def test_select_grid(geometry, max_crops):
    overlap, stride = geometry.overlap, geometry.stride
    sides = [1, 2, overlap - 1, overlap, overlap + 1, geometry.tile_size]
    sides += [tiles * stride + overlap + offset for tiles in (1, 2, 3, 4, 6, 12) for offset in (-1, 0, 1)]
    sizes = list(itertools.product(sides, repeat=2))
    rng = np.random.default_rng(0)
    sizes += [tuple(map(int, size)) for size in rng.integers(1, 20 * stride, (300, 2))]
    for height, width in sizes:
        expected = reference_grid(geometry, height, width, max_crops)
        assert geometry.select_grid(height, width, max_crops) == expected, (height, width)


@pytest.mark.parametrize("max_crops", [1, 5, 12])
def test_layouts_differ_only_for_sides_shorter_than_the_overlap(max_crops):
    """The grids of all other sizes are those of the published code."""
    rng = np.random.default_rng(1)
    sides = [112, 113, 114, 378, *rng.integers(112, 6000, 30).tolist()]
    for size in itertools.product(sides, repeat=2):
        assert FIGURE.select_grid(*size, max_crops) == RELEASE.select_grid(*size, max_crops), size


@pytest.mark.parametrize(("height", "width"), [(1200, 60), (1200, 111), (1200, 112), (1200, 113), (1200, 1)])
def test_narrow_images_keep_the_tiles_of_their_long_side(height, width):
    """1200 pixels need 5 tiles, 5 · 266 + 112 = 1442, however narrow the image is."""
    assert FIGURE.select_grid(height, width, 12) == (5, 1)
    assert FIGURE.select_grid(width, height, 12) == (1, 5)
    # The published code squashes images with a side shorter than the overlap to one tile.
    expected = (1, 1) if width < 112 else (5, 1)
    assert RELEASE.select_grid(height, width, 12) == expected
    assert RELEASE.select_grid(width, height, 12) == expected[::-1]


@pytest.mark.parametrize("geometry", [FIGURE, GEOMETRIES[11], GEOMETRIES[12]], ids=["378", "56", "224"])
@pytest.mark.parametrize("max_crops", [1, 2, 7, 12])
def test_grids_do_not_change_below_the_overlap(geometry, max_crops):
    """A side up to the overlap plus one pixel is one tile, and the tiles of the other side grow with that side."""
    counts = []
    for long_side in range(1, 14 * geometry.stride, 7):
        narrow = {1, geometry.overlap // 2, geometry.overlap - 1, geometry.overlap, geometry.overlap + 1}
        grids = {geometry.select_grid(long_side, side, max_crops) for side in narrow}
        assert len(grids) == 1, long_side
        rows, cols = grids.pop()
        assert cols == 1
        assert {geometry.select_grid(side, long_side, max_crops) for side in narrow} == {(1, rows)}
        counts.append(rows)
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (1, max_crops)


def test_number_of_crops_is_limited():
    """An absurd number is an error before the candidates are built, and no candidates of it are cached."""
    cached = possible_grids.cache_info().currsize
    for max_crops in (0, -1, MAX_CROPS + 1, 300_000, 10**18):
        with pytest.raises(ValueError, match=rf"`max_crops` must be from 1 to 1024, got {max_crops}\."):
            FIGURE.select_grid(500, 500, max_crops)
    assert possible_grids.cache_info().currsize == cached
    assert FIGURE.select_grid(100_000, 100_000, MAX_CROPS) == (32, 32)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_canvas_of_a_grid_selects_that_grid(grid):
    assert FIGURE.select_grid(*FIGURE.canvas_size(grid), 12) == grid


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_every_kept_cell_has_one_position(geometry):
    for grid in GRIDS:
        positions = geometry.token_positions(grid)
        assert positions.shape == (1 + grid[0] * grid[1], geometry.cells_per_tile)
        kept = np.sort(positions[positions >= 0])
        assert kept.tolist() == list(range(geometry.num_tokens(grid)[1])), grid
        # The thumbnail comes first and keeps all cells.
        assert positions[0].tolist() == list(range(geometry.cells_per_tile)), grid
        if geometry.layout == "independent":
            assert positions.ravel().tolist() == list(range(positions.size)), grid
        else:
            assert positions.tolist() == reference_positions(geometry, grid), grid


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_stitched_cells_are_in_reading_order_of_the_image(grid):
    """The tokens list the cells from left to right and from top to bottom, and the cells cover the whole image."""
    positions = RELEASE.token_positions(grid)[1:]
    cell = RELEASE.pooling_size * RELEASE.patch_size
    windows = RELEASE.windows(grid)
    corners = {}
    for tile, index in np.argwhere(positions >= 0):
        row, col = divmod(int(index), 14)
        top, left = windows[tile] + (row * cell, col * cell)
        corners[int(positions[tile, index])] = (int(top), int(left))
    order = [corners[position] for position in sorted(corners)]
    assert order == sorted(order)
    # The kept cells cover every patch of the image.
    covered = np.zeros([side // 14 for side in RELEASE.canvas_size(grid)], bool)
    for top, left in order:
        covered[top // 14 : top // 14 + 2, left // 14 : left // 14 + 2] = True
    assert covered.all()


def test_positions_are_cached_and_read_only():
    positions = RELEASE.token_positions((2, 3))
    assert positions is RELEASE.token_positions((2, 3))
    with pytest.raises(ValueError, match="read-only"):
        positions[0, 0] = 5
