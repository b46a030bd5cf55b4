# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The name of the cache among the arguments and outputs of models."""

import transformers
from packaging.version import Version


def cache_argument() -> str:
    """`"cache"`, or `"past_key_values"` before Transformers 5.24."""
    return "cache" if Version(transformers.__version__) >= Version("5.24.0.dev0") else "past_key_values"


__all__ = ["cache_argument"]
