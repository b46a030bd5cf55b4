# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""compose_from_pretrained: source weights are unchanged, and new weights are initialized as documented."""

import logging

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    Qwen3ForCausalLM,
    SiglipModel,
)

from jvlm.conversion_scripts.compose_from_pretrained import compose_from_pretrained, main


@pytest.fixture(params=["independent", "stitched"])
def layout(request):
    return request.param


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tied(request):
    return request.param


@pytest.fixture
def composed(siglip, qwen3, layout, tied, tmp_path):
    return compose_from_pretrained(siglip, qwen3(tied), tmp_path / "composed", layout)


@torch.inference_mode()
def test_text_logits_are_the_decoders(composed, qwen3, tied, layout):
    source = Qwen3ForCausalLM.from_pretrained(qwen3(tied)).eval()
    model = AutoModelForImageTextToText.from_pretrained(composed).eval()
    input_ids = torch.arange(60).view(2, 30)
    assert model.config.layout == layout
    assert torch.equal(model(input_ids=input_ids).logits[..., :320], source(input_ids=input_ids).logits)


@torch.inference_mode()
def test_features_are_the_encoders_hidden_states(composed, siglip, layout):
    source = SiglipModel.from_pretrained(siglip).vision_model.eval()
    model = AutoModelForImageTextToText.from_pretrained(composed).eval()
    pixel_values = torch.rand(3, 3, 56, 56) * 2 - 1
    cells = model.config.pooled_grid[0] * model.config.pooled_grid[1]
    positions = torch.arange(3 * cells).view(3, cells)
    features = model.get_image_features(pixel_values, image_token_positions=positions, return_dict=True)
    # The source image is 4 pixels larger than its patches. These pixels belong to no patch.
    padded = torch.nn.functional.pad(pixel_values, (0, 4, 0, 4))
    hidden_states = source(padded, output_hidden_states=True).hidden_states
    assert model.config.vision_feature_layer == [7, 1]
    expected = torch.cat([hidden_states[8], hidden_states[2]], dim=-1)
    assert torch.equal(features.last_hidden_state, expected)


def test_folder_is_complete(composed, qwen3, tied, layout):
    config = AutoConfig.from_pretrained(composed)
    processor = AutoProcessor.from_pretrained(composed)
    generation = GenerationConfig.from_pretrained(composed)
    tokenizer = processor.tokenizer
    assert (composed / "README.md").read_text().startswith("---\n")
    assert config.text_config.vocab_size == 384
    assert tokenizer.convert_tokens_to_ids(["<im_start>", "<im_patch>"]) == [320, 322]
    assert (config.image_start_token_id, config.image_token_id) == (320, 322)
    assert generation.suppress_tokens == list(range(320, 324))
    assert tokenizer.eos_token_id in config.text_config.eos_token_id
    assert generation.eos_token_id == tokenizer.eos_token_id
    assert generation.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.padding_side == "left"
    assert processor.image_processor.layout == config.layout == layout
    assert processor.add_bos_token is (layout == "stitched")
    assert processor.chat_template is not None
    assert config.tie_word_embeddings is False
    # Local paths must not be published.
    assert str(qwen3(tied)) not in (composed / "README.md").read_text()


def test_source_paths_are_not_saved(composed):
    texts = {
        file.name: file.read_text() for pattern in ("*.json", "*.md", "*.jinja") for file in composed.glob(pattern)
    }
    assert "config.json" in texts
    assert [name for name, text in texts.items() if str(composed.parent) in text] == []


def test_new_rows_are_near_the_mean_and_distinct(composed, qwen3, tied):
    weights = load_file(composed / "model.safetensors")
    source = load_file(qwen3(tied) / "model.safetensors")
    table = source["model.embed_tokens.weight"]
    name = "model.language_model.embed_tokens.weight"
    new = weights[name][320:]
    assert torch.equal(weights[name][:320], table)
    assert len(new.unique(dim=0)) == 64
    assert (new - table.mean(dim=0)).std() < 0.03 * table.std()
    assert torch.equal(weights["lm_head.weight"][:320], table if tied else source["lm_head.weight"])


def test_new_rows_of_the_output_head_are_zero(composed):
    """So `generate` leaves them out."""
    assert not load_file(composed / "model.safetensors")["lm_head.weight"][320:].any()


