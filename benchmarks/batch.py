# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Runs `jvlm batch` on pages of digits, once without a break and once with kills at random moments:

    python -m benchmarks.batch [--num_images 10000] [--num_kills 3]

Prints the rate and the memory of the first run; a line is fitted to the memory after the first tenth of the images.
Checks that the killed run wrote every line once and the same answers, and that some of them are those of `jvlm ask`.
The exit status is 1 if not.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from transformers.utils import logging

from examples.digits.pages import GRIDS, MAX_DIGITS, READ, draw_page, load_samples
from jvlm_cli.answering import Answerer, user_message

from .soak import fit_line


WARM_UP = 1 / 10
MAX_NEW_TOKENS = 4 + 2 * MAX_DIGITS


def draw_pages(folder: Path, num_images: int, rng: np.random.Generator) -> None:
    """Writes pages of all grids as PNG files."""
    samples = load_samples("train")
    for number in logging.tqdm(range(num_images), desc="Pages"):
        grid, num_digits = GRIDS[rng.integers(len(GRIDS))], 1 + int(rng.integers(MAX_DIGITS))
        draw_page(samples, rng, grid, num_digits, True).image.save(folder / f"{number:06}.png")


class Run:
    """
    A process of `jvlm batch`, whose memory is measured every half second.

    Args:
        argv (`list[str]`): arguments of the command.
        output (`Path`): its output.

    Attributes:
        samples (`list[tuple[int, int, int]]`): lines of the output, bytes of the main process, bytes of its workers.
    """

    def __init__(self, argv: list[str], output: Path):
        self.output = output
        self.process = subprocess.Popen([sys.executable, "-m", "jvlm_cli.main", "batch", *argv])
        self.samples: list[tuple[int, int, int]] = []

    def num_lines(self) -> int:
        return self.output.read_bytes().count(b"\n") if self.output.is_file() else 0

    def watch(self, stop_at: int | None = None) -> None:
        """Waits until the process has ended, or the output has so many lines."""
        process = psutil.Process(self.process.pid)
        while self.process.poll() is None and (stop_at is None or self.num_lines() < stop_at):
            try:
                workers = sum(child.memory_info().rss for child in process.children())
                self.samples.append((self.num_lines(), process.memory_info().rss, workers))
            except psutil.NoSuchProcess:
                pass
            time.sleep(0.05 if stop_at else 0.5)


def report_memory(samples: list[tuple[int, int, int]], num_images: int) -> None:
    """Prints the range of the memory after the warm-up, and the slope of a line fitted to it."""
    samples = [sample for sample in samples if WARM_UP * num_images <= sample[0] < num_images]
    if len({sample[0] for sample in samples}) < 2:
        print("the run is too short to measure memory after the warm-up; increase --num_images")
        return
    lines, *series = zip(*samples, strict=True)
    for name, values in zip(("main process", "workers"), series, strict=True):
        if not any(values):  # --num_workers 0
            continue
        slope, explained, _ = fit_line(lines, values)
        print(
            f"memory of the {name}: {min(values) / 1e6:.0f} to {max(values) / 1e6:.0f} MB, slope "
            f"{slope * 1000 / 1e6:+.2f} MB per 1000 images; the line explains {explained:.0%} of the variance"
        )


def measure(num_images: int, num_kills: int, batch_size: int, num_workers: int, num_asked: int, seed: int) -> bool:
    """Runs everything in a temporary folder and prints a report. Returns whether all checks passed."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        folder, first, second = Path(name, "pages"), Path(name, "first.jsonl"), Path(name, "second.jsonl")
        folder.mkdir()
        draw_pages(folder, num_images, rng)
        settings = ["--question", READ, "--device", "cpu", "--max-new-tokens", str(MAX_NEW_TOKENS)]
        settings += ["--batch-size", str(batch_size), "--workers", str(num_workers)]

        start, run = time.perf_counter(), Run([str(folder), str(first), *settings], first)
        run.watch()
        seconds = time.perf_counter() - start
        is_correct = run.process.wait() == 0
        print(f"without a break: {num_images} images in {seconds:.0f} s, {num_images / seconds:.1f} images/s")
        report_memory(run.samples, num_images)

        kills = sorted(rng.integers(1, num_images - 2 * batch_size, num_kills).tolist())
        for stop_at in kills:
            run = Run([str(folder), str(second), *settings], second)
            run.watch(stop_at)
            time.sleep(rng.uniform(0, 0.5))
            run.process.kill()
            run.process.wait()
            text = second.read_bytes()
            is_broken = not text.endswith(b"\n")
            print(f"killed after {run.num_lines()} lines{', within a line' if is_broken else ''}")
        run = Run([str(folder), str(second), *settings], second)
        is_correct &= run.process.wait() == 0

        found = [[json.loads(line) for line in path.read_text().splitlines()] for path in (first, second)]
        once = [sorted(line["row"] for line in lines) == list(range(num_images)) for lines in found]
        answers, repeated = ({line["id"]: line["answer"] for line in lines} for lines in found)
        num_different = sum(answers[page] != repeated.get(page) for page in answers)
        print(f"every line once: {once[0]} without a break, {once[1]} with {num_kills} kills")
        print(f"answers that differ between the runs: {num_different} of {num_images}")

        answerer, asked = Answerer(device="cpu", max_new_tokens=MAX_NEW_TOKENS), rng.choice(sorted(answers), num_asked)
        num_wrong = 0
        for page in logging.tqdm(asked, desc="Ask"):
            alone = "".join(answerer.stream([user_message([folder / page], READ)])).strip()
            num_wrong += alone != answers[page]
        print(f"answers that differ from those of `jvlm ask`: {num_wrong} of {num_asked}")
        return is_correct and all(once) and num_different == num_wrong == 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_images", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--num_kills", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--batch_size", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--num_workers", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--num_asked", type=int, default=100, help="answers to compare, default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="random seed of pages and kills")
    return 0 if measure(**vars(parser.parse_args(argv))) else 1


if __name__ == "__main__":
    sys.exit(main())
