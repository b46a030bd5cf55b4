# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The model on small random weights: features, places, gradients, caches, and what is computed and what not."""

import inspect
import weakref

import pytest
import torch
import transformers
from helpers import CACHE, checkpoint_activations
from packaging.version import Version
from torch.nn import functional as F
from transformers import DynamicCache, Qwen3Model, SiglipVisionModel, StaticCache

from jvlm import ImageFeatureCache, JinaVLMModel, plan_images
from jvlm.modeling.image_plan import trace_plan


LAYOUTS = ["independent", "stitched"]
layouts = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture
def build_inputs(build_processor, make_image):
    """A function (layout) to a padded batch: one image, two images, text alone."""

    def build(layout: str = "independent"):
        images = [[make_image(90, 130, 0)], [make_image(40, 40, 1), make_image(60, 200, 2)], []]
        prompts = ["<|image|> Who is this?", "Between <|image|> and <|image|>?", "Well?"]
        return build_processor(layout)(images=images, text=prompts, padding=True, return_tensors="pt")

    return build


@pytest.fixture
def count_calls():
    """A function (module) to a list that grows by the shape of the first input with every call of the module."""

    def count(module) -> list:
        calls = []

        def hook(module, args, kwargs):
            calls.append(next(iter([*args, *kwargs.values()])).shape)

        module.register_forward_pre_hook(hook, with_kwargs=True)
        return calls

    return count


# Shapes and structure


@torch.no_grad
@layouts
def test_output(build_model, build_inputs, layout):
    model, inputs = build_model(layout), build_inputs(layout)
    outputs = model(**inputs)
    batch, length = inputs["input_ids"].shape
    assert outputs.logits.shape == (batch, length, model.config.text_config.vocab_size)
    assert outputs.loss is None
    num_tokens = int((inputs["input_ids"] == model.config.image_token_id).sum())
    assert outputs.image_hidden_states.shape == (num_tokens, 32)
    assert outputs[CACHE].get_seq_length() == length
    assert torch.isfinite(outputs.logits).all()
    as_tuple = model(**inputs, return_dict=False)
    assert torch.equal(as_tuple[0], outputs.logits)


def test_parts(build_model):
    model = build_model("stitched")
    assert type(model.model) is JinaVLMModel
    assert type(model.model.vision_tower) is SiglipVisionModel
    assert type(model.model.language_model) is Qwen3Model
    # Blocks 2 and 1 of four feed the connector.
    assert len(model.model.vision_tower.encoder.layers) == 3
    names = set(model.state_dict())
    assert not any("post_layernorm" in name or "head." in name.replace("lm_head.", "") for name in names)
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        assert f"model.connector.pooling.{part}.weight" in names
    for part in ("gate_proj", "up_proj", "down_proj"):
        assert f"model.connector.projector.{part}.weight" in names
    assert "model.connector.last_tile_embedding" in names
    assert "model.connector.last_tile_embedding" not in build_model("independent").state_dict()


@torch.no_grad
def test_features_are_block_outputs(build_model, build_config, build_inputs):
    """What enters the connector is what a whole vision tower returns as hidden states, block by block."""
    model, inputs = build_model(), build_inputs()
    tower = SiglipVisionModel(model.config.vision_config).eval()
    missing = tower.load_state_dict(model.model.vision_tower.state_dict(), strict=False).missing_keys
    assert missing
    assert all(".layers.3." in name or "post_layernorm" in name for name in missing)
    hidden_states = tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
    assert len(hidden_states) == 5
    positions = inputs["image_token_positions"]
    features = model.get_image_features(inputs["pixel_values"], positions).last_hidden_state
    expected = torch.cat([hidden_states[2 + 1], hidden_states[1 + 1]], dim=-1)
    expected = expected[plan_images(positions).tile_indices]
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)


@torch.no_grad
def test_only_used_hidden_states_are_kept(build_model, build_inputs):
    model, inputs = build_model(vision_feature_layer=[2, 0]), build_inputs()
    kept = []
    model.model.vision_tower.register_forward_hook(lambda module, args, output: kept.append(output.hidden_states))
    model(**inputs)
    assert len(kept) == 1
    assert sum(states is not None for states in kept[0]) == 2


