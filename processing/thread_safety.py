# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""What lets threads share a processor: Transformers keeps some state of a call where all threads see it."""

import os
import threading
from typing import Any


# One lock for all tokenizers: processors may share a tokenizer, and a processor with a lock could not be pickled.
_LOCK = threading.RLock()
if hasattr(os, "register_at_fork"):
    # Without this, a process that is forked while another thread holds the lock would wait for it forever.
    os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


class SerialTokenizer:
    """
    Calls a tokenizer in one thread at a time. The padding and truncation of a call are stored in a fast tokenizer, so
    another thread's call would be padded and truncated in the same way.

    Raises:
        ValueError: if the tokenizer cannot use an argument; the message lists the arguments.
    """

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __call__(self, text, **kwargs):
        try:
            with _LOCK:
                return self._tokenizer(text, **kwargs)
        except BaseException as error:  # a panic of the tokenizer's Rust code is not an `Exception`
            is_panic = type(error).__name__ == "PanicException"
            if not is_panic and not isinstance(error, (ArithmeticError, IndexError, TypeError)):
                raise
            raise ValueError(f"The tokenizer cannot use one of the arguments {kwargs}: {error}.") from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def own_template(template: str) -> str:
    """
    The chat template with a different source in every thread, and the same output. Before 5.24, Transformers collects
    the positions of answers in the compiled template, which all threads share that render the same source.
    """
    return "{{ ''[" + str(threading.get_ident()) + ":] }}" + template


__all__ = ["SerialTokenizer", "own_template"]
