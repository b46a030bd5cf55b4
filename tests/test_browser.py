# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The web page of examples/browser: what it computes in Node.js, and the page itself in Chromium."""

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from helpers import LAYOUTS, encode_image, make_image, user
from transformers import AutoProcessor

from examples.browser.build import PACKAGES, PACKAGES_FOLDER, archive, build_page, settings, write_model
from examples.digits.evaluate import MODEL
from examples.digits.pages import QUESTIONS, held_out_pages
from jvlm.conversion_scripts.answer_script import write_answer_script
from jvlm.runtimes.manifest import COMPONENTS, Manifest


PAGE = Path(__file__).parents[1] / "examples" / "browser" / "page"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ARCHIVES = [PACKAGES_FOLDER / archive(package, version) for package, (version, *_) in PACKAGES.items()]
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed.")
needs_packages = pytest.mark.skipif(
    not all(path.is_file() for path in ARCHIVES),
    reason="The npm packages are missing; examples.browser.build gets them.",
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed.")


@pytest.fixture
def export(tmp_path):
    """A function (**image processor settings) that writes an export of the shipped model with empty graphs."""

    def write(dtype: str = "float32", **image_settings) -> Path:
        folder = tmp_path / "export"
        shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.png", "samples"))
        processor = AutoProcessor.from_pretrained(MODEL)
        for name, value in image_settings.items():
            setattr(processor.image_processor, name, value)
        processor.save_pretrained(folder)
        write_answer_script(processor, folder)
        graphs = {name: f"{name}.onnx" for name in COMPONENTS}
        for file in graphs.values():
            (folder / file).touch()
        Manifest("onnx", dtype, None, graphs, "", 20, {}, {}).write(folder)
        return folder

    return write


def run_node(code: str, **values):
    """What `code`, the body of a function, returns in Node.js. It can use the exports of answerer.js."""
    names = "{ prepareImage, promptTokens }"
    script = f"""
      import {names} from "{(PAGE / "answerer.js").as_uri()}";
      import {{ readFileSync }} from "node:fs";
      const {{ {", ".join(values)} }} = JSON.parse(readFileSync(0, "utf8"));
      const main = async () => {{ {code} }};
      console.log(JSON.stringify(await main()));
    """
    command = ["node", "--input-type=module", "--eval", script]
    return json.loads(
        subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, check=True).stdout
    )


@needs_node
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pixels_are_those_of_the_processor(export, layout):
    folder = export(layout=layout, pooled_grid=None)
    processor = AutoProcessor.from_pretrained(folder)
    rng = np.random.default_rng(0)
    # Noise of sizes of which many pixels lie half-way between two integers, so that the last bit counts.
    halfway = 3 * [(136, 126), (98, 256), (242, 140)]
    sizes = [(1, 12), (12, 1), (16, 16), (50, 52), (56, 56), (10, 150), (64, 300), *halfway]
    arrays = [rng.integers(0, 256, (*size, 4), dtype=np.uint8) for size in sizes]
    images = [
        {"data": base64.b64encode(array).decode(), "height": len(array), "width": len(array[0])} for array in arrays
    ]
    code = """
      return images.map(({ data, height, width }) => {
        const { grid, pixels } = prepareImage({ data: Buffer.from(data, "base64"), height, width }, settings);
        return [grid.grid, Buffer.from(pixels.buffer).toString("base64")];
      });
    """
    found = run_node(code, images=images, settings=settings(folder))
    for array, (grid, pixels) in zip(arrays, found, strict=True):
        expected = processor.image_processor(images=PIL.Image.fromarray(array), return_tensors="np")
        assert grid == expected["image_grids"][0].tolist()
        assert np.array_equal(np.frombuffer(base64.b64decode(pixels), np.float32), expected["pixel_values"].ravel())


