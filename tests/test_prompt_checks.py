# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""What a processor cannot use is an error that names it and the fix. Transformers drops some of it in silence."""

import inspect
import re
from dataclasses import make_dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from packaging import version
from transformers import AutoProcessor
from transformers.processing_utils import ProcessingKwargs

from jvlm import JinaVLMProcessor
from jvlm.processing.prompt_checks import logger


DIGITS = Path(__file__).parents[1] / "examples" / "digits" / "model"
IMAGE = PIL.Image.new("RGB", (60, 60), "green")
TEXT = {"type": "text", "text": "Who?"}
TOKENIZE = {"tokenize": True, "return_dict": True}


@pytest.fixture(scope="module")
def processor() -> JinaVLMProcessor:
    """Tests must not change it."""
    return AutoProcessor.from_pretrained(DIGITS)


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    """The logged warnings, without Transformers' memory of those that were logged before."""
    messages: list[str] = []
    monkeypatch.setattr(logger, "warning_once", messages.append)
    return messages


# Arguments of a call


FRAMES = np.zeros((2, 60, 60, 3), np.uint8)
KEYWORDS = {
    "misspelt": ({"max_crop": 6}, r"`max_crop` is not a keyword of this processor; did you mean `max_crops`\?"),
    "of text": ({"paddings": True}, r"`paddings` is not a keyword of this processor; did you mean `padding`\?"),
    "image": ({"image": IMAGE}, r"`image` is not a keyword of this processor; did you mean `images`\?"),
    "prompt": ({"prompt": "Who?"}, "`prompt` is not .*; remove it. A prompt is passed as `text`"),
    "of generate": ({"temperature": 0.5}, "`temperature` is not .* takes settings of `generate` as `generate_kwargs`"),
    "nested": ({"images_kwargs": {"max_crop": 6}}, r"`max_crop` in `images_kwargs` is not .* mean `max_crops`\?"),
    "nested text": ({"text_kwargs": {"paddings": 1}}, r"`paddings` in `text_kwargs` is not .* mean `padding`\?"),
    "no dict": ({"text_kwargs": None}, "`text_kwargs` must be a dict of keywords, got None"),
    "common": ({"common_kwargs": {"size_": 3}}, "An argument of the processor has a wrong value: .*'size_'"),
    "list of videos": ({"videos": [FRAMES]}, "`videos` was passed, but .* pass the frames as `images`"),
    "video": ({"videos": FRAMES}, "`videos` was passed, but .* pass the frames as `images`"),
    "audio": ({"audio": np.zeros(100)}, "`audio` was passed, but JinaVLM takes only images and text; remove it"),
    "type of an integer": ({"max_crops": "6"}, "^`max_crops` must be an integer from 1 to 1024, got '6'.$"),
    "type of an option": (
        {"images_kwargs": {"max_image_tokens": "many"}},
        "^`max_image_tokens` must be an integer from 1 to 2147483647 or None, got 'many'.$",
    ),
    "type of a flag": ({"drop_uniform_cells": "yes"}, "^`drop_uniform_cells` must be true or false, got 'yes'.$"),
    "type of the size": ({"size": "x"}, "^`size` must have the same `height` and `width`, got {'size': 'x'}.$"),
    "type of a name": ({"return_tensors": 5}, "wrong value: .*'return_tensors'.* got int"),
    "type for the tokenizer": ({"max_length": "6", "truncation": True}, "tokenizer cannot use .*'max_length': '6'"),
    "negative": ({"max_length": -1, "truncation": True}, "The tokenizer cannot use one of .*'max_length': -1"),
    "modulo": (
        {"pad_to_multiple_of": False, "padding": True, "truncation": True},
        "cannot use .*_multiple_of': False",
    ),
    "panic": (
        {"truncation": True, "max_length": 5, "stride": 5, "images": None, "text": "Who is this, here and now?"},
        "The tokenizer cannot use one of .*'stride': 5.*`stride` must be strictly less",
    ),
    "words": (
        {"is_split_into_words": True},
        "`is_split_into_words` would join the prompts to one; pass whole prompts",
    ),
    "padding": ({"padding": "longst"}, "longst is not a valid PaddingStrategy, please select one of"),
}


@pytest.mark.parametrize("name", KEYWORDS)
def test_keywords(processor, name):
    kwargs, message = KEYWORDS[name]
    match = re.compile(message, re.DOTALL)
    with pytest.raises(ValueError, match=match):
        processor(**{"images": IMAGE, "text": "<|image|> Who?", **kwargs})
    if "text" in kwargs:
        return
    messages = [{"role": "user", "content": [{"type": "image", "image": IMAGE}, TEXT]}]
    with pytest.raises(ValueError, match=match):
        processor.apply_chat_template(messages, **TOKENIZE, processor_kwargs=kwargs)


