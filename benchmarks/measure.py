# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Measures time and peak memory of functions. It alternates between them, so that disturbances affect all of them."""

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


_MEMORY_ROUNDS = 2


@dataclass
class Measurement:
    """
    Time and memory of one function.

    Args:
        seconds (`list[float]`): time of every call.
        peak_memory (`int`, *optional*): maximum number of bytes that a call allocated in addition to those before it:
            anonymous memory on Linux, PyTorch's allocations on CUDA, `None` if neither is available.
    """

    seconds: list[float] = field(default_factory=list)
    peak_memory: int | None = None

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)


def anonymous_memory() -> int | None:
    """Resident bytes of this process without file pages, `None` if the system does not report them."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


def release_free_memory() -> None:
    """Returns freed memory to the system. Otherwise later allocations would reuse it and stay invisible."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def held_memory(device: torch.device) -> int:
    """Bytes allocated now: by PyTorch on CUDA, else anonymous memory, 0 if the system does not report it."""
    release_free_memory()
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else anonymous_memory() or 0


class _PeakMemory:
    """Context manager that samples the memory. `bytes` is the peak minus the memory at the start."""

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
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()
        return self

    def _sample(self):
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
    Calls all functions in turn, for several rounds.

    Args:
        functions (`dict[str, Callable]`): functions by name.
        device (`torch.device`): device on which they run.
        max_rounds (`int`, *optional*, defaults to 7): maximum number of rounds. Memory is sampled in the first two
            rounds. Sampling slows down short calls on several threads, so the times of both are discarded if there are
            five or more rounds. With three or four rounds, only the first one, the warm-up, is discarded.
        max_seconds (`float`, *optional*, defaults to 240): no round starts after this time.

    Returns:
        `dict[str, Measurement]`: measurements by name.
    """
    measured = {name: Measurement() for name in functions}
    start = time.perf_counter()
    for number in range(max_rounds):
        for name, function in functions.items():
            memory = _PeakMemory(device) if number < _MEMORY_ROUNDS else None
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
            del measurement.seconds[:_MEMORY_ROUNDS]
        elif len(measurement.seconds) > 2:
            del measurement.seconds[0]
    return measured
