# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The cache of image features: which images it finds, what makes it miss, its limit, and its ways in."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.mkldnn import to_mkldnn
from transformers import pipeline

from jvlm import ImageFeatureCache, JinaVLMModel


GREEDY = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture
def cached(build_model):
    """A model with a cache, the cache, and the numbers of tiles that its tower has encoded."""
    model, cache, encoded = build_model("stitched"), ImageFeatureCache(2**20), []
    model.model.image_cache = cache
    model.model.vision_tower.register_forward_pre_hook(lambda module, args: encoded.append(len(args[0])))
    return model, cache, encoded


@pytest.fixture
def inputs(build_inputs):
    return build_inputs("stitched")


@torch.no_grad
def test_known_images_are_not_encoded(cached, build_model, build_processor, make_image, inputs):
    model, cache, encoded = cached
    expected = build_model("stitched")(**inputs)
    outputs, again = model(**inputs), model(**inputs)
    assert len(encoded) == 1
    for each in (outputs, again):
        assert torch.equal(each.logits, expected.logits)
        assert all(map(torch.equal, each.image_outputs.pooler_output, expected.image_outputs.pooler_output))
    assert (len(cache), cache.num_hits, cache.num_misses) == (3, 3, 3)
    assert cache.num_bytes == again.image_hidden_states.nbytes
    # A prompt of a known image and a new one.
    images = [make_image(60, 200, 2), make_image(70, 70, 5)]
    mixed = build_processor("stitched")(images=images, text="<|image|> or <|image|>?", return_tensors="pt")
    assert torch.equal(model.generate(**mixed, **GREEDY), build_model("stitched").generate(**mixed, **GREEDY))
    assert len(cache) == 4
    assert len(encoded) == 2


