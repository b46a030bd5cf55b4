# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
What engines that run models through Transformers rely on, first of all vLLM's Transformers backend: they tokenize the
prompt themselves, cut the processor's outputs by image, put the embeddings together, and run the base model with
layers and attention of their own. `make vllm` checks the same with vLLM itself.
"""

import re

import jinja2
import PIL.Image
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoProcessor, Qwen3Model, SiglipVisionModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from jvlm import JinaVLMModel
from jvlm.conversion_scripts.export_to_hub import export_to_hub


LAYOUTS = ["independent", "stitched"]
PROMPT = " User:<|image|> Which of the two,<|image|> is darker? Assistant:"


@pytest.fixture
def images(make_image) -> list:
    """Images of different numbers of tiles."""
    return [make_image(120, 60), make_image(100, 150, seed=1)]


@pytest.fixture
def run_processor(build_processor, images):
    """A function (layout, images) to a processor and what it returns for nothing but placeholders, as vLLM asks."""

    def run(layout: str, images=images):
        processor = build_processor(layout)
        text = processor.image_token * len(images)
        return processor, processor(
            text=text, images=list(images), return_text_replacement_offsets=True, return_tensors="pt"
        )

    return run


def replacements(processor, outputs) -> list[list[int]]:
    """Tokens that each image's placeholder becomes."""
    return [
        processor.tokenizer.encode(entry["replacement"], add_special_tokens=False)
        for entry in outputs["text_replacement_offsets"][0]
        if entry["type"] == "image"
    ]


def put_together(processor, prompt: str, spans: list[list[int]]) -> list[int]:
    """A prompt's tokens as an engine makes them: tokenized as it is, placeholders replaced afterwards."""
    (placeholder,) = processor.tokenizer.encode(processor.image_token, add_special_tokens=False)
    spans, tokens = iter(spans), []
    for token in processor.tokenizer.encode(prompt, add_special_tokens=False):
        tokens += next(spans) if token == placeholder else [token]
    return tokens


# Processor


