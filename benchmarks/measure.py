# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Seconds and peak memory of functions, measured in turns, so that what disturbs the machine disturbs all of them."""

import ctypes
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch


_WATCHED_ROUNDS = 2


@dataclass
class Measurement:
    """
    What one function took.

    Args:
        seconds (`list[float]`): of every call.
        peak_memory (`int`, *optional*): bytes that a call held at most beyond what was held before it: pages that are
            no file's (Linux) or, on CUDA, what PyTorch allocated; `None` where neither can be told.
    """

    seconds: list[float] = field(default_factory=list)
    peak_memory: int | None = None

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)


def anonymous_memory() -> int | None:
    """Bytes that this process holds beyond pages of files, `None` where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


def release_free_memory() -> None:
    """Gives back to the system what was freed, or it would hide what is taken afterwards."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def held_memory(device: torch.device) -> int:
    """Bytes that are held now: on CUDA what PyTorch allocated, else pages that are no file's, 0 if none can tell."""
    release_free_memory()
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else anonymous_memory() or 0


class _PeakMemory:
    """Context in which the memory is watched; `bytes` tells its peak beyond the start."""

    def __init__(self, device: torch.device):
        self.device, self.bytes = device, None

    def __enter__(self):
        release_free_memory()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.start = torch.cuda.memory_allocated(self.device)
            return self
        self.start = self.peak = anonymous_memory()
        self.is_done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self):
        while self.peak is not None and not self.is_done.wait(0.002):
            self.peak = max(self.peak, anonymous_memory())

    def __exit__(self, *_):
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self.start
            return
        self.is_done.set()
        self.thread.join()
        if self.peak is not None:
            self.bytes = max(self.peak, anonymous_memory()) - self.start


def measure(
    functions: dict[str, Callable[[], object]], device: torch.device, max_rounds: int = 7, max_seconds: float = 240.0
) -> dict[str, Measurement]:
    """
    Calls all functions one after the other, again and again.

    Args:
        functions (`dict[str, Callable]`): what to call, by name.
        device (`torch.device`): where they run.
        max_rounds (`int`, *optional*, defaults to 7): rounds at most. The first of three or more warms up and does not
            count. The memory is that of the first two, whose seconds do not count either if there are five or more:
            who watches it takes time from short calls on several threads.
        max_seconds (`float`, *optional*, defaults to 240): no round begins after that.

    Returns:
        `dict[str, Measurement]`: what each took.
    """
    measured = {name: Measurement() for name in functions}
    start = time.perf_counter()
    for number in range(max_rounds):
        for name, function in functions.items():
            memory = _PeakMemory(device) if number < _WATCHED_ROUNDS else None
            with torch.inference_mode(), memory or nullcontext():
                begin = time.perf_counter()
                result = function()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                measured[name].seconds.append(time.perf_counter() - begin)
            del result
            if memory and memory.bytes is not None:
                measured[name].peak_memory = max(memory.bytes, measured[name].peak_memory or 0)
        if time.perf_counter() - start > max_seconds:
            break
    for measurement in measured.values():
        if len(measurement.seconds) > 4:
            del measurement.seconds[:_WATCHED_ROUNDS]
        elif len(measurement.seconds) > 2:
            del measurement.seconds[0]
    return measured
