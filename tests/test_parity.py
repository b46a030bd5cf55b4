# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The published code's answers on a small checkpoint in the published format, case by case."""

import json
from pathlib import Path

import PIL.Image
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from jvlm import ImagePlan, JinaVLMForConditionalGeneration


RELEASE = Path(__file__).parent / "fixtures" / "release_tiny"
CASES = {case["name"]: case for case in json.loads((RELEASE / "golden.json").read_text())["cases"]}
PIXELS, FEATURES, LOGITS = 1e-5, 2e-4, 2e-4
VOCABULARY = 512  # the published head predicts no image token
GREEDY = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
cases = pytest.mark.parametrize("name", CASES)
image_cases = pytest.mark.parametrize("name", [name for name, case in CASES.items() if any(case["images"])])


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(RELEASE / "golden.safetensors")


def load_images(name: str) -> list[list[PIL.Image.Image]]:
    return [[PIL.Image.open(RELEASE / path) for path in paths] for paths in CASES[name]["images"]]


@pytest.fixture(scope="module")
def prepared():
    """A function (name) to the model inputs of a case, prepared once."""
    processor, prepared = AutoProcessor.from_pretrained(RELEASE / "checkpoint"), {}

    def prepare(name: str):
        if name not in prepared:
            case = CASES[name]
            prepared[name] = processor(
                text=case["prompts"], images=load_images(name), padding=True, return_tensors="pt", **case["kwargs"]
            )
        return prepared[name]

    return prepare


def tiles_by_sample(name: str, inputs: dict) -> list[list[int]]:
    """For every sample, the numbers of tiles of its images."""
    starts = (inputs["image_token_positions"][:, 0] == 0).nonzero().flatten().tolist()
    counts = [end - start for start, end in zip(starts, [*starts[1:], len(inputs["pixel_values"])], strict=True)]
    counts = iter(counts)
    return [[next(counts) for _ in paths] for paths in CASES[name]["images"]]


