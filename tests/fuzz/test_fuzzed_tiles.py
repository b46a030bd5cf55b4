# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Pages with repeated and blank tiles: each distinct tile is encoded once, and the features are those of all tiles."""

import numpy as np
import PIL.Image
import pytest
import torch
from fuzzing import counts, effort
from hypothesis import given
from hypothesis import strategies as st

from jvlm import ImageFeatureCache, plan_images


# The stride of the small processor's tiles, so that a block can fill exactly what one tile adds to the canvas.
BLOCK = 40


@st.composite
def pages(draw) -> PIL.Image.Image:
    """An image of a few kinds of blocks, some of them of one colour: many of its tiles are equal."""
    rows, cols, kinds = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    blocks = rng.integers(0, 256, (kinds, BLOCK, BLOCK, 3), dtype=np.uint8)
    blocks[rng.random(kinds) < 0.5] = rng.choice([0, 128, 255])
    page = blocks[rng.integers(0, kinds, (rows, cols))].swapaxes(1, 2).reshape(rows * BLOCK, cols * BLOCK, 3)
    return PIL.Image.fromarray(page)


@st.composite
def batches(draw) -> list[list[PIL.Image.Image]]:
    """Prompts with up to three images, some of which occur several times."""
    drawn = draw(st.lists(pages(), min_size=1, max_size=3))
    rows = st.lists(st.sampled_from(drawn), max_size=3)
    return draw(st.lists(rows, min_size=1, max_size=3).filter(any))


@effort(short=40, long=2000)
@given(
    images=batches(),
    layout=st.sampled_from(["independent", "stitched"]),
    settings=st.fixed_dictionaries(
        {"drop_uniform_cells": st.booleans(), "max_crops": st.integers(1, 12)},
        optional={"uniform_tolerance": st.integers(0, 255), "max_image_tokens": st.integers(52, 300)},
    ),
)
def test_tokens_that_are_left(build_processor, images, layout, settings):
    """As many as predicted or, with dropped cells, at most as many, for tiles that are none the fewer."""
    processor = build_processor(layout)
    text = ["<|image|>" * len(row) + " Who?" for row in images]
    inputs = processor(
        images=images, text=text, padding=True, return_tensors="pt", return_mm_token_type_ids=True, **settings
    )
    plan = plan_images(inputs["image_token_positions"])
    sizes = [(image.height, image.width) for row in images for image in row]
    predicted = processor._get_num_multimodal_tokens(image_sizes=sizes, **settings)
    counts["images"] += len(sizes)
    counts["dropped cells"] += (inputs["image_token_positions"] < 0).sum().item()
    found = [int(count) for count in np.isin(inputs["input_ids"], processor.image_token_ids).sum(axis=1)]
    assert found == inputs["mm_token_type_ids"].sum(dim=1).tolist()
    assert sum(plan.num_tokens) == (inputs["input_ids"] == processor.image_token_id).sum()
    is_exact = not settings["drop_uniform_cells"]
    ends = np.cumsum([len(row) for row in images])
    for row, end in enumerate(ends):
        bound = sum(predicted["num_image_tokens"][end - len(images[row]) : end])
        assert found[row] == bound if is_exact else found[row] <= bound
    for count, bound, tokens in zip(
        plan.num_tiles, predicted["num_image_patches"], predicted["num_image_tokens"], strict=True
    ):
        assert count == bound if is_exact else 2 <= count <= bound
        assert tokens <= settings.get("max_image_tokens", tokens)


@pytest.mark.parametrize("layout", ["independent", "stitched"])
def test_distinct_tiles(build_model, build_processor, layout):
    processor, model = build_processor(layout), build_model(layout).double()
    cache = ImageFeatureCache(2**22)

    @effort(short=20, long=1000)
    @given(images=batches(), max_crops=st.integers(1, 12), group_size=st.integers(1, 5))
    @torch.no_grad()
    def check(images, max_crops, group_size):
        text = ["<|image|>" * len(row) + " Who?" for row in images]
        inputs = processor(images=images, text=text, max_crops=max_crops, padding=True, return_tensors="pt")
        pixel_values, positions = inputs["pixel_values"].double(), inputs["image_token_positions"]
        plan, distinct = plan_images(positions), plan_images(positions, pixel_values)

        # Every token is pooled from the same cell of a tile with the same pixels.
        columns = positions.shape[1]
        assert torch.equal(distinct.cell_indices % columns, plan.cell_indices % columns)
        assert torch.equal(distinct.is_last_tile, plan.is_last_tile)
        of_token, expected = (
            pixel_values[each.tile_indices][each.cell_indices // columns] for each in (distinct, plan)
        )
        assert torch.equal(of_token, expected)
        encoded = pixel_values[distinct.tile_indices]
        assert len(encoded.flatten(1).unique(dim=0)) == len(encoded)
        counts["tiles"] += len(pixel_values)
        counts["tiles not encoded"] += len(pixel_values) - len(encoded)

        model.model.tiles_per_group = 10**6
        logits = model(**{**inputs, "pixel_values": pixel_values}, image_plan=plan).logits
        model.model.tiles_per_group = group_size
        for model.model.image_cache in (None, cache, cache):
            again = model(**{**inputs, "pixel_values": pixel_values}).logits
            torch.testing.assert_close(again, logits, rtol=0, atol=1e-10)
        counts["bitwise equal logits"] += torch.equal(again, logits)
        counts["calls"] += 1

    check()
    assert cache.num_hits > cache.num_misses > 0
    assert cache.num_bytes <= 2**22
    assert counts["tiles not encoded"] > 50