@torch.no_grad
@layouts
def test_the_tile_of_a_1x1_grid_is_encoded_once(build_model, build_processor, make_image, layout):
    """It has the pixels of its thumbnail."""
    model, processor = build_model(layout), build_processor(layout)
    images = [make_image(56, 56, 0), make_image(60, 200, 2), make_image(40, 50, 1)]
    inputs = processor(images=images, text="<|image|><|image|><|image|>", return_tensors="pt")
    pixel_values, positions = inputs["pixel_values"], inputs["image_token_positions"]
    num_tiles = [2, len(pixel_values) - 4, 2]
    assert torch.equal(pixel_values[0], pixel_values[1])
    encoded = []
    model.model.vision_tower.register_forward_pre_hook(lambda module, args: encoded.append(args[0]))
    outputs = model.get_image_features(pixel_values, positions)
    distinct = [0, *range(2, 2 + num_tiles[1]), len(pixel_values) - 2]
    assert torch.equal(encoded[0], pixel_values[distinct])
    assert len(outputs.last_hidden_state) == len(distinct)
    # The plan of a traced forward encodes every tile. Matrix products of another size differ in the last bits.
    everything = model.get_image_features(
        pixel_values, image_plan=trace_plan(positions, torch.tensor(sum(plan_images(positions).num_tokens)))
    ).pooler_output
    features = torch.cat(outputs.pooler_output)
    torch.testing.assert_close(features, everything[: len(features)], rtol=0, atol=1e-5)


