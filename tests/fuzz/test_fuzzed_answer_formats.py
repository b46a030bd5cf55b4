# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Random JSON schemas and regular expressions: what models with random weights and the digit model answer is valid for an
independent validator, and an answer that `max_new_tokens` cuts is reported.
"""

import json

import pytest
import regex
import torch
from fuzzing import counts, effort
from helpers import LAYOUTS, make_image
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText, AutoProcessor, LogitsProcessor

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
BATCH = 8
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
    formats = st.sampled_from(["time", "uuid", "ipv4"]).map(lambda name: {"type": "string", "format": name})
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


def batches(strategy):
    return st.lists(strategy, min_size=BATCH, max_size=BATCH)


@pytest.fixture(scope="module")
def digit_model():
    return AutoModelForImageTextToText.from_pretrained(shipped_model()), AutoProcessor.from_pretrained(shipped_model())


class EachRow(LogitsProcessor):
    """Applies a format of its own to each prompt of a batch. The sequences and beams of a prompt lie side by side."""

    def __init__(self, formats):
        self.formats = formats

    def __call__(self, input_ids, scores):
        rows = len(input_ids) // len(self.formats)
        parts = zip(self.formats, input_ids.split(rows), scores.split(rows), strict=True)
        return torch.cat([one(ids, logits) for one, ids, logits in parts])


@pytest.fixture(params=[*LAYOUTS, "digits"])
def check(request, build_model, build_processor, digit_model):
    """
    A function (name of a format, its arguments, whether an answer is valid, settings of `generate`) that fails unless
    every answer is valid, or is one that was cut and that `parse` rejects for that.
    """
    if request.param == "digits":
        model, processor = digit_model
    else:
        model, processor = build_model(request.param), build_processor(request.param)
    formats = structured.AnswerFormats(model, processor)
    text = [" User:<|image|> Which digits are written here? Assistant:", *[" User: Well? Assistant:"] * (BATCH - 1)]
    inputs = processor(
        images=[[make_image(60, 90)], *[[]] * (BATCH - 1)], text=text, padding=True, return_tensors="pt"
    )
    prompt = inputs["input_ids"].shape[1]
    ends = torch.tensor(model.generation_config.eos_token_id).flatten()

    def run(kind, sources, is_valid, **settings):
        made = [getattr(formats, kind)(source) for source in sources]
        settings = {"do_sample": False, **settings, "logits_processor": [EachRow(made)]}
        output = model.generate(**inputs, **settings)[:, prompt:]
        rows = len(output) // BATCH
        for number, tokens in enumerate(output):
            answer, source = processor.decode(tokens, skip_special_tokens=True), sources[number // rows]
            has_end = torch.isin(tokens, ends).any()
            value = error = None
            try:
                value = made[number // rows].parse(answer)
            except ValueError as raised:
                error = str(raised)
            if error is None:
                assert is_valid(source, value, answer), (source, answer)
            else:
                assert not has_end, (source, answer)
                assert "The answer was cut before its end" in error
            counts[f"answers, {kind}: " + ("valid" if error is None else "cut, and reported")] += 1
        counts[f"formats, {kind}"] += BATCH

    return run


def has_pattern(validator, pattern, value, schema):
    if isinstance(value, str) and not regex.search(pattern, value):
        yield jsonschema.ValidationError(f"{value!r} does not match {pattern!r}")


# Python's own `re` misses the digits of newer versions of Unicode in `\d`.
JSON_SCHEMA = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": has_pattern})


def is_valid_json(schema, value, text: str) -> bool:
    validator = JSON_SCHEMA(schema, format_checker=JSON_SCHEMA.FORMAT_CHECKER)
    return validator.is_valid(value) and json.loads(text) == value


def is_match(pattern: str, value, text: str) -> bool:
    return text in (value, " " + value) and regex.fullmatch(pattern, value) is not None


@effort(2, 57)
@given(schemas=batches(SCHEMAS), way=st.sampled_from(WAYS), max_new_tokens=LENGTHS, seed=st.integers(0, 2**32 - 1))
def test_json_by_random_schemas(check, schemas, way, max_new_tokens, seed):
    torch.manual_seed(seed)
    check("json", schemas, is_valid_json, **way, max_new_tokens=max_new_tokens)


@effort(2, 28)
@given(patterns=batches(PATTERNS), way=st.sampled_from(WAYS), max_new_tokens=LENGTHS, seed=st.integers(0, 2**32 - 1))
def test_text_by_random_patterns(check, patterns, way, max_new_tokens, seed):
    torch.manual_seed(seed)
    check("regex", patterns, is_match, **way, max_new_tokens=max_new_tokens)
