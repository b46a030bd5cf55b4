# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Random JSON schemas and regular expressions: what models with random weights and the digit model answer is valid for an
independent validator, and an answer that `max_new_tokens` cuts is reported.
"""

import json
import re

import pytest
import torch
from fuzzing import counts, effort
from helpers import LAYOUTS, make_image
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText, AutoProcessor

from jvlm_cli.answering import shipped_model


jsonschema = pytest.importorskip("jsonschema")
structured = pytest.importorskip("jvlm.structured")


WAYS = [
    {},
    {"do_sample": True, "temperature": 3.0, "top_k": 0},
    {"do_sample": True, "num_return_sequences": 2},
    {"do_sample": True, "temperature": 3.0, "top_k": 0, "num_return_sequences": 2},
    {"num_beams": 3},
    {"num_beams": 2, "do_sample": True, "temperature": 3.0, "num_return_sequences": 2},
]
# Mostly enough for the longest answers. The small ones cut most of them.
LENGTHS = st.sampled_from([120, 120, 120, 120, 20, 5])
NAMES = st.sampled_from(["digits", "n", "page 1", "ü", 'a"b', "\\", "", "🙂", "/", "Is it sure?"]) | st.text(
    max_size=4
)
NAMES = NAMES.filter(lambda name: name.encode(errors="ignore").decode() == name)
VALUES = st.none() | st.booleans() | st.integers(-99, 99) | NAMES | st.lists(st.integers(0, 9), max_size=2)


@st.composite
def numbers(draw) -> dict:
    kind = draw(st.sampled_from(["integer", "number"]))
    low = draw(st.integers(-1000, 1000))
    high = low + draw(st.integers(1, 2000))
    names = draw(st.sampled_from([("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum")]))
    return {"type": kind, names[0]: low - 1, names[1]: high + 1}


@st.composite
def strings(draw) -> dict:
    low = draw(st.integers(0, 4))
    limits = {"type": "string", "minLength": low, "maxLength": low + draw(st.integers(0, 8))}
    formats = st.sampled_from(["date", "time", "date-time", "uuid", "ipv4"]).map(
        lambda name: {"type": "string", "format": name}
    )
    patterns = PATTERNS.map(lambda pattern: {"type": "string", "pattern": f"^(?:{pattern})$"})
    return draw(st.just(limits) | formats | patterns)


@st.composite
def objects(draw, values) -> dict:
    properties = draw(st.dictionaries(NAMES, values, max_size=4))
    required = [name for name in properties if draw(st.booleans())]
    schema = {"type": "object", "properties": properties, "required": required}
    # Without a limit, a model with random weights would add properties for ever.
    schema["additionalProperties"] = False
    return schema


@st.composite
def arrays(draw, values) -> dict:
    low = draw(st.integers(0, 2))
    schema = {"type": "array", "items": draw(values), "minItems": low, "maxItems": low + draw(st.integers(0, 3))}
    if draw(st.booleans()):
        schema["prefixItems"] = draw(st.lists(values, max_size=2))
    return schema


def pattern_parts(inner):
    bounds = st.sampled_from(["?", "*", "+", "{2}", "{1,3}", "{0,2}"])
    return (
        st.lists(inner, min_size=1, max_size=3).map("".join)
        | st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})")
        | st.tuples(inner, bounds).map(lambda pair: f"(?:{pair[0]}){pair[1]}")
    )


ATOMS = ["a", "7", " ", "[0-9]", "[a-f]", "[^a-z]", r"\d", r"\.", "/", '"', "\\\\", "ü", "[🙂x]", ":", r"\n", "(ab|c)"]
PATTERNS = st.recursive(st.sampled_from(ATOMS), pattern_parts, max_leaves=6)
LEAVES = (
    st.sampled_from([{"type": "null"}, {"type": "boolean"}])
    | numbers()
    | strings()
    | VALUES.map(lambda value: {"const": value})
    | st.lists(VALUES, min_size=1, max_size=4, unique_by=json.dumps).map(lambda values: {"enum": values})
    | st.just({"type": ["integer", "null"], "minimum": 0, "maximum": 9})
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: (
        objects(inner) | arrays(inner) | st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts})
    ),
    max_leaves=6,
)
# The same sub-schema at several places.
SCHEMAS |= SCHEMAS.map(
    lambda schema: {
        "$defs": {"part": schema},
        "type": "object",
        "properties": {
            "first": {"$ref": "#/$defs/part"},
            "rest": {"type": "array", "items": {"$ref": "#/$defs/part"}},
        },
        "required": ["first"],
        "additionalProperties": False,
    }
)


@pytest.fixture(scope="module")
def digit_model():
    return AutoModelForImageTextToText.from_pretrained(shipped_model()), AutoProcessor.from_pretrained(shipped_model())


@pytest.fixture(params=[*LAYOUTS, "digits"])
def answer(request, build_model, build_processor, digit_model):
    """A function (name of a format, its argument, settings of `generate`) that returns the format and the answers."""
    if request.param == "digits":
        model, processor = digit_model
    else:
        model, processor = build_model(request.param), build_processor(request.param)
    formats = structured.AnswerFormats(model, processor)
    text = [" User:<|image|> Which digits are written here? Assistant:", " User: Well? Assistant:"]
    inputs = processor(images=[[make_image(60, 90)], []], text=text, padding=True, return_tensors="pt")
    prompt = inputs["input_ids"].shape[1]
    ends = torch.tensor(model.generation_config.eos_token_id).flatten()

    def run(kind, source, **settings):
        answer_format = getattr(formats, kind)(source)
        output = model.generate(**inputs, **{"do_sample": False, **settings}, logits_processor=[answer_format])[
            :, prompt:
        ]
        texts = processor.batch_decode(output, skip_special_tokens=True)
        return answer_format, [
            (text, bool(torch.isin(row, ends).any())) for text, row in zip(texts, output, strict=True)
        ]

    return run


def check(answer_format, answers, is_valid):
    """Every answer is valid, or it was cut and `parse` says so."""
    for text, has_end in answers:
        value = error = None
        try:
            value = answer_format.parse(text)
        except ValueError as raised:
            error = str(raised)
        if error is None:
            assert is_valid(value, text.removeprefix(" ")), text
        else:
            assert not has_end, text
            assert "The answer was cut before its end" in error
        counts["answers: valid" if error is None else "answers: cut, and reported"] += 1


@effort(6, 450)
@given(schema=SCHEMAS, way=st.sampled_from(WAYS), max_new_tokens=LENGTHS, seed=st.integers(0, 2**32 - 1))
def test_json_by_random_schemas(answer, schema, way, max_new_tokens, seed):
    torch.manual_seed(seed)
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    counts["schemas"] += 1
    found = answer("json", schema, **way, max_new_tokens=max_new_tokens)
    check(*found, lambda value, text: validator.is_valid(value) and json.loads(text) == value)


@effort(4, 220)
@given(pattern=PATTERNS, way=st.sampled_from(WAYS), max_new_tokens=LENGTHS, seed=st.integers(0, 2**32 - 1))
def test_text_by_random_patterns(answer, pattern, way, max_new_tokens, seed):
    torch.manual_seed(seed)
    counts["patterns"] += 1
    found = answer("regex", pattern, **way, max_new_tokens=max_new_tokens)
    check(*found, lambda value, text: value == text and re.fullmatch(pattern, text) is not None)