@torch.no_grad
@layouts
def test_groups_of_tiles(build_model, build_inputs, layout):
    """The tower takes a few tiles at a time, and the connector pools each group before the next one is encoded."""
    model, inputs = build_model(layout), build_inputs(layout)
    calls, features_of_groups = [], []

    def count(module, args):
        calls.append(len(args[0]))
        assert not any(reference() is not None for reference in features_of_groups)

    expected = model(**inputs)
    features = model.get_image_features(inputs["pixel_values"], inputs["image_token_positions"])
    model.model.vision_tower.register_forward_pre_hook(count)
    num_tiles = len(features.last_hidden_state)
    for size in (1, 3, num_tiles):
        model.model.tiles_per_group = size
        calls.clear()
        hook = model.model.connector.register_forward_pre_hook(
            lambda module, args: features_of_groups.append(weakref.ref(args[0]))
        )
        outputs = model(**inputs)
        hook.remove()
        assert calls == [size] * (num_tiles // size) + ([num_tiles % size] if num_tiles % size else [])
        torch.testing.assert_close(outputs.image_hidden_states, expected.image_hidden_states, rtol=0, atol=1e-5)
        # vLLM passes other tensors of the processor beside the tiles.
        others = {"num_image_patches": torch.tensor([num_tiles, 0])}
        again = model.get_image_features(inputs["pixel_values"], inputs["image_token_positions"], **others)
        torch.testing.assert_close(again.last_hidden_state, features.last_hidden_state, rtol=0, atol=1e-5)
    model.model.tiles_per_group = 3
    calls.clear()
    model.generate(**inputs, max_new_tokens=2)  # keeps no features of tiles either
    assert calls[0] == 3
    model.model.tiles_per_group = 0
    with pytest.raises(ValueError, match="`tiles_per_group` must be at least 1, got 0"):
        model(**inputs)


@torch.no_grad
def test_divided_weights_are_one_group(build_model, build_inputs):
    """Processes that share weights, here by a mark of ZeRO-3, run the tower once each, whatever their images."""
    model, inputs = build_model(), build_inputs()
    model.model.tiles_per_group, model.model.image_cache = 2, ImageFeatureCache(2**20)
    calls = []
    model.model.vision_tower.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    next(model.model.vision_tower.parameters()).ds_id = 0
    model(**inputs)
    model(**inputs)
    assert len(calls) == 2
    assert min(calls) > 2
    assert len(model.model.image_cache) == 0


def test_gradients_of_equal_tiles(build_model, build_processor, make_image):
    """Those of all tiles, whether or not equal tiles are encoded once; and each tile's own where it needs one."""
    image, model = make_image(90, 130), build_model().double()
    inputs = build_processor()(images=[image, image], text="<|image|>, <|image|>?", return_tensors="pt")
    pixel_values, num_tiles = inputs.pop("pixel_values").double(), len(inputs["image_token_positions"])
    encoded, gradients = [], []
    model.model.vision_tower.register_forward_pre_hook(lambda module, args: encoded.append(len(args[0])))
    for tiles in (pixel_values, pixel_values.clone().requires_grad_()):
        model.zero_grad()
        model(**inputs, pixel_values=tiles, labels=inputs["input_ids"]).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert encoded == [num_tiles // 2, num_tiles]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)
    assert all(tile.any() for tile in tiles.grad)


# Features and their places


@torch.no_grad
@layouts
def test_one_tuple_entry_per_image(build_model, build_processor, make_image, layout):
    model, processor = build_model(layout), build_processor(layout)
    images = [make_image(90, 130, 0), make_image(40, 40, 1), make_image(60, 200, 2)]
    inputs = processor(images=images, text="<|image|><|image|><|image|>", return_tensors="pt")
    tiles = (inputs["pixel_values"], inputs["image_token_positions"])
    features = model.get_image_features(*tiles).pooler_output
    assert isinstance(features, tuple)
    assert len(features) == 3
    for image, entry in zip(images, features, strict=True):
        alone = processor(images=image, text="<|image|>", return_tensors="pt")
        assert len(entry) == (alone["input_ids"] == model.config.image_token_id).sum()
        expected = model.get_image_features(alone["pixel_values"], alone["image_token_positions"]).pooler_output
        assert len(expected) == 1
        torch.testing.assert_close(entry, expected[0], rtol=0, atol=1e-4)
    # The base model has the same method. `forward` adds the embedding of the image token itself.
    base = model.model.get_image_features(*tiles).pooler_output
    image_token = model.get_input_embeddings().weight[model.config.image_token_id]
    assert torch.equal(torch.cat(base), torch.cat(features))
    outputs = model(**inputs)
    assert torch.equal(outputs.image_hidden_states + image_token, torch.cat(features))
    # Outputs have it as models of Transformers 5.24 do, and take it in place of pixels.
    assert torch.equal(torch.cat(outputs.image_outputs.pooler_output), torch.cat(features))
    assert [len(entry) for entry in outputs.image_outputs.pooler_output] == [len(entry) for entry in features]
    again = model(inputs["input_ids"], mm_encoder_outputs={"image": outputs.image_outputs})
    assert again.image_outputs is outputs.image_outputs
    torch.testing.assert_close(again.logits, outputs.logits, rtol=0, atol=1e-5)
    assert outputs.image_outputs.hidden_states is None
    assert "last_hidden_state" not in outputs.image_outputs
    tower = model(**inputs, output_hidden_states=True).image_outputs.hidden_states
    assert len(tower) == 1 + model.config.num_vision_blocks


def pooled_by_hand(model, features: torch.Tensor, is_last_tile: bool) -> torch.Tensor:
    """The connector on one tile, cell by cell: zero-padded windows, mean query, one softmax per head."""
    config, connector = model.config, model.model.connector
    side, size, width = config.patches_per_side, config.pooling_size, config.connector_head_dim
    if is_last_tile and connector.last_tile_embedding is not None:
        features = features + connector.last_tile_embedding
    grid = features.view(side, side, -1)
    cells = []
    for row in range(config.pooled_grid[0]):
        for col in range(config.pooled_grid[1]):
            patches = [
                grid[y, x] if y < side and x < side else torch.zeros_like(grid[0, 0])
                for y in range(size * row, size * row + size)
                for x in range(size * col, size * col + size)
            ]
            patches = torch.stack(patches)
            pooling = connector.pooling
            query = pooling.q_proj(patches.mean(dim=0))
            key, value = pooling.k_proj(patches), pooling.v_proj(patches)
            heads = []
            for head in range(config.connector_num_attention_heads):
                part = slice(head * width, head * width + width)
                weights = torch.softmax(key[:, part] @ query[part] * width**-0.5, dim=0)
                heads.append(weights @ value[:, part])
            pooled = pooling.out_proj(torch.cat(heads))
            projector = connector.projector
            hidden = F.silu(projector.gate_proj.weight @ pooled) * (projector.up_proj.weight @ pooled)
            cells.append(projector.down_proj.weight @ hidden)
    return torch.stack(cells)


@torch.no_grad
@layouts
def test_features_by_hand(build_model, build_processor, make_image, layout):
    """Pooling, projector, the embedding on the last tile, the embedding of the image token and the order of cells."""
    model, processor = build_model(layout), build_processor(layout)
    inputs = processor(images=make_image(50, 90), text="<|image|>", return_tensors="pt")
    pixel_values, positions = inputs["pixel_values"], inputs["image_token_positions"]
    assert len(pixel_values) == 3
    outputs = model.get_image_features(pixel_values, positions)
    expected = torch.full((int(positions.max()) + 1, 32), torch.nan)
    for tile in range(3):
        cells = pooled_by_hand(model, outputs.last_hidden_state[tile], is_last_tile=tile == 2)
        for cell, place in zip(cells, positions[tile].tolist(), strict=True):
            if place >= 0:
                expected[place] = cell
    expected += model.get_input_embeddings().weight[model.config.image_token_id]
    torch.testing.assert_close(outputs.pooler_output[0], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad
def test_last_tile_embedding_is_on_the_last_tile_alone(build_model, build_inputs):
    model, inputs = build_model("stitched"), build_inputs("stitched")
    positions = inputs["image_token_positions"]
    tiles = (inputs["pixel_values"], positions)
    before = model.get_image_features(*tiles).pooler_output
    model.model.connector.last_tile_embedding.zero_()
    after = model.get_image_features(*tiles).pooler_output
    starts = [*(positions[:, 0] == 0).nonzero().flatten().tolist(), len(positions)]
    for index in range(3):
        changed = (before[index] != after[index]).any(dim=1)
        last = positions[starts[index + 1] - 1]
        expected = torch.zeros_like(changed)
        expected[last[last >= 0]] = True
        assert torch.equal(changed, expected)


@torch.no_grad
@layouts
def test_features_of_black_tiles_are_zero(build_model, layout):
    model = build_model(layout)
    pixel_values = torch.full((3, 3, 56, 56), -1.0)
    pixel_values[1, 0, 5, 5] = -0.99  # one pixel that is almost black
    features = model.model.get_vision_features(pixel_values).last_hidden_state
    assert [bool(tile.any()) for tile in features] == [False, True, False]


@torch.no_grad
@layouts
def test_positions_alone_decide_the_order(build_model, build_processor, make_image, layout):
    """With the places of an image's cells permuted, its features are permuted likewise; nothing else changes."""
    model, processor = build_model(layout), build_processor(layout)
    inputs = processor(
        images=[make_image(90, 130), make_image(40, 40)], text="<|image|><|image|>", return_tensors="pt"
    )
    pixel_values, positions = inputs["pixel_values"], inputs["image_token_positions"]
    features = model.get_image_features(pixel_values, positions).pooler_output
    length = int(positions[:7].max()) + 1
    # The first cell of an image stays: it marks the thumbnail.
    permutation = torch.cat([torch.tensor([0]), 1 + torch.randperm(length - 1, generator=torch.manual_seed(0))])
    shuffled = positions.clone()
    shuffled[:7] = torch.where(positions[:7] >= 0, permutation[positions[:7].clamp(min=0)], -1)
    outputs = model.get_image_features(pixel_values, shuffled).pooler_output
    torch.testing.assert_close(outputs[0][permutation], features[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs[1], features[1], rtol=0, atol=1e-5)


@torch.no_grad
@layouts
def test_batch_equals_one_by_one(build_model, build_processor, make_image, layout):
    model, processor = build_model(layout), build_processor(layout)
    images = [[make_image(90, 130, 0)], [make_image(40, 40, 1), make_image(60, 200, 2)], []]
    prompts = ["<|image|> Who is this?", "Between <|image|> and <|image|>?", "Well?"]
    batch = processor(images=images, text=prompts, padding=True, return_tensors="pt")
    logits = model(**batch).logits
    for index in range(3):
        alone = processor(images=images[index] or None, text=prompts[index], return_tensors="pt")
        expected = model(**alone).logits[0]
        torch.testing.assert_close(logits[index, -len(expected) :], expected, rtol=0, atol=1e-3)


# Attention implementations, devices' dtypes


@torch.no_grad
@layouts
def test_attention_implementations(build_model, build_inputs, layout):
    inputs = build_inputs(layout)
    sdpa, eager = build_model(layout), build_model(layout, attn_implementation="eager")
    assert sdpa.model.connector.pooling.config._attn_implementation == "sdpa"
    assert eager.model.connector.pooling.config._attn_implementation == "eager"
    mask = inputs["attention_mask"].bool()
    expected = eager(**inputs).logits[mask]
    torch.testing.assert_close(sdpa(**inputs).logits[mask], expected, rtol=0, atol=1e-3)
    sdpa.set_attn_implementation("eager")
    assert sdpa.model.connector.pooling.config._attn_implementation == "eager"
    assert torch.equal(sdpa(**inputs).logits[mask], expected)


@torch.no_grad
@layouts
def test_bfloat16(build_model, build_inputs, layout):
    model = build_model(layout).to(torch.bfloat16)
    inputs = build_inputs(layout)
    logits = model(**inputs.to(torch.bfloat16)).logits
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()
    # Pixels of another type than the weights are taken as well.
    pixel_values = inputs["pixel_values"].float()
    assert torch.equal(model(**{**inputs, "pixel_values": pixel_values}).logits, logits)


# Loss and gradients


@layouts
def test_loss(build_model, build_inputs, layout):
    model, inputs = build_model(layout), build_inputs(layout)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[labels == model.config.image_token_id] = -100
    outputs = model(**inputs, labels=labels)
    expected = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(outputs.loss, expected)
    # The trainer hands over the number of labels of all accumulated batches.
    outputs = model(**inputs, labels=labels, num_items_in_batch=torch.tensor(100))
    total = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(outputs.loss, total / 100)


def gradients(model, inputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    loss = model(**inputs, labels=labels).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@layouts
def test_gradients_reach_everything(build_model, build_inputs, layout):
    model, inputs = build_model(layout).train(), build_inputs(layout)
    _, grads = gradients(model, inputs)
    # Softmax does not see what is added to all keys alike.
    without = {name for name, grad in grads.items() if grad is None or not grad.any()}
    assert {name for name in without if not name.endswith("k_proj.bias")} == set()
    assert all(torch.isfinite(grad).all() for grad in grads.values())


@layouts
def test_gradient_checkpointing(build_model, build_inputs, count_calls, layout):
    model, inputs = build_model(layout).train(), build_inputs(layout)
    assert model.supports_gradient_checkpointing
    loss, grads = gradients(model, inputs)
    checkpoint_activations(model)
    calls = [
        count_calls(layers[0].mlp)
        for layers in (model.model.vision_tower.encoder.layers, model.model.language_model.layers)
    ]
    checkpointed_loss, checkpointed_grads = gradients(model, inputs)
    assert [len(shapes) for shapes in calls] == [2, 2], "blocks are computed again on the way back"
    torch.testing.assert_close(checkpointed_loss, loss)
    for name, grad in grads.items():
        torch.testing.assert_close(checkpointed_grads[name], grad, msg=name)


def test_frozen_parts(build_model, build_inputs):
    model, inputs = build_model().train(), build_inputs()
    model.model.vision_tower.requires_grad_(False)
    _, grads = gradients(model, inputs)
    assert all((grad is None) == ("vision_tower" in name) for name, grad in grads.items())


def test_training_step_lowers_the_loss(build_model, build_inputs):
    model, inputs = build_model("stitched").train(), build_inputs("stitched")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        loss, _ = gradients(model, inputs)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


# Generation


GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


@torch.no_grad
def test_logits_to_keep(build_model, build_inputs):
    model, inputs = build_model(), build_inputs()
    logits = model(**inputs).logits
    torch.testing.assert_close(model(**inputs, logits_to_keep=3).logits, logits[:, -3:])
    places = torch.tensor([0, 5, 7])
    torch.testing.assert_close(model(**inputs, logits_to_keep=places).logits, logits[:, places])


@torch.no_grad
@layouts
def test_embeddings_as_input(build_model, build_inputs, layout):
    model, inputs = build_model(layout), build_inputs(layout)
    expected = model(**inputs).logits
    inputs_embeds = model.get_input_embeddings()(inputs["input_ids"])
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    assert torch.equal(model(**rest, inputs_embeds=inputs_embeds).logits, expected)
    generated = model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(model.generate(**rest, inputs_embeds=inputs_embeds, **GREEDY), generated)
    # Merged by someone else, without pixels.
    features = torch.cat(model.get_image_features(inputs["pixel_values"], inputs["image_token_positions"])[1])
    inputs_embeds[inputs["input_ids"] == model.config.image_token_id] = features
    merged = model(inputs_embeds=inputs_embeds, attention_mask=inputs["attention_mask"]).logits
    assert torch.equal(merged, expected)


@torch.no_grad
def test_ids_or_embeddings(build_model, build_inputs):
    model, inputs = build_model(), build_inputs()
    with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
        model(pixel_values=inputs["pixel_values"], image_token_positions=inputs["image_token_positions"])
    with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
        model(**inputs, inputs_embeds=model.get_input_embeddings()(inputs["input_ids"]))


@layouts
def test_caches(build_model, build_inputs, layout):
    model, inputs = build_model(layout), build_inputs(layout)
    expected = model.generate(**inputs, **GREEDY)
    assert torch.equal(model.generate(**inputs, **GREEDY, use_cache=False), expected)
    static = model.generate(**inputs, **GREEDY, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, expected)
    cache = StaticCache(model.config.get_text_config(), max_cache_len=expected.shape[1])
    assert torch.equal(model.generate(**inputs, **GREEDY, **{CACHE: cache}), expected)


@torch.no_grad
@layouts
def test_continuing_a_cache(build_model, build_inputs, layout):
    model, inputs = build_model(layout), build_inputs(layout)
    length = inputs["input_ids"].shape[1]
    sequence = model.generate(**inputs, **GREEDY)
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 8, dtype=torch.long)], dim=1)
    position_ids = (mask.cumsum(dim=1) - 1).clamp(min=0)
    whole = {**inputs, "input_ids": sequence, "attention_mask": mask, "position_ids": position_ids}
    expected = model(**whole).logits[:, length:]
    past = model(**inputs, position_ids=position_ids[:, :length])[CACHE]
    logits = model(
        input_ids=sequence[:, length:],
        attention_mask=mask,
        position_ids=position_ids[:, length:],
        **{CACHE: past},
    ).logits
    assert logits.shape[1] == 8
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3},
        {"use_cache": False},
    ],
    ids=str,
)
def test_images_are_encoded_once(build_model, build_inputs, count_calls, settings):
    model, inputs = build_model(), build_inputs()
    expected = model.generate(**inputs, **GREEDY)
    calls, steps = count_calls(model.model.vision_tower), count_calls(model.lm_head)
    output = model.generate(**inputs, **{**GREEDY, **settings})
    assert len(steps) == 8
    assert len(output) == 3 * settings.get("num_return_sequences", 1)
    if settings in ({}, {"use_cache": False}):
        assert torch.equal(output, expected)
    # The image of one tile has it twice, as its thumbnail too.
    num_tiles, *tile_shape = inputs["pixel_values"].shape
    assert calls == [(num_tiles - 1, *tile_shape)]


