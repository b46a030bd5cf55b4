# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
A load test of vLLM's OpenAI server on the digit model: many chat requests at once, with images of every grid and text
alone, streamed and not, and clients that leave early. Every answer must equal that of `generate`, and none may be
lost. `make vllm` runs it. The server listens on this machine only.

    python tools/vllm_load.py --requests 300 --at-once 32
"""

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
MAX_NEW_TOKENS = 16
SECONDS_TO_START = 900  # on a busy machine; usually half a minute
# A client whose turn it is leaves after the first piece of a streamed answer.
KINDS = ("whole", "streamed", "whole", "streamed", "left")


def get(url: str, body: dict | None = None) -> str:
    """The answer of a local server."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=600) as response:
        return response.read().decode()


@contextmanager
def server(folder: Path, log: Path, *options: str) -> Iterator[str]:
    """The address of a server of a model, without any option that concerns the model."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)),
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", "model"),
        *("--dtype", "float32", "--enforce-eager", *options),
    ]
    environment = {
        **os.environ,
        **{"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "WARNING"},
        **{"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=log.parent, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        give_up = time.monotonic() + SECONDS_TO_START
        while True:
            if process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"The server did not start: {log.read_text()[-6000:]}")
            try:
                get(f"{address}/health")
                break
            except OSError:
                time.sleep(1)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def client(address: str, max_retries: int) -> Any:
    """OpenAI's client of a local server."""
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    direct = DefaultAsyncHttpxClient(trust_env=False)
    settings: dict[str, Any] = {"base_url": f"{address}/v1", "api_key": "none", "timeout": 600}
    return AsyncOpenAI(**settings, max_retries=max_retries, http_client=direct)


async def request(openai: Any, conversation: list[dict], kind: str) -> str | None:
    """The text of an answer; `None` for a client that left."""
    settings = {"model": "model", "messages": conversation, "max_tokens": MAX_NEW_TOKENS, "temperature": 0}
    if kind == "whole":
        return (await openai.chat.completions.create(**settings)).choices[0].message.content
    pieces = []
    async with await openai.chat.completions.create(**settings, stream=True) as chunks:
        async for chunk in chunks:
            pieces += [choice.delta.content or "" for choice in chunk.choices]
            if kind == "left":
                return None
    return "".join(pieces)


def stream(address: str, conversation: list[dict]) -> str | None:
    """The text of a streamed answer."""
    return asyncio.run(request(client(address, 0), conversation, "streamed"))


def conversations(count: int) -> list[list[dict]]:
    """Questions about distinct pages of every grid, and every fifth one about text alone."""
    from examples.digits.pages import COUNT, GRIDS, READ, held_out_pages
    from tools.vllm_check import user

    asked = []
    for index, page in enumerate(held_out_pages(-(-count // len(GRIDS)) * len(GRIDS))[:count]):
        if index % 5 == 4 or page.image is None:
            asked.append([user(f"{index} / 7 How many digits are there?")])
        else:
            asked.append([user(COUNT if index % 3 else READ, page.image)])
    return asked


async def send(address: str, asked: list[list[dict]], at_once: int, max_retries: int) -> list[tuple[int, str, Any]]:
    """Index of the conversation, kind of the request and its text or error, of every request."""
    openai, slots = client(address, max_retries), asyncio.Semaphore(at_once)

    async def one(index: int, kind: str) -> tuple[int, str, Any]:
        async with slots:
            try:
                return index, kind, await request(openai, asked[index], kind)
            except Exception as error:
                return index, kind, error

    # The same image is sent in several kinds of requests, in random order.
    requests = [(index, kind) for index in range(len(asked)) for kind in KINDS]
    random.Random(0).shuffle(requests)
    return await asyncio.gather(*(one(index, kind) for index, kind in requests))


def running_requests(address: str) -> float:
    """Requests that the engine still has."""
    lines = get(f"{address}/metrics").splitlines()
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0] in names)


def load(
    folder: Path, workspace: Path, requests: int, at_once: int, options: tuple[str, ...] = (), max_retries: int = 0
) -> dict[str, int]:
    """
    Sends requests to a server of its own.

    Returns:
        `dict[str, int]`: numbers of equal and other answers, of clients that left, of errors, and of requests that the
        engine still had a minute after the last answer.
    """
    from transformers import AutoProcessor

    from tools.vllm_check import ask_transformers

    asked = conversations(-(-requests // len(KINDS)))
    processor = AutoProcessor.from_pretrained(folder)
    expected = [
        processor.decode(one["answer"], skip_special_tokens=True)
        for one in ask_transformers(folder, [(conversation, {}) for conversation in asked])
    ]
    counts: Counter = Counter()
    with server(folder, workspace / "load.log", *options) as address:
        began = time.monotonic()
        for index, kind, text in asyncio.run(send(address, asked, at_once, max_retries)):
            if isinstance(text, Exception):
                counts["errors"] += 1
                print(f"  {kind}: {type(text).__name__}: {text}"[:300])
            elif kind == "left":
                counts["left"] += 1
            else:
                counts["equal" if text == expected[index] else "other"] += 1
        counts["seconds"] = round(time.monotonic() - began)
        give_up = time.monotonic() + 60
        while (running := running_requests(address)) and time.monotonic() < give_up:
            time.sleep(1)
        counts["still running"] = round(running)
        counts["status 500"] = (workspace / "load.log").read_text(errors="replace").count('" 500 Internal')
    return dict(counts)


def is_complete(counts: dict[str, int]) -> bool:
    """Whether no answer was lost or other than that of `generate`."""
    return not any(counts.get(name) for name in ("other", "errors", "still running"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300, metavar="N", help="requests, by default 300")
    parser.add_argument("--at-once", type=int, default=32, metavar="N", help="requests at a time, by default 32")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    folder = ROOT / "examples" / "digits" / "model"
    passed = True
    with tempfile.TemporaryDirectory() as temporary:
        runs = (((), 5), (("--mm-processor-cache-gb", "0"), 0), (("--data-parallel-size", "2"), 5))
        for options, retries in runs:
            counts = load(folder, Path(temporary), args.requests, args.at_once, options, retries)
            name = " ".join(options) or "default options"
            print(f"{name}, up to {retries} retries, {args.at_once} at once: {counts}", flush=True)
            passed &= is_complete(counts)
    print("No answer was lost or other than that of generate" if passed else "Answers were lost or others")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
