# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Random damage to a saved checkpoint, and random values in its settings. Loading it must fail with a documented error
that names the file or the wrong entry in it, or `verify` must detect the difference. No pickle may be opened.
"""

import json
import pickle
import random
import re
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from fuzzing import IS_LONG, counts
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForImageTextToText
from transformers.utils import logging
from wrong_values import VALUES, changed, leaves

from jvlm import JinaVLMForConditionalGeneration, JinaVLMProcessor
from jvlm.configuration.setting_kinds import GENERATION
from jvlm.conversion_scripts.verify import verify


STAGES = ["pixels", "prompt tokens", "vision features", "connector", "logits", "greedy tokens", "weights", "settings"]
NUM_FAULTS = 1000 if IS_LONG else 40  # per layout
NUM_CHANGES = 1000 if IS_LONG else 15  # per format
TIMEOUT = 120  # seconds
# What the classes and functions of this package document, and nothing else.
DOCUMENTED = (OSError, ValueError)


@pytest.fixture
def original(build_model, build_processor, tmp_path):
    """A function (layout) that saves a small model in several shards, next to a pickle that must not be read."""

    def build(layout: str) -> Path:
        folder = tmp_path / "original"
        build_model(layout).save_pretrained(folder, max_shard_size="60KB")
        build_processor(layout, add_bos_token=layout == "stitched").save_pretrained(folder)
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
        return folder

    return build


@pytest.fixture(autouse=True)
def no_pickles(monkeypatch):
    """Fails the test if a pickle is opened, even if the error is caught."""
    opened = []

    def fail_on_open(*args, **kwargs):
        opened.append(args)
        raise AssertionError("a pickle was opened")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, fail_on_open)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()
    logging.set_verbosity(verbosity)
    assert not opened


def flip(content: bytearray, rng: random.Random, offsets: range) -> int:
    """Flips one bit and returns the offset of its byte."""
    offset = rng.choice(offsets)
    content[offset] ^= 1 << rng.randrange(8)
    return offset


def damage(folder: Path, file: Path, rng: random.Random) -> str:
    """
    Damages a file in one of several ways, in place.

    Returns:
        `str`: the name of the weight if only the values of one weight changed, else an empty string.
    """
    kind = rng.choice(["flip", "flip", "flip", "truncate", "delete", "swap"])
    content = bytearray(file.read_bytes())
    if kind == "delete":
        file.unlink()
        return ""
    shards = sorted(folder.glob("*.safetensors"))
    if kind == "swap" and file in shards:
        other = rng.choice([shard for shard in shards if shard != file])
        file.write_bytes(other.read_bytes())
        other.write_bytes(content)
        return ""
    if kind == "truncate":
        file.write_bytes(content[: rng.randrange(len(content))])
        return ""
    if file not in shards or rng.random() < 0.4:
        end = 8 + int.from_bytes(content[:8], "little") if file in shards else len(content)
        flip(content, rng, range(end))
        file.write_bytes(content)
        return ""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    offset = flip(content, rng, range(start, len(content))) - start
    file.write_bytes(content)
    return next(
        name for name, entry in header.items() if name != "__metadata__" and offset in range(*entry["data_offsets"])
    )


def is_readable(file: Path) -> bool:
    """Whether a file exists and, if it is JSON or safetensors, can be parsed."""
    try:
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                pass
    except (ValueError, SafetensorError, FileNotFoundError):
        return False
    return file.is_file()


def outputs(folder: Path, image, model_class=AutoModelForImageTextToText) -> list[torch.Tensor]:
    """The outputs of a checkpoint for two conversations: token ids, pixels, logits and greedy tokens."""
    model, processor = model_class.from_pretrained(folder), JinaVLMProcessor.from_pretrained(folder)
    question = [
        {"type": "text", "text": "Who is this lady?"},
        {"type": "image", "image": image},
        {"type": "text", "text": "Ada?"},
    ]
    chats = [
        [{"role": "user", "content": question}],
        [
            {"role": "system", "content": "Be brief, please: zebra 3."},
            {"role": "user", "content": question[1:]},
            {"role": "assistant", "content": "Her name is Ada."},
            {"role": "user", "content": "Which of the two images is darker?"},
        ],
    ]
    results = []
    for chat in chats:
        inputs = processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        with torch.inference_mode():
            tokens = model.generate(**inputs, do_sample=False, max_new_tokens=5, return_dict_in_generate=False)
            results += [inputs["input_ids"], inputs["pixel_values"], model(**inputs).logits, tokens]
    return results


def stage_of(weight: str) -> str:
    """The first stage of `verify` that depends on a weight."""
    if ".vision_tower." in weight:
        return "vision features"
    # The embedding of <im_patch> is added to the output of the connector.
    return "connector" if ".connector." in weight or ".embed_tokens." in weight else "logits"


def new_words(before: str, after: str) -> set[str]:
    """The words of a text that are not in the text before."""
    return set(re.findall(r'[^\s"\[\],:]{2,}', after)) - set(re.findall(r'[^\s"\[\],:]{2,}', before))


def names_the_fault(error: Exception, file: Path, original: Path) -> bool:
    """Whether an error is documented, and names the file or, if the file can be parsed, the wrong entry in it."""
    message = str(error)
    if not isinstance(error, DOCUMENTED):
        return False
    if file.name in message:
        return True
    if not file.exists():
        return {
            "model.safetensors.index.json": "no file named model.safetensors",
            "tokenizer.json": "a `tokenizers` library serialization file",
        }.get(file.name, "\0") in message
    if file.suffix == ".safetensors":
        return is_readable(file) and bool(re.search(r"(weights: |do not fit: |damaged)\S", message))
    if file.suffix == ".jinja":
        return "chat template" in message
    if not is_readable(file):
        return False
    # The message may name a setting, a weight of the wrong shape, an image token or the damaged word itself.
    words = new_words((original / file.name).read_text(), file.read_text(errors="replace"))
    is_named = re.search(r"`[\w.]+`|do not fit: \S|<im_\w+>|<\|image\|>", message)
    return bool(is_named) or any(word in message for word in words)


def attempt(function, *args, **kwargs):
    """The result or the exception of a call. A call that does not return fails the test."""

    def fail(*_):
        raise pytest.fail.Exception(f"The call did not return within {TIMEOUT} seconds.")

    if has_alarm := hasattr(signal, "SIGALRM"):
        before = signal.signal(signal.SIGALRM, fail)
        signal.alarm(TIMEOUT)
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return error
    finally:
        if has_alarm:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)


def check_fault(
    original: Path, damaged: Path, file: Path, weight: str, expected: list[torch.Tensor], make_image
) -> str:
    """Asserts that a fault leads to a clear error, is found by `verify` or has no effect. Returns which of them."""
    image = make_image(90, 130)
    found = attempt(outputs, damaged, image)
    if isinstance(found, Exception):
        assert names_the_fault(found, file, original), f"{type(found).__name__}: {found}"
        assert not weight
        return "errors"
    assert is_readable(file) or not file.exists() or file.suffix == ".jinja"
    stages = attempt(verify, original, damaged, image=[make_image(60, 60)], prompt="Who is this lady?")
    if isinstance(stages, Exception):
        assert names_the_fault(stages, file, original), f"{type(stages).__name__}: {stages}"
        return "rejected by verify"
    first = next((stage.name for stage in stages if not stage.is_equal), None)
    if weight:
        assert first in STAGES[STAGES.index(stage_of(weight)) :], "found in a stage before the weight is used"
    if first is None:
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), "verify missed a difference"
    return f"found by verify in {first}" if first else "without effect"


@pytest.mark.parametrize("layout", ["independent", "stitched"])
def test_random_damage_is_detected(original, make_image, layout):
    folder, damaged = original(layout), original(layout).parent / "damaged"
    expected = outputs(folder, make_image(90, 130))
    files = [file.name for file in sorted(folder.iterdir()) if file.suffix != ".bin"]
    assert len(files) >= 10
    seed = random.randrange(2**32) if IS_LONG else 0
    rng = random.Random(seed)
    for number in range(NUM_FAULTS):
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(folder, damaged)
        file = damaged / files[number % len(files)]
        weight = damage(damaged, file, rng)
        counts["faults of checkpoints"] += 1
        try:
            outcome = check_fault(folder, damaged, file, weight, expected, make_image)
        except AssertionError as error:
            raise AssertionError(f"fault {number} of seed {seed}, {file.name} {weight}: {error}") from error
        counts[f"faults {outcome}"] += 1


# Wrong settings


SETTINGS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "model.safetensors.index.json",
    "chat_template.jinja",
)
# What Transformers' own classes read, besides the settings of a file, and what may be wrong in a template.
ADDED = {
    "config.json": ("attn_implementation", "dtype", "id2label", "torch_dtype", "num_labels"),
    "generation_config.json": (*GENERATION, "unknown"),
    "model.safetensors.index.json": ("weight_map", "metadata"),
}
SNIPPETS = (
    "{{ x.y }}",
    "{% if %}",
    "{{ messages[9] }}",
    "{{ 1 / 0 }}",
    "}}",
    "{% for m in messages %}",
    "{{ raise() }}",
)
PATHS = {"outside": "../x.safetensors", "absolute": "/x.safetensors", "pickle": "x.bin", "absent": "x.safetensors"}


def change_settings(file: Path, rng: random.Random) -> str:
    """Replaces or adds one setting of a file, in place, and returns its path and the kind of value."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".jinja":
        offset, snippet = rng.randrange(len(text)), rng.choice(SNIPPETS)
        cut = rng.choice([0, 0, 1, 9])
        file.write_text(text[:offset] + snippet + text[offset + cut :], encoding="utf-8")
        return f"{snippet} at {offset}"
    settings = json.loads(text)
    paths = [*leaves(settings), *((name,) for name in ADDED.get(file.name, ()))]
    values = VALUES | PATHS if "index" in file.name else VALUES
    path, kind = rng.choice(paths), rng.choice(list(values))
    settings = changed(settings, path, values[kind])
    file.write_text(json.dumps(settings), encoding="utf-8")
    return f"{'.'.join(path)}, {kind}"