@pytest.mark.parametrize("draft", ["model", "prompt"])
def test_images_are_encoded_once_with_assistance(build_model, build_processor, make_image, count_calls, draft):
    model, inputs = build_model(), build_processor()(images=make_image(90, 130), text="Who?", return_tensors="pt")
    expected = model.generate(**inputs, **GREEDY)
    settings = {"prompt_lookup_num_tokens": 2}
    if draft == "model":
        settings = {"assistant_model": build_model(text_config={"num_hidden_layers": 1})}
    calls = count_calls(model.model.vision_tower)
    assert torch.equal(model.generate(**inputs, **GREEDY, **settings), expected)
    assert len(calls) == 1


def chat_inputs(processor, messages):
    return processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


@layouts
def test_images_in_a_cache_are_not_encoded_again(
    build_model, build_processor, make_image, user, assistant, count_calls, layout
):
    model, processor = build_model(layout), build_processor(layout)
    messages = [user(make_image(90, 130), "Which of the two?")]
    cache = DynamicCache(config=model.config.get_text_config())
    calls = count_calls(model.model.vision_tower)
    answer = None
    for more in ([], [], [make_image(60, 150, seed=1), make_image(70, 70, seed=2)]):
        if answer is not None:
            messages += [assistant(answer), user(*more, "And now?")]
        inputs = chat_inputs(processor, messages)
        output = model.generate(**inputs, **GREEDY, **{CACHE: cache})
        num_tiles = sum(shape[0] for shape in calls)
        calls.clear()
        expected = model.generate(**inputs, **GREEDY)
        all_tiles = sum(shape[0] for shape in calls)
        calls.clear()
        assert torch.equal(output, expected)
        if answer is None:
            first_tiles = all_tiles
            assert num_tiles == all_tiles > 1
        else:
            assert num_tiles == all_tiles - first_tiles
        answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        # What is decoded must be encoded to the same tokens, or the cache is of another chat.
        cache.crop(inputs["input_ids"].shape[1] - cache.get_seq_length())


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"), reason="older Transformers do not chunk encoder outputs"
)
@layouts
def test_prefill_in_chunks(build_model, build_inputs, layout):
    model = build_model(layout)
    inputs = build_inputs(layout)
    expected = model.generate(**inputs, **GREEDY)
    assert torch.equal(model.generate(**inputs, **GREEDY, prefill_chunk_size=16), expected)