def to_samples(name: str, inputs: dict, tiles: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """Tile-major values as `shape` `[batch, tiles, ...]`, -1 for the tiles that shorter samples lack."""
    output = torch.full(shape, -1.0, dtype=tiles.dtype)
    counts = [sum(counts) for counts in tiles_by_sample(name, inputs)]
    for sample, part in zip(output, tiles.split(counts), strict=True):
        sample[: len(part)] = part
    return output


def assert_samples_close(values: torch.Tensor, golden: dict, name: str, tolerance: float):
    index = golden[f"{name}_index"].long()
    expected = golden[f"{name}_value"]
    assert len(index) > 1000
    torch.testing.assert_close(values.flatten()[index], expected, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def exact_model():
    """
    The model in float64. Features reach 2000 in size, where float32 alone is off by more than the tolerance; here only
    the rounding of the golden values is left, and the tolerance is taken relative to the features' size.
    """
    return AutoModelForImageTextToText.from_pretrained(RELEASE / "checkpoint", dtype=torch.float64).eval()


@cases
def test_tokens(name, prepared, golden):
    inputs = prepared(name)
    mask = golden[f"{name}.attention_mask"]
    assert list(inputs["input_ids"].shape) == CASES[name]["shapes"]["input_ids"]
    assert torch.equal(inputs["attention_mask"], mask)
    assert torch.equal(inputs["input_ids"][mask.bool()], golden[f"{name}.input_ids"][mask.bool()])


@cases
def test_chat_template(name, released_processor):
    for prompt in CASES[name]["prompts"]:
        turn = prompt.removeprefix(" User: ").removesuffix(" Assistant:")
        content = []
        for index, part in enumerate(turn.split("<|image|>")):
            content += [{"type": "image"}] if index else []
            content += [{"type": "text", "text": part}] if part else []
        messages = [{"role": "user", "content": content}]
        assert released_processor.apply_chat_template(messages, add_generation_prompt=True) == prompt


@image_cases
def test_places_of_cells(name, prepared, golden):
    inputs = prepared(name)
    positions = inputs["image_token_positions"]
    # From a place among the tokens of its image to a place in the sequence.
    places, tile = torch.full_like(positions, -1), 0
    for input_ids, counts in zip(inputs["input_ids"], tiles_by_sample(name, inputs), strict=True):
        image_tokens = (input_ids == 514).nonzero().flatten()
        for count in counts:
            image = positions[tile : tile + count]
            length = int(image.max()) + 1
            kept = image >= 0
            places[tile : tile + count][kept] = image_tokens[:length][image[kept]]
            image_tokens, tile = image_tokens[length:], tile + count
        assert len(image_tokens) == 0
    expected = golden[f"{name}.image_input_idx"]
    assert torch.equal(to_samples(name, inputs, places, list(expected.shape)), expected.clamp(min=-1).long())


@pytest.mark.parametrize("num_threads", [1, 2])
@image_cases
def test_pixels(name, num_threads, released_processor, golden):
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        images = [image for images in load_images(name) for image in images]
        inputs = released_processor.image_processor(images, return_tensors="pt", **CASES[name]["kwargs"])
    finally:
        torch.set_num_threads(before)
    patches = inputs["pixel_values"].unfold(2, 14, 14).unfold(3, 14, 14)  # [tiles, 3, 27, 27, 14, 14]
    patches = patches.permute(0, 2, 3, 4, 5, 1).reshape(len(patches), 729, 588)
    patches = to_samples(name, inputs, patches, CASES[name]["shapes"]["images"])
    assert_samples_close(patches, golden, f"{name}.pixels", PIXELS)


@torch.no_grad
@image_cases
def test_features(name, prepared, golden, exact_model):
    inputs = prepared(name)
    positions = inputs["image_token_positions"]
    model = exact_model.model
    # The golden features hold all cells, also those that are dropped: pool every cell of every tile.
    is_last_tile = (positions[:, 0] == 0).roll(-1).repeat_interleave(positions.shape[1])
    plan = ImagePlan(torch.arange(len(positions)), torch.arange(positions.numel()), is_last_tile)
    features = model.get_image_features(inputs["pixel_values"].double(), image_plan=plan).pooler_output
    features = features - model.get_input_embeddings().weight[model.config.image_token_id]
    shape = [*CASES[name]["shapes"]["image_input_idx"], 64]
    features = features.view(len(positions), 196, 64)
    index = golden[f"{name}.features_index"].long()
    # Tiles that a sample lacks have no features.
    exists = to_samples(name, inputs, torch.ones_like(features), shape).flatten()[index] == 1
    assert exists.sum() > 1000
    features = to_samples(name, inputs, features, shape).flatten()[index][exists]
    expected = golden[f"{name}.features_value"][exists].double()
    tolerance = FEATURES * max(1.0, expected.square().mean().sqrt().item())
    torch.testing.assert_close(features, expected, rtol=0, atol=tolerance)


@torch.no_grad
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@cases
def test_logits(name, attn_implementation, prepared, golden, released_model):
    inputs = prepared(name)
    mask = inputs["attention_mask"].bool()
    released_model.set_attn_implementation(attn_implementation)
    try:
        logits = released_model(**inputs).logits
    finally:
        released_model.set_attn_implementation("sdpa")
    # The additional tokens' rows of the head are zero.
    assert not logits[..., VOCABULARY:].any()
    logits = logits[..., :VOCABULARY]
    last = golden[f"{name}.logits_last"]
    length = min(last.shape[1], logits.shape[1])
    is_token = mask[:, -length:]
    torch.testing.assert_close(logits[:, -length:][is_token], last[:, -length:][is_token], rtol=0, atol=LOGITS)
    index = golden[f"{name}.logits_index"].long()
    is_token = mask.unsqueeze(-1).expand_as(logits).flatten()[index]
    assert is_token.sum() > 1000
    expected = golden[f"{name}.logits_value"]
    torch.testing.assert_close(logits.flatten()[index][is_token], expected[is_token], rtol=0, atol=LOGITS)


@cases
def test_greedy_tokens(name, prepared, released_model):
    inputs = prepared(name)
    output = released_model.generate(**inputs, **GREEDY)
    assert output[:, inputs["input_ids"].shape[1] :].tolist() == CASES[name]["greedy"]


@pytest.mark.parametrize("name", ["tall", "black_tile", "text_only", "padded_batch"])
def test_greedy_tokens_without_cache(name, prepared, released_model):
    inputs = prepared(name)
    output = released_model.generate(**inputs, **GREEDY, use_cache=False)
    assert output[:, inputs["input_ids"].shape[1] :].tolist() == CASES[name]["greedy"]


def test_mixed_batch(released_processor, released_model, golden):
    """Samples with one image, two and none in one batch, padded on the left, answer as they do alone."""
    names = ["tall", "text_only", "two_images", "tiny_image", "padded_batch"]
    prompts = [prompt for name in names for prompt in CASES[name]["prompts"]]
    images = [images for name in names for images in load_images(name)]
    assert sorted(map(len, images)) == [0, 1, 1, 1, 1, 2]
    inputs = released_processor(text=prompts, images=images, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = released_model(**inputs).logits
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    expected = torch.cat([golden[f"{name}.logits_last"] for name in names if name != "text_only"])
    long = [index for index, length in enumerate(lengths) if length >= 24]
    torch.testing.assert_close(logits[long, -24:, :VOCABULARY], expected, rtol=0, atol=LOGITS)
    # The text alone is shorter than the 24 places that are stored.
    length = min(lengths)
    expected = golden["text_only.logits_last"][0, -length:]
    torch.testing.assert_close(logits[1, -length:, :VOCABULARY], expected, rtol=0, atol=LOGITS)
    output = released_model.generate(**inputs, **GREEDY)
    greedy = [tokens for name in names for tokens in CASES[name]["greedy"]]
    assert output[:, inputs["input_ids"].shape[1] :].tolist() == greedy


@pytest.mark.parametrize("auto_class", [AutoModelForCausalLM, AutoModelForImageTextToText])
def test_call_sequence_of_the_published_model_card(auto_class):
    processor = AutoProcessor.from_pretrained(RELEASE / "checkpoint", trust_remote_code=False)
    model = auto_class.from_pretrained(RELEASE / "checkpoint", trust_remote_code=False, dtype="auto").eval()
    assert type(model) is JinaVLMForConditionalGeneration
    case = CASES["astronaut"]
    image = PIL.Image.open(RELEASE / case["images"][0][0])
    question = "What is the name of this lady?"
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    conversation = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(conversation, add_generation_prompt=True)
    inputs = processor(text=[text], images=[image], padding="longest", return_tensors="pt")
    output = model.generate(**inputs, **GREEDY)
    assert output[:, inputs["input_ids"].shape[1] :].tolist() == case["greedy"]
