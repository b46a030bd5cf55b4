# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Image tokens that are left out: cells of one colour, and grids of fewer tiles by `max_image_tokens`."""

import numpy as np
import pytest
import torch
from helpers import LAYOUTS, run_lengths
from transformers import AutoProcessor, pipeline

from jvlm import draw_tiles, plan_images


layouts = pytest.mark.parametrize("layout", LAYOUTS)
DROP = {"drop_uniform_cells": True}


def spreads(tile: torch.Tensor, window: int = 16) -> list[float]:
    """The largest difference of a channel in every cell of 4 × 4 cells of a normalized tile, of 255."""
    found = []
    for top in range(0, 64, window):
        for left in range(0, 64, window):
            cell = tile[:, top : top + window, left : left + window].flatten(1)
            found.append(float((cell.amax(dim=1) - cell.amin(dim=1)).max()) * 255 / 2)
    return found


@pytest.mark.parametrize("tolerance", [0, 4.5, 5, 8, 255])
@layouts
def test_which_cells_are_dropped(build_processor, page, layout, tolerance):
    image_processor = build_processor(layout).image_processor
    full = image_processor(page, return_tensors="pt")
    some = image_processor(page, **DROP, uniform_tolerance=tolerance, return_tensors="pt")
    assert torch.equal(some["pixel_values"], full["pixel_values"])
    columns, expected = full["image_token_positions"].shape[1], []
    for number, (tile, positions) in enumerate(
        zip(full["pixel_values"], full["image_token_positions"].tolist(), strict=True)
    ):
        first = next(cell for cell in range(columns) if positions[cell] >= 0)
        for cell, (position, spread) in enumerate(zip(positions, spreads(tile)[:columns], strict=True)):
            if position >= 0 and (number == 0 or cell == first or spread > tolerance + 0.01):
                expected.append((position, number, cell))
    found = some["image_token_positions"]
    order = [(number, cell) for _, number, cell in sorted(expected)]
    assert [tuple((found == token).nonzero()[0].tolist()) for token in range(len(order))] == order
    assert (found >= 0).sum() == len(order)
    if tolerance == 255:
        assert len(order) == columns + 12
    assert plan_images(found).num_tokens == (len(order),)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_normalize": False},
        {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.1]},
        {"do_resize": True},
        {"rescale_factor": 1 / 510},
    ],
)
def test_the_tolerance_is_that_of_8_bits(build_processor, page, settings):
    image_processor = build_processor().image_processor
    expected = image_processor(page, **DROP, uniform_tolerance=5)["image_token_positions"]
    tolerance = 2.5 if "rescale_factor" in settings else 5
    found = image_processor(page, **DROP, uniform_tolerance=tolerance, **settings)["image_token_positions"]
    assert np.array_equal(found, expected)
    values = np.asarray(page, dtype=np.float32) / 255
    found = image_processor(values, **DROP, uniform_tolerance=5, do_rescale=False)["image_token_positions"]
    assert np.array_equal(found, expected)


@torch.no_grad
@layouts
def test_kept_tokens_have_the_features_that_they_had(build_model, build_processor, page, make_image, layout):
    model, processor = build_model(layout), build_processor(layout)
    images, text = [page, make_image(90, 130), page.resize((40, 40))], "<|image|>, <|image|> and <|image|>?"
    full, some = (processor(images=images, text=text, return_tensors="pt", **each) for each in ({}, DROP))
    features = [
        torch.cat(model.get_image_features(each["pixel_values"], each["image_token_positions"]).pooler_output)
        for each in (full, some)
    ]
    is_kept = (some["image_token_positions"] >= 0)[full["image_token_positions"] >= 0]
    cells = [plan_images(each["image_token_positions"]).cell_indices for each in (full, some)]
    columns = full["image_token_positions"].shape[1]
    assert len(cells[1]) == is_kept.sum() < len(cells[0]) / 1.5
    rows, position = [], 0
    for cell in cells[1].tolist():  # the kept tokens are in the order of all
        position = cells[0].tolist().index(cell, position)
        rows.append(position)
        position += 1
    assert columns == processor.image_processor.geometry().cells_per_tile
    torch.testing.assert_close(features[1], features[0][rows], rtol=0, atol=1e-5)
    assert model(**some).logits.shape[1] == some["input_ids"].shape[1]


@layouts
def test_prompts(build_model, build_processor, page, make_image, layout):
    """One span per image, the markers of all rows, in a padded batch whose rows are those of single calls."""
    model, processor = build_model(layout), build_processor(layout)
    images, text = [[page], [make_image(90, 130), page], []], ["<|image|> Who?", "<|image|> or <|image|>?", "Well?"]
    inputs = processor(images=images, text=text, padding=True, return_tensors="pt", **DROP)
    full = processor(images=images, text=text, padding=True, return_tensors="pt")
    for token in ("<im_start>", "<im_col>", "<im_end>"):
        token = processor.tokenizer.convert_tokens_to_ids(token)
        counts = [(each["input_ids"] == token).sum(dim=1).tolist() for each in (inputs, full)]
        assert counts[0] == counts[1]
    output = model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    for row in range(3):
        alone = processor(images=images[row] or None, text=text[row], return_tensors="pt", **DROP)
        expected = model.generate(**alone, max_new_tokens=5, do_sample=False)[0, alone["input_ids"].shape[1] :]
        assert output[row, : len(expected)].tolist() == expected.tolist()
    types = processor(images=images[1], text=text[1], return_mm_token_type_ids=True, **DROP)
    sizes = [(image.height, image.width) for image in images[1]]
    bounds = processor._get_num_multimodal_tokens(image_sizes=sizes, **DROP)["num_image_tokens"]
    photo, blank = run_lengths(types["mm_token_type_ids"][0])
    assert photo == bounds[0]  # a photo keeps all of its cells
    assert blank < bounds[1] / 1.5