def test_a_cache_that_ends_within_an_image(build_model, build_processor, make_image, user):
    model, inputs = build_model(), chat_inputs(build_processor(), [user(make_image(90, 130), "Which of the two?")])
    cache = DynamicCache(config=model.config.get_text_config())
    model.generate(**inputs, **GREEDY, **{CACHE: cache})
    is_image = inputs["input_ids"][0] == model.config.image_token_id
    cache.crop(int(is_image.nonzero()[5]) - cache.get_seq_length())
    with pytest.raises(ValueError, match="ends within an image"):
        model.generate(**inputs, **GREEDY, **{CACHE: cache})


@layouts
def test_beams_answer_as_for_samples_alone(build_model, build_processor, make_image, layout):
    model, processor = build_model(layout), build_processor(layout)
    images = [[make_image(90, 130, 0)], [make_image(40, 40, 1), make_image(60, 200, 2)], []]
    prompts = ["<|image|> Who is this?", "Between <|image|> and <|image|>?", "Well?"]
    batch = processor(images=images, text=prompts, padding=True, return_tensors="pt")
    output = model.generate(**batch, **GREEDY, num_beams=3)[:, -8:]
    for index in range(3):
        alone = processor(images=images[index] or None, text=prompts[index], return_tensors="pt")
        assert torch.equal(model.generate(**alone, **GREEDY, num_beams=3)[0, -8:], output[index])


