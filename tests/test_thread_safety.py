# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Threads that share a processor or a tokenizer get what a single thread gets."""

import copy
import os
import pickle
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import chat_inputs

from jvlm.processing import thread_safety


# What a fast tokenizer stores from one call to the next.
SETTINGS = [
    {},
    {"padding": True},
    {"padding": True, "padding_side": "right"},
    {"padding": "max_length", "max_length": 90},
    {"padding": True, "pad_to_multiple_of": 64},
    {"truncation": True, "max_length": 7},
    {"truncation": True, "max_length": 30, "padding": True},
]


@pytest.fixture
def run_in_threads():
    """A function (function, number of calls) that calls it with every index, in eight threads that switch often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def run(function, count: int) -> list:
        with ThreadPoolExecutor(8) as threads:
            return list(threads.map(function, range(count)))

    yield run
    sys.setswitchinterval(before)


@pytest.mark.parametrize("copied", [False, True])
def test_padding_and_truncation(build_processor, bare_tokenizer, run_in_threads, copied):
    """`copied`: processors that are copies, and processors that share a tokenizer."""
    processors = [build_processor(tokenizer=bare_tokenizer), build_processor(tokenizer=bare_tokenizer)]
    if copied:
        processors = [copy.deepcopy(processors[0]), pickle.loads(pickle.dumps(processors[0]))]
    text = ["one two three " * 10, "short"]

    def call(index: int) -> list:
        return processors[index % 2](text=text, **SETTINGS[index % len(SETTINGS)])["input_ids"]

    expected = [call(index) for index in range(len(SETTINGS))]
    results = run_in_threads(call, 350)
    assert sum(result != expected[index % len(SETTINGS)] for index, result in enumerate(results)) == 0


def test_assistant_masks(build_processor, user, assistant, run_in_threads):
    """Before 5.24, Transformers collects the positions of answers in an object that all threads share."""
    processor = build_processor()
    chats = [[user("Well? " * n), assistant("So " * n), user("And?"), assistant("Yes " * n)] for n in range(1, 9)]

    def call(index: int):
        if index % 3 == 0:  # another thread may render the same template without a mask
            return processor.apply_chat_template(chats[index % 8])
        inputs = chat_inputs(processor, chats[index % 8], return_assistant_tokens_mask=True)
        return inputs["input_ids"].tolist(), inputs["assistant_masks"].tolist()

    expected = [call(index) for index in range(24)]
    assert any(sum(mask) for _, (mask,) in expected[1:3])
    results = run_in_threads(call, 144)
    assert sum(result != expected[index % 24] for index, result in enumerate(results)) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, which workers of data loaders use on Linux")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_process_that_is_forked_while_a_thread_encodes(build_processor):
    processor = build_processor()
    expected = processor(text="Well?")["input_ids"]
    is_held, release = threading.Event(), threading.Event()

    def hold():
        with thread_safety._LOCK:
            is_held.set()
            release.wait(5)

    thread = threading.Thread(target=hold)
    thread.start()
    assert is_held.wait(5)
    threading.Timer(0.2, release.set).start()
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends a child that waits forever
        os._exit(0 if processor(text="Well?")["input_ids"] == expected else 1)
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
