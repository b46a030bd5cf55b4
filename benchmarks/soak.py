# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Asks a pipeline about random pictures for a while, and watches its memory and its answers:

    python -m benchmarks.soak [--minutes 30] [--model examples/digits/model] [--seed 0]

Pictures are pages of handwriting and random colours of any size, mode and side ratio, alone or in pairs. Every fourth
call repeats one of the first `NUM_REPEATED`, which must be answered as before: the exit status is 1 if one is not.
The memory is the process's resident one. A line is fitted to it by least squares once the first sixth of the time,
the warm-up, is over.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import psutil
from transformers import pipeline
from transformers.utils import logging

import jvlm  # noqa: F401 - makes the pipeline know the model
from examples.digits.evaluate import MODEL
from examples.digits.pages import GRIDS, MAX_DIGITS, QUESTIONS, draw_page, load_samples


NUM_REPEATED = 32
WARM_UP = 1 / 6
MODES = ("RGB", "RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "F", "I;16")


def random_picture(samples, rng: np.random.Generator) -> PIL.Image.Image:
    """A page of handwriting, or smooth random colours in any mode, of 1 to 1500 pixels a side."""
    if rng.random() < 0.5:
        return draw_page(samples, rng, GRIDS[rng.integers(len(GRIDS))], 1 + int(rng.integers(MAX_DIGITS)), True).image
    height, width = np.exp(rng.uniform(0, np.log(1500), 2)).astype(int) + 1
    width = int(np.clip(width, -(-height // 200), height * 200))  # the largest side ratio
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, int(height)), 3)
    mode = MODES[rng.integers(len(MODES))]
    return coarse.convert("I").convert(mode) if mode == "I;16" else coarse.convert(mode)


def conversation(samples, seed: int, index: int) -> list[dict]:
    """The `index`-th conversation of a seed, the same every time."""
    rng = np.random.default_rng([seed, index])
    pictures = [random_picture(samples, rng) for _ in range(rng.integers(1, 3))]
    content = [{"type": "image", "image": picture} for picture in pictures]
    question = QUESTIONS[rng.integers(len(QUESTIONS))]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def fit_line(seconds: list[float], memory: list[int]) -> tuple[float, float, float]:
    """
    Least squares line through memory over time.

    Args:
        seconds (`list[float]`): times; at least two that differ.
        memory (`list[int]`): bytes at these times.

    Returns:
        `tuple[float, float, float]`: slope in bytes a second; the share of the memory's variance that the line
        explains; the line's rise from the first to the last time as a share of the mean memory.
    """
    x, y = np.asarray(seconds, float), np.asarray(memory, float)
    slope, start = np.polyfit(x - x[0], y, 1)
    rest = (y - start - slope * (x - x[0])).var()
    explained = 1 - rest / y.var() if y.var() else 0.0
    return float(slope), float(explained), float(slope * (x[-1] - x[0]) / y.mean())


def soak(minutes: float = 30, model: str | Path = MODEL, seed: int = 0) -> list[int]:
    """
    Runs the pipeline and prints what was found.

    Args:
        minutes (`float`, *optional*, defaults to 30): how long.
        model (`str` or `Path`, *optional*): folder with model and processor; the shipped one by default.
        seed (`int`, *optional*, defaults to 0): of the pictures.

    Returns:
        `list[int]`: which of the repeated conversations were answered differently.
    """
    samples, process = load_samples("train"), psutil.Process()
    ask = pipeline("image-text-to-text", model=str(model), dtype="float32")
    answers: dict[int, str] = {}
    different, seconds, memory, num_calls, num_repeats = set(), [], [], 0, 0
    start = time.monotonic()
    with logging.tqdm(total=round(60 * minutes), desc="Soak", unit="s", mininterval=10) as progress:
        while (elapsed := time.monotonic() - start) < 60 * minutes:
            is_repeated = num_calls < NUM_REPEATED or num_calls % 4 == 0
            index = (num_calls if num_calls < NUM_REPEATED else num_calls // 4) % NUM_REPEATED
            index = index if is_repeated else num_calls
            chat = conversation(samples, seed, index)
            (output,) = ask(
                text=chat,
                return_full_text=False,
                generate_kwargs={"do_sample": False, "max_new_tokens": 4 + 2 * MAX_DIGITS},
            )
            num_calls += 1
            if index < NUM_REPEATED:
                num_repeats += index in answers
                if answers.setdefault(index, output["generated_text"]) != output["generated_text"]:
                    different.add(index)
            seconds.append(elapsed)
            memory.append(process.memory_info().rss)
            progress.update(int(elapsed) - progress.n)
    warm = [time >= WARM_UP * 60 * minutes for time in seconds]
    kept = [entry for entry, is_warm in zip(zip(seconds, memory, strict=True), warm, strict=True) if is_warm]
    print(f"{num_calls} calls in {seconds[-1] / 60:.1f} minutes, {num_repeats} of them repeated ones")
    if len(kept) > 1:
        slope, explained, share = fit_line(*zip(*kept, strict=True))
        values = [value for _, value in kept]
        print(f"resident memory at the start {memory[0] / 1e6:.1f} MB, after the warm-up {values[0] / 1e6:.1f} MB")
        print(f"  then {min(values) / 1e6:.1f} to {max(values) / 1e6:.1f} MB, at the end {values[-1] / 1e6:.1f} MB")
        print(f"  slope {slope * 3600 / 1e6:+.2f} MB/hour: {share:+.2%} of the memory in the time measured")
        print(f"  share of the variance that the line explains: {explained:.1%}")
    if different:
        print(f"answered differently when repeated: conversations {sorted(different)}")
    else:
        print(f"all {len(answers)} repeated conversations were answered as before")
    return sorted(different)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="%(default)s")
    parser.add_argument("--model", default=MODEL, type=Path, help="folder with model and processor")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures")
    return 1 if soak(**vars(parser.parse_args(argv))) else 0


if __name__ == "__main__":
    sys.exit(main())
