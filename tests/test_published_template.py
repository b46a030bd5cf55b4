# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The published chat template gets marks around its answers when it is loaded, and writes the same text."""

import re
import shutil

import jinja2
import pytest
from helpers import LAYOUTS, chat_inputs
from transformers import AutoProcessor, AutoTokenizer

from jvlm.processing.prompt_format import CHAT_TEMPLATES
from jvlm.published_format.published_template import (
    MARKED_TEMPLATE,
    PUBLISHED_TEMPLATE,
    read_template,
    write_template,
)


CONVERSATIONS = {
    "text": [{"role": "user", "content": "Who?"}],
    "parts": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}, {"type": "image"}]}],
    "several turns": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Who"}, {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": "Ada."},
        {"role": "user", "content": [{"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Grace"}, {"type": "text", "text": ", I think."}]},
    ],
    "answers only": [{"role": "assistant", "content": ""}, {"role": "assistant", "content": []}],
}


@pytest.mark.parametrize("settings", [{}, {"always_start_with_space": False}], ids=str)
@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_marks_do_not_change_the_text(released_processor, name, add_generation_prompt, settings):
    published, marked = (
        released_processor.apply_chat_template(
            CONVERSATIONS[name], template, add_generation_prompt=add_generation_prompt, **settings
        )
        for template in (PUBLISHED_TEMPLATE, MARKED_TEMPLATE)
    )
    assert marked == published


def test_published_folder_gets_marks(released_processor, release, make_image, user, assistant, tmp_path):
    assert (release / "checkpoint" / "chat_template.jinja").read_text() == PUBLISHED_TEMPLATE
    chat = [user(make_image(60, 60), "describe"), assistant("a red circle"), user("and?"), assistant("blue")]
    released_processor.save_pretrained(tmp_path)
    for processor in (released_processor, AutoProcessor.from_pretrained(tmp_path)):
        inputs = chat_inputs(processor, chat, add_generation_prompt=False, return_assistant_tokens_mask=True)
        pieces = zip(inputs["input_ids"][0].tolist(), inputs["assistant_masks"][0].tolist(), strict=True)
        answers = [token for token, is_answer in pieces if is_answer]
        assert processor.tokenizer.decode(answers) == " a red circle blue"
        # Trainers that take the tokenizer render its own template.
        rendered = processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": "and?"}, {"role": "assistant", "content": "blue"}],
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        assert any(rendered["assistant_masks"])
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == MARKED_TEMPLATE


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (PUBLISHED_TEMPLATE + "\n", MARKED_TEMPLATE),
        (PUBLISHED_TEMPLATE.replace("' Assistant:'", "' Assistant: '"), None),
        ("{% if 'digit' in messages[0]['content'] %}Count.{% endif %}" + PUBLISHED_TEMPLATE, None),
        (CHAT_TEMPLATES["stitched"], None),
    ],
)
def test_a_template_of_the_user_is_kept(release, tmp_path, template, expected):
    folder = shutil.copytree(release / "checkpoint", tmp_path / "published", copy_function=shutil.copyfile)
    (folder / "chat_template.jinja").write_text(template)
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.chat_template == processor.tokenizer.chat_template == (expected or template)
    given = AutoProcessor.from_pretrained(folder, chat_template="{{- 'mine' -}}")
    assert given.chat_template == "{{- 'mine' -}}"


def test_marks_are_removed_again():
    assert write_template(read_template(PUBLISHED_TEMPLATE)) == PUBLISHED_TEMPLATE
    for template in (*CHAT_TEMPLATES.values(), "{{- 'mine' -}}", None):
        assert read_template(template) == write_template(template) == template


@pytest.mark.parametrize("template", [MARKED_TEMPLATE, *(CHAT_TEMPLATES[layout] for layout in LAYOUTS)])
def test_contents_are_looped_over(template):
    """vLLM passes contents as lists of parts only if the template has such a loop."""
    tree = jinja2.Environment().parse(re.sub(r"\{%-? (end)?generation -?%\}", "", template))
    loops = [loop.iter for loop in tree.find_all(jinja2.nodes.For)]
    assert {loop.arg.value for loop in loops if isinstance(loop, jinja2.nodes.Getitem)} == {"content"}
