# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Random prompts and conversations with control tokens, compared with separately tokenized pieces. Damaged conversations,
templates and settings must raise a `ValueError` that names the fault. Threads must get what a single thread gets.
"""

import copy
import random
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice

import numpy as np
import PIL.Image
import pytest
import torch
from fuzzing import IS_LONG, counts, effort
from helpers import END_OF_TEXT, LAYOUTS, MARKERS, encode_base64
from hypothesis import event, given
from hypothesis import strategies as st
from transformers.processing_utils import TextKwargs

from jvlm.processing.prompt_checks import ROLES
from jvlm.processing.prompt_format import CHAT_TEMPLATES
from jvlm.published_format.published_template import MARKED_TEMPLATE, PUBLISHED_TEMPLATE


CONTROL = [
    "<|image|>",
    END_OF_TEXT,
    " User:",
    " Assistant:",
    "<|",
    "im",
    "age|>",
    "<im_",
    "|>",
    "{{",
    "}}",
    "{%",
    "\0",
    "\n",
]
CONTROL += ["<image>", "\r", "  ", "\ufeff", "\u202e", "é", "e\u0301", "🙂", "<s>", "\\", "'", '"', "%s"]
WORDS = st.text(max_size=8) | st.sampled_from(CONTROL)
TEXTS = st.lists(WORDS, max_size=6).map("".join)
# Some texts contain what is rejected: an image token, or half of a surrogate pair.
INVALID_TEXTS = TEXTS | st.tuples(TEXTS, st.sampled_from([*MARKERS, "\ud83d"]), TEXTS).map("".join)
# A role that differs from one of the model's by case or spaces is refused.
NEW_ROLES = TEXTS.filter(lambda role: role and role.strip().lower() not in ROLES)
IMAGES = st.tuples(st.integers(1, 150), st.integers(1, 150)).map(lambda size: PIL.Image.new("RGB", size, "green"))


@pytest.fixture
def processors(build_processor):
    """Processors by layout and by whether they add a BOS token."""
    return {
        (layout, add_bos_token): build_processor(layout, add_bos_token=add_bos_token)
        for layout in LAYOUTS
        for add_bos_token in (False, True)
    }


def image_ids(processor, image: PIL.Image.Image) -> list[int]:
    """The expected tokens of one image."""
    ids = dict(zip(MARKERS, processor.tokenizer.convert_tokens_to_ids(MARKERS), strict=True))
    rows, cols = processor.image_processor.get_image_grid(image.height, image.width)
    if processor.image_processor.layout == "independent":
        return [ids["<im_patch>"]] * (3 * 4 * (1 + rows * cols))
    # A tile has 4 × 4 cells. It keeps 4 along an axis with one tile, and 3 along an axis with several tiles.
    tokens = []
    for height, width in ((4, 4), tuple(4 if count == 1 else 3 * count for count in (rows, cols))):
        row = [ids["<im_patch>"]] * width + [ids["<im_col>"]]
        tokens += [ids["<im_start>"], *row * height, ids["<im_end>"]]
    return tokens


def prompt_ids(processor, text: str, images: list[PIL.Image.Image]) -> list[int]:
    """The expected tokens of a prompt: its pieces between the placeholders, tokenized separately, and its images."""
    if processor.add_bos_token and not text.startswith(END_OF_TEXT):
        text = END_OF_TEXT + text
    pieces = [processor.tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in text.split("<|image|>")]
    ids = list(pieces[0])
    for image, piece in zip(images, pieces[1:], strict=True):
        ids += image_ids(processor, image) + piece
    return ids


def is_invalid(text: str) -> bool:
    return any(marker in text for marker in (*MARKERS, "\ud83d"))


def is_foreign(text: str, images: list) -> bool:
    """Whether a prompt has images and only the placeholder of another model."""
    return bool(images) and "<image>" in text and "<|image|>" not in text


def with_placeholders(text: str, images: list) -> str:
    """Puts the placeholders at the start of a prompt that has none."""
    return text if "<|image|>" in text else "<|image|>" * len(images) + text


def assert_rows(processor, inputs, expected: list[list[int]], images: list):
    """Asserts the token ids, attention masks, token types and number of tiles of a batch, padded or not."""
    assert len(inputs["input_ids"]) == len(expected)
    pads_left = processor.tokenizer.padding_side == "left"
    length = max(map(len, expected))
    for index, ids in enumerate(expected):
        row = np.asarray(inputs["input_ids"][index]).tolist()
        padding = [0] * (len(row) - len(ids))
        assert not padding or len(row) == length
        is_token = slice(len(padding), None) if pads_left else slice(None, len(ids))
        assert row[is_token] == ids
        mask = [1] * len(ids)
        assert np.asarray(inputs["attention_mask"][index]).tolist() == (
            padding + mask if pads_left else mask + padding
        )
        if "mm_token_type_ids" in inputs:
            types = np.isin(row, processor.image_token_ids).astype(int).tolist()
            assert np.asarray(inputs["mm_token_type_ids"][index]).tolist() == types
    tiles = [processor.image_processor.get_number_of_image_patches(image.height, image.width) for image in images]
    assert len(inputs.get("pixel_values", [])) == sum(tiles)


@effort(short=200, long=3000)
@given(data=st.data())
def test_prompts(processors, data):
    processor = processors[data.draw(st.sampled_from(list(processors)))]
    settings, num_tokens = vars(processor).copy(), len(processor.tokenizer)
    texts = data.draw(st.lists(INVALID_TEXTS, min_size=1, max_size=3))
    form = data.draw(st.sampled_from(["as many", "as many", "as many, flat", "any", "any, flat", "none"]))
    rows = [
        data.draw(st.lists(IMAGES, min_size=count, max_size=count))
        if form.startswith("as many") and (count := text.count("<|image|>"))
        else data.draw(st.lists(IMAGES, max_size=2))
        for text in texts
    ]
    is_flat = form.endswith("flat")
    if form == "as many, flat" and len(texts) > 1:
        rows = [row if "<|image|>" in text else [] for text, row in zip(texts, rows, strict=True)]
    images = list(chain(*rows))
    given_images = None if form == "none" else images if is_flat else rows
    rows, images = ([[]] * len(texts), []) if form == "none" else (rows, images)
    counts["prompts"] += len(texts)

    # A flat list of images is distributed by the placeholders. A nested list assigns images to prompts.
    if not images:
        fits = not any("<|image|>" in text for text in texts)
        full = texts
    elif is_flat and len(texts) > 1:
        full = texts
        fits = sum(text.count("<|image|>") for text in texts) == len(images)
        remaining = iter(images)
        rows = [list(islice(remaining, text.count("<|image|>"))) for text in texts]
    else:
        full = [with_placeholders(text, row) for text, row in zip(texts, rows, strict=True)]
        fits = all(text.count("<|image|>") == len(row) for text, row in zip(full, rows, strict=True))
        fits = fits and not any(map(is_foreign, texts, rows))
    is_valid = fits and not any(map(is_invalid, texts))
    expected = [prompt_ids(processor, text, row) for text, row in zip(full, rows, strict=True)] if is_valid else []

    call = {"text": texts if len(texts) > 1 or data.draw(st.booleans()) else texts[0], "images": given_images}
    call["return_mm_token_type_ids"] = data.draw(st.booleans())
    max_length = data.draw(st.none() | st.integers(1, 120))
    if max_length is not None:
        call |= {"truncation": True, "max_length": max_length}
        image_tokens = [np.isin(ids, processor.image_token_ids).sum() for ids in expected]
        expected = [ids[:max_length] for ids in expected]
        kept = [np.isin(ids, processor.image_token_ids).sum() for ids in expected]
        is_valid = is_valid and image_tokens == kept
    if data.draw(st.booleans()):
        call |= {"padding": True, "return_tensors": data.draw(st.sampled_from(["pt", "np"]))}
    if is_valid:
        event("valid")
        assert_rows(processor, processor(**call), expected, images)
    else:
        event("rejected")
        counts["prompts rejected"] += 1
        with pytest.raises(ValueError, match=r"<\|image\|>|Prompt \d contains|Truncation would cut|lists of images"):
            processor(**call)
    assert vars(processor) == settings
    assert len(processor.tokenizer) == num_tokens


def image_part(form: str, image: PIL.Image.Image) -> dict:
    value = {
        "image": lambda: image,
        "array": lambda: np.asarray(image),
        "tensor": lambda: torch.from_numpy(np.array(image)).permute(2, 0, 1),
        "base64": lambda: encode_base64(image),
        "url": lambda: "data:image/png;base64," + encode_base64(image),
    }[form]()
    return {"type": "image", form if form in ("base64", "url") else "image": value}


@st.composite
def conversations(draw) -> tuple[list[dict], list[tuple]]:
    """A conversation, and (role, text or list of texts and images) of every message."""
    messages, contents = [], []
    for _ in range(draw(st.integers(1, 4))):
        role = draw(st.sampled_from(["user", "user", "assistant", "system", "tool"]) | NEW_ROLES)
        if draw(st.booleans()):
            content = draw(INVALID_TEXTS.filter(bool))  # Transformers tokenizes an empty list for an empty string
            messages.append({"role": role, "content": content})
            contents.append((role, content))
            continue
        parts, pieces = [], []
        for _ in range(draw(st.integers(0, 3))):
            if role == "assistant" or draw(st.booleans()):
                text = draw(INVALID_TEXTS)
                parts.append({"type": "text", "text": text})
                pieces.append(text)
            else:
                image = draw(IMAGES.filter(lambda image: min(image.size) > 4))  # else the channel axis is ambiguous
                parts.append(image_part(draw(st.sampled_from(["image", "array", "tensor", "base64", "url"])), image))
                pieces.append(image)
        messages.append({"role": role, "content": parts})
        contents.append((role, pieces))
    return messages, contents


def rendered(layout: str, contents: list[tuple], add_generation_prompt: bool) -> tuple[str, list[str]]:
    """The expected text of a conversation, and the answers of the assistant in it."""
    text, answers = "", []
    for role, content in contents:
        text += f" {role.capitalize()}:"
        if role == "assistant":
            answers.append(" " + (content if isinstance(content, str) else "".join(content)) + END_OF_TEXT)
            text += answers[-1]
        elif isinstance(content, str):
            text += " " + content
        elif layout == "stitched":
            text += " " + "".join(piece if isinstance(piece, str) else "<|image|>" for piece in content)
        else:
            text += "".join(" " + piece if isinstance(piece, str) else "<|image|>" for piece in content)
    return text + (" Assistant:" if add_generation_prompt else ""), answers


@effort(short=150, long=3000)
@given(data=st.data())
def test_conversations(processors, data):
    (layout, add_bos_token) = data.draw(st.sampled_from(list(processors)))
    processor = processors[layout, add_bos_token]
    settings, num_tokens = vars(processor).copy(), len(processor.tokenizer)
    chats, contents = zip(*data.draw(st.lists(conversations(), min_size=1, max_size=2)), strict=True)
    add_generation_prompt, with_mask = data.draw(st.booleans()), data.draw(st.booleans())
    counts["conversations"] += len(chats)
    texts, answers = zip(*(rendered(layout, chat, add_generation_prompt) for chat in contents), strict=True)
    rows = [[piece for _, content in chat for piece in content if not isinstance(piece, str)] for chat in contents]
    is_batch = len(chats) > 1 or data.draw(st.booleans())
    assert processor.apply_chat_template(list(chats), add_generation_prompt=add_generation_prompt) == list(texts)

    call = {"tokenize": True, "return_dict": True, "add_generation_prompt": add_generation_prompt}
    call["processor_kwargs"] = {"padding": data.draw(st.booleans())}
    call["return_assistant_tokens_mask"] = with_mask
    given_chats = [*chats] if is_batch else chats[0]
    if any(map(is_invalid, texts)) or any(
        text.count("<|image|>") != len(row) for text, row in zip(texts, rows, strict=True)
    ):
        event("rejected")
        counts["conversations rejected"] += 1
        with pytest.raises(ValueError, match=r"<\|image\|>|Prompt \d contains|lists of images"):
            processor.apply_chat_template(given_chats, **call)
    else:
        event("valid")
        inputs = processor.apply_chat_template(given_chats, **call)
        expected = [prompt_ids(processor, text, row) for text, row in zip(texts, rows, strict=True)]
        assert_rows(processor, inputs, expected, list(chain(*rows)))
        for index, expected_answers in enumerate(answers if with_mask else []):
            mask = inputs["assistant_masks"][index]
            masked = [token for token, is_answer in zip(inputs["input_ids"][index], mask, strict=True) if is_answer]
            assert processor.tokenizer.decode(masked) == "".join(expected_answers)
    assert vars(processor) == settings
    assert len(processor.tokenizer) == num_tokens


@effort(short=60, long=3000)
@given(chats=st.lists(conversations(), min_size=1, max_size=2), add_generation_prompt=st.booleans(), data=st.data())
def test_marks_do_not_change_the_text(processors, chats, add_generation_prompt, data):
    processor = processors["stitched", True]
    settings = data.draw(st.sampled_from([{}, {"always_start_with_space": False}, {"always_start_with_space": True}]))
    published, marked = (
        processor.apply_chat_template(
            [messages for messages, _ in chats], template, add_generation_prompt=add_generation_prompt, **settings
        )
        for template in (PUBLISHED_TEMPLATE, MARKED_TEMPLATE)
    )
    assert marked == published


# Damaged conversations, templates and settings


@contextmanager
def documented(*patterns: str):
    """Fails for every error but a `ValueError` with a text that begins with one of these patterns."""
    try:
        yield
        event("valid")
    except Exception as error:
        event("rejected")
        if type(error) is not ValueError or not re.match("|".join(patterns), str(error), re.DOTALL):
            raise AssertionError(f"{type(error).__name__}: {error}") from error


KEYS = st.sampled_from(["role", "content", "type", "text", "image_url", "images", "tool_calls", "name"])
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | INVALID_TEXTS | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
PARTS = st.fixed_dictionaries({"type": st.sampled_from(["text", "image", "video", "file"]) | JUNK, "text": JUNK})
MESSAGES = st.fixed_dictionaries({"role": st.sampled_from([*ROLES, "Assistant"]) | JUNK, "content": JUNK})


@st.composite
def damaged_conversations(draw):
    """A conversation with texts only, in which something is replaced by junk."""
    chat = [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "content": "b"}]
    chat = copy.deepcopy(chat * draw(st.integers(1, 2)))
    message = draw(st.sampled_from(chat))
    place = draw(st.sampled_from(["list", "message", "role", "content", "part", "key", "missing key"]))
    if place == "list":
        return draw(JUNK)
    if place == "message":
        chat[chat.index(message)] = draw(MESSAGES | JUNK)
    elif place == "missing key":
        del message[draw(st.sampled_from(["role", "content"]))]
    elif place == "key":
        message[draw(KEYS)] = draw(JUNK)
    elif place == "part":
        message["content"] = [{"type": "text", "text": "a"}, draw(PARTS | JUNK)]
    else:
        message[place] = draw(JUNK)
    return [chat, chat] if draw(st.booleans()) else chat


@effort(short=100, long=10_000)
@given(chat=damaged_conversations(), tokenize=st.booleans())
def test_damaged_conversations(processors, chat, tokenize):
    counts["damaged conversations"] += 1
    with documented(
        r"Message \d( of conversation \d)? (has|is) .*; (add|write|put|make|give|JinaVLM takes)\b",
        r"Message \d( of conversation \d)? has `\w+`, which the chat template does not write; ",
        r"The list of messages( of conversation \d)? is .*; it must be a list of dicts",
        r"The prompts have \d+ <\|image\|> tokens|Found \d+ <\|image\|> tokens",
        r"Prompt \d contains .*; (remove|mark)",
    ):
        processors["independent", False].apply_chat_template(chat, tokenize=tokenize, return_dict=tokenize)


@st.composite
def damaged_templates(draw) -> str:
    """One of the chat templates in which some places are deleted, repeated or replaced."""
    template = draw(st.sampled_from([MARKED_TEMPLATE, PUBLISHED_TEMPLATE, *CHAT_TEMPLATES.values()]))
    pieces = ["{%- if x -%}", "{{ 1/0 }}", "{{ messages[9].x }}", "(" * 300, "-%}", "{{ 'a' * 9 }}", "{{ [] + {} }}"]
    pieces += [
        "9" * 5000,
        "{{ raise_exception('no') }}",
        "{{ ''.__class__ }}",
        "{% generation %}",
        "\ud83d",
        "<im_col>",
    ]
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(template)))
        end = min(len(template), start + draw(st.integers(0, 12)))
        middle = template[start:end] * draw(st.sampled_from([0, 2, 30])) + draw(st.just("") | st.sampled_from(pieces))
        template = template[:start] + middle + template[end:]
    return template


@effort(short=100, long=10_000)
@given(template=damaged_templates(), with_mask=st.booleans())
def test_damaged_templates(processors, template, with_mask):
    counts["damaged templates"] += 1
    image = {"type": "image", "image": PIL.Image.new("RGB", (60, 60), "green")}
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Look:"}, image, {"type": "text", "text": "Who?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Ada."}]},
    ]
    with documented(
        r"The chat template cannot be rendered \(\w+: .*chat_template\.jinja",
        r"Prompt \d contains .*; (remove|mark)",
        r"Prompt \d has \d+ <\|image\|> but 1 images; write one",
        r"Message \d has a part of the type 'image'; JinaVLM takes",  # the template has lost the word
    ):
        processors["independent", False].apply_chat_template(
            chat, template, tokenize=True, return_dict=True, return_assistant_tokens_mask=with_mask
        )


VALUES = st.sampled_from([True, False, None, 0, 1, 5, 64, -1, 10**30, 1.5, float("nan"), "a", "", [], {}, object])
VALUES |= st.sampled_from(["longest", "max_length", "only_first", "left", "right", "pt", "np", np.int64(5)])
LENGTHS = st.sampled_from(
    [True, False, None, 0, 1, 5, 64, -1, 10**30, 1.5, float("nan"), "a", "", [], {}, np.int64(5)]
)
STRIDES = st.sampled_from([False, None, 0, -1, 10**30, 1.5, "a", []])  # others can panic, with a long backtrace


@effort(short=100, long=10_000)
@given(data=st.data())
def test_settings_of_the_tokenizer(processors, data):
    counts["settings of the tokenizer"] += 1
    names = data.draw(st.lists(st.sampled_from(sorted(TextKwargs.__annotations__)), max_size=4, unique=True))
    settings = {name: data.draw({"max_length": LENGTHS, "stride": STRIDES}.get(name, VALUES)) for name in names}
    with documented(
        r"The tokenizer cannot use one of the arguments \{.*: .*",
        r"An argument of the processor has a wrong value: .*'\w+'",
        r".* is not a valid (Padding|Truncation)Strategy, please select one of",
        r".* is not a valid TensorType, please select one of",
        r"Unknown `direction`: .*. Use one of|`is_split_into_words` would join the prompts",
        r"text input must be of type|batch length of `text`|.*(stride|padding|truncat|pad_to_multiple_of)",
    ):
        processors["independent", False](text=["Who is this?", "Well?"], **settings)


# Threads


def test_threads(processors):
    """Random settings, those that are refused included, in eight threads that switch often."""
    processor = processors["stitched", True]
    seed = random.randrange(2**32) if IS_LONG else 0
    rng = random.Random(seed)
    choices = {
        "padding": [True, "max_length"],
        "padding_side": ["left", "right"],
        "pad_to_multiple_of": [8, 64],
        "truncation": [True],
        "max_length": [7, 16, 64],
        "return_mm_token_type_ids": [True],
    }

    def outcome(call: dict) -> dict | str:
        try:
            return dict(processor(**call))
        except ValueError as error:
            return str(error)

    for _ in range(100 if IS_LONG else 1):
        calls = []
        for _ in range(40):
            names = rng.sample(sorted(choices), rng.randrange(len(choices)))
            text = [rng.choice(CONTROL[1:]) * rng.randrange(20) for _ in range(rng.randint(1, 3))]
            calls.append({"text": text, **{name: rng.choice(choices[name]) for name in names}})
        counts["calls in threads"] += 10 * len(calls)
        expected = [outcome(call) for call in calls]
        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            with ThreadPoolExecutor(8) as threads:
                results = list(threads.map(outcome, calls * 10))
        finally:
            sys.setswitchinterval(before)
        wrong = [call for call, a, b in zip(calls * 10, results, expected * 10, strict=True) if a != b]
        assert not wrong, f"seed {seed}"
