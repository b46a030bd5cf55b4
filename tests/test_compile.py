# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""What torch.compile makes of the model: whole graphs, the same numbers, no second compilation."""

import pytest
import torch
from helpers import CACHE
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    Qwen3Config,
    SiglipVisionConfig,
    StaticCache,
)

from jvlm import ImagePlan, plan_images
from jvlm.modeling import modeling_jvlm


LAYOUTS = ["independent", "stitched"]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def skip_unless_compiled(model: PreTrainedModel, **inputs: torch.Tensor) -> None:
    """Skips if PyTorch cannot compile a model of Transformers either, as PyTorch 2.7."""
    try:
        torch.compile(model.eval().forward, backend="eager", fullgraph=True)(**inputs)
    except torch._dynamo.exc.Unsupported as error:
        reason = str(error).splitlines()[0]
        pytest.skip(f"PyTorch {torch.__version__} cannot compile {type(model).__name__} of Transformers: {reason}")


SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
SIGLIP = SiglipVisionConfig(image_size=8, patch_size=8, **SIZES)


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
        token = model(**inputs, **{CACHE: cache}, logits_to_keep=1).logits[:, -1:].argmax(-1)
        tokens = [token.item()]
        for position in range(length, length + 5):
            # From the second token of the first image on nothing may be compiled, whatever the length.
            stance = "fail_on_recompile" if seed or position > length else "default"
            with torch.compiler.set_stance(stance):
                logits = step(input_ids=token, position_ids=torch.tensor([[position]]), **{CACHE: cache}).logits
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


def without_image_numbers(plan: ImagePlan) -> ImagePlan:
    """The index tensors of a plan; a trace would take its Python numbers for constants."""
    return ImagePlan(plan.tile_indices, plan.cell_indices, plan.is_last_tile)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("is_planned", [True, False])
@torch.no_grad()
def test_forward_with_images_is_one_graph(
    compilable_model, build_model, build_processor, make_image, layout, is_planned
):
    model, processor = build_model(layout), build_processor(layout)
    images = [[make_image(90, 130)], [make_image(40, 40, 1), make_image(60, 200, 2)], []]
    prompts = ["<|image|> Who is this?", "Between <|image|> and <|image|>?", "Well?"]
    inputs = processor(images=images, text=prompts, padding=True, return_tensors="pt")
    expected = model(**inputs).logits
    plan = {"image_plan": plan_images(inputs["image_token_positions"])} if is_planned else {}
    compiled = torch.compile(build_model(layout), backend="eager", fullgraph=True)  # a model that never ran
    torch.testing.assert_close(compiled(**inputs, **plan).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_forward_is_compiled_once_for_any_number_of_tiles(compilable_model, build_model, build_inputs, layout):
    model = build_model(layout)
    sizes = [(90, 130), (60, 200), (170, 140), (100, 100)]
    batches = [build_inputs(layout, *size) for size in sizes]
    assert len({len(batch["pixel_values"]) for batch in batches}) == 4
    expected = [model(**batch).logits for batch in batches]
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    for number, (batch, logits) in enumerate(zip(batches, expected, strict=True)):
        with torch.compiler.set_stance("fail_on_recompile" if number else "default"):
            output = compiled(**batch, use_cache=False)
        torch.testing.assert_close(output.logits, logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_image_path_is_exported_with_a_dynamic_number_of_tiles(build_model, build_inputs, layout):
    class ImagePath(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = build_model(layout)

        def forward(self, pixel_values: torch.Tensor, image_plan: ImagePlan) -> torch.Tensor:
            return self.model.get_image_features(pixel_values, image_plan=image_plan, return_dict=True).pooler_output

    image_path, exported = ImagePath(), None
    for size in [(90, 130), (60, 200), (40, 40), (100, 100)]:
        inputs = build_inputs(layout, *size)
        tiles = inputs["pixel_values"], inputs["image_token_positions"]
        arguments = (tiles[0], without_image_numbers(plan_images(tiles[1])))
        if exported is None:
            dynamic = {0: torch.export.Dim.DYNAMIC}
            exported = torch.export.export(
                image_path,
                arguments,
                dynamic_shapes={"pixel_values": dynamic, "image_plan": [dynamic] * 3},
                strict=False,
            ).module()
        expected = torch.cat(image_path.model.get_image_features(*tiles).pooler_output)
        torch.testing.assert_close(exported(*arguments), expected, rtol=0, atol=1e-5)


def test_a_traced_image_path_needs_a_plan(compilable_model, build_model, build_inputs):
    model, inputs = build_model(), build_inputs()
    compiled = torch.compile(model.get_image_features, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="needs `image_plan`"):
        compiled(inputs["pixel_values"], inputs["image_token_positions"])


class CopiesToTheHost(TorchFunctionMode):
    """
    Counts what waits for a device: values read from a tensor that no `Tensor.cpu` returned, and `Tensor.cpu` itself.
    Operations of the language model do not count.
    """

    READS = ("item", "tolist", "numpy", "__bool__", "__int__", "__index__", "__len__", "nonzero", "equal", "cpu")

    def __init__(self, language_model: torch.nn.Module):
        super().__init__()
        self.count, self.on_host, self.is_counting = 0, [], True
        language_model.register_forward_pre_hook(lambda *_: setattr(self, "is_counting", False))
        language_model.register_forward_hook(lambda *_: setattr(self, "is_counting", True))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        tensor = next((value for value in args if isinstance(value, torch.Tensor)), None)
        if tensor is not None and tensor.untyped_storage().data_ptr() not in self.on_host:
            if self.is_counting and name in self.READS and name != "__len__":
                self.count += 1
            if name == "cpu":
                output = output.clone()
                self.on_host.append(output.untyped_storage().data_ptr())
                self.kept = output  # or another tensor could get its address
        return output


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_prefill_copies_to_the_host_once(build_model, build_processor, make_image, layout, monkeypatch):
    monkeypatch.setattr(modeling_jvlm, "comparable", lambda pixel_values: None)  # as for tiles of another device
    model, processor = build_model(layout), build_processor(layout)
    images = [[make_image(90, 130)], [make_image(40, 40, 1), make_image(60, 200, 2)], []]
    prompts = ["<|image|> Who is this?", "Between <|image|> and <|image|>?", "Well?"]
    inputs = processor(images=images, text=prompts, padding=True, return_tensors="pt")
    with CopiesToTheHost(model.model.language_model) as copies:
        model(**inputs)
    assert copies.count == 1
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    with CountReads() as of_the_decoder:
        model.model.language_model(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"])
    with CountReads() as of_the_model:
        model(**inputs)
    # Not one operation reads a value of a device tensor beyond those of the bare decoder.
    assert of_the_model.reads == of_the_decoder.reads


class CountReads(TorchDispatchMode):
    """The operations that read values of tensors, whoever calls them."""

    NAMES = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")

    def __init__(self):
        super().__init__()
        self.reads = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.NAMES:
            self.reads.append(name)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_compiled_code_checks_the_number_of_image_tokens(compilable_model, build_model, build_inputs):
    inputs = build_inputs()
    compiled = torch.compile(build_model(), backend="eager", fullgraph=True)
    compiled(**inputs)
    inputs["input_ids"][0, -1] = inputs["input_ids"][0, 0]  # an image token more
    with pytest.raises(RuntimeError):
        compiled(**inputs)