@pytest.mark.parametrize("layout", LAYOUTS)
def test_prompt_put_together_elsewhere(run_processor, images, layout):
    processor, outputs = run_processor(layout)
    tokens = put_together(processor, PROMPT, replacements(processor, outputs))
    assert tokens == processor(text=PROMPT, images=images)["input_ids"][0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_kind_of_token_holds_the_embeddings(run_processor, build_model, layout):
    processor, outputs = run_processor(layout)
    model = build_model(layout).model
    features = model.get_image_features(
        outputs["pixel_values"],
        return_dict=True,
        image_token_positions=outputs["image_token_positions"],
        field_of_the_engine=torch.zeros(1),
    ).pooler_output
    spans = replacements(processor, outputs)
    assert len(features) == len(spans) == 2
    for span, embeddings in zip(spans, features, strict=True):
        # The most frequent token of a span is taken for the one that stands for embeddings.
        assert int(torch.tensor(span).mode().values) == processor.image_token_id == model.config.image_token_id
        assert embeddings.shape == (span.count(processor.image_token_id), model.config.text_config.hidden_size)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dropped_cells(build_processor, build_model, make_image, layout):
    """The spans are those of the pixels, which no prediction knows; the most frequent token stays the image token."""
    processor, model = build_processor(layout, drop_uniform_cells=True), build_model(layout).model
    page = PIL.Image.new("RGB", (176, 136), "white")
    page.paste(make_image(30, 30), (40, 50))
    images = [page, make_image(100, 150)]
    outputs = processor(
        text=processor.image_token * 2, images=images, return_text_replacement_offsets=True, return_tensors="pt"
    )
    spans = replacements(processor, outputs)
    prompt = processor(text=PROMPT, images=images)["input_ids"][0]
    assert put_together(processor, PROMPT, spans) == prompt
    features = model.get_image_features(outputs["pixel_values"], outputs["image_token_positions"]).pooler_output
    bounds = processor._get_num_multimodal_tokens(image_sizes=[(136, 176), (100, 150)])["num_image_tokens"]
    assert len(spans[0]) < bounds[0]
    assert len(spans[1]) == bounds[1]
    for span, embeddings in zip(spans, features, strict=True):
        assert int(torch.tensor(span).mode().values) == processor.image_token_id
        assert len(embeddings) == span.count(processor.image_token_id)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_are_cut_by_tiles_and_know_no_neighbours(run_processor, images, layout):
    processor, outputs = run_processor(layout)
    sizes = [(image.height, image.width) for image in images]
    tiles = processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_patches"]
    assert tiles[0] != tiles[1]
    not_for_the_model = {"input_ids", "attention_mask", "text_replacement_offsets"}
    assert set(outputs) - not_for_the_model == {"pixel_values", "image_token_positions"}
    for name in ("pixel_values", "image_token_positions"):
        for part, image in zip(outputs[name].split(tiles), images, strict=True):
            # A cache keeps what an image gave beside one neighbour for the next.
            assert torch.equal(part, run_processor(layout, [image])[1][name])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_token_types_mark_whole_spans(build_processor, images, layout):
    processor = build_processor(layout)
    outputs = processor(text=PROMPT, images=images, return_mm_token_type_ids=True)
    sizes = [[image.height, image.width] for image in images]
    spans = processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]
    marked = "".join(map(str, outputs["mm_token_type_ids"][0]))
    assert [len(run) for run in re.findall("1+", marked)] == spans


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kwargs", [{}, {"max_crops": 3}])
def test_largest_image(build_processor, layout, kwargs):
    processor = build_processor(layout)

    def count(side: int) -> int:
        predicted = processor._get_num_multimodal_tokens(image_sizes=([side, side],), **kwargs)
        return predicted["num_image_tokens"][0]

    sides = [10_000 // 2**halvings for halvings in range(6)]
    largest = count(sides[0])
    assert largest == max(map(count, [*sides, processor.image_processor.size["height"]]))
    # Memory is set aside for the smallest of these images that has as many tokens; it is blank.
    side = min(side for side in sides if count(side) == largest)
    inputs = processor(text=processor.image_token, images=PIL.Image.new("RGB", (side, side), "white"), **kwargs)
    assert sum(token in processor.image_token_ids for token in inputs["input_ids"][0]) == largest


def test_image_of_ten_thousand_pixels_a_side(build_processor):
    processor = build_processor("independent", max_crops=4)
    image = PIL.Image.new("RGB", (10_000, 10_000), "white")
    inputs = processor(text=processor.image_token, images=image, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1 + 4, 3, 56, 56)
    assert (inputs["pixel_values"] == 1).all()


def test_modalities(build_processor):
    processor = build_processor()
    assert hasattr(processor, "image_processor")
    # Each would be taken for one more kind of input, or be written around every placeholder.
    for name in ("video_processor", "feature_extractor", "audio_processor", "image_start_token", "image_end_token"):
        assert not hasattr(processor, name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_chat_template_loops_over_contents(build_processor, layout):
    """vLLM passes contents as lists of parts only if the template has such a loop."""
    template = re.sub(r"\{%-? (end)?generation -?%\}", "", build_processor(layout).chat_template)
    loops = [loop.iter for loop in jinja2.Environment().parse(template).find_all(jinja2.nodes.For)]
    keys = {loop.arg.value for loop in loops if isinstance(loop, jinja2.nodes.Getitem)}
    assert keys == {"content"}


# Model


@pytest.mark.parametrize("layout", LAYOUTS)
def test_base_model_is_built_without_weights(build_config, layout):
    config = build_config(layout)
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    assert type(model) is JinaVLMModel
    assert model.is_backend_compatible()
    assert type(model.get_decoder()) is type(model.language_model) is Qwen3Model
    assert type(model.get_encoder(modality="image")) is SiglipVisionModel
    assert model.config.get_text_config() is model.config.text_config
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_embeddings_put_together_elsewhere(build_processor, build_model, images, layout):
    inputs = build_processor(layout)(text=PROMPT, images=images, return_tensors="pt")
    model = build_model(layout).model
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    features = model.get_image_features(inputs["pixel_values"], inputs["image_token_positions"]).pooler_output
    embeddings[inputs["input_ids"] == model.config.image_token_id] = torch.cat(features)
    (hidden_states, *_) = model(
        input_ids=None,
        inputs_embeds=embeddings,
        position_ids=torch.arange(embeddings.shape[1])[None],
        use_cache=False,
        return_dict=False,
    )
    torch.testing.assert_close(hidden_states, model(**inputs).last_hidden_state)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_of_the_engine(build_processor, build_model, images, monkeypatch, layout):
    inputs = build_processor(layout)(text=PROMPT, images=images, return_tensors="pt")
    model = build_model(layout).model
    expected = model(**inputs).last_hidden_state
    calls = []

    def attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
        calls.append((module.layer_idx, module.is_causal, attention_mask, kwargs["field_of_the_engine"]))
        output = nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
        return output.transpose(1, 2).contiguous(), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "engine", attention)
    # The decoder's alone: vision tower and connector attend in both directions, without a cache.
    model.config.text_config._attn_implementation = "engine"
    outputs = model(**inputs, use_cache=False, field_of_the_engine="metadata")
    layers = model.config.text_config.num_hidden_layers
    assert calls == [(layer, True, None, "metadata") for layer in range(layers)]
    torch.testing.assert_close(outputs.last_hidden_state, expected)


class EngineLayer(nn.Module):
    """A layer without any attribute of those of PyTorch but its weights."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.weight, self.bias = layer.weight, getattr(layer, "bias", None)
        self.function = nn.functional.linear if isinstance(layer, nn.Linear) else None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.function is None:
            return nn.functional.embedding(inputs, self.weight)
        return self.function(inputs, self.weight, self.bias)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layers_of_the_engine(build_processor, build_model, images, layout):
    inputs = build_processor(layout)(text=PROMPT, images=images, return_tensors="pt")
    model = build_model(layout).model
    expected = model(**inputs).last_hidden_state
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name in [*names, "language_model.embed_tokens"]:
        model.set_submodule(name, EngineLayer(model.get_submodule(name)))
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    torch.testing.assert_close(model(**inputs).last_hidden_state, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_engine_loads_every_weight(build_model, layout):
    model = build_model(layout)
    base = model.model
    names = {f"model.{name}" for name in base.state_dict()} | {"lm_head.weight"}
    assert set(model.state_dict()) == names
    for name in names:
        # Engines read both lists for the base model, but load a whole checkpoint into it and a head of their own.
        assert not any(re.search(pattern, name) for pattern in base._keys_to_ignore_on_load_unexpected)
        for renaming in get_model_conversion_mapping(base):
            if isinstance(renaming, WeightRenaming):
                assert renaming.rename_source_key(name)[0] == name


# Exported folder


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("add_bos_token", [False, True])
def test_exported_folder(build_model, build_processor, images, user, tmp_path, layout, add_bos_token):
    build_model(layout).save_pretrained(tmp_path / "source")
    build_processor(layout, add_bos_token=add_bos_token).save_pretrained(tmp_path / "source")
    folder = export_to_hub(tmp_path / "source", tmp_path / "exported")
    config = AutoConfig.from_pretrained(folder)
    assert config.architectures == ["JinaVLMForConditionalGeneration"]
    assert config.auto_map["AutoModel"].endswith(".JinaVLMModel")

    processor = AutoProcessor.from_pretrained(folder)
    messages = [user(images[0], "Which of the two,", images[1], "is darker?")]
    # Chats are rendered by the template alone: the BOS token must be in it.
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    placeholders = processor.image_token * len(images)
    outputs = processor(text=placeholders, images=images, return_text_replacement_offsets=True)
    original = AutoProcessor.from_pretrained(tmp_path / "source").apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert put_together(processor, prompt, replacements(processor, outputs)) == original["input_ids"][0]
    assert (original["input_ids"][0][0] == processor.tokenizer.eos_token_id) is add_bos_token
