# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Which tokens `generate` can write: all but the image tokens and the rows that no token has."""

import json
import tracemalloc

import pytest
import torch
from helpers import assistant, user
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from jvlm import JinaVLMConfig
from jvlm.training import DataCollatorForJinaVLM


WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 5.0, "top_k": 0, "num_return_sequences": 8},
    "beams": {"num_beams": 4, "num_return_sequences": 4},
    "sampled beams": {"num_beams": 4, "do_sample": True, "temperature": 5.0, "top_k": 0, "num_return_sequences": 4},
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
IMAGE_TOKENS = ("image_token_id", "image_start_token_id", "image_end_token_id", "image_column_token_id")


def image_tokens(config: JinaVLMConfig) -> set[int]:
    return {getattr(config, name) for name in IMAGE_TOKENS}


@torch.no_grad
def generated(model, inputs, **settings) -> torch.Tensor:
    """New tokens, `[sequences, tokens]`. Tokens that end an answer are tokens like others here."""
    torch.manual_seed(0)
    settings = {"do_sample": False, "max_new_tokens": 24, "eos_token_id": -1, "pad_token_id": 0, **settings}
    return model.eval().generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]


@ways
def test_image_ids_in_the_middle_of_the_vocabulary(build_model, way):
    """With the image tokens at 3 to 6 of 99, all other ids can be generated."""
    ids = dict(zip(IMAGE_TOKENS, (5, 3, 4, 6), strict=True))
    model = build_model(**ids, text_config={"vocab_size": 99, "eos_token_id": 0, "pad_token_id": 0})
    assert model.generation_config.suppress_tokens == [3, 4, 5, 6]
    with torch.no_grad():  # each image token would win over all others
        model.lm_head.weight[3:7] = 3 * model.lm_head.weight[10:14].sign()
        model.lm_head.weight[7:9] = -model.lm_head.weight[3:5]
    tokens = set(generated(model, {"input_ids": torch.arange(10, 22).view(2, 6)}, **way).flatten().tolist())
    assert not tokens & {3, 4, 5, 6}
    assert max(tokens) > 6


def test_a_large_vocabulary_costs_no_memory(tmp_path):
    tracemalloc.start()
    config = JinaVLMConfig(text_config={"vocab_size": 30_000_000})
    assert config.suppressed_token_ids == config.tokens_to_suppress() == [151936, 151937, 151938, 151939]
    config.save_pretrained(tmp_path)
    JinaVLMConfig.from_pretrained(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6


def test_added_tokens_can_be_generated(checkpoint, build_processor, tmp_path):
    """Trained in process, saved and loaded again, and after `resize_token_embeddings` to smaller and larger tables."""
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint).train()
    assert processor.tokenizer.add_tokens(["<answer>"]) == 1
    answer = processor.tokenizer.convert_tokens_to_ids("<answer>")
    assert max(image_tokens(model.config)) < answer < model.config.text_config.vocab_size
    chat = [user("Who?"), assistant("<answer>")]
    batch = DataCollatorForJinaVLM(processor, add_blank_tile=False)([{"messages": chat}])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(15):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    inputs = processor.apply_chat_template(
        chat[:1], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )

    def check(model):
        for way in WAYS.values():
            calm = {"temperature": 1.0} if way.get("do_sample") else {}
            tokens = generated(model, inputs, **{**way, **calm}, max_new_tokens=6)
            assert (tokens == answer).any()
            assert not set(tokens.flatten().tolist()) & image_tokens(model.config)

    def reload(model, name):
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        return AutoModelForImageTextToText.from_pretrained(tmp_path / name)

    check(model)
    check(reload(model, "saved"))
    # A folder of version 0.1.0, whose list bans all ids after the image tokens.
    first, path = min(image_tokens(model.config)), tmp_path / "saved" / "generation_config.json"
    settings = json.loads(path.read_text())
    settings["suppress_tokens"] = list(range(first, model.config.text_config.vocab_size))
    path.write_text(json.dumps(settings))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
    check(model)
    for name, arguments in (("resized", {}), ("padded", {"pad_to_multiple_of": 64})):
        model.resize_token_embeddings(len(processor.tokenizer), **arguments)
        check(model)
        check(reload(model, name))


@ways
def test_rows_that_no_token_has_are_not_generated(released_model, released_processor, make_image, way):
    """The published head has no rows for the image tokens and the ids after them. Here these rows are zero."""
    inputs = released_processor(images=make_image(40, 40), text="<|image|>Who?", return_tensors="pt")
    with torch.no_grad():
        logits = released_model(**inputs).logits
    # One that is zero would win where all others are negative.
    assert not logits[..., 512:].any()
    head = released_model.lm_head
    handle = head.register_forward_hook(lambda module, args, logits: logits - 100 * (logits != 0))
    try:
        tokens = generated(released_model, inputs, **way)
    finally:
        handle.remove()
    assert (tokens < 512).all()
    assert (generated(released_model, inputs, **way) < 512).all()


def test_own_suppressed_tokens_stay(build_model, tmp_path):
    model = build_model()
    expected = {7, 250, *image_tokens(model.config)}
    first = min(image_tokens(model.config))
    model.save_pretrained(tmp_path)
    path = tmp_path / "generation_config.json"
    settings = json.loads(path.read_text())
    for own, kept in (([250, 7], expected), ([first, first + 1], image_tokens(model.config))):
        path.write_text(json.dumps({**settings, "suppress_tokens": own}))
        model = type(model).from_pretrained(tmp_path)
        assert set(model.generation_config.suppress_tokens) == kept
        model.save_pretrained(tmp_path / "again")
        assert set(GenerationConfig.from_pretrained(tmp_path / "again").suppress_tokens) == kept


@pytest.mark.parametrize("own", ["359", [1.5], ["5"], [None], {"a": 1}])
def test_damaged_suppressed_tokens_are_an_error(build_model, own, tmp_path):
    build_model().save_pretrained(tmp_path)
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "suppress_tokens": own}))
    with pytest.raises(ValueError, match=r"`suppress_tokens` must be a list of token ids, got"):
        AutoModelForImageTextToText.from_pretrained(tmp_path)
