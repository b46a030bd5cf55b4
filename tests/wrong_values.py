# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Wrong values of settings, and functions that put them into every place of a JSON file."""

import copy
from collections.abc import Iterator
from typing import Any


MISSING = object()
VALUES = {
    "missing": MISSING,
    "null": None,
    "string": "x",
    "list": [1, "a"],
    "empty list": [],
    "object": {"a": 1},
    "true": True,
    "float": 2.5,
    "zero": 0,
    "negative": -1,
    "large": 10**9,
    "huge": 10**30,
    "NaN": float("nan"),
}


def leaves(settings: dict, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all settings, of objects as well as of what they contain."""
    for name, value in settings.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from leaves(value, (*path, name))


def changed(settings: dict, path: tuple[str, ...], value: Any) -> dict:
    """A copy of the settings with one of them replaced, or removed if the value is `MISSING`."""
    settings = copy.deepcopy(settings)
    parent = settings
    for name in path[:-1]:
        parent = parent[name]
    parent[path[-1]] = value
    if value is MISSING:
        del parent[path[-1]]
    return settings