@layouts
def test_image_tokens_are_never_written(build_model, build_inputs, layout):
    model, inputs = build_model(layout), build_inputs(layout)
    image_tokens = torch.tensor(model.config.suppressed_token_ids)
    with torch.no_grad():
        # A head that likes nothing better than image tokens.
        model.lm_head.weight[image_tokens] = 10 * model.lm_head.weight.abs().max() * torch.randn(32)
    output = model.generate(**inputs, **GREEDY, num_return_sequences=1)[:, inputs["input_ids"].shape[1] :]
    assert not torch.isin(output, image_tokens).any()


# Embedding tables


def test_resized_vocabulary(build_model, build_inputs):
    model, inputs = build_model(), build_inputs()
    size = model.config.text_config.vocab_size
    with torch.no_grad():
        expected = model(**inputs).logits
    model.resize_token_embeddings(size + 7)
    assert model.get_input_embeddings().weight.shape[0] == size + 7
    assert model.get_output_embeddings().weight.shape[0] == size + 7
    assert model.config.text_config.vocab_size == size + 7
    with torch.no_grad():
        logits = model(**inputs, labels=inputs["input_ids"]).logits
    assert logits.shape[-1] == size + 7
    torch.testing.assert_close(logits[..., :size], expected)


def test_tied_embeddings(build_model, build_inputs, tmp_path):
    model, inputs = build_model(tie_word_embeddings=True), build_inputs()
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    free = build_model()
    assert free.get_input_embeddings().weight is not free.get_output_embeddings().weight
    loss, grads = gradients(model.train(), inputs)
    assert "lm_head.weight" not in grads
    assert grads["model.language_model.embed_tokens.weight"].any()
    assert torch.isfinite(loss)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


