# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Where an answer comes from: attention as weights of pixels, and how often they are in the right place."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
from helpers import LAYOUTS, assistant, chat_inputs, user
from transformers.models.qwen3 import modeling_qwen3

from examples.digits import evidence as digits
from examples.digits.evaluate import MODEL
from examples.digits.pages import held_out_pages
from jvlm import (
    EvidenceMeasurement,
    ImageFeatureCache,
    JinaVLMForConditionalGeneration,
    draw_evidence,
    find_evidence,
    measure_evidence,
)
from jvlm.modeling import modeling_jvlm
from jvlm.processing import drawing


GRIDS = [(rows, cols) for rows in range(1, 13) for cols in range(1, 12 // rows + 1)]
QUESTION, ANSWER = "What is the name of this lady?", "Her name is Ada."


@pytest.fixture
def build(build_config, build_processor):
    """A function (layout, **settings of config and processor) that builds a small model and its processor."""

    def build(layout="independent", **settings):
        torch.manual_seed(0)
        model = JinaVLMForConditionalGeneration(build_config(layout, **settings)).eval()
        return model, build_processor(layout, **settings)

    return build


@pytest.fixture
def attend(monkeypatch):
    """A function (position, patch) after which the decoder only attends to one token, the connector to one patch."""

    def one_hot(index, like):
        return torch.nn.functional.one_hot(torch.tensor(index), like).float()

    def attend(position, patch):
        def decoder(module, query, key, value, mask, **kwargs):
            weights = one_hot(position, key.shape[2]).expand(*query.shape[:3], -1)
            return torch.zeros_like(query).transpose(1, 2), weights

        def connector(module, query, key, value, mask, **kwargs):
            weights = one_hot(patch, key.shape[2]).expand(*query.shape[:3], -1)
            return torch.zeros_like(query).transpose(1, 2), weights

        monkeypatch.setattr(modeling_qwen3, "eager_attention_forward", decoder)
        monkeypatch.setattr(modeling_jvlm, "eager_attention_forward", connector)

    return attend


def coordinates(height: int, width: int) -> torch.Tensor:
    """An image whose pixels hold their places: y, x and 0, `[3, height, width]`."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([y, x, torch.zeros_like(y)])


@pytest.mark.parametrize("do_resize", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_pixels_are_those_that_the_patch_shows(build, attend, layout, do_resize):
    """What a patch shows, the image processor tells: of an image whose pixels hold their places."""
    model, processor = build(layout)
    processor.image_processor.do_resize = do_resize
    geometry, rng, seen = processor.image_processor.geometry(), np.random.default_rng(0), set()
    for canvas in map(geometry.canvas_size, GRIDS):
        height, width = (side - int(rng.integers(0, 8)) for side in canvas)
        as_they_are = {"do_rescale": False, "do_normalize": False, "resize_in_float32": True, "return_tensors": "pt"}
        encoded = processor.image_processor(coordinates(height, width), **as_they_are)
        positions, [grid] = encoded["image_token_positions"].numpy(), encoded["image_grids"].tolist()
        seen.add(tuple(grid))
        image = PIL.Image.new("RGB", (width, height))
        input_ids = processor.apply_chat_template([user(image)], tokenize=True, return_dict=True)["input_ids"][0]
        image_tokens = np.flatnonzero(np.array(input_ids) == model.config.image_token_id)
        for tiles in (slice(0, 1), slice(1, None)):  # a patch of the thumbnail, and one of the tiles
            token = int(rng.choice(positions[tiles][positions[tiles] >= 0]))
            [tile], [cell] = (positions == token).nonzero()
            corner = 2 * np.array(np.unravel_index(cell, geometry.pooled_grid))
            down, right = rng.integers(0, np.minimum(2, 7 - corner))
            attend(image_tokens[token], 2 * down + right)
            found = find_evidence(model, processor, image, QUESTION, ANSWER, layer=1)
            assert found.shape == (height, width)
            assert found.sum() == pytest.approx(1)
            top, left = 8 * np.add(corner, (down, right))
            shown = encoded["pixel_values"][tile, :2, top : top + 8, left : left + 8].numpy()
            for axis, places in enumerate(shown):
                weights = found.sum(axis=1 - axis)
                lit = weights.nonzero()[0]
                assert weights @ (np.arange(len(weights)) + 0.5) == pytest.approx(places.mean(), abs=0.75)
                assert lit[0] <= places.min() <= places.max() <= lit[-1] + 1
                assert lit[-1] - lit[0] <= 8 / 7 * (places.max() - places.min()) + 2
    assert len(seen) == len(GRIDS) or do_resize


@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_has_no_place(build, attend, layout):
    model, processor = build(layout)
    image = PIL.Image.new("RGB", (56, 56))
    input_ids = processor.apply_chat_template([user(image)], tokenize=True, return_dict=True)["input_ids"][0]
    last_of_first_row = input_ids.index(model.config.image_token_id) + 3  # its window reaches beyond the 7 patches
    for patch, share in enumerate([1, 0, 1, 0]):
        attend(last_of_first_row, patch)
        assert find_evidence(model, processor, image, QUESTION, ANSWER, layer=0).sum() == pytest.approx(share)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_groups_known_images_and_dropped_cells(build, make_image, layout):
    model, processor = build(layout)
    page = PIL.Image.new("RGB", (170, 130), "white")
    page.paste(make_image(30, 30), (50, 60))
    expected = find_evidence(model, processor, page, QUESTION, ANSWER, layer=0)
    model.model.tiles_per_group, model.model.image_cache = 2, ImageFeatureCache(2**20)
    assert np.array_equal(find_evidence(model, processor, page, QUESTION, ANSWER, layer=0), expected)
    settings = {"drop_uniform_cells": True, "max_image_tokens": 60}
    found = find_evidence(model, processor, page, QUESTION, ANSWER, layer=0, **settings)
    assert found.shape == (130, 170)
    assert 0 < found.sum() < expected.sum()


@pytest.mark.parametrize("layer", [0, 1])
def test_the_weights_are_those_of_the_model(build, make_image, layer):
    """Without padding, the sum is the share of the attention that the image gets before each token of the answer."""
    model, processor = build("independent", pooled_grid=[3, 3])
    image = make_image(90, 120)
    inputs = chat_inputs(
        processor,
        [user(image, QUESTION), assistant(ANSWER)],
        add_generation_prompt=False,
        return_assistant_tokens_mask=True,
    )
    answer = inputs.pop("assistant_masks")[0].bool()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(**inputs, output_attentions=True).attentions[layer][0].mean(dim=0)
    model.set_attn_implementation({"": "eager", "text_config": "sdpa", "vision_config": "eager"})
    rows = answer.nonzero()[:-1, 0] - 1  # not the end of the sequence
    expected = attentions[rows][:, inputs["input_ids"][0] == model.config.image_token_id].sum(dim=1).mean()
    found = find_evidence(model, processor, image, QUESTION, ANSWER, layer=layer)
    assert found.sum() == pytest.approx(expected.item(), rel=1e-4)
    assert 0 < found.sum() < 1
    implementations = [
        part.config._attn_implementation for part in (model.model.language_model, model.model.vision_tower)
    ]
    assert implementations == ["sdpa", "eager"]


def test_arguments_of_the_image_processor(build, make_image):
    model, processor = build()
    image = make_image(300, 300)
    few, many = (find_evidence(model, processor, image, QUESTION, ANSWER, 1, max_crops=n) for n in (1, 12))
    assert few.shape == many.shape == (300, 300)
    assert not np.allclose(few, many)


def test_bad_arguments(build, make_image):
    model, processor = build()
    image = make_image(60, 60)
    for layer in (-1, 2):
        with pytest.raises(ValueError, match=f"`layer` is {layer}, but the decoder has the layers 0 to 1"):
            find_evidence(model, processor, image, QUESTION, ANSWER, layer)
    with pytest.raises(ValueError, match="one PIL image, path or URL, got list"):
        find_evidence(model, processor, [image], QUESTION, ANSWER, 1)
    with pytest.raises(ValueError, match="no tokens of the answer ''"):
        find_evidence(model, processor, image, QUESTION, "", 1)
    with pytest.raises(ValueError, match=r"\(5, 9\), but the image \(60, 60\)"):
        draw_evidence(image, processor, np.ones((5, 9)), "Not measured.")
    with pytest.raises(ValueError, match="no rows"):
        measure_evidence(model, processor, [], [], "nothing")
    with pytest.raises(ValueError, match="hold no pixel of an image of 60×60 pixels"):
        measure_evidence(model, processor, [(image, QUESTION, [(70, 70, 80, 80)])], [], "nothing")


def test_the_digit_model_looks_at_the_digit(tmp_path):
    folder = shutil.copytree(MODEL, tmp_path / "model")
    (folder / "evidence.json").unlink()
    measurement = digits.measure(folder, num_pages=10, num_training_pages=4)
    assert measurement.total == 30
    assert measurement.choice_total == 12
    assert measurement.right >= 22
    assert 0.01 < measurement.chance < 0.1
    assert EvidenceMeasurement.from_pretrained(folder) == measurement
    assert f"for {measurement.right} of 30 answers" in str(measurement)


def test_the_shipped_measurement_is_that_of_all_held_out_pages():
    shipped = EvidenceMeasurement.from_pretrained(MODEL)
    assert shipped.total == len(digits.rows_of(held_out_pages()))
    assert shipped.layer == int(np.argmax(shipped.choice))
    assert f"{shipped.right} of {shipped.total}" in (MODEL.parents[2] / "model_card.md").read_text(encoding="utf-8")


def test_a_checkpoint_without_measurement(tmp_path):
    with pytest.raises(OSError, match=r"has no evidence\.json: nobody has measured"):
        EvidenceMeasurement.from_pretrained(tmp_path)
    (tmp_path / "evidence.json").write_text(json.dumps({"layer": 1}))
    with pytest.raises(ValueError, match=r"evidence\.json is damaged"):
        EvidenceMeasurement.from_pretrained(tmp_path)


def test_the_drawing_is_red_where_the_evidence_is(build_processor):
    image, evidence = PIL.Image.new("RGB", (170, 136), "white"), np.zeros((136, 170))
    evidence[60:64, 100:104], evidence[10:20, 10:20] = 2, 1
    drawn = np.asarray(draw_evidence(image, build_processor(), evidence, "Not measured.", {"Where?": "Here."}), int)
    scale = drawing._CANVAS_LIMIT[0] // 170
    redness = (drawn[..., 0] - drawn[..., 1])[:, : drawing._MARGIN + 170 * scale]  # without the legend
    weak, strong = sorted(set(redness[redness > 0]))  # the circle is blue
    corners = []
    for value, side in ((weak, 10), (strong, 4)):
        rows, cols = (redness == value).nonzero()
        assert len(rows) == (side * scale) ** 2
        corners.append((rows.min(), cols.min()))
    assert np.diff(corners, axis=0).tolist() == [[50 * scale, 90 * scale]]


def test_nothing_is_red_without_evidence(build_processor, make_image):
    drawn = draw_evidence(make_image(40, 300), build_processor(), np.zeros((40, 300)), "Not measured.")
    assert drawn.width <= drawing._WIDTH