def names_the_setting(error: Exception, file: Path, change: str) -> bool:
    """Whether an error is documented and names the file, the setting, its value, a related setting or a weight."""
    message, name = str(error), change.split(",")[0].split(".")[-1]
    if file.suffix == ".jinja":
        return isinstance(error, DOCUMENTED) and "chat template" in message.lower()
    is_named = any(word in message for word in (file.name, name, PATHS["absent"]))
    is_named = is_named or re.search(r"`[\w.]+`|weights[\w ]*: \S", message)
    return isinstance(error, DOCUMENTED) and bool(is_named)


@pytest.mark.parametrize("kind", ["published", "own"])
def test_random_settings(release, original, make_image, tmp_path, kind):
    folder = original("stitched") if kind == "own" else release / "checkpoint"
    damaged = tmp_path / "changed"
    files = [name for name in SETTINGS if (folder / name).is_file()]
    assert len(files) == 5
    seed = random.randrange(2**32) if IS_LONG else 0
    rng = random.Random(seed)
    expected, outcomes = outputs(folder, make_image(90, 130)), set()
    for number in range(NUM_CHANGES):
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(folder, damaged)
        file = damaged / files[number % len(files)]
        change = change_settings(file, rng)
        memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        # The Auto classes would read `model_type` and `auto_map` before this one, with errors of their own.
        found = attempt(outputs, damaged, make_image(90, 130), JinaVLMForConditionalGeneration)
        case = f"change {number} of seed {seed}, {file.name}: {change}"
        if isinstance(found, Exception):
            assert names_the_setting(found, file, change), f"{case}: {type(found).__name__}: {found}"
            assert time.process_time() - start < 10, case
            outcome = f"are a {type(found).__name__}"
        else:
            assert all(torch.isfinite(part.float()).all() for part in found), case
            is_same = all(torch.equal(a, b) for a, b in zip(found, expected, strict=False))
            outcome = "have no effect on two chats" if is_same else "load"
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 500_000, case  # kilobytes on Linux
        outcomes.add(outcome)
        counts[f"settings {outcome}"] += 1
    assert {"are a ValueError", "have no effect on two chats"} <= outcomes
