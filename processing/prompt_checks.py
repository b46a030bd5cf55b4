# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Checks of the arguments of a processor. Transformers drops some of what these refuse without an error."""

import difflib
import inspect
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import transformers
from packaging import version
from transformers import GenerationConfig, ProcessorMixin
from transformers.utils import logging

from ..configuration.setting_kinds import shown
from .prompt_format import IMAGE_PLACEHOLDER


logger = logging.get_logger(__name__)

ROLES = ("system", "user", "assistant")
# Keys of an image part that hold the image.
_IMAGE_KEYS = ("image", "url", "path", "base64")
# Keys of a message that the answer depends on. Templates without a place for them would drop them.
_CONTENT_KEYS = ("image", "images", "video", "videos", "audio", "tool_calls", "function_call")
# Transformers reads messages that are objects, such as those of OpenAI's package, since this version.
_TAKES_OBJECTS = version.parse(transformers.__version__) >= version.parse("5.24.0")
_TEMPLATE_ARGUMENTS = frozenset(inspect.signature(ProcessorMixin.apply_chat_template).parameters)
_FOREIGN_PLACEHOLDER = re.compile(r"<image>|<image_placeholder>|<start_of_image>|<\|image_\w+\|>|\[IMG\]")


def check_call(processor: ProcessorMixin, images: Any, text: Any, kwargs: dict[str, Any]) -> list[str] | None:
    """
    Checks the arguments of a call, before any image is loaded.

    Returns:
        `list[str]`, *optional*: the prompts.

    Raises:
        ValueError: for videos and audio, unknown keywords, prompts that are not strings, and images and text in the
            wrong order.
    """
    _check_keywords(processor, kwargs)
    if text is None:
        return None
    is_list = isinstance(text, Iterable) and not isinstance(text, (str, bytes, Mapping))
    prompts = list(text) if is_list else [text]
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            first = images[0] if isinstance(images, (list, tuple)) and images else images
            fix = "the order of the arguments is (images, text)" if isinstance(first, str) else "write strings"
            if isinstance(prompt, Mapping):
                fix = "pass a conversation to `processor.apply_chat_template`"
            got = f"{type(prompt).__name__}{f' at index {index}' if is_list else ''}"
            raise ValueError(f"`text` must be a string or list of strings, got {got}; {fix}.")
    return prompts


def _check_keywords(processor: ProcessorMixin, kwargs: dict[str, Any]) -> None:
    for name, fix in (("videos", "pass the frames as `images`"), ("audio", "remove it")):
        if _is_given(kwargs.get(name)):
            raise ValueError(f"`{name}` was passed, but JinaVLM takes only images and text; {fix}.")
    groups = processor.valid_processor_kwargs.__annotations__
    valid = {name: set(groups[name].__annotations__) for name in groups if name.endswith("_kwargs")}
    valid["images_kwargs"] |= set(processor.image_processor.valid_kwargs.__annotations__)
    valid[""] = {"common_kwargs", "videos", "audio", *groups, *chain(*valid.values())}
    for group, names in valid.items():
        given = _keywords(kwargs, group) if group else kwargs
        for name in given.keys() - names:
            similar = difflib.get_close_matches(name, sorted({*names, *_TEMPLATE_ARGUMENTS, "images", "text"}), n=1)
            fix = f"did you mean `{similar[0]}`?" if similar else "remove it. A prompt is passed as `text`."
            if hasattr(GenerationConfig(), name):
                fix = "a pipeline takes settings of `generate` as `generate_kwargs`."
            raise ValueError(f"`{name}`{f' in `{group}`' if group else ''} is not a keyword of this processor; {fix}")


def _keywords(kwargs: dict[str, Any], group: str) -> Mapping[str, Any]:
    given = kwargs.get(group, {})
    if not isinstance(given, Mapping):
        raise ValueError(f"`{group}` must be a dict of keywords, got {given!r}.")
    return given


def check_placeholder(index: int, prompt: str) -> None:
    """
    Checks a prompt with images for the placeholders of other models.

    Raises:
        ValueError: if the prompt has such a placeholder and none of this model. The images would be placed at its
            start. If it has both, a warning is logged.
    """
    foreign = _FOREIGN_PLACEHOLDER.search(prompt)
    if foreign is None:
        return
    if IMAGE_PLACEHOLDER not in prompt:
        raise ValueError(
            f"Prompt {index} contains {foreign[0]!r}, which is no placeholder of this model; mark the position of an "
            f"image with {IMAGE_PLACEHOLDER!r}."
        )
    logger.warning_once(
        f"A prompt with images contains {foreign[0]!r}, which this model reads as text; its placeholder of an image "
        f"is {IMAGE_PLACEHOLDER!r}."
    )


