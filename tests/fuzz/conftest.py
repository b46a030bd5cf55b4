# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Prints how many inputs were tried, in the long mode."""

from fuzzing import IS_LONG, counts


def pytest_terminal_summary(terminalreporter):
    if IS_LONG:
        for name, count in sorted(counts.items()):
            terminalreporter.write_line(f"{count:>8} {name}")
