# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The web page of `jvlm demo` in a real browser: choose an image, see its tiles, ask about it."""

import json
import os
import shutil
from pathlib import Path

import pytest

from jvlm_cli.answering import Answerer, user_message


playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (extra `page-test`).")
pytest.importorskip("gradio", reason="Gradio is not installed (extra `page`).")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed.")
SAMPLES = Path(__file__).parents[1] / "examples" / "digits" / "model" / "samples"


@pytest.fixture(scope="module")
def answerer():
    return Answerer(max_new_tokens=16)


@pytest.fixture(scope="module")
def url(answerer):
    from jvlm_cli.web_page import web_page

    blocks = web_page(answerer)
    _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True, share=False)
    yield url
    blocks.close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def view(browser, url):
    view = browser.new_page(viewport={"width": 1280, "height": 900})
    # Nothing is fetched from other hosts.
    view.route("**/*", lambda route: route.continue_() if route.request.url.startswith(url) else route.abort())
    view.goto(url)
    view.wait_for_selector("#image")
    yield view
    view.close()


def choose(view, path):
    view.locator("#image input[type=file]").set_input_files(str(path))


def ask(view, question):
    box = view.locator("#question textarea")
    box.fill(question)
    box.press("Enter")
    view.wait_for_function("document.querySelector('#seconds').innerText.includes('seconds')")
    return view.locator("#chat .bot.message").last.inner_text().strip()


def test_an_image_is_drawn_and_answered(view, answerer, tmp_path):
    sample = json.loads((SAMPLES / "samples.json").read_text())[2]
    choose(view, SAMPLES / sample["image"])
    view.wait_for_function("document.querySelector('#tokens').innerText.includes('image tokens')")
    assert "2 × 2 tiles and a thumbnail" in view.locator("#tokens").inner_text()
    view.wait_for_selector("#tiles img")
    expected = "".join(answerer.stream([user_message([str(SAMPLES / sample["image"])], sample["question"])])).strip()
    assert expected == sample["answer"]
    assert ask(view, sample["question"]) == expected
    if folder := os.environ.get("JVLM_SCREENSHOTS"):
        view.screenshot(path=Path(folder) / "web_page.png", full_page=True)


def test_fewer_tiles_give_fewer_tokens(view, answerer):
    choose(view, SAMPLES / "page-3x4.png")
    view.wait_for_function("document.querySelector('#tokens').innerText.includes('3 × 4')")
    view.locator("#max-crops input[type=number]").fill("2")
    view.locator("#max-crops input[type=number]").press("Enter")
    view.wait_for_function("document.querySelector('#tokens').innerText.includes('1 × 2')")


def test_a_broken_file_gives_a_sentence(view, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes((SAMPLES / "page-3x4.png").read_bytes()[:300])
    choose(view, path)
    message = view.locator(".toast-body").first
    message.wait_for()
    text = message.inner_text()
    assert "not an image that can be read" in text
    assert "Traceback" not in text
