# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Patches of uniform cells that the vision tower leaves out (`drop_uniform_patches`)."""

import numpy as np
import pytest
import torch
from helpers import LAYOUTS

from jvlm import ImageFeatureCache, plan_images
from jvlm.modeling.image_plan import pack_patches, trace_plan


layouts = pytest.mark.parametrize("layout", LAYOUTS)
CELLS, PATCHES = {"drop_uniform_cells": True}, {"drop_uniform_cells": True, "drop_uniform_patches": True}


def masked_tower(model, pixel_values: torch.Tensor, is_seen: torch.Tensor) -> torch.Tensor:
    """The features of each tile alone, by a tower whose patches attend to the seen ones only."""
    features = []
    for tile, seen in zip(pixel_values, is_seen, strict=True):
        outputs = model.model.vision_tower(
            tile[None], attention_mask=torch.where(seen, 0.0, -torch.inf)[None, None, None], output_hidden_states=True
        )
        # The last hidden states are those of the blocks, whether the embeddings are among them or not.
        states = outputs.hidden_states[-len(model.model.vision_tower.encoder.layers) :]
        each = torch.cat([states[block] for block in model.config.vision_feature_layer], dim=-1)
        features.append(each * seen[None, :, None])
    return torch.cat(features)


def seen_patches(model, positions: torch.Tensor) -> torch.Tensor:
    """Which patches the tower sees, `[tiles, patches]`, written with loops."""
    (rows, cols), side = model.config.pooled_shape, model.config.patches_per_side
    size, is_seen = model.config.pooling_size, torch.zeros(len(positions), side, side, dtype=torch.bool)
    for tile, cells in enumerate(positions.view(-1, rows, cols)):
        for row in range(side):
            for col in range(side):
                cell = cells[min(row // size, rows - 1), min(col // size, cols - 1)]
                is_seen[tile, row, col] = cell != -2
    return is_seen.flatten(1)


@layouts
def test_positions_are_those_of_dropped_cells(build_processor, page, layout):
    image_processor = build_processor(layout).image_processor
    cells, patches = (image_processor(page, return_tensors="pt", **each) for each in (CELLS, PATCHES))
    assert torch.equal(cells["pixel_values"], patches["pixel_values"])
    found, expected = patches["image_token_positions"], cells["image_token_positions"]
    assert torch.equal(found.clamp(min=-1), expected)
    assert (found[0] >= 0).all()  # the thumbnail
    assert (found == -2).sum() > found.numel() / 2
    # Whatever is not of one colour is seen, also cells without tokens where tiles overlap.
    all_positions = image_processor(page, return_tensors="pt")["image_token_positions"]
    assert ((all_positions < 0) & (found == -1)).any() == (layout == "stitched")
    assert not ((all_positions >= 0) & (found == -1)).any()


@torch.no_grad
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@layouts
def test_features_are_those_of_a_masked_tower(build_model, build_processor, page, make_image, layout, implementation):
    model, processor = build_model(layout, attn_implementation=implementation), build_processor(layout)
    inputs = processor(
        images=[page, make_image(90, 130), page.rotate(180)], text="<|image|>" * 3, return_tensors="pt", **PATCHES
    )
    positions = inputs["image_token_positions"]
    expected = masked_tower(model, inputs["pixel_values"], is_seen := seen_patches(model, positions))
    found = model.model.get_vision_features(inputs["pixel_values"], positions != -2).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert not found[~is_seen].any()
    plain = model.model.get_vision_features(inputs["pixel_values"]).last_hidden_state
    assert (found - plain)[is_seen].abs().max() > 1e-3  # so the mask matters

    plan = plan_images(positions, inputs["pixel_values"])
    whole = plan_images(positions.clamp(min=-1)).cell_indices
    expected = model.model.connector(expected, whole, plan.is_last_tile)
    found = torch.cat(model.get_image_features(inputs["pixel_values"], positions).pooler_output)
    embedding = model.get_input_embeddings()(torch.tensor(model.config.image_token_id))
    torch.testing.assert_close(found, expected + embedding, rtol=0, atol=5e-5)
    assert len(plan.tile_indices) < len(positions)  # blank tiles are equal
    for size in (1, 3):
        model.model.tiles_per_group = size
        again = torch.cat(model.get_image_features(inputs["pixel_values"], positions).pooler_output)
        torch.testing.assert_close(again, found, rtol=0, atol=2e-5)


def test_rows_hold_every_seen_patch_once():
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        num_tiles = int(torch.randint(1, 12, (), generator=generator))
        share = torch.rand(num_tiles, 1, generator=generator)
        is_seen = torch.rand(num_tiles, 16, generator=generator) < share
        is_seen[:, 3] = True
        patches, tiles = pack_patches(is_seen)
        used = patches[tiles >= 0]
        assert torch.equal(used.sort()[0], is_seen.flatten().nonzero()[:, 0])
        assert torch.equal(used // 16, tiles[tiles >= 0])
        assert patches.shape[1] <= 16
        assert len(patches) <= 2 * -(-int(is_seen.sum()) // 16)
        for tile in range(num_tiles):  # no tile is divided
            assert len((tiles == tile).any(dim=1).nonzero()) == 1


@layouts
def test_batches_and_caches(build_model, build_processor, page, make_image, layout):
    model, processor = build_model(layout), build_processor(layout)
    images, text = [[page], [make_image(90, 130), page], []], ["<|image|> Who?", "<|image|> or <|image|>?", "Well?"]
    inputs = processor(images=images, text=text, padding=True, return_tensors="pt", **PATCHES)
    output = model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    for row in range(3):
        single = processor(images=images[row] or None, text=text[row], return_tensors="pt", **PATCHES)
        expected = model.generate(**single, max_new_tokens=5, do_sample=False)[0, single["input_ids"].shape[1] :]
        assert output[row, : len(expected)].tolist() == expected.tolist()

    cache = model.model.image_cache = ImageFeatureCache(2**20)
    single = processor(images=page, text="<|image|>", return_tensors="pt", **PATCHES)
    cells = processor(images=page, text="<|image|>", return_tensors="pt", **CELLS)
    with torch.no_grad():
        logits = [model(**each).logits for each in (single, cells, single, cells)]
    assert (cache.num_hits, cache.num_misses) == (2, 2)  # the same pixels and tokens, other features
    assert torch.equal(logits[0], logits[2])
    assert torch.equal(logits[1], logits[3])
    assert not torch.equal(logits[0], logits[1])


def test_training(build_model, build_processor, page):
    """Gradients reach the tower, also with gradient checkpointing, and equal those of a masked tower."""
    model, processor = build_model(), build_processor()
    inputs = processor(images=page, text="<|image|> Total?", return_tensors="pt", **PATCHES)
    positions = inputs["image_token_positions"]
    gradients = []
    for is_checkpointed in (False, True):
        model.zero_grad()
        if is_checkpointed:
            model.gradient_checkpointing_enable()
            model.train()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append(model.model.vision_tower.embeddings.patch_embedding.weight.grad.clone())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0])
    model.eval().zero_grad()
    expected = masked_tower(model, inputs["pixel_values"], seen_patches(model, positions))
    model.model.get_vision_features(inputs["pixel_values"], positions != -2).last_hidden_state.sum().backward()
    found = model.model.vision_tower.embeddings.patch_embedding.weight.grad.clone()
    model.zero_grad()
    expected.sum().backward()
    torch.testing.assert_close(
        found, model.model.vision_tower.embeddings.patch_embedding.weight.grad, rtol=1e-4, atol=1e-4
    )


def test_settings_are_saved(build_processor, page, tmp_path):
    processor = build_processor()
    for name in PATCHES:
        setattr(processor.image_processor, name, True)
    processor.save_pretrained(tmp_path)
    again = type(processor).from_pretrained(tmp_path)
    assert again.image_processor.drop_uniform_patches is True
    positions = [each.image_processor(page)["image_token_positions"] for each in (again, processor)]
    assert np.array_equal(*positions)
    assert (positions[0] == -2).any()


def test_bad_input(build_model, build_processor, page):
    model, processor = build_model(), build_processor()
    with pytest.raises(ValueError, match="`drop_uniform_patches` needs `drop_uniform_cells=True`"):
        processor.image_processor(page, drop_uniform_patches=True)
    inputs = processor(images=page, text="<|image|>", return_tensors="pt", **PATCHES)
    with pytest.raises(ValueError, match="`drop_uniform_patches` is not available with hidden states"):
        model(**inputs, output_hidden_states=True)
    given = dict(inputs)
    with torch.no_grad():
        given["vision_features"] = model.model.get_vision_features(given.pop("pixel_values")).last_hidden_state
        with pytest.raises(ValueError, match="`vision_features` are those of whole tiles"):
            model(**given)
    model.config.vision_config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="`drop_uniform_patches` needs attention with a mask"):
        model(**inputs)


@torch.no_grad
def test_compiled_code_encodes_the_right_patches_or_none(build_model, build_processor, page):
    model, inputs = build_model(), build_processor()(images=page, text="<|image|>", return_tensors="pt", **PATCHES)
    with pytest.raises(ValueError, match="`drop_uniform_patches` is not available in compiled code"):
        trace_plan(inputs["image_token_positions"], (inputs["input_ids"] == model.config.image_token_id).sum())
    plan = plan_images(inputs["image_token_positions"], inputs["pixel_values"])
    torch.compiler.reset()
    with pytest.raises(Exception, match="`drop_uniform_patches` is not available in a compiled vision tower"):
        torch.compile(model.forward, backend="eager", fullgraph=True)(**inputs, image_plan=plan)
