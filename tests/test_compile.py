# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""What torch.compile makes of the model: whole graphs, the same numbers, no second compilation."""

import pytest
import torch
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    Qwen3Config,
    SiglipVisionConfig,
    SiglipVisionModel,
    StaticCache,
)


LAYOUTS = ["independent", "stitched"]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def skip_unless_compiled(model: PreTrainedModel, **inputs: torch.Tensor) -> None:
    """Skips where not even a model of Transformers' own can be compiled, as with PyTorch 2.6."""
    try:
        torch.compile(model.eval().forward, backend="eager", fullgraph=True)(**inputs)
    except torch._dynamo.exc.Unsupported as error:
        reason = str(error).splitlines()[0]
        pytest.skip(f"PyTorch {torch.__version__} cannot compile Transformers' {type(model).__name__}: {reason}")


SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
SIGLIP = SiglipVisionConfig(image_size=8, patch_size=8, **SIZES)


@pytest.fixture
def compilable_tower() -> None:
    skip_unless_compiled(SiglipVisionModel(SIGLIP), pixel_values=torch.zeros(1, 3, 8, 8))


@pytest.fixture
def compilable_model() -> None:
    text_config = Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=8, vocab_size=8)
    config = LlavaConfig(vision_config=SIGLIP, text_config=text_config, image_token_index=7)
    skip_unless_compiled(LlavaForConditionalGeneration(config), input_ids=torch.zeros(1, 2, dtype=torch.long))


@pytest.fixture
def build_inputs(build_processor, make_image):
    """A function (layout, height, width, seed) to the inputs of a prompt with one image."""

    def build(layout: str = "independent", height: int = 90, width: int = 130, seed: int = 0):
        prompt = "<|image|> Which image is darker?"
        return build_processor(layout)(images=make_image(height, width, seed), text=prompt, return_tensors="pt")

    return build


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_decoding_is_one_graph_that_is_compiled_once(compilable_model, build_model, build_inputs, layout):
    model = build_model(layout)
    step = torch.compile(model.forward, backend="eager", fullgraph=True, dynamic=False)
    for seed, (height, width) in enumerate([(90, 130), (60, 200)]):
        inputs = build_inputs(layout, height, width, seed)
        length = inputs["input_ids"].shape[1]
        expected = model.generate(**inputs, do_sample=False, max_new_tokens=6, min_new_tokens=6)[0, length:]
        cache = StaticCache(model.config.get_text_config(), max_cache_len=256)
        token = model(**inputs, past_key_values=cache, logits_to_keep=1).logits[:, -1:].argmax(-1)
        tokens = [token.item()]
        for position in range(length, length + 5):
            # From the second token of the first image on nothing may be compiled, whatever the length.
            stance = "fail_on_recompile" if seed or position > length else "default"
            with torch.compiler.set_stance(stance):
                logits = step(input_ids=token, position_ids=torch.tensor([[position]]), past_key_values=cache).logits
            token = logits[:, -1:].argmax(-1)
            tokens.append(token.item())
        assert tokens == expected.tolist()


@torch.no_grad()
def test_generate_compiles_for_a_static_cache(compilable_model, build_model, build_inputs, monkeypatch):
    model, inputs = build_model(), build_inputs()
    settings = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
    expected = model.generate(**inputs, **settings)
    compiled = []
    compile_ = torch.compile
    # Transformers compiles on accelerators alone; the compiler's own code generation would take a minute.
    monkeypatch.setattr(
        torch, "compile", lambda f, **kwargs: compiled.append(f) or compile_(f, backend="eager", fullgraph=True)
    )
    monkeypatch.setattr(type(model), "_valid_auto_compile_criteria", lambda *args: True)
    assert torch.equal(model.generate(**inputs, **settings, cache_implementation="static"), expected)
    assert compiled


@torch.no_grad()
def test_the_vision_tower_is_one_graph_for_any_number_of_tiles(compilable_tower, build_model, build_inputs):
    model = build_model()
    tower = model.model.vision_tower
    sizes = [(90, 130), (60, 200), (170, 140), (100, 100)]
    batches = [build_inputs(height=height, width=width) for height, width in sizes]
    assert len({len(batch["pixel_values"]) for batch in batches}) == 4
    expected = [model(**batch).logits for batch in batches]
    tower.forward = torch.compile(tower.forward, backend="eager", fullgraph=True)
    for number, (batch, logits) in enumerate(zip(batches, expected, strict=True)):
        pixel_values = batch["pixel_values"].clone()
        torch._dynamo.mark_dynamic(pixel_values, 0)
        with torch.compiler.set_stance("fail_on_recompile" if number else "default"):
            output = model(**{**batch, "pixel_values": pixel_values})
        torch.testing.assert_close(output.logits, logits)
