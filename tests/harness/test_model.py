# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The model `jvlm` of lmms-eval, called as the harness calls it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers.utils import logging

from examples.digits.evaluate import MODEL, ask
from examples.digits.pages import COUNT, READ, held_out_pages
from jvlm_cli.answering import Answerer, user_message


pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; `make harness` installs it.")

from lmms_eval.models import get_model

from jvlm.evaluation.lmms_eval_model import JinaVLM


GREEDY = {"max_new_tokens": 16, "do_sample": False, "until": ["\n\n"]}
PAGES = held_out_pages(24)


def content(images: list, text: str) -> list[dict]:
    """A user message in the harness's format."""
    parts = [{"type": "image", "url": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def answers(model: JinaVLM, conversations: list, settings: dict = GREEDY) -> list[str]:
    model.task_dict = {"task": {"test": conversations}}
    requests = [
        SimpleNamespace(args=("text", lambda row: row, settings, index, "task", "test"))
        for index in range(len(conversations))
    ]
    results = model.generate_until(requests)
    assert all(result.token_counts.output_tokens > 0 for result in results)
    return [result.text for result in results]


@pytest.fixture(scope="module")
def model() -> JinaVLM:
    return JinaVLM(str(MODEL), device="cpu", batch_size=4)


def test_the_harness_finds_the_class():
    assert get_model("jvlm") is JinaVLM


def test_answers_are_those_of_the_pipeline(model):
    rows = [(page, question) for page in PAGES[:6] for question in (READ, COUNT)]
    found = answers(model, [content([page.image], question) for page, question in rows])
    assert [text.strip() for text in found] == ask(MODEL, rows)


def test_several_images_in_their_order(model):
    images = [page.image for page in PAGES[3:5]]
    answerer = Answerer(device="cpu", max_new_tokens=16)
    for pair in (images, images[::-1]):
        expected = "".join(answerer.stream([user_message(pair, READ)]))
        assert answers(model, [content(pair, READ)])[0].strip() == expected.strip()


def test_batches_of_different_settings_keep_the_order(model):
    model.task_dict = {"task": {"test": [content([page.image], READ) for page in PAGES[:5]]}}
    limits = [16, 1, 16, 1, 16]
    requests = [
        SimpleNamespace(args=("text", lambda row: row, {**GREEDY, "max_new_tokens": limit}, index, "task", "test"))
        for index, limit in enumerate(limits)
    ]
    found = model.generate_until(requests)
    whole = answers(model, [content([page.image], READ) for page in PAGES[:5]])
    assert [result.text for result in found][::2] == whole[::2]
    assert [result.token_counts.output_tokens for result in found][1::2] == [1, 1]


def test_max_crops():
    small = JinaVLM(str(MODEL), device="cpu", max_crops=1)
    sizes = []
    generate = small.model.generate
    small.model.generate = lambda **inputs: sizes.append(len(inputs["pixel_values"])) or generate(**inputs)
    answers(small, [content([PAGES[11].image], READ)])
    assert sizes == [2]  # one tile and the thumbnail


def test_an_answer_ends_before_a_stop_sequence(model):
    page = next(page for page in PAGES if len(page.digits) > 2)
    whole = answers(model, [content([page.image], READ)])[0]
    digit = whole.strip()[2]
    assert answers(model, [content([page.image], READ)], {**GREEDY, "until": [digit]}) == [whole.split(digit)[0]]


def test_temperature_zero_is_greedy_and_others_sample(model):
    conversation = [content([PAGES[5].image], READ)]
    assert answers(model, conversation, {**GREEDY, "temperature": 0, "top_p": 0}) == answers(model, conversation)
    settings, _ = model._settings({"temperature": 0.7})
    assert settings == {"max_new_tokens": 1024, "temperature": 0.7, "do_sample": True}


def test_arguments_for_other_models_are_told(model, monkeypatch):
    told = []
    monkeypatch.setattr("jvlm.evaluation.lmms_eval_model.logger.warning_once", told.append)
    answers(model, [content([PAGES[0].image], READ)], {**GREEDY, "image_aspect_ratio": "original"})
    assert told == ["`image_aspect_ratio` of the task's generation arguments is no argument of `generate`. Ignored."]


def test_what_the_model_does_not_take(model):
    video = [{"role": "user", "content": [{"type": "video", "url": "a.mp4"}, {"type": "text", "text": READ}]}]
    with pytest.raises(ValueError, match=r"Row 0 of the task task has video\. JinaVLM takes images and text"):
        answers(model, [video])
    with pytest.raises(NotImplementedError, match="hf-multimodal"):
        model.loglikelihood([])
    with pytest.raises(ValueError, match="`batch_size` must be a positive integer, got 'auto'"):
        JinaVLM(str(MODEL), batch_size="auto")


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch, model):
    monkeypatch.setattr(logging, "_tqdm_active", False)  # as HF_HUB_DISABLE_PROGRESS_BARS does
    file = tmp_path / "answers.jsonl"
    conversations = [content([page.image], READ) for page in PAGES[:10]]
    calls = []
    generate = JinaVLM._generate

    def counted(self, batch, *args):
        calls.append(len(batch))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(self, batch, *args)

    monkeypatch.setattr(JinaVLM, "_generate", counted)
    with pytest.raises(KeyboardInterrupt):
        answers(JinaVLM(str(MODEL), device="cpu", batch_size=3, answers=str(file)), conversations)
    assert len(file.read_text().splitlines()) == 6
    again = answers(JinaVLM(str(MODEL), device="cpu", batch_size=4, answers=str(file)), conversations)
    assert calls == [3, 3, 3, 4]
    assert again == answers(JinaVLM(str(MODEL), device="cpu", batch_size=4, answers=str(file)), conversations)
    assert calls == [3, 3, 3, 4]
    monkeypatch.setattr(JinaVLM, "_generate", generate)
    assert again == answers(model, conversations)


def test_sampled_answers_are_not_kept(tmp_path):
    file = tmp_path / "answers.jsonl"
    sampling = JinaVLM(str(MODEL), device="cpu", answers=str(file))
    answers(sampling, [content([PAGES[0].image], READ)], {"max_new_tokens": 2, "do_sample": True, "temperature": 1.0})
    assert file.read_text() == ""
    assert Path(sampling.answers.file.name) == file
    answers(sampling, [content([PAGES[0].image], READ)])
    assert len(json.loads(file.read_text())["key"]) == 64
