# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The plan from pooled cells to image tokens: index tensors that are worked out once, and what it refuses."""

import pytest
import torch

from jvlm import ImagePlan, plan_images
from jvlm.modeling.image_plan import trace_plan


# Two images of 3 cells a tile: one with a second tile that keeps one cell, one of a 1×1 grid.
POSITIONS = [[0, 1, 2], [-1, 4, 3], [-1, -1, 5], [0, 1, 2], [3, 4, 5]]


def test_plan():
    plan = plan_images(torch.tensor(POSITIONS))
    assert plan.tile_indices.tolist() == [0, 1, 2, 3]  # the tile of the 1×1 grid is its thumbnail
    assert plan.cell_indices.tolist() == [0, 1, 2, 5, 4, 8, *[9, 10, 11] * 2]
    assert plan.is_last_tile.tolist() == [False] * 5 + [True] + [False] * 3 + [True] * 3
    assert plan.num_tiles == (3, 2)
    assert plan.num_tokens == (6, 6)


def test_equal_tiles():
    values = torch.tensor([1, 2, 1, 3, 3, 2])  # of the tiles of two images and one of a 1×1 grid
    positions = torch.tensor([*POSITIONS[:3], [0, 1, 2], *POSITIONS[3:]])
    pixel_values = values.view(-1, 1, 1, 1).expand(-1, 3, 4, 4).float()
    plan, distinct = plan_images(positions), plan_images(positions, pixel_values)
    assert distinct.tile_indices.tolist() == [0, 1, 3]
    assert distinct.cell_indices.tolist() == [0, 1, 2, 5, 4, 2, 6, 7, 8, *[6, 7, 8] * 2]
    assert torch.equal(distinct.is_last_tile, plan.is_last_tile)
    assert distinct.num_tokens == plan.num_tokens
    pixel_values = pixel_values.clone()
    pixel_values[5, 2, 3, 3] += 1e-6  # the tile of a 1×1 grid is not compared
    assert torch.equal(plan_images(positions, pixel_values).tile_indices, distinct.tile_indices)
    pixel_values[2, 2, 3, 3] += 1e-6
    assert plan_images(positions, pixel_values).tile_indices.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="There are 5 tiles and positions of 6 tiles"):
        plan_images(positions, pixel_values[1:])


def test_parts_of_a_plan():
    plan = plan_images(torch.tensor(POSITIONS))
    second = plan.select([1])
    assert second.tile_indices.tolist() == [3]
    assert second.cell_indices.tolist() == [0, 1, 2] * 2
    assert second.is_last_tile.tolist() == [False] * 3 + [True] * 3
    assert (second.num_tiles, second.num_tokens, second.positions_shape) == ((2,), (6,), (2, 3))
    (first_rows, first), (last_rows, last) = plan.groups(3)
    assert first_rows.tolist() == list(range(6))
    assert torch.equal(first.cell_indices, plan.cell_indices[:6])
    assert last_rows.tolist() == list(range(6, 12))
    assert torch.equal(last.cell_indices, second.cell_indices)
    assert torch.equal(last.tile_indices, second.tile_indices)


def test_traced_plan_has_the_same_tokens():
    positions = torch.tensor(POSITIONS)
    plan = plan_images(positions)
    num_tokens = sum(plan.num_tokens)
    traced = trace_plan(positions, torch.tensor(num_tokens))
    assert traced.tile_indices.tolist() == list(range(5))
    assert traced.cell_indices[: num_tokens - 3].tolist() == plan.cell_indices[:-3].tolist()
    assert traced.cell_indices[num_tokens - 3 :].tolist() == [12, 13, 14, 3, 6, 7]
    assert torch.equal(traced.is_last_tile[:num_tokens], plan.is_last_tile)


def test_tiles_without_an_image():
    """The blank tile of a batch without images: one cell is pooled, and no token uses it."""
    plan = plan_images(torch.full((1, 4), -1))
    assert plan.tile_indices.tolist() == [0]
    assert plan.cell_indices.tolist() == [0]
    assert plan.is_last_tile.tolist() == [False]
    assert plan.num_tiles == plan.num_tokens == ()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
def test_integer_dtypes(dtype):
    positions = torch.arange(6, dtype=dtype).view(2, 3)
    assert plan_images(positions).cell_indices.tolist() == [0, 1, 2, 0, 1, 2]


WRONG = {
    "duplicate": ((0, 1), 2),
    "duplicate in the next tile": ((0, 2), 3),
    "duplicate in another image": ((4, 2), 2),
    "gap": ((2, 2), 6),
    "no thumbnail": ((0, 0), 1),
    "thumbnail without its first cell": ((3, 0), 7),
    "out of range": ((4, 2), 100),
    "far out of range": ((1, 1), 2**40),
}


@pytest.mark.parametrize(("index", "value"), WRONG.values(), ids=WRONG)
def test_positions_that_are_no_permutation(index, value):
    positions = torch.tensor(POSITIONS)
    positions[index] = value
    with pytest.raises(ValueError, match="each of its token indices 0, 1, 2, … once"):
        plan_images(positions)