def test_composed_model_trains_generates_and_can_be_saved(composed, make_image, user, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(composed)
    processor = AutoProcessor.from_pretrained(composed)
    inputs = processor.apply_chat_template(
        [user(make_image(90, 120), "Which one?")],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = model.model.connector.projector.down_proj.weight.clone()
    losses = []
    for _ in range(2):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert not torch.equal(model.model.connector.projector.down_proj.weight, before)

    model.eval()
    tokens = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    new = tokens[0, inputs["input_ids"].shape[1] :]
    assert len(new) == 5
    assert (new < 320).all()
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved").eval()
    with torch.inference_mode():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("do_sample", [False, True])
def test_only_tokens_are_generated(composed, do_sample):
    """A new model writes neither image tokens nor rows that no token has."""
    model = AutoModelForImageTextToText.from_pretrained(composed)
    settings = {"max_new_tokens": 40, "do_sample": do_sample, "temperature": 5.0 if do_sample else None, "top_k": 0}
    tokens = model.generate(torch.arange(40).view(8, 5), **settings, eos_token_id=-1)
    assert tokens[:, 5:].max() < 320


def test_the_same_seed_gives_the_same_weights(siglip, qwen3, tmp_path):
    qwen3(True)
    torch.manual_seed(5)
    first = compose_from_pretrained(siglip, qwen3(True), tmp_path / "a", seed=7)
    after = torch.rand(1)
    second = compose_from_pretrained(siglip, qwen3(True), tmp_path / "b", seed=7)
    third = compose_from_pretrained(siglip, qwen3(True), tmp_path / "c", seed=8)
    weights = [load_file(folder / "model.safetensors") for folder in (first, second, third)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    name = "model.connector.pooling.q_proj.weight"
    assert not torch.equal(weights[0][name], weights[2][name])
    # The random state of the caller does not change.
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


def test_connector_preserves_the_scale_of_features(siglip, qwen3, tmp_path):
    weights = load_file(compose_from_pretrained(siglip, qwen3(True), tmp_path / "a") / "model.safetensors")
    assert not weights["model.connector.pooling.q_proj.bias"].any()
    for name in ("pooling.q_proj", "pooling.out_proj", "projector.up_proj", "projector.down_proj"):
        weight = weights[f"model.connector.{name}.weight"]
        assert weight.std().item() == pytest.approx(weight.shape[1] ** -0.5, rel=0.25)


def test_other_grid_is_interpolated_with_a_warning(siglip, qwen3, tmp_path, caplog):
    logger = logging.getLogger("jvlm")
    logger.addHandler(caplog.handler)
    folder = compose_from_pretrained(siglip, qwen3(True), tmp_path / "a", tile_size=98)
    logger.removeHandler(caplog.handler)
    assert any("16 position embeddings" in message and "7 × 7" in message for message in caplog.messages)
    table = load_file(folder / "model.safetensors")["model.vision_tower.embeddings.position_embedding.weight"]
    source = load_file(siglip / "model.safetensors")["vision_model.embeddings.position_embedding.weight"]
    assert table.shape == (49, 32)
    grid = source.T.view(1, 32, 4, 4)
    expected = torch.nn.functional.interpolate(grid, size=(7, 7), mode="bicubic", align_corners=False)
    assert torch.equal(table, expected.permute(0, 2, 3, 1).view(49, 32))
    assert AutoConfig.from_pretrained(folder).patches_per_side == 7


def test_dtypes(siglip, qwen3, tmp_path):
    half = tmp_path / "half"
    Qwen3ForCausalLM.from_pretrained(qwen3(True), dtype=torch.bfloat16).save_pretrained(half)
    for file in qwen3(True).glob("tokenizer*"):
        (half / file.name).write_bytes(file.read_bytes())

    def dtypes(**kwargs):
        folder = compose_from_pretrained(siglip, half, tmp_path / f"composed-{len(kwargs)}", **kwargs)
        config = AutoConfig.from_pretrained(folder)
        return {config.dtype, *(tensor.dtype for tensor in load_file(folder / "model.safetensors").values())}

    assert dtypes() == {torch.float32}  # float32 represents the values of both
    assert dtypes(dtype="bfloat16") == {torch.bfloat16}


def test_tied_output_head(siglip, qwen3, tmp_path):
    folder = compose_from_pretrained(siglip, qwen3(True), tmp_path / "a", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    with pytest.raises(ValueError, match="cannot be tied"):
        compose_from_pretrained(siglip, qwen3(False), tmp_path / "b", tie_word_embeddings=True)


def test_command_line(siglip, qwen3, tmp_path, capsys):
    arguments = ["--vision", siglip, "--decoder", qwen3(False), "--output", tmp_path / "a", "--layout", "stitched"]
    main([*map(str, arguments), "--dtype", "bfloat16", "--vision_feature_layer", "5", "-1"])
    assert str(tmp_path / "a") in capsys.readouterr().out
    config = AutoConfig.from_pretrained(tmp_path / "a")
    assert (config.layout, config.vision_feature_layer, config.dtype) == ("stitched", [5, 9], torch.bfloat16)