@torch.no_grad
def test_an_image_twice_in_a_call(cached, build_processor, make_image):
    model, cache, encoded = cached
    image = make_image(90, 130)
    inputs = build_processor("stitched")(images=[image, image], text="<|image|><|image|>", return_tensors="pt")
    outputs = model(**inputs)
    assert torch.equal(*outputs.image_outputs.pooler_output)
    assert (len(cache), encoded) == (1, [len(inputs["pixel_values"]) // 2])


@torch.no_grad
def test_the_last_tile_is_part_of_the_key(cached, build_processor, make_image):
    """Equal tiles at other places of their images have other features."""
    model, cache, _ = cached
    white, processor = make_image(56, 56), build_processor("stitched")
    white.paste((255, 255, 255), (0, 0, 56, 56))
    for size in ((56, 56), (96, 96), (56, 96)):
        model(**processor(images=white.resize(size), text="<|image|>", return_tensors="pt"))
    assert len(cache) == 3


CHANGES = {
    "a weight": lambda model: model.model.vision_tower.encoder.layers[0].mlp.fc1.weight[3, 5].add_(1),
    "a weight through .data": lambda model: model.model.connector.projector.up_proj.weight.data.add_(1),
    "a loaded state": lambda model: model.load_state_dict(
        {name: 2 * value for name, value in model.state_dict().items()}
    ),
    "the dtype": lambda model: model.bfloat16(),
    "the attention": lambda model: model.set_attn_implementation("eager"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@torch.no_grad
def test_features_of_other_weights_are_not_used(cached, inputs, change):
    model, cache, encoded = cached
    model(**inputs)
    change(model)
    model(**inputs.to(dtype=model.dtype))
    assert (len(encoded), len(cache)) == (2, 6)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs PyTorch with oneDNN")
@torch.no_grad
def test_products_of_onednn(cached, inputs):
    """Its weights have no strides."""
    model, cache, encoded = cached
    expected = model(**inputs).logits
    for part in (model.model.vision_tower.encoder, model.model.connector, model.model.language_model):
        to_mkldnn(part)
    outputs, again = model(**inputs), model(**inputs)
    torch.testing.assert_close(outputs.logits, expected, rtol=0, atol=1e-4)
    assert torch.equal(outputs.logits, again.logits)
    assert (len(encoded), len(cache)) == (2, 6)


@torch.no_grad
def test_autocast(cached, inputs):
    model, _, encoded = cached
    model(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        model(**inputs)
        model(**inputs)
    assert len(encoded) == 2


@torch.no_grad
def test_adapters(cached, inputs):
    peft = pytest.importorskip("peft")
    model, cache, encoded = cached
    before = model(**inputs).logits
    config = peft.LoraConfig(target_modules=r".*(vision_tower.*fc1|up_proj)", init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).eval()
    logits = adapted(**inputs).logits
    assert not torch.equal(logits, before)
    with adapted.disable_adapter():
        assert torch.equal(adapted(**inputs).logits, before)
    assert torch.equal(adapted(**inputs).logits, logits)
    adapted.merge_adapter()
    torch.testing.assert_close(adapted(**inputs).logits, logits)
    assert len(encoded) == 4  # bare, adapted, without and merged; the adapted ones again are known
    assert cache.num_hits == 3


def test_without_a_gradient_only(cached, inputs):
    model, cache, encoded = cached
    for _ in range(2):
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert (len(encoded), len(cache)) == (2, 0)
    assert model.model.vision_tower.encoder.layers[0].mlp.fc1.weight.grad.any()


@torch.no_grad
def test_requested_states_are_those_of_this_call(cached, inputs):
    model, _, encoded = cached
    model(**inputs)
    assert model(**inputs, output_hidden_states=True).image_outputs.hidden_states
    assert len(encoded) == 2


@torch.no_grad
def test_the_limit(build_model, build_processor, make_image):
    model, processor = build_model(), build_processor()
    calls = [processor(images=make_image(90, 130, seed), text="<|image|>", return_tensors="pt") for seed in range(3)]
    size = model(**calls[0]).image_hidden_states.nbytes
    cache = model.model.image_cache = ImageFeatureCache(2 * size)
    for index in (0, 1, 0, 2, 0, 1):  # 2 drops 1, which was used longest ago
        model(**calls[index])
        assert cache.num_bytes <= 2 * size
    assert (cache.num_hits, cache.num_misses) == (2, 4)
    cache.clear()
    assert (len(cache), cache.num_bytes) == (0, 0)
    small = model.model.image_cache = ImageFeatureCache(size - 1)
    model(**calls[0])
    assert len(small) == 0
    for wrong in (0, 1.5, True, None):
        with pytest.raises(ValueError, match="`max_bytes` must be a positive integer, got"):
            ImageFeatureCache(wrong)


@torch.no_grad
def test_another_cache_is_an_error(build_model, inputs):
    model = build_model("stitched")
    model.model.image_cache = "1 GB"
    with pytest.raises(TypeError, match="`image_cache` must be an `ImageFeatureCache` or None, got '1 GB'"):
        model(**inputs)


def test_copies_of_a_model(cached):
    model, cache, _ = cached
    assert copy.deepcopy(model).model.image_cache is cache
    assert pickle.loads(pickle.dumps(cache)).max_bytes == cache.max_bytes


def test_threads(cached, build_processor, make_image):
    model, cache, _ = cached
    processor = build_processor("stitched")
    calls = [processor(images=make_image(50, 60, seed), text="<|image|>", return_tensors="pt") for seed in range(4)]

    @torch.no_grad
    def run(index: int) -> torch.Tensor:
        return model(**calls[index % 4]).logits

    expected = [run(index) for index in range(4)]
    cache.clear()
    cache.max_bytes = 3 * calls[0]["image_token_positions"].numel() * 32 * 4
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(run, range(64)))
    assert all(torch.equal(result, expected[index % 4]) for index, result in enumerate(results))
    assert cache.num_bytes == sum(features.nbytes for features in cache._features.values()) <= cache.max_bytes


def test_pipeline_of_a_class_with_a_cache(checkpoint, make_image, monkeypatch):
    """As a server sets it, which makes its models itself."""
    cache = ImageFeatureCache(2**20)
    monkeypatch.setattr(JinaVLMModel, "image_cache", cache)
    answer = pipeline("image-text-to-text", model=str(checkpoint))
    message = {
        "role": "user",
        "content": [{"type": "image", "image": make_image(90, 130)}, {"type": "text", "text": "?"}],
    }
    first, second = (answer(text=[message], max_new_tokens=4) for _ in range(2))
    assert first == second
    assert (cache.num_hits, cache.num_misses) == (1, 1)
