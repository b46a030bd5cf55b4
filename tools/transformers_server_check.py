# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Checks that `jvlm serve`, which is `transformers serve`, answers as `generate` does. It serves a checkpoint of each
layout on the loopback interface: the digit model, and the small published checkpoint. Each line that is printed is a
cell of the table in docs/serving.md. The load is made of many clients at once, with images of several grids, without
images, with and without streaming, and of clients that disconnect.

    python -m tools.transformers_server_check --clients 120
"""

import argparse
import base64
import http.client
import io
import json
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

import PIL.Image
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, logging

import jvlm  # noqa: F401 - registers the classes
from examples.digits.pages import READ, held_out_pages


ROOT = Path(__file__).resolve().parents[1]
CHECKPOINTS = {
    "independent": ROOT / "examples" / "digits" / "model",
    "stitched": ROOT / "tests" / "fixtures" / "release_tiny" / "checkpoint",
}
MAX_NEW_TOKENS = 12


def data_url(image: PIL.Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def conversation(text: str, *images: PIL.Image.Image | None) -> list[dict]:
    """A user's message for `apply_chat_template`."""
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def request(messages: list[dict], **fields) -> dict:
    """The body of a chat request with the same message."""
    content = [
        {"type": "image_url", "image_url": {"url": data_url(part["image"])}} if part["type"] == "image" else part
        for part in messages[0]["content"]
    ]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": MAX_NEW_TOKENS, "temperature": 0}
    return {**body, **fields}


class Client:
    """Sends chat requests to a server on this machine."""

    def __init__(self, port: int):
        self.port = port

    def post(self, body: dict) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=3600)
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        return connection.getresponse()

    def ask(self, body: dict) -> str:
        """The whole answer, also of a stream; the status and the text of an error."""
        response = self.post(body)
        text = response.read().decode()
        if response.status != 200:
            return f"{response.status} {text}"
        if not body.get("stream"):
            return json.loads(text)["choices"][0]["message"]["content"]
        chunks = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: {")]
        return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)

    def choices(self, body: dict) -> list[dict]:
        """The choices of an answer that is not streamed."""
        return json.loads(self.post(body).read())["choices"]

    def usage(self, body: dict) -> dict:
        """The numbers of tokens that the server counted."""
        return json.loads(self.post(body).read())["usage"]

    def leave(self, body: dict) -> None:
        """Disconnects after the first bytes of a stream."""
        response = self.post({**body, "stream": True})
        response.read(1)
        response.close()


@contextmanager
def served(folder: Path) -> Iterator[Client]:
    """A server of the checkpoint, in a thread of this process."""
    from transformers.cli.serve import Serve

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Serve(force_model=str(folder), dtype="float32", device="cpu", port=port, non_blocking=True)
    logging.set_verbosity_error()
    try:
        for _ in range(600):
            if server.server.started:
                break
            time.sleep(0.1)
        else:
            raise OSError(f"The server of {folder} did not start within a minute.")
        yield Client(port)
    finally:
        server.kill_server()


def answerer(folder: Path) -> Callable[[list[dict]], str]:
    """A function (messages) that answers with `generate`."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").eval()
    processor = AutoProcessor.from_pretrained(folder)

    def answer(messages: list[dict]) -> str:
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        output = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    return answer


def save_adapter(folder: Path, output: Path) -> None:
    """Saves a checkpoint with a LoRA adapter beside it; the server needs the files of the model in the same folder."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
    targets = r".*language_model.*\.(q_proj|down_proj)"
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    shutil.copytree(folder, output, dirs_exist_ok=True)
    adapted.save_pretrained(str(output))


def check(layout: str, num_clients: int) -> bool:
    """Prints the cells of a layout. Returns whether all are right."""
    folder = CHECKPOINTS[layout]
    pages = [page.image for page in held_out_pages(12)]
    chats = [conversation(READ, page) for page in pages[::2]]
    chats += [conversation("Well?"), conversation("Which page has more digits?", *pages[1:4:2])]
    answer = answerer(folder)
    expected = [answer(messages) for messages in chats]
    requests = [request(messages) for messages in chats]
    is_right = True

    def report(cell: str, found: list[str], wanted: list[str]) -> None:
        nonlocal is_right
        # A stream leaves out incomplete characters, which random weights write. Whole answers have U+FFFD for them.
        equal = sum(a.replace("\ufffd", "") == b.replace("\ufffd", "") for a, b in zip(found, wanted, strict=True))
        is_right &= equal == len(wanted)
        print(f"{layout:12} {cell:16} {equal} of {len(wanted)} equal to generate", flush=True)

    with served(folder) as client:
        report("plain", [client.ask(body) for body in requests], expected)
        report("streaming", [client.ask({**body, "stream": True}) for body in requests], expected)
        many = conversation(READ, *pages[:13], pages[0])
        report("14 images", [client.ask(request(many))], [answer(many)])
        long = conversation("7 " * 3000)
        report("over-long prompt", [client.ask(request(long))], [answer(long)])

        load = [
            {**body, "stream": number % 3 == 0} for number, body in enumerate(islice(cycle(requests), num_clients))
        ]
        with ThreadPoolExecutor(num_clients + num_clients // 10) as pool:
            leaving = [pool.submit(client.leave, body) for body in load[: num_clients // 10]]
            found = list(pool.map(client.ask, load))
            for future in leaving:
                future.result()
        report(f"{num_clients} at once", found, list(islice(cycle(expected), num_clients)))

    with tempfile.TemporaryDirectory() as temporary:
        save_adapter(folder, Path(temporary))
        adapted = list(map(answerer(Path(temporary)), chats))
        with served(Path(temporary)) as client:
            report("LoRA", [client.ask(body) for body in requests], adapted)
        if adapted == expected:
            raise RuntimeError("The adapter changed no answer, so this cell says nothing.")
    return is_right


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=120, help="requests at once, default: %(default)s")
    parser.add_argument("--layouts", nargs="+", choices=CHECKPOINTS, default=list(CHECKPOINTS))
    args = parser.parse_args(argv)
    results = [check(layout, args.clients) for layout in args.layouts]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
