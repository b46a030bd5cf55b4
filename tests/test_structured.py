# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Answers in JSON by schema, by regular expression, or one of several choices. Random formats are in tests/fuzz."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import CACHE
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    DynamicCache,
    TextIteratorStreamer,
    pipeline,
)

from jvlm import add_image_tokens
from jvlm_cli import ask
from jvlm_cli.answering import shipped_model, user_message


AnswerFormats = pytest.importorskip("jvlm.structured", exc_type=ModuleNotFoundError).AnswerFormats


DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
SCHEMA = {
    "type": "object",
    "properties": {"digits": {"type": "array", "items": DIGIT, "maxItems": 4}, "sure": {"type": "boolean"}},
    "required": ["digits", "sure"],
    "additionalProperties": False,
}
WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 5.0, "num_return_sequences": 4},
    "beams": {"num_beams": 4, "num_return_sequences": 4},
    "sampled beams": {"num_beams": 4, "do_sample": True, "temperature": 5.0, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static"},
}
QUESTIONS = ["<|image|> Who is this?", "Between <|image|> and <|image|>?", "Well?"]


def is_right(value) -> bool:
    digits = value["digits"]
    return list(value) == ["digits", "sure"] and len(digits) <= 4 and all(type(digit) is int for digit in digits)


def answers(model, processor, inputs, **settings) -> list[str]:
    torch.manual_seed(0)
    settings = {"do_sample": False, "max_new_tokens": 64, **settings}
    output = model.generate(**inputs, **settings)
    return processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.fixture
def setting(checkpoint, make_image):
    """A model with random weights, its processor, and a padded batch with images."""
    model = AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
    processor = AutoProcessor.from_pretrained(checkpoint)
    if model.generation_config.eos_token_id is None:  # in the small published checkpoint, other than in the real one
        model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    images = [[make_image(90, 130, 0)], [make_image(40, 40, 1), make_image(60, 200, 2)], []]
    return model, processor, processor(images=images, text=QUESTIONS, padding=True, return_tensors="pt")


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_json_from_random_weights(setting, way):
    """All answers are values of the schema; several calls can use one format."""
    model, processor, inputs = setting
    json_format = AnswerFormats(model, processor).json(SCHEMA)
    texts = answers(model, processor, inputs, **way, logits_processor=[json_format])
    assert len(texts) == 3 * way.get("num_return_sequences", 1)
    assert all(is_right(json_format.parse(text)) for text in texts)
    assert answers(model, processor, inputs, **way, logits_processor=[json_format]) == texts
    one = processor(text="Well, well?", return_tensors="pt")
    [text] = answers(model, processor, one, logits_processor=[json_format])
    assert is_right(json_format.parse(text))


def test_regex_and_choice(setting):
    model, processor, inputs = setting
    formats = AnswerFormats(model, processor)
    date = formats.regex(r"^[0-9]{4}-(0[1-9]|1[0-2])/x$")
    for text in answers(model, processor, inputs, logits_processor=[date]):
        assert re.fullmatch(r"[0-9]{4}-(0[1-9]|1[0-2])/x", date.parse(text))
    letter = formats.choice(["A", 'B "b"', "C\\\n/ü🙂"])
    found = answers(model, processor, inputs, logits_processor=[letter], do_sample=True, num_return_sequences=20)
    assert {letter.parse(text) for text in found} == {"A", 'B "b"', "C\\\n/ü🙂"}


def test_a_space_of_the_format_is_not_dropped(setting):
    formats = AnswerFormats(*setting[:2])
    for answer, value in ((" a", " a"), ("  b", "  b"), ("b", "b"), (" b", "b")):
        assert formats.choice([" a", "  b", "b"]).parse(answer) == value
        assert formats.regex(" a|  b|b").parse(answer) == value


def test_assisted_decoding_answers_the_same(setting):
    model, processor, _ = setting
    json_format = AnswerFormats(model, processor).json(SCHEMA)
    inputs = processor(text='{"digits": [1, 2], "sure": true} {"digits": [', return_tensors="pt")
    plain, assisted = (
        answers(model, processor, inputs, logits_processor=[json_format], **way)
        for way in ({}, {"prompt_lookup_num_tokens": 3})
    )
    assert assisted == plain
    assert is_right(json_format.parse(*plain))


def test_a_chat_goes_on_with_the_same_format(setting):
    """The second prompt begins with the first one and its answer."""
    model, processor, _ = setting
    number = AnswerFormats(model, processor).regex("[0-9]{3}")
    inputs = processor(text=" User: One? Assistant:", return_tensors="pt")
    cache = DynamicCache(config=model.config.text_config)
    first = model.generate(**inputs, **{CACHE: cache}, do_sample=False, max_new_tokens=8, logits_processor=[number])
    longer = torch.cat([first, processor(text=" User: Two? Assistant:", return_tensors="pt")["input_ids"]], dim=1)
    inputs = {"input_ids": longer, "attention_mask": torch.ones_like(longer)}
    [text] = answers(model, processor, inputs, logits_processor=[number], **{CACHE: cache})
    assert re.fullmatch("[0-9]{3}", number.parse(text))