# What is asked of it


def test_arguments_of_forward(build_model, build_processor):
    """Everything the processor makes is an argument of the model, and `labels` is one."""
    parameters = inspect.signature(build_model().forward).parameters
    assert set(build_processor().model_input_names) <= set(parameters) | {"token_type_ids"}
    assert "labels" in parameters


@torch.no_grad
def test_token_types_are_accepted(build_model, build_processor, make_image):
    model, processor = build_model(), build_processor()
    kwargs = {"images": make_image(90, 130), "text": "<|image|> Who?", "return_tensors": "pt"}
    inputs = processor(**kwargs)
    with_types = processor(**kwargs, return_mm_token_type_ids=True)
    assert torch.equal(model(**with_types).logits, model(**inputs).logits)
    assert torch.equal(model.generate(**with_types, **GREEDY), model.generate(**inputs, **GREEDY))


@torch.no_grad
def test_encoder_outputs_as_input(build_model, build_inputs, count_calls):
    """Images that were encoded before are not encoded again."""
    model, inputs = build_model(), build_inputs()
    expected = model(**inputs).logits
    tiles = {name: inputs.pop(name) for name in ("pixel_values", "image_token_positions")}
    encoded = model.get_image_features(**tiles)
    calls = count_calls(model.model.vision_tower)
    assert torch.equal(model(**inputs, mm_encoder_outputs={"image": encoded}).logits, expected)
    assert calls == []
    with pytest.raises(ValueError, match="at most one of pixel_values, vision_features and mm_encoder_outputs"):
        model(**inputs, **tiles, mm_encoder_outputs={"image": encoded})


