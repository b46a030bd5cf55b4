# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The model `jvlm` of lm-eval."""

import pytest
from transformers import AutoProcessor

from examples.digits.evaluate import MODEL


pytest.importorskip("lm_eval", reason="lm-eval is not installed; `make harness` installs it.")

from lm_eval.api.registry import get_model
from lm_eval.models.hf_vlms import HFMultimodalLM

from jvlm.evaluation.lm_eval import JinaVLM


def test_it_is_registered():
    assert get_model("jvlm") is JinaVLM


def test_prompts_without_images_are_those_of_the_processor(release):
    """`hf-multimodal` leaves out the BOS token of published checkpoints, without a word."""
    folder = str(release / "checkpoint")
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    expected = AutoProcessor.from_pretrained(folder).apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"][0]

    def tokens(model_class) -> list[int]:
        model = model_class(folder, device="cpu", dtype="float32")
        prompt = model.apply_chat_template([{"role": "user", "content": "Hello"}])
        assert model.tok_encode(prompt) == model.tok_batch_encode([prompt])[0][0].tolist()
        return model.tok_encode(prompt)

    assert tokens(JinaVLM) == expected
    assert tokens(HFMultimodalLM) == expected[1:]


def test_max_crops():
    assert JinaVLM(str(MODEL), max_crops=4, device="cpu").processor.image_processor.max_crops == 4