def test_a_prompt_that_begins_with_the_last_one(setting):
    """It is shorter than the last prompt with its answer, so its length is that of a step of assisted decoding."""
    model, processor, _ = setting
    number = AnswerFormats(model, processor).regex("[0-9]{8}")
    ids = processor(text="1 2 Well, well?", return_tensors="pt")["input_ids"]
    for length in (ids.shape[1] - 3, ids.shape[1]):
        prompt = ids[:, :length]
        output = model.generate(input_ids=prompt, do_sample=False, max_new_tokens=16, logits_processor=[number])
        text = processor.decode(output[0, length:], skip_special_tokens=True)
        assert re.fullmatch("[0-9]{8}", number.parse(text))


def test_image_tokens_and_rows_without_a_token_are_not_allowed(setting):
    """In a format that allows any text. The special tokens of the tokenizer, but those that end an answer, neither."""
    model, processor, inputs = setting
    anything = AnswerFormats(model, processor).regex(r"(?s:.*)")
    scores = torch.zeros(3, model.config.text_config.vocab_size)
    allowed = (anything(inputs["input_ids"], scores)[0] == 0).nonzero().flatten().tolist()
    special = set(processor.tokenizer.all_special_ids) | set(processor.image_token_ids)
    end = {model.generation_config.eos_token_id}
    assert len(allowed) > 200
    assert special & set(allowed) == end
    assert max(allowed) < len(processor.tokenizer)


def test_every_token_that_ends_an_answer_is_allowed(setting):
    model, processor, inputs = setting
    end = model.generation_config.eos_token_id
    other = processor.image_token_ids[0]
    model.generation_config.eos_token_id = [end, other]
    nothing = AnswerFormats(model, processor).choice([""])
    scores = nothing(inputs["input_ids"], torch.zeros(3, model.config.text_config.vocab_size))
    assert {end, other} <= set((scores[0] == 0).nonzero().flatten().tolist())
    model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match=r"No token ends an answer of this model; set `model\.generation_config"):
        AnswerFormats(model, processor)


def test_swapped_arguments_are_reported(setting):
    model, processor, _ = setting
    with pytest.raises(TypeError, match="a model and its processor, in this order, got JinaVLMProcessor and Jina"):
        AnswerFormats(processor, model)
    with pytest.raises(TypeError, match="in this order, got JinaVLMForConditionalGeneration and "):
        AnswerFormats(model, processor.tokenizer)


def test_a_cut_answer_is_reported(setting):
    model, processor, inputs = setting
    json_format = AnswerFormats(model, processor).json(SCHEMA)
    for text in answers(model, processor, inputs, max_new_tokens=5, logits_processor=[json_format]):
        with pytest.raises(ValueError, match=r"The answer was cut before its end, .*; increase `max_new_tokens`"):
            json_format.parse(text)


@pytest.mark.parametrize("cut", ["n", "nü", "nü\ufffd"])
def test_an_answer_that_is_cut_within_a_character_is_reported(setting, cut):
    """The bytes that are left of the character are decoded to U+FFFD."""
    text = AnswerFormats(*setting[:2]).regex("n(ü🙂)?x")
    with pytest.raises(ValueError, match="The answer was cut before its end"):
        text.parse(cut)


@pytest.mark.parametrize(
    "text", ['{"digits": [12', '  {"digits"', "Seven.", "S\ufffd", '{"digits": [], "sure": true} ']
)
def test_other_text_is_reported(setting, text):
    json_format = AnswerFormats(*setting[:2]).json(SCHEMA)
    with pytest.raises(ValueError, match=r"The answer .* is not in the JSON schema .*: it cannot go on with "):
        json_format.parse(text)


def test_settings_that_allow_nothing_are_an_error(setting):
    model, processor, inputs = setting
    short = AnswerFormats(model, processor).choice(["A"])
    with pytest.raises(
        ValueError, match=r"forbids all tokens that can follow in the choice \['A'\]; .*min_new_tokens"
    ):
        answers(model, processor, inputs, min_new_tokens=9, logits_processor=[short])