@torch.no_grad
def test_hidden_states_and_attentions(build_model, build_inputs):
    model, inputs = build_model(attn_implementation="eager"), build_inputs()
    outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert len(outputs.hidden_states) == 3
    assert len(outputs.attentions) == 2
    length = inputs["input_ids"].shape[1]
    assert outputs.attentions[0].shape == (3, 4, length, length)


@torch.no_grad
@pytest.mark.parametrize("by_config", [False, True])
def test_hidden_states_and_attentions_of_the_vision_tower(build_model, build_inputs, by_config):
    model, inputs = build_model(attn_implementation="eager"), build_inputs()
    tiles = {name: inputs[name] for name in ("pixel_values", "image_token_positions")}
    expected = model.get_image_features(**tiles)
    assert expected.hidden_states is None
    assert expected.attentions is None
    wanted = {"output_hidden_states": True, "output_attentions": True}
    if by_config:
        model = build_model(attn_implementation="eager", vision_config=wanted)
    outputs = model.get_image_features(**tiles, **({} if by_config else wanted))
    # The tower ends at block 2; before its outputs come the embeddings.
    assert len(outputs.hidden_states) == 4
    assert len(outputs.attentions) == 3
    assert torch.equal(torch.cat([outputs.hidden_states[3], outputs.hidden_states[2]], dim=-1)[0], expected[0][0])
    for features, others in zip(outputs.pooler_output, expected.pooler_output, strict=True):
        assert torch.equal(features, others)


@pytest.mark.parametrize("is_loaded", [False, True], ids=["built", "loaded"])
def test_initial_weights_of_the_connector(build_config, is_loaded):
    """LeCun initialisation, of a new model and of weights that a checkpoint lacks."""
    config = build_config(
        vision_config={"hidden_size": 128},
        connector_head_dim=64,
        connector_intermediate_size=192,
        text_config={"hidden_size": 128},
    )
    if is_loaded:
        model, _ = JinaVLMModel.from_pretrained(None, config=config, state_dict={}, output_loading_info=True)
    else:
        model = JinaVLMModel(config)
    linear = [module for module in model.connector.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linear) == 7
    for layer in linear:
        assert layer.weight.std().item() == pytest.approx(layer.in_features**-0.5, rel=0.1)


def test_initial_weights_of_the_other_parts(build_model):
    model = build_model(vision_config={"hidden_size": 128}, text_config={"hidden_size": 128})
    attention = model.model.vision_tower.encoder.layers[0].self_attn
    assert attention.q_proj.weight.std().item() == pytest.approx((2 / (128 + 128)) ** 0.5, rel=0.1)  # as SigLIP's own
    assert attention.q_proj.weight.abs().max() <= (6 / (128 + 128)) ** 0.5
    assert model.lm_head.weight.std().item() == pytest.approx(model.config.initializer_range, rel=0.1)


def test_tensor_parallel_plan(build_model):
    """The head has an entry, and what is sharded exists."""
    model = build_model()
    assert "lm_head" in model.tp_plan
    names = [name.replace("layers.0.", "layers.*.") for name, _ in model.named_modules()]
    assert set(model.tp_plan) <= set(names)