def check_chat(processor: ProcessorMixin, conversations: Any, template: str, kwargs: dict[str, Any]) -> None:
    """
    Checks the arguments of [`~ProcessorMixin.apply_chat_template`]: a conversation or a list of conversations, the
    source of the chat template, and the keywords. What the template mentions is not refused.

    Raises:
        ValueError: for an unknown keyword, for tools, documents and content that the template would drop, and for a
            message without role or content, or with an image if it is the assistant's. The error has the index of the
            message and a fix.
    """
    for name in ("tools", "documents"):
        if _is_given(kwargs.get(name)) and not re.search(rf"\b{name}\b", template):
            raise ValueError(f"`{name}` was passed, but the chat template does not write it; use one that does.")
    others = [name for name in kwargs.keys() - _TEMPLATE_ARGUMENTS if not re.search(rf"\b{name}\b", template)]
    given = {name: kwargs[name] for name in others}
    if kwargs.get("processor_kwargs") is not None:
        given |= _keywords(kwargs, "processor_kwargs")
    has_images = _is_given(given.pop("images", None))
    _check_keywords(processor, given)
    first = conversations[0] if isinstance(conversations, (list, tuple)) and conversations else None
    is_batch = isinstance(first, (list, tuple)) or hasattr(first, "messages")
    for index, messages in enumerate(conversations if is_batch else [conversations]):
        messages = getattr(messages, "messages", messages)
        place = f" of conversation {index}" if is_batch else ""
        if not isinstance(messages, (list, tuple)) or not messages:
            raise ValueError(f"The list of messages{place} is {shown(messages)}; it must be a list of dicts.")
        for number, message in enumerate(messages):
            if problem := _problem(message, template):
                raise ValueError(f"Message {number}{place} {problem}.")
            if has_images and _names_an_image(message):
                raise ValueError(f"Message {number}{place} has an image, and `images` was passed; give images once.")


def _problem(message: Any, template: str) -> str | None:
    """What is wrong with a message, and the fix."""
    if not isinstance(message, Mapping):
        is_object = _TAKES_OBJECTS and hasattr(message, "role")
        return None if is_object else f"is {shown(message)}; write a dict with `role` and `content`"
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        return 'has no `role`; add, for example, "role": "user"'
    if role not in ROLES:
        if (known := role.strip().lower()) in ROLES:
            return f"has the role {role!r}; write {known!r}"
        logger.warning_once(f"A message has the role {role!r}; the roles of JinaVLM are {', '.join(ROLES)}.")
    given = [key for key in message if key not in ("role", "content") and _is_given(message[key])]
    if dropped := [key for key in given if key in _CONTENT_KEYS and not _mentions(template, key)]:
        return f"has `{dropped[0]}`, which the chat template does not write; put it into the `content`"
    if content is None:
        is_written = any(_mentions(template, key) for key in given)
        return None if is_written else "has no `content`; add a string or a list of parts"
    if isinstance(content, str):
        return None
    if not isinstance(content, (list, tuple)):
        return f"has the content {shown(content)}; write a string or a list of parts"
    problems = (_problem_of_part(part, role, template) for part in content)
    return next((problem for problem in problems if problem), None)


def _names_an_image(message: Any) -> bool:
    content = message.get("content") if isinstance(message, Mapping) else None
    parts = content if isinstance(content, (list, tuple)) else []
    return any(part.get(key) is not None for part in parts if isinstance(part, Mapping) for key in _IMAGE_KEYS)


def _problem_of_part(part: Any, role: str, template: str) -> str | None:
    if not isinstance(part, Mapping):
        is_object = _TAKES_OBJECTS and hasattr(part, "type")
        return None if is_object else f'has the part {shown(part)}; write {{"type": "text", "text": ...}}'
    kind = part.get("type")
    if kind is None:
        return f'has a part without a `type`: {shown(part)}; add, for example, "type": "text"'
    is_image = kind == "image" or (kind == "image_url" and "image_url" in part)
    if not is_image and kind != "text" and not re.search(rf"""['"]{re.escape(str(kind))}['"]""", template):
        return f"has a part of the type {kind!r}; JinaVLM takes parts of the types 'text' and 'image'"
    if is_image and role == "assistant":
        return "is the assistant's and has an image; put the image into a message of the user"
    if kind == "text" and not isinstance(part.get("text"), str):
        return f"has a text part without a text: {shown(part)}; add the `text`"
    if is_image and part.get("text"):
        return 'has an image part with a `text`; make the text a part of its own, with "type": "text"'
    images = [key for key in _IMAGE_KEYS if part.get(key) is not None]
    if len(images) > is_image:
        fix = "give an image once" if is_image else 'make it a part of its own, with "type": "image"'
        return f"has a part of the type {kind!r} with {' and '.join(f'`{key}`' for key in images)}; {fix}"
    return None


@contextmanager
def name_template() -> Iterator[None]:
    """If the block raises an error in a chat template, raises a `ValueError` that names the template."""
    try:
        yield
    except Exception as error:  # a template can raise any class of error
        frames = traceback.walk_tb(error.__traceback__)
        if not any(str(frame.f_globals.get("__name__")).startswith("jinja2.") for frame, _ in frames):
            raise
        raise ValueError(
            f"The chat template cannot be rendered ({type(error).__name__}: {error}). Correct "
            "`processor.chat_template`, in a checkpoint chat_template.jinja."
        ) from error


def _is_given(value: Any) -> bool:
    return value is not None and not (hasattr(value, "__len__") and len(value) == 0)


def _mentions(template: str, key: str) -> bool:
    """Whether a template reads a key: `message.key`, `message['key']` or `message.get('key')`."""
    return re.search(rf"""(\.|\[['"]|get\(['"]){key}\b""", template) is not None


__all__ = ["check_call", "check_chat", "check_placeholder", "name_template"]
