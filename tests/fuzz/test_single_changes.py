# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
`verify` finds every single change of a checkpoint's files or refuses the checkpoint, unless the change has no effect
on what Transformers' API gives: weights, settings of loading, prompts, labels, model inputs and outputs.
"""

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import IS_LONG, counts
from helpers import assistant, make_image, user
from single_changes import Change, all_changes, rewrites
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, set_seed
from transformers.utils import logging

from jvlm.conversion_scripts.convert_release import convert_release
from jvlm.conversion_scripts.export_to_hub import export_to_hub
from jvlm.conversion_scripts.verify import Findings, compare, examine


NUM_CHANGES = 40  # by default
IMAGE = make_image(60, 90)
SYSTEM = {"role": "system", "content": [{"type": "text", "text": "Be brief!"}]}
CHATS = [
    [user(IMAGE, "Which digit, lady?")],
    [SYSTEM, user("Who?"), assistant("Ada is  the lady , zebra. "), user("Is the image darker?<|endoftext|> no")],
]
TEXTS = ["  Who is Ada? \n", "Ada <|image|>, the lady zebra!<im_start>"]
CALLS: list[dict[str, Any]] = [{}, {"padding": True}, {"truncation": True, "max_length": 3}]


@pytest.fixture(autouse=True)
def quiet():
    """Damaged checkpoints cause many warnings."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()
    logging.set_verbosity(verbosity)


@pytest.fixture
def original(build_model, build_processor, tmp_path) -> Path:
    """A small model in several shards."""
    folder = tmp_path / "original"
    build_model("stitched").save_pretrained(folder, max_shard_size="60KB")
    build_processor("stitched", add_bos_token=True).save_pretrained(folder)
    return folder


def content(value) -> Any:
    """Something that can be compared."""
    if isinstance(value, torch.Tensor):
        data = value.detach().contiguous().flatten().view(torch.uint8).numpy().data
        return (str(value.dtype), tuple(value.shape), hashlib.sha256(data).hexdigest())
    if hasattr(value, "items"):
        return {"class": type(value).__name__, **{name: content(part) for name, part in value.items()}}
    if isinstance(value, (list, tuple)):
        return [content(part) for part in value]
    return value if isinstance(value, (str, int, float, torch.dtype, type(None))) else type(value).__name__


def attempt(function: Callable, *args, **kwargs) -> Any:
    """The content of the result, or the class of the error."""
    try:
        return content(function(*args, **kwargs))
    except Exception as error:
        return type(error).__name__


def behaviour(folder: Path) -> dict[str, Any]:
    """What users of Transformers' API get from a checkpoint."""
    processor, tokenizer = AutoProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    image_processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    configs = (model.config, model.config.text_config, model.config.vision_config)
    found: dict[str, Any] = {
        "weights": content(model.state_dict()),
        "dtype": model.dtype,
        "is tied": model.lm_head.weight is model.get_input_embeddings().weight,
        "attention": [config._attn_implementation for config in configs],
        "input names": [part.model_input_names for part in (processor, processor.image_processor, tokenizer)],
        "special tokens": tokenizer.special_tokens_map,
        "tokenizer": [type(tokenizer).__name__, tokenizer.model_max_length, len(tokenizer)],
        "pixels": attempt(image_processor, IMAGE, return_tensors="pt"),
        "image processor": type(image_processor).__name__,
        "sides": [tokenizer.padding_side, tokenizer.truncation_side],
        "tokens": [attempt(tokenizer, TEXTS, **call) for call in CALLS],
        "texts": [tokenizer.decode([*range(len(tokenizer))], skip_special_tokens=skip) for skip in (True, False)],
    }
    for number, chat in enumerate(CHATS):
        prompts = [attempt(processor.apply_chat_template, chat, add_generation_prompt=add) for add in (True, False)]
        prompts.append(attempt(tokenizer.apply_chat_template, chat, tokenize=False))
        arguments = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
        found[f"prompts {number}"] = prompts
        found[f"labels {number}"] = attempt(
            processor.apply_chat_template, chat, return_assistant_tokens_mask=True, **arguments
        )
        try:
            inputs = processor.apply_chat_template(chat, add_generation_prompt=True, **arguments)
        except Exception as error:
            found[f"inputs {number}"] = type(error).__name__
            continue
        found[f"inputs {number}"] = content(inputs)
        with torch.inference_mode():
            found[f"outputs {number}"] = attempt(model, **inputs)
            set_seed(0)
            found[f"answer {number}"] = attempt(model.generate, **inputs, max_length=inputs["input_ids"].shape[1] + 5)
    return content(found)


def find(folder: Path) -> Findings:
    return examine(folder, None, [make_image(40, 40)], "Who is this lady?")


def outcome(before: Findings, changed: Path) -> str:
    """What `verify` says about a changed copy."""
    try:
        stages = compare(before, find(changed))
    except ValueError:
        return "refused"
    return next((f"found in {stage.name}" for stage in stages if not stage.is_equal), "equal")


def missed_changes(original: Path, changes: list[Change]) -> dict[str, Any]:
    """The changes that `verify` calls equal although they change the behaviour, each with what it changes."""
    changed, missed = original.parent / "changed", {}
    before, expected = find(original), behaviour(original)
    for name, change in changes:
        shutil.rmtree(changed, ignore_errors=True)
        shutil.copytree(original, changed)
        change(changed)
        found = outcome(before, changed)
        counts[f"single changes {found}"] += 1
        if found == "equal":
            after = attempt(behaviour, changed)
            if not isinstance(after, str):
                after = [part for part in expected if after[part] != expected[part]]
            if after:
                missed[name] = after
    return missed


def test_every_single_change_is_found(original):
    changes = all_changes(original)
    assert len(changes) >= 200
    if not IS_LONG:  # some of every file, and those that only the Auto classes notice
        named = [change for change in changes if re.search(r"processor_class|added_tokens \[", change[0])]
        changes = named + changes[:: len(changes) // NUM_CHANGES]
    assert missed_changes(original, changes) == {}


def test_harmless_rewrites_are_equal(original):
    before, expected = find(original), behaviour(original)
    for name, change in rewrites(original):
        changed = shutil.copytree(original, original.parent / name)
        change(changed)
        assert all(stage.is_equal for stage in compare(before, find(changed))), name
        assert behaviour(changed) == expected, name


@pytest.mark.skipif(not IS_LONG, reason="takes minutes")
@pytest.mark.parametrize("kind", ["published", "converted", "exported"])
def test_every_single_change_of_other_formats_is_found(release, kind, tmp_path):
    original = shutil.copytree(release / "checkpoint", tmp_path / "published")
    if kind != "published":
        original = convert_release(original, tmp_path / "converted")
    if kind == "exported":
        original = export_to_hub(original, tmp_path / "exported")
    changes = all_changes(original)
    bits = [change for change in changes if ": bit of" in change[0]]
    assert missed_changes(original, [change for change in changes if change not in bits] + bits[::20]) == {}