def test_impossible_formats_are_an_error(setting):
    formats = AnswerFormats(*setting[:2])
    for schema, fault in (
        ({"type": "object", "unevaluatedProperties": False}, r'Unimplemented keys: \["unevaluatedProperties"\]'),
        ({"type": "number of digits"}, "Invalid type: number of digits"),
        (False, "Unsatisfiable schema"),
        ({"type": "string", "pattern": r"(?=a)b"}, "look-around"),
    ):
        with pytest.raises(ValueError, match=f"(?s)Cannot write answers in the JSON schema .*{fault}"):
            formats.json(schema)
    for schema in (["digits"], '{"type": "integer"}'):
        with pytest.raises(ValueError, match="`schema` must be a dict, such as"):
            formats.json(schema)
    for pattern, fault in (("[0-9", "unclosed character class"), (r"(a)\1", "backreferences")):
        with pytest.raises(ValueError, match=f"(?s)Cannot write answers in the regular expression .*{fault}") as info:
            formats.regex(pattern)
        assert "start:" not in str(info.value)  # the grammar is none that the user wrote
    for choices in ("Yes", [], [1, 2]):
        with pytest.raises(
            ValueError, match=f"`answers` must be a list of one or more texts, got {re.escape(repr(choices))}"
        ):
            formats.choice(choices)


def test_options_of_llguidance(setting):
    formats = AnswerFormats(*setting[:2])
    wide = '{ \n  "a" :\t1}'
    for schema in ({}, True):
        with pytest.raises(ValueError, match="is not in the JSON schema"):
            formats.json(schema).parse(wide)
    assert formats.json({"x-guidance": {"whitespace_flexible": True}}).parse(wide) == {"a": 1}
    assert formats.json().parse(' {"a": [1, null]}') == {"a": [1, None]}


def test_qwen3_vocabulary_with_the_rows_of_the_published_head(qwen3_vocabulary):
    """The head has more rows than there are tokens, and the tokens of the images lie in between."""
    tokenizer = AutoTokenizer.from_pretrained(qwen3_vocabulary)
    add_image_tokens(tokenizer)

    end = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model = SimpleNamespace(
        generation_config=SimpleNamespace(eos_token_id=end),
        get_output_embeddings=lambda: torch.nn.Linear(1, 152064, device="meta"),
    )
    formats = AnswerFormats(model, SimpleNamespace(tokenizer=tokenizer))
    text = '{"digits": [3, 1], "sure": true}'
    json_format = formats.json(SCHEMA)
    tokens = tokenizer(text)["input_ids"]
    for count in range(len(tokens) + 1):
        scores = json_format(torch.tensor([[5, 6, *tokens[:count]]]), torch.zeros(1, 152064))
        allowed = set((scores[0] == 0).nonzero().flatten().tolist())
        assert max(allowed) < 151936
        assert (tokens[count] if count < len(tokens) else tokenizer.eos_token_id) in allowed
    assert allowed == set(end)


def test_pipeline_and_streaming():
    pipe = pipeline("image-text-to-text", model=str(shipped_model()))
    page = str(shipped_model() / "samples" / "page-2x2.png")
    digits = AnswerFormats(pipe.model, pipe.processor).regex("[0-9]( [0-9])*")
    message = user_message([page], "Which digits are written here?")
    settings = {"logits_processor": [digits], "max_new_tokens": 16}
    [result] = pipe(text=[message], return_full_text=False, generate_kwargs=settings)
    assert digits.parse(result["generated_text"]) == "1 6 4 6 6"
    inputs = pipe.processor.apply_chat_template(
        [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    streamer = TextIteratorStreamer(pipe.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    pipe.model.generate(**inputs, **settings, do_sample=False, streamer=streamer)
    assert digits.parse("".join(streamer)) == "1 6 4 6 6"


def test_ask_by_a_schema(tmp_path, capsys):
    page = str(shipped_model() / "samples" / "page-1x1.png")
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    question = [page, "Which digits are written here?", "--device", "cpu", "--json-schema", str(path)]
    assert ask.main(question) is None
    assert is_right(json.loads(capsys.readouterr().out))
    for content, arguments, fault in (
        (json.dumps(SCHEMA), ["--max-new-tokens", "4"], "The answer was cut before its end"),
        ("{", [], f"{path} is not a JSON file: Expecting property name"),
        ('{"type": "x"}', [], "Cannot write answers in the JSON schema {'type': 'x'}: "),
    ):
        path.write_text(content)
        with pytest.raises(SystemExit):
            ask.main([*question, *arguments])
        printed = capsys.readouterr()
        assert printed.out == ""
        assert fault in printed.err


def test_without_llguidance_the_error_names_the_extra(monkeypatch, tmp_path, capsys):
    path = tmp_path / "schema.json"
    path.write_text("{}")
    monkeypatch.setitem(sys.modules, "llguidance", None)
    monkeypatch.delitem(sys.modules, "jvlm.structured")
    with pytest.raises(SystemExit):
        ask.main([str(shipped_model() / "samples" / "page-1x1.png"), "How many?", "--json-schema", str(path)])
    assert "jvlm.structured needs llguidance; install it with `pip install" in capsys.readouterr().err