def test_keywords_without_effect_are_allowed(processor):
    """Callers of all processors, Transformers' tests among them, pass settings of videos with images."""
    expected = processor(images=IMAGE, text="<|image|>")["input_ids"]
    for kwargs in ({"fps": None, "num_frames": 2}, {"videos_kwargs": {}}, {"videos": None, "audio": []}):
        assert processor(images=IMAGE, text="<|image|>", **kwargs)["input_ids"] == expected


def test_keywords_of_a_call_are_a_dict(processor):
    with pytest.raises(ValueError, match="`processor_kwargs` must be a dict of keywords, got 5"):
        processor.apply_chat_template([{"role": "user", "content": "Who?"}], **TOKENIZE, processor_kwargs=5)


def test_signature_of_a_call():
    """vLLM reads the keywords of a processor in this annotation."""
    parameters = inspect.signature(JinaVLMProcessor.__call__).parameters
    assert list(parameters) == ["self", "images", "text", "kwargs"]
    assert get_args(parameters["kwargs"].annotation) == (ProcessingKwargs,)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("Who?", IMAGE), r"got Image; the order of the arguments is \(images, text\)"),
        ((["Who?"], [IMAGE]), r"got Image at index 0; the order of the arguments is \(images, text\)"),
        (("Who?", np.zeros((60, 60, 3), np.uint8)), r"got ndarray at index 0; the order of .* \(images, text\)"),
        (("Who?", torch.zeros(3, 60, 60)), r"got Tensor at index 0; the order of .* \(images, text\)"),
        (("Who?", Path("photo.jpg")), r"got PosixPath|WindowsPath; the order of .* \(images, text\)"),
        ((None, b"Who?"), "got bytes; write strings"),
        ((None, 5), "got int; write strings"),
        ((None, ["Who?", None]), "got NoneType at index 1; write strings"),
        ((None, [["Who", "is"]]), "got list at index 0; write strings"),
        ((None, {"text": "Who?"}), "got dict; pass a conversation to `processor.apply_chat_template`"),
        ((IMAGE, [{"role": "user", "content": "Who?"}]), "got dict at index 0; pass a conversation to `processor.app"),
    ],
)
def test_order_and_types(processor, args, message):
    with pytest.raises(ValueError, match=f"`text` must be a string or list of strings, {message}"):
        processor(*args)


def test_kinds_of_lists_of_prompts(processor):
    expected = processor(text=["Who?", "And"])["input_ids"]
    for text in (("Who?", "And"), iter(["Who?", "And"]), np.array(["Who?", "And"])):
        assert processor(text=text)["input_ids"] == expected


@pytest.mark.parametrize("placeholder", ["<image>", "<|image_pad|>", "<|image_1|>", "<start_of_image>", "[IMG]"])
def test_placeholders_of_other_models(processor, warnings, placeholder):
    for call in (
        {"images": IMAGE, "text": f"{placeholder}\nWho?"},
        {"images": [[], [IMAGE]], "text": [placeholder, f"Who? {placeholder}"]},
    ):
        index = len(call["images"]) - 1 if isinstance(call["images"], list) else 0
        start, end = re.escape(f"Prompt {index} contains {placeholder!r}"), re.escape("'<|image|>'")
        with pytest.raises(ValueError, match=f"{start}, which is no placeholder of this model; mark .* with {end}"):
            processor(**call)
    assert not warnings
    # It may be a word of the question, or left over from a data set for another model.
    processor(images=IMAGE, text=f"<|image|> What is {placeholder}?")
    (warning,) = warnings
    assert repr(placeholder) in warning
    assert "'<|image|>'" in warning
    processor(text=f"What is {placeholder}?")
    assert len(warnings) == 1


# Conversations