@needs_node
@needs_packages
@pytest.mark.parametrize("layout", LAYOUTS)
def test_prompts_are_those_of_the_processor(export, layout, tmp_path):
    folder = export(layout=layout, pooled_grid=None)
    build_page(tmp_path / "page", folder)
    processor = AutoProcessor.from_pretrained(folder)
    image = make_image(90, 130)
    questions = [
        *QUESTIONS,
        " It's  a\ttab\n\nand 123,4!",
        "Größe? 数字はいくつ? 👍🏽 e\u0301",
        "a <|im_end|> b",
        "don't <im> '",
    ]
    content = settings(folder)
    grid = processor.image_processor(images=image)["image_grids"][0].tolist()
    code = """
      const { Tokenizer } = await import(url);
      const own = new Tokenizer(...tokenizer);
      const options = { skip_special_tokens: true, clean_up_tokenization_spaces: false };
      return questions.map((question) => {
        const ids = promptTokens(question, grid, own, content);
        return [ids, own.decode(ids, options)];
      });
    """
    found = run_node(
        code,
        questions=questions,
        content=content,
        grid=next(each for each in content["grids"] if each["grid"] == grid),
        url=(tmp_path / "page" / "packages" / "tokenizers.js").as_uri(),
        tokenizer=[json.loads((folder / name).read_text()) for name in ("tokenizer.json", "tokenizer_config.json")],
    )
    for question, (ids, text) in zip(questions, found, strict=True):
        prompt = processor.apply_chat_template([user(image, question)], add_generation_prompt=True)
        expected = processor(images=image, text=prompt)["input_ids"][0]
        assert ids == expected
        assert text == processor.tokenizer.decode(expected, skip_special_tokens=True)


def test_settings_and_files_of_the_page(export, tmp_path):
    (tmp_path / "page").mkdir()
    write_model(export(), tmp_path / "page", MODEL / "samples")
    content = json.loads((tmp_path / "page" / "model" / "settings.json").read_text())
    files = [path.relative_to(tmp_path / "page").as_posix() for path in tmp_path.glob("page/model/*")]
    assert set(content["sizes"]) == set(files) - {"model/settings.json", "model/samples"}
    first, *_, last = content["grids"]
    assert (first["grid"], first["num_encoded"], len(first["cell_indices"])) == ([1, 1], 1, 24)
    assert (last["grid"], last["num_encoded"], len(last["cell_indices"])) == ([12, 1], 13, 156)
    assert content["samples"][0]["answer"] == "4 4"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"dtype": "float16"}, "computes in float16; export it with `--dtype float32`"),
        ({"antialias": True}, "has no answer.json"),
        ({"do_resize": True}, "has no code for `do_resize`"),
        ({"max_image_tokens": 48}, "has no answer.json"),
    ],
)
def test_exports_that_the_page_cannot_run(export, tmp_path, monkeypatch, arguments, text):
    monkeypatch.setattr("examples.browser.build.PACKAGES", {})
    with pytest.raises(ValueError, match=re.escape(text)):
        build_page(tmp_path / "page", export(**arguments))
    assert not (tmp_path / "page").exists()


