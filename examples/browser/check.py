# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Asks the web page, in headless Chromium, questions about held-out pages of the shipped model, and compares its pixels
and its greedy tokens with those of PyTorch.

    python -m examples.browser.check [--pages 360] [--page DIR]

It needs Playwright (`pip install playwright`) and an installed Chromium or Google Chrome.
"""

import argparse
import base64
import io
import shutil
import statistics
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import PIL.Image
from playwright.sync_api import Page, expect, sync_playwright
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from benchmarks.runtimes import answers
from examples.digits.evaluate import MODEL, rows_of
from examples.digits.pages import GRIDS, held_out_pages

from .build import build_page


_PIXELS = """async (base64) => {
  const { decodeImage, prepareImage } = await import("./answerer.js");
  const settings = await (await fetch("model/settings.json")).json();
  const file = new Blob([Uint8Array.from(atob(base64), (character) => character.charCodeAt(0))]);
  const bytes = new Uint8Array(prepareImage(await decodeImage(file), settings).pixels.buffer);
  return btoa(bytes.reduce((text, byte) => text + String.fromCharCode(byte), ""));
}"""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The URL of a folder, served on this computer."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextmanager
def opened(url: str, script: str = "") -> Iterator[Page]:
    """
    A page in headless Chromium, after a script. Raises RuntimeError at the end if it asked other servers, or if its
    code failed.
    """
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise FileNotFoundError("There is no Chromium; install `chromium` or Google Chrome.")
    problems: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        view = browser.new_page()
        view.on("request", lambda request: request.url.startswith((url, "data:")) or problems.append(request.url))
        view.on("pageerror", lambda error: problems.append(str(error)))
        view.add_init_script(script)
        view.goto(url)
        yield view
        browser.close()
    if problems:
        raise RuntimeError(f"The page asked other servers, or failed: {problems}.")


def wait_until_ready(view: Page) -> None:
    expect(view.locator("#status")).to_contain_text("Ready", timeout=60_000)


def choose(view: Page, content: bytes, name: str = "page.png") -> None:
    """Chooses an image file and waits until its tiles are drawn."""
    view.locator("#file").set_input_files({"name": name, "mimeType": "image/png", "buffer": content})
    expect(view.locator("#summary")).to_contain_text(f"{name}: ")


def ask(view: Page, question: str) -> tuple[list[int], float, float]:
    """The tokens of the answer to a question, and the seconds until the first and until the last one."""
    view.locator("#question").fill(question)
    view.locator("#question").press("Enter")
    item = view.locator("#answers li").first
    item.and_(view.locator("[aria-busy=false]")).wait_for()
    found = item.evaluate("item => ({...item.dataset})")
    return [int(token) for token in found["tokens"].split()], float(found["first"]), float(found["seconds"])


def page_pixels(view: Page, content: bytes) -> np.ndarray:
    """The pixels that the page makes of an image file, flat."""
    return np.frombuffer(base64.b64decode(view.evaluate(_PIXELS, base64.b64encode(content).decode())), np.float32)


def png(image: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def check(folder: Path, num_pages: int) -> tuple[dict[str, float], list[str]]:
    """Compares the page in a folder with PyTorch. Returns counts and seconds, and what the answers are that differ."""
    rows = rows_of(held_out_pages(num_pages))
    processor = AutoProcessor.from_pretrained(MODEL)
    expected = answers(AutoModelForImageTextToText.from_pretrained(MODEL, dtype="float32"), processor, rows)
    difference, same, right, differing = 0.0, 0, 0, []
    first_seconds, further_seconds = [], []
    image = None
    with served(folder) as url, opened(url) as view:
        wait_until_ready(view)
        for index, (page, question) in enumerate(logging.tqdm(rows, desc="Questions to the page", unit="question")):
            is_new = page.image is not image
            if is_new:
                image, content = page.image, png(page.image)
                choose(view, content, f"page-{index}.png")
                pixels = processor.image_processor(images=image, return_tensors="np")["pixel_values"]
                difference = max(difference, float(abs(page_pixels(view, content) - pixels.ravel()).max()))
            tokens, first, seconds = ask(view, question)
            if is_new:
                first_seconds.append(first)
                further_seconds.append((seconds - first) / max(1, len(tokens)))  # the last one ends the answer
            right += processor.decode(tokens, skip_special_tokens=True).strip() == page.answer(question)
            same += tokens == expected[index]
            if tokens != expected[index]:
                differing.append(f"{page.grid}, {question} {tokens} instead of {expected[index]}")
    counts = {"pages": num_pages, "questions": len(rows), "same": same, "right": right, "difference": difference}
    first, further = statistics.median(first_seconds), statistics.median(further_seconds)
    return {**counts, "first": first, "further": further}, differing


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=360, help="number of held-out pages")
    parser.add_argument("--page", type=Path, metavar="DIR", help="a folder of examples.browser; built by default")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        found, differing = check(args.page or build_page(Path(temporary) / "page"), args.pages)
    print(
        f"{found['pages']} held-out pages, {len(GRIDS)} grids\n"
        f"tokens as PyTorch's: {found['same']} of {found['questions']}\n"
        f"right answers: {found['right']} of {found['questions']}\n"
        f"largest difference of pixel values: {found['difference']:g}\n"
        f"seconds, median: {found['first']:.3f} to the first token about a new image, {found['further']:.4f} for each "
        "further one"
    )
    if differing:
        raise SystemExit("\n".join(differing))


if __name__ == "__main__":
    main()