def test_a_saved_setting_in_a_pipeline(checkpoint, page, tmp_path):
    """Also with a layout of rows: a blank row is its marker alone."""
    processor = AutoProcessor.from_pretrained(checkpoint)
    answer = pipeline("image-text-to-text", model=str(checkpoint), processor=processor)
    content = [{"type": "image", "image": page}, {"type": "text", "text": "What?"}]
    settings = {"text": [{"role": "user", "content": content}], "max_new_tokens": 3}
    assert answer(**settings, generate_kwargs={"do_sample": False})
    processor.image_processor.drop_uniform_cells = True
    processor.image_processor.max_image_tokens = 500
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert again.image_processor.to_dict() == processor.image_processor.to_dict()
    assert pipeline("image-text-to-text", model=str(checkpoint), processor=again)(**settings)
    full, some = (
        each(images=page, text="<|image|>", return_tensors="pt", drop_uniform_cells=each is again)["input_ids"]
        for each in (processor, again)
    )
    assert some.shape[1] < full.shape[1]


@layouts
def test_max_image_tokens(build_processor, make_image, layout):
    processor = build_processor(layout)
    geometry = processor.image_processor.geometry()
    image, sizes = make_image(130, 170), [(130, 170)]
    fewest = geometry.num_tokens((1, 1))[0]
    previous, seen = None, set()
    for limit in range(geometry.num_tokens((3, 4))[0] + 1, fewest - 1, -1):
        settings = {"max_image_tokens": limit}
        [grid] = processor.image_processor.get_image_grids(sizes, settings)
        seen.add(grid)
        num_tokens = geometry.num_tokens(grid)[0]
        assert num_tokens <= limit
        predicted = processor._get_num_multimodal_tokens(image_sizes=sizes, **settings)
        assert predicted["num_image_tokens"] == [num_tokens]
        assert predicted["num_image_patches"] == [1 + grid[0] * grid[1]]
        assert num_tokens <= processor.image_processor.max_num_tokens(settings) <= limit
        if grid != previous:
            inputs = processor(images=image, text="<|image|>", return_tensors="pt", **settings)
            assert inputs["input_ids"].shape[1] == num_tokens
            assert len(inputs["pixel_values"]) == 1 + grid[0] * grid[1]
        previous = grid
    assert len(seen) > 3
    assert (1, 1) in seen


@layouts
def test_a_limit_with_dropped_cells(build_processor, page, make_image, layout):
    """The grid is only reduced if the cells that are left are too many."""
    processor = build_processor(layout)
    limit = processor(images=page, text="<|image|>", return_tensors="pt", **DROP)["input_ids"].shape[1]
    settings = {**DROP, "max_image_tokens": limit}
    photo = make_image(136, 176)
    together = processor(
        images=[photo, page, photo], text="<|image|><|image|><|image|>", return_tensors="pt", **settings
    )
    parts = plan_images(together["image_token_positions"])
    assert parts.num_tiles[1] == 13
    assert parts.num_tiles[0] == parts.num_tiles[2] < 13
    sizes = [(136, 176)] * 3
    bounds = processor._get_num_multimodal_tokens(image_sizes=sizes, **settings)
    assert (bounds["num_image_tokens"], bounds["num_image_patches"]) == ([limit] * 3, [13] * 3)
    tiles = together["pixel_values"].split(parts.num_tiles)
    for index, image in enumerate((photo, page)):
        alone = processor(images=image, text="<|image|>", return_tensors="pt", **settings)
        assert torch.equal(tiles[index], alone["pixel_values"])
        assert alone["input_ids"].shape[1] <= limit


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_image_tokens": 23}, r"`max_image_tokens` \(23\) must be at least 24, a thumbnail and a tile"),
        ({"max_image_tokens": 0}, "`max_image_tokens` must be an integer from 1"),
        ({"max_image_tokens": 50.0}, "`max_image_tokens` must be an integer from 1"),
        ({"drop_uniform_cells": 1}, "drop_uniform_cells.*(must be true or false|expected bool, got int)"),
        ({"uniform_tolerance": -1}, "`uniform_tolerance` must be a number from 0 to 255"),
        ({"uniform_tolerance": 256}, "`uniform_tolerance` must be a number from 0 to 255"),
        ({"drop_uniform_cell": True}, "did you mean `drop_uniform_cells`"),
    ],
)
def test_wrong_settings(build_processor, page, settings, message):
    with pytest.raises(ValueError, match=message):
        build_processor()(images=page, text="<|image|>", **settings)
    with pytest.raises(ValueError, match=message):
        build_processor(**settings)


def test_the_drawing_counts_the_tokens_that_are_left(build_processor, page, monkeypatch):
    titles = []
    monkeypatch.setattr("jvlm.processing.drawing._sheet", lambda lines, *args: titles.append(lines[0][0]))
    processor = build_processor("stitched")
    draw_tiles(page, processor, **DROP)
    num_tokens = processor(images=page, text="<|image|>", return_tensors="pt", **DROP)["input_ids"].shape[1]
    assert titles[0].startswith(f"3 x 4 tiles and a thumbnail, {num_tokens} image tokens (")