FAULTS = {
    "no role": ({"content": "Who?"}, 'has no `role`; add, for example, "role": "user"'),
    "role is None": ({"role": None, "content": "Who?"}, "has no `role`"),
    "role is a number": ({"role": 5, "content": "Who?"}, "has no `role`"),
    "no content": ({"role": "user"}, "has no `content`; add a string or a list of parts"),
    "content is None": ({"role": "user", "content": None}, "has no `content`"),
    "content is a number": ({"role": "user", "content": 5}, "has the content 5; write a string or a list of parts"),
    "content is a part": ({"role": "user", "content": TEXT}, "has the content {'type': 'text'.*list of parts"),
    "capital": ({"role": "Assistant", "content": "Ada."}, "has the role 'Assistant'; write 'assistant'"),
    "space": ({"role": " user", "content": "Ada."}, "has the role ' user'; write 'user'"),
    "message is a string": ("Who?", "is 'Who\\?'; write a dict with `role` and `content`"),
    "message is None": (None, "is None; write a dict with `role` and `content`"),
    "images beside": ({"role": "user", "content": "Who?", "images": [IMAGE]}, "has `images`, which the chat template"),
    "image beside": ({"role": "user", "content": "Who?", "image": IMAGE}, "has `image`, which .* does not write"),
    "tool calls": ({"role": "assistant", "tool_calls": [{"name": "f"}]}, "has `tool_calls`, which .* the `content`"),
}
PARTS = {
    "video": (
        {"type": "video", "path": "a.mp4"},
        "has a part of the type 'video'; JinaVLM takes .* 'text' and 'image'",
    ),
    "audio": ({"type": "audio", "path": "a.wav"}, "has a part of the type 'audio'; JinaVLM takes"),
    "unknown": ({"type": "input_image", "image": IMAGE}, "has a part of the type 'input_image'; JinaVLM takes"),
    "incomplete": ({"type": "image_url", "url": "a.png"}, "has a part of the type 'image_url'; JinaVLM takes"),
    "no type": ({"text": "Who?"}, "has a part without a `type`: {'text': 'Who\\?'}; add, for example, .*text"),
    "no text": ({"type": "text"}, "has a text part without a text: {'type': 'text'}; add the `text`"),
    "text is None": ({"type": "text", "text": None}, "has a text part without a text"),
    "text is a list": ({"type": "text", "text": ["Who?"]}, "has a text part without a text"),
    "string": ("Who?", 'has the part \'Who\\?\'; write {"type": "text"'),
    "two images": ({"type": "image", "image": IMAGE, "url": "a"}, "has .* `image` and `url`; give an image once"),
    "image and text": ({"type": "image", "image": IMAGE, "text": "Who?"}, "has an image part with a `text`; make the"),
    "text and image": ({**TEXT, "image": IMAGE}, "has .* 'text' with `image`; make it a part of its own"),
}
FAULTS |= {
    f"part: {name}": ({"role": "user", "content": [TEXT, part]}, message) for name, (part, message) in PARTS.items()
}
FAULTS |= {
    f"assistant: {name}": (
        {"role": "assistant", "content": [TEXT, part]},
        "is the assistant's and has an image; put the image into a message of the user",
    )
    for name, part in {
        "image": {"type": "image", "image": IMAGE},
        "placeholder": {"type": "image"},
        "image_url": {"type": "image_url", "image_url": {"url": "a.png"}},
    }.items()
}


@pytest.mark.parametrize("kwargs", [{}, TOKENIZE], ids=["rendered", "tokenized"])
@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_messages(processor, name, kwargs):
    message, problem = FAULTS[name]
    good = {"role": "user", "content": "Well?"}
    with pytest.raises(ValueError, match=f"Message 1 {problem}"):
        processor.apply_chat_template([good, message], **kwargs)
    with pytest.raises(ValueError, match=f"Message 0 of conversation 1 {problem}"):
        processor.apply_chat_template([[good], [message]], **kwargs)


@pytest.mark.parametrize("conversation", [[], [[]], None, "Who?", {"role": "user", "content": "Who?"}], ids=str)
@pytest.mark.parametrize("kwargs", [{}, TOKENIZE], ids=["rendered", "tokenized"])
def test_no_messages(processor, conversation, kwargs):
    with pytest.raises(ValueError, match=r"The list of messages.* is .*; it must be a list of dicts"):
        processor.apply_chat_template(conversation, **kwargs)


def test_what_the_template_writes_is_allowed(processor):
    """A template of the user may have tools, other types of parts, and messages without content."""
    template = (
        "{%- for message in messages -%}{{- message['role'] + ':' -}}"
        "{%- for call in message.tool_calls or [] -%}{{- call['name'] -}}{%- endfor -%}"
        "{%- for part in message['content'] or [] -%}"
        "{{- part['text'] if part['type'] in ('text', 'thought') -}}{%- endfor -%}{%- endfor -%}{{- tools | length -}}"
    )
    messages = [
        {"role": "user", "content": [{"type": "thought", "text": "Hm."}, TEXT]},
        {"role": "assistant", "tool_calls": [{"name": "zoom"}]},
    ]
    rendered = processor.apply_chat_template(messages, template, tools=[{"name": "zoom"}])
    assert rendered == "user:Hm.Who?assistant:zoom1"
    with pytest.raises(ValueError, match="Message 0 has a part of the type 'thought'"):
        processor.apply_chat_template(messages)


