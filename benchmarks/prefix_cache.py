# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Times questions about a page with a new `generate`, and with a `PrefixCache` that has read the page, also one that was
saved and loaded:

    python -m benchmarks.prefix_cache [--size tiny] [--rounds 3]

Weights are random and in float32, and the page has 3 × 4 tiles. Every round has a page of its own and asks two
questions about it. A time includes cutting the page into tiles and tokenising the question. The exit status is 1 if
an answer has other tokens than that of a new `generate`.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import PIL.Image
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from jvlm import JinaVLMConfig, JinaVLMImageProcessor, JinaVLMProcessor, PrefixCache, add_image_tokens
from jvlm.processing.prompt_inputs import prompt_inputs

from .models import SIZES, random_model
from .structured import QWEN3


QUESTIONS = ["What is the total of this page?", "Who signed it, and when?"]
NUM_TOKENS = 16
MARKERS = {"start_": "<im_start>", "end_": "<im_end>", "": "<im_patch>", "column_": "<im_col>"}
LENGTH = {"do_sample": False, "min_new_tokens": NUM_TOKENS, "max_new_tokens": NUM_TOKENS}


class Clock:
    """A streamer that records when `generate` passes it the prompt and every token."""

    def __init__(self):
        self.times: list[float] = []

    def put(self, value):
        self.times.append(time.perf_counter())

    def end(self):
        pass


def build(size: str):
    """A random model and a processor with the tokenizer of Qwen3."""
    tokenizer = AutoTokenizer.from_pretrained(QWEN3)
    add_image_tokens(tokenizer)
    fields = dict(SIZES[size])
    if fields:
        fields["text_config"] = {**fields["text_config"], "vocab_size": len(tokenizer)}
    for kind, marker in MARKERS.items():
        fields[f"image_{kind}token_id"] = tokenizer.convert_tokens_to_ids(marker)
    config = JinaVLMConfig(**fields)
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    margins = [4, 4] if side == 378 else [1, 1]
    image_processor = JinaVLMImageProcessor(
        size={"height": side, "width": side}, patch_size=patch, overlap_margins=margins
    )
    model = random_model(AutoModelForImageTextToText, config, torch.float32, torch.device("cpu"))
    return model, JinaVLMProcessor(image_processor, tokenizer)


def show(name: str, times: list[float]) -> None:
    print(f"{name:<46} {median(times):8.3f} s  [{min(times):.3f}, {max(times):.3f}]", flush=True)


def measure(size: str, rounds: int) -> bool:
    """Prints the medians and ranges of all rounds. Returns whether all tokens are equal."""
    model, processor = build(size)
    side = model.config.vision_config.image_size
    rng, are_equal = np.random.default_rng(0), True
    times: dict[str, list[float]] = {}

    def ask(page: PIL.Image.Image, question: str, **kwargs) -> torch.Tensor:
        content = [{"type": "image", "image": page}, {"type": "text", "text": question}]
        return model.generate(**prompt_inputs(processor, [{"role": "user", "content": content}]), **kwargs)

    def note(name: str, function: Callable, *args, **kwargs):
        start = time.perf_counter()
        value = function(*args, **kwargs)
        times.setdefault(name, []).append(time.perf_counter() - start)
        return value

    def answer(name: str, function: Callable, *args) -> torch.Tensor:
        clock, start = Clock(), time.perf_counter()
        tokens = note(f"{name}, {NUM_TOKENS} tokens", function, *args, streamer=clock, **LENGTH)
        times.setdefault(f"{name}, first token", []).append(clock.times[1] - start)
        return tokens

    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            noise = rng.integers(0, 256, (3 * side, 4 * side, 3), dtype=np.uint8)
            page, path = PIL.Image.fromarray(noise), Path(folder, str(number))
            expected = {question: answer("first question", ask, page, question) for question in QUESTIONS}
            pages = note("reading the page for later questions", PrefixCache, model, processor, [page])
            note("saving", pages.save_pretrained, path)
            loaded = note("loading", PrefixCache.from_pretrained, path, model, processor)
            for each, question in product((pages, loaded), QUESTIONS):
                are_equal &= torch.equal(answer("later question", each.generate, question), expected[question])
            if number == 0:
                num_bytes = sum(file.stat().st_size for file in path.iterdir())
                print(f"{size}: {pages.input_ids.shape[1]} tokens of prefix, {num_bytes / 1e6:.1f} MB on disk")
            shutil.rmtree(path)
    for name, values in times.items():
        show(name, values)
    for what in ("first token", f"{NUM_TOKENS} tokens"):
        before, after = times[f"first question, {what}"], times[f"later question, {what}"]
        print(
            f"later question faster, {what}: {median(before) / median(after):.1f} times, at least "
            f"{min(before) / max(after):.1f}"
        )
    print(f"tokens equal: {are_equal}")
    return are_equal


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny", help="full is the model of the figure")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    return 0 if measure(**vars(parser.parse_args(argv))) else 1


if __name__ == "__main__":
    sys.exit(main())
