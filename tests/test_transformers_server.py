# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
What `jvlm serve`, the server of Transformers, does with requests beyond a plain question. The faults of that server
that docs/serving.md lists are reproduced here, so that a release without one of them is noticed.
"""

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils.import_utils import is_serve_available

from examples.digits.pages import READ, held_out_pages
from tools import transformers_server_check as check


MODEL = check.CHECKPOINTS["independent"]
PAGE = held_out_pages(2)[1].image
QUESTION = check.request(check.conversation(READ, PAGE))
FIXED = 'A release of Transformers mends this: say so under "Transformers\' server" in docs/serving.md.'

pytestmark = pytest.mark.skipif(not is_serve_available(), reason="needs transformers[serving]")


@pytest.fixture(scope="module")
def client():
    """A client of a server of the digit model."""
    with check.served(MODEL) as client:
        yield client


@pytest.fixture(scope="module")
def expected() -> str:
    """The answer of `generate` to `QUESTION`."""
    return check.answerer(MODEL)(check.conversation(READ, PAGE))


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_end_an_answer(client, expected, stream):
    """The server passes the processor as tokenizer. The stop string is part of the answer."""
    assert client.ask({**QUESTION, "stream": stream}) == expected
    stop = expected[:4]
    assert len(expected) > 4
    assert client.ask({**QUESTION, "stream": stream, "stop": [stop]}) == stop


def test_generate_takes_the_processor_as_tokenizer(expected):
    """Both objects give the same, for stop strings and without them."""
    model, processor = AutoModelForImageTextToText.from_pretrained(MODEL), AutoProcessor.from_pretrained(MODEL)
    inputs = processor.apply_chat_template(
        check.conversation(READ, PAGE),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    prompt = inputs["input_ids"].shape[1]
    for tokenizer in (processor, processor.tokenizer):
        output = model.generate(**inputs, tokenizer=tokenizer, stop_strings=[expected[:4]], max_new_tokens=12)
        assert processor.decode(output[0, prompt:]) == expected[:4]


def test_max_crops_of_a_request(client):
    messages = check.conversation(READ, held_out_pages(12)[-1].image)
    usual, one_tile = (
        client.usage(check.request(messages, **fields))["prompt_tokens"]
        for fields in ({}, {"chat_template_kwargs": {"max_crops": 1}})
    )
    assert one_tile < usual / 4


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"logprobs": True, "top_logprobs": 2},
        {"response_format": {"type": "json_object"}},
        {"temperature": 50},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_fields_that_the_server_ignores(client, expected, fields):
    choices = client.choices({**QUESTION, **fields})
    assert [choice["message"]["content"] for choice in choices] == [expected], FIXED
    assert "logprobs" not in choices[0], FIXED


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "USER", "content": READ}]},
        {"messages": [{"role": "user", "content": "<im_patch>"}]},
        {"messages": []},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}],
                }
            ]
        },
        {"max_tokens": 0},
    ],
    ids=["role", "reserved token", "no message", "damaged image", "no new tokens"],
)
def test_bad_input_is_an_internal_error(client, expected, fields):
    """The reason is only in the log of the server, which goes on."""
    assert client.ask({**QUESTION, **fields}) == "500 Internal Server Error", FIXED
    assert client.ask(QUESTION) == expected


def test_a_prompt_over_the_context_is_answered(client):
    limit = AutoProcessor.from_pretrained(MODEL).tokenizer.model_max_length
    usage = client.usage(check.request(check.conversation("7 " * 2 * limit), max_tokens=1))
    assert usage["prompt_tokens"] > limit, FIXED