@pytest.mark.parametrize(
    "positions",
    [
        torch.tensor(POSITIONS).float(),
        torch.tensor(POSITIONS).bfloat16(),
        torch.tensor(POSITIONS) == 0,
        torch.arange(6),
        torch.zeros(2, 3, 4, dtype=torch.int64),
        POSITIONS,
    ],
    ids=["floats", "bfloat16", "booleans", "one axis", "three axes", "lists"],
)
@pytest.mark.parametrize("function", [plan_images, lambda positions: trace_plan(positions, torch.tensor(12))])
def test_tensors_that_are_no_positions(positions, function):
    with pytest.raises(ValueError, match=r"must be a tensor of integers of shape \(tiles, pooled cells\), got"):
        function(positions)


@pytest.mark.parametrize("row", [3, 5])
def test_a_tile_without_cells_among_the_images(row):
    positions = torch.tensor(POSITIONS)
    positions = torch.cat([positions[:row], torch.full((1, 3), -1), positions[row:]])
    with pytest.raises(ValueError, match="each of its token indices"):
        plan_images(positions)
    with pytest.raises(ValueError, match="no permutation"):
        trace_plan(positions, torch.tensor(12))


def test_tiles_before_the_first_image_belong_to_none():
    positions = torch.tensor([[-1, -1, -1], *POSITIONS])
    plan, traced = plan_images(positions), trace_plan(positions, torch.tensor(12))
    assert plan.num_tiles == (3, 2)
    assert torch.equal(plan.is_last_tile, traced.is_last_tile[:12])
    assert traced.cell_indices[:9].tolist() == plan.cell_indices[:9].tolist()


@pytest.mark.parametrize(("index", "value"), WRONG.values(), ids=WRONG)
def test_traced_positions_that_are_no_permutation(index, value):
    positions = torch.tensor(POSITIONS)
    positions[index] = value
    with pytest.raises(ValueError, match=r"no permutation of image tokens|do not match"):
        trace_plan(positions, torch.tensor(12))


@torch.no_grad()
def test_images_in_another_order_than_their_prompts(build_model, build_inputs):
    model, inputs = build_model(), build_inputs()
    plan = plan_images(inputs["image_token_positions"])
    assert len(set(plan.num_tokens)) == 3
    first, second, third = torch.arange(len(inputs["pixel_values"])).split(plan.num_tiles)
    order = torch.cat([second, first, third])
    swapped = {name: inputs[name][order] for name in ("pixel_values", "image_token_positions")}
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="Image features and image tokens do not match"):
            call(**{**inputs, **swapped})
    with pytest.raises(ValueError, match="Image features and image tokens do not match"):
        model(**{**inputs, **swapped}, image_plan=plan_images(swapped["image_token_positions"]))


@torch.no_grad()
def test_a_plan_of_a_batch_without_images(build_model, build_inputs):
    model, inputs = build_model(), build_inputs(text="Well?", images=None)
    expected = model(**inputs).logits
    tile = {"pixel_values": torch.zeros(1, 3, 56, 56), "image_token_positions": torch.full((1, 12), -1)}
    plan = plan_images(tile["image_token_positions"])
    assert torch.equal(model(**inputs, **tile).logits, expected)
    assert torch.equal(model(**inputs, **tile, image_plan=plan).logits, expected)
    assert model.get_image_features(**tile).pooler_output == ()


@pytest.mark.parametrize(("model_layout", "other"), [("independent", "stitched"), ("stitched", "independent")])
@pytest.mark.parametrize("grid_size", [(56, 56), (100, 150)], ids=["1×1 grid", "several tiles"])
@torch.no_grad()
def test_layouts_that_disagree(build_model, build_processor, make_image, model_layout, other, grid_size):
    """With 8×8 patches both layouts have 4×4 cells a tile; a 1×1 grid has the same positions in both."""
    geometry = {"size": {"height": 64, "width": 64}, "overlap_margins": [1, 1]}
    model = build_model(model_layout, vision_config={"image_size": 64})
    assert model.config.pooled_grid == [4, 4]
    inputs = build_processor(other, **geometry)(
        text="<|image|> Who?", images=make_image(*grid_size), return_tensors="pt"
    )
    with pytest.raises(ValueError, match=f'<im_start> markers for 1 images.*layout "{model_layout}"'):
        model(**inputs)
    with pytest.raises(ValueError, match=f'<im_start> markers for 1 images.*layout "{model_layout}"'):
        model.generate(**inputs, max_new_tokens=1)


@torch.no_grad()
def test_a_plan_of_another_prompt(build_model, build_processor, make_image):
    model, processor = build_model(), build_processor()
    inputs = processor(text="<|image|> Who?", images=make_image(90, 130), return_tensors="pt")
    other = processor(text="<|image|> Who?", images=make_image(40, 40), return_tensors="pt")
    plan = plan_images(other["image_token_positions"])
    with pytest.raises(ValueError, match=r"there are 7 tiles in `pixel_values`"):
        model(**inputs, image_plan=plan)
    with pytest.raises(ValueError, match="Image features and image tokens do not match"):
        model(**{**inputs, "pixel_values": other["pixel_values"]}, image_plan=plan)
    without_numbers = ImagePlan(plan.tile_indices, plan.cell_indices, plan.is_last_tile)
    with pytest.raises(ValueError, match="`image_plan` has fewer image tokens than the prompt"):
        model(**inputs, image_plan=without_numbers)
