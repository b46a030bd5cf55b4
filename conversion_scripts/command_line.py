# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""What the command-line programs share: arguments, errors and signals."""

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def argument_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for the arguments of a program. Its help shows the description as it is."""
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=name, description=description, formatter_class=formatter)


def run(parser: argparse.ArgumentParser, function: Callable, argv: list[str] | None, status: int = 1):
    """
    Calls a function with a program's arguments. Expected errors are printed in one line, without a traceback, and the
    program exits with `status`. SIGTERM and SIGHUP end it like an exception, so that temporary folders are deleted.
    """
    args = parser.parse_args(argv)
    try:
        with _exit_on_signals():
            return function(**vars(args))
    except (OSError, ValueError) as error:
        parser.exit(status, f"{parser.prog}: error: {' '.join(str(error).split())}\n")


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    def leave(number, frame):
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # another signal must not interrupt the deletion
        sys.exit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # Only the main thread may set handlers. Under nohup, SIGHUP stays ignored.
    is_main = threading.current_thread() is threading.main_thread()
    before = [number for number in numbers if is_main and signal.getsignal(number) == signal.SIG_DFL]
    try:
        for number in before:
            signal.signal(number, leave)
        yield
    finally:
        for number in before:
            signal.signal(number, signal.SIG_DFL)


__all__ = ["argument_parser", "run"]