def test_packages_that_are_missing_or_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr("examples.browser.build.shutil.which", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"onnxruntime-web-.*\.tgz, and no npm to download it"):
        build_page(tmp_path / "page", packages=tmp_path)
    (tmp_path / ARCHIVES[0].name).write_bytes(b"other")
    with pytest.raises(ValueError, match=r"onnxruntime-web-.*\.tgz is damaged: its digest is sha512-"):
        build_page(tmp_path / "page", packages=tmp_path)
    assert not (tmp_path / "page").exists()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of the shipped model. Tests must not modify it."""
    pytest.importorskip("onnxscript")
    return build_page(tmp_path_factory.mktemp("browser") / "page")


@pytest.fixture
def browser():
    """The functions that use the page in Chromium."""
    pytest.importorskip("playwright", reason="Playwright is not installed (extra `page-test`).")
    from examples.browser import check

    return check


@needs_packages
@needs_chromium
def test_page_answers_as_pytorch(browser, page):
    found, differing = browser.check(page, 3)
    assert differing == []
    assert (found["same"], found["difference"]) == (15, 0)


@needs_packages
@needs_chromium
def test_the_page_itself(browser, page):
    image = held_out_pages(12)[-1].image
    transparent = image.convert("RGBA")
    transparent.putalpha(PIL.Image.linear_gradient("L").resize(image.size))
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    deep = PIL.Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    files = [encode_image(each) for each in (image.convert("P"), image.convert("LA"), transparent, deep)]
    files += [encode_image(image, "JPEG", exif=turned), encode_image(image.convert("CMYK"), "JPEG")]
    processor = AutoProcessor.from_pretrained(MODEL)
    with browser.served(page) as url, browser.opened(url) as view:
        browser.wait_until_ready(view)
        for file in files:
            expected = processor.image_processor(images=processor.image_processor.fetch_images(file))["pixel_values"]
            assert np.array_equal(browser.page_pixels(view, file), np.ravel(expected))
        text = view.locator("#answers li .answer").first

        def ask(question: str, answer: str) -> None:
            view.locator("#question").fill(question)
            view.locator("#ask").click()
            browser.expect(text).to_have_text(answer)

        ask("Who?", "Choose an image first.")
        # A sample brings its question. The answer streams in.
        view.get_by_role("button", name="Sample page-2x2.png").press("Enter")
        browser.expect(view.locator("#summary")).to_have_text(
            "page-2x2.png: 2 × 2 tiles and a thumbnail, 60 image tokens."
        )
        assert view.locator("#tiles canvas").count() == 5
        view.evaluate("""() => {
          const list = document.getElementById("answers");
          window.texts = new Set();
          new MutationObserver(() => window.texts.add(list.querySelector(".answer")?.textContent))
            .observe(list, { subtree: true, childList: true });
        }""")
        view.locator("#question").press("Enter")
        browser.expect(text).to_have_text("1 6 4 6 6")
        assert view.evaluate("[...window.texts]") == ["", "1", "1 6", "1 6 4", "1 6 4 6", "1 6 4 6 6"]
        ask("Is it <im_col>?", "The question contains <im_col>, which is reserved.")
        view.locator("#question").fill("why " * 1000)
        view.locator("#ask").click()
        browser.expect(text).to_contain_text("The question is too long: with the image it has")
        for name, content, message in (
            ("notes.png", b"text", "notes.png is not an image that this browser can read."),
            ("line.png", encode_image(make_image(1, 300)), "An image of 300×1 pixels is too narrow. Crop or pad it."),
        ):
            view.locator("#file").set_input_files({"name": name, "mimeType": "image/png", "buffer": content})
            browser.expect(view.locator("#status")).to_have_text(message)
            assert view.locator("#tiles canvas").count() == 0
        ask("Who?", "Choose an image first.")


@needs_packages
@needs_chromium
@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("model/head.onnx.data", None, "model/head.onnx.data is missing (404). Copy the whole folder of the page."),
        ("model/head.onnx.data", b"12", "model/head.onnx.data has 2 bytes instead of 196608."),
        ("packages/tokenizers.js", None, "packages/tokenizers.js could not be loaded"),
        ("worker.js", None, "worker.js or answerer.js could not be loaded."),
        (None, None, "This browser lacks WebAssembly"),
    ],
)
def test_what_the_page_says_if_it_cannot_start(browser, page, tmp_path, name, content, text):
    folder = shutil.copytree(page, tmp_path / "page")
    if content is not None:
        (folder / name).write_bytes(content)
    elif name is not None:
        (folder / name).unlink()
    script = "" if name else "delete window.WebAssembly"
    with browser.served(folder) as url, browser.opened(url, script) as view:
        browser.expect(view.locator("#status")).to_contain_text(text, timeout=60_000)
        browser.expect(view.locator("#progress")).to_be_hidden()
        browser.expect(view.locator("#ask")).to_be_disabled()
