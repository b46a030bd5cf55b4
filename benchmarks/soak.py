# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Runs a pipeline on random images for a while, and monitors its memory and its answers:

    python -m benchmarks.soak [--minutes 30] [--model examples/digits/model] [--seed 0]

Images are pages of handwriting and random colours of any size, mode and aspect ratio. A call has one or two images.
Every fourth call repeats one of the first `NUM_REPEATED` calls and must give the same answer; otherwise the exit
status is 1. Every few seconds the resident memory of the process is measured, before and after freed memory is
returned to the system. A line is fitted to both by least squares. The first sixth of the time, the warm-up, is
ignored.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import psutil
from transformers import pipeline
from transformers.utils import logging

import jvlm  # noqa: F401 - registers the model with the pipeline
from examples.digits.evaluate import MODEL
from examples.digits.pages import GRIDS, MAX_DIGITS, QUESTIONS, draw_page, load_samples

from .measure import release_free_memory


NUM_REPEATED = 32
WARM_UP = 1 / 6
SECONDS_BETWEEN_SAMPLES = 5
MODES = ("RGB", "RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "F", "I;16")


def random_image(samples, rng: np.random.Generator) -> PIL.Image.Image:
    """A page of handwriting, or smooth random colours in any mode with sides of 1 to 1500 pixels."""
    if rng.random() < 0.5:
        return draw_page(samples, rng, GRIDS[rng.integers(len(GRIDS))], 1 + int(rng.integers(MAX_DIGITS)), True).image
    height, width = np.exp(rng.uniform(0, np.log(1500), 2)).astype(int) + 1
    width = int(np.clip(width, -(-height // 200), height * 200))  # the maximum aspect ratio
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, int(height)), 3)
    mode = MODES[rng.integers(len(MODES))]
    return coarse.convert("I").convert(mode) if mode == "I;16" else coarse.convert(mode)


def conversation(samples, seed: int, index: int) -> list[dict]:
    """The conversation of an index. It is determined by `seed` and `index`."""
    rng = np.random.default_rng([seed, index])
    images = [random_image(samples, rng) for _ in range(rng.integers(1, 3))]
    content = [{"type": "image", "image": image} for image in images]
    question = QUESTIONS[rng.integers(len(QUESTIONS))]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def fit_line(seconds: Sequence[float], memory: Sequence[int]) -> tuple[float, float, float]:
    """
    Fits a line to memory over time by least squares.

    Args:
        seconds (`Sequence[float]`): times, at least two different ones.
        memory (`Sequence[int]`): bytes at these times.

    Returns:
        `tuple[float, float, float]`: the slope in bytes per second, the fraction of the variance of the memory that
        the line explains, and the rise of the line from the first to the last time as a fraction of the mean memory.
    """
    x, y = np.asarray(seconds, float), np.asarray(memory, float)
    slope, start = np.polyfit(x - x[0], y, 1)
    rest = (y - start - slope * (x - x[0])).var()
    explained = 1 - rest / y.var() if y.var() else 0.0
    return float(slope), float(explained), float(slope * (x[-1] - x[0]) / y.mean())


def soak(minutes: float = 30, model: str | Path = MODEL, seed: int = 0) -> list[int]:
    """
    Runs the pipeline and prints a report.

    Args:
        minutes (`float`, *optional*, defaults to 30): duration.
        model (`str` or `Path`, *optional*): folder with model and processor; the shipped one by default.
        seed (`int`, *optional*, defaults to 0): random seed of the images.

    Returns:
        `list[int]`: indices of the repeated conversations whose answers changed.
    """
    samples, process = load_samples("train"), psutil.Process()
    ask = pipeline("image-text-to-text", model=str(model), dtype="float32")
    answers: dict[int, str] = {}
    different, memory, num_calls, num_repeats = set(), [], 0, 0
    start, end = time.monotonic(), time.monotonic() + 60 * minutes
    with logging.tqdm(total=round(60 * minutes), desc="Soak", unit="s", mininterval=10) as progress:
        while time.monotonic() < end:
            if num_calls < NUM_REPEATED:
                index = num_calls
            else:
                index = num_calls // 4 % NUM_REPEATED if num_calls % 4 == 0 else num_calls
            (output,) = ask(
                text=conversation(samples, seed, index),
                return_full_text=False,
                generate_kwargs={"do_sample": False, "max_new_tokens": 4 + 2 * MAX_DIGITS},
            )
            num_calls += 1
            if index < NUM_REPEATED:
                num_repeats += index in answers
                if answers.setdefault(index, output["generated_text"]) != output["generated_text"]:
                    different.add(index)
            seconds = time.monotonic() - start
            if not memory or seconds - memory[-1][0] > SECONDS_BETWEEN_SAMPLES:
                resident = process.memory_info().rss
                release_free_memory()
                memory.append((seconds, resident, process.memory_info().rss))
            progress.update(int(seconds) - progress.n)
    print(f"{num_calls} calls in {seconds / 60:.1f} minutes, {num_repeats} of them repeated")
    report_memory([sample for sample in memory if sample[0] >= WARM_UP * seconds])
    if different:
        print(f"answers that changed when repeated: conversations {sorted(different)}")
    else:
        print(f"all answers of the {len(answers)} repeated conversations were the same")
    return sorted(different)


def report_memory(samples: list[tuple[float, int, int]]) -> None:
    """Prints ranges and fitted lines. A sample is (seconds, resident bytes, resident bytes after releasing memory)."""
    if len(samples) < 2:
        print("the run is too short to measure memory after the warm-up; increase --minutes")
        return
    seconds, *series = zip(*samples, strict=True)
    for name, values in zip(("resident memory", "after freed memory was released"), series, strict=True):
        slope, explained, share = fit_line(seconds, values)
        print(
            f"{name}: {min(values) / 1e6:.1f} to {max(values) / 1e6:.1f} MB, slope {slope * 3600 / 1e6:+.2f} MB/hour, "
            f"{share:+.2%} over the measured time; the line explains {explained:.0%} of the variance"
        )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="duration, default: %(default)s")
    parser.add_argument("--model", default=MODEL, type=Path, help="folder with model and processor")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the images")
    return 1 if soak(**vars(parser.parse_args(argv))) else 0


if __name__ == "__main__":
    sys.exit(main())