@pytest.mark.parametrize("name", ["tools", "documents"])
def test_tools_and_documents(processor, name):
    with pytest.raises(ValueError, match=f"`{name}` was passed, but the chat template does not write it"):
        processor.apply_chat_template([{"role": "user", "content": "Who?"}], **{name: [{"title": "a"}]})
    assert processor.apply_chat_template([{"role": "user", "content": "Who?"}], **{name: []}) == " User: Who?"


@pytest.mark.parametrize("kwargs", [{}, TOKENIZE], ids=["rendered", "tokenized"])
def test_keywords_of_a_chat(processor, kwargs):
    messages = [{"role": "user", "content": "Who?"}]
    with pytest.raises(ValueError, match=r"`add_generation_prompts` is .* did you mean `add_generation_prompt`\?"):
        processor.apply_chat_template(messages, add_generation_prompts=True, **kwargs)
    template = "{{- greeting -}}" + processor.chat_template
    processor.apply_chat_template(messages, template, greeting="Hello.", **kwargs)


def test_keys_without_content_are_allowed(processor, warnings):
    """Messages of OpenAI's API and rows of Arrow tables have keys without a value, and names of speakers."""
    part = {**TEXT, "image": None, "url": None}
    message = {"role": "user", "name": "Ada", "content": [part], "tool_calls": None, "images": [], "audio": None}
    assert processor.apply_chat_template([message]) == " User: Who?"
    assert not warnings


def test_other_roles_are_written_with_a_warning(processor, warnings):
    assert processor.apply_chat_template([{"role": "human", "content": "Who?"}]) == " Human: Who?"
    assert warnings == ["A message has the role 'human'; the roles of JinaVLM are system, user, assistant."]


def test_messages_that_are_objects(processor):
    message = make_dataclass("Message", [("role", str), ("content", str)])("user", "Who?")
    if version.parse(transformers.__version__) >= version.parse("5.24.0"):
        assert processor.apply_chat_template([message]) == " User: Who?"
    else:
        with pytest.raises(ValueError, match=r"Message 0 is .*Message\(.*; write a dict with `role` and `content`"):
            processor.apply_chat_template([message])


# Templates


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{%- for message in messages -%}", "TemplateSyntaxError: .*endfor.*"),
        ("{{- raise_exception('No system messages.') -}}", "TemplateError: No system messages."),
        ("{{- messages[0]['content'] + 1 -}}", "TypeError: can only concatenate str.*"),
        ("{{- messages[9]['content'] -}}", "UndefinedError: .*"),
        ("{{- 1 // 0 -}}", "ZeroDivisionError: .*"),
        ("{{- " + "(" * 5000, "RecursionError: .*"),
        ("{{- ''.__class__.__mro__ -}}", "SecurityError: .*"),
    ],
    ids=lambda value: value[:30],
)
@pytest.mark.parametrize("kwargs", [{}, {**TOKENIZE, "return_assistant_tokens_mask": True}], ids=["text", "mask"])
def test_templates_that_cannot_be_rendered(processor, template, message, kwargs):
    with pytest.raises(ValueError, match=rf"The chat template cannot be rendered \({message}\). Correct .*\.jinja"):
        processor.apply_chat_template([{"role": "user", "content": "Who?"}], template, **kwargs)


def test_errors_outside_of_the_template_stay_as_they_are(processor):
    messages = [{"role": "user", "content": [{"type": "image", "path": "absent.png"}]}]
    with pytest.raises((ValueError, OSError), match=r"absent\.png") as error:
        processor.apply_chat_template(messages, **TOKENIZE)
    assert "chat template" not in str(error.value)


@pytest.mark.parametrize("way", ["keyword", "processor_kwargs"])
def test_images_are_given_once(processor, way):
    """`images` would replace those of the messages."""
    images = {"images": [IMAGE]}
    kwargs = {"processor_kwargs": images} if way == "processor_kwargs" else images
    chat = [{"role": "user", "content": [{"type": "image", "image": IMAGE}, TEXT]}]
    with pytest.raises(ValueError, match="Message 0 has an image, and `images` was passed; give images once"):
        processor.apply_chat_template(chat, **TOKENIZE, **kwargs)
