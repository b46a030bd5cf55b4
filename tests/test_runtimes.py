# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Exports to other runtimes: they answer as PyTorch does, and what is wrong with a folder is an error."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from helpers import CACHE, LAYOUTS, assistant, chat_inputs, make_image, user
from transformers import AutoModelForImageTextToText, AutoProcessor, TextStreamer, pipeline

from examples.digits.evaluate import MODEL
from examples.digits.pages import QUESTIONS, held_out_pages
from jvlm.conversion_scripts.answer_script import write_answer_script
from jvlm.conversion_scripts.export_runtime import export_runtime
from jvlm.conversion_scripts.verify import verify
from jvlm.runtimes import JinaVLMRuntimeModel, read_manifest
from jvlm.runtimes.digests import digest
from jvlm.runtimes.runtime_model import _Connector
from jvlm_cli.main import main


ROOT = Path(__file__).parent.parent
GREEDY = {"do_sample": False, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def digits_onnx(tmp_path_factory) -> Path:
    """The shipped model, exported for ONNX Runtime. Tests must not modify it."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    return export_runtime(MODEL, "onnx", tmp_path_factory.mktemp("onnx") / "digits")


@pytest.fixture(scope="module")
def digits():
    return AutoModelForImageTextToText.from_pretrained(MODEL, dtype="float32"), AutoProcessor.from_pretrained(MODEL)


@pytest.fixture
def copy(digits_onnx, tmp_path) -> Path:
    return shutil.copytree(digits_onnx, tmp_path / "copy")


def assert_same_answers(exported, model, processor, conversations: list):
    """Logits, greedy, beam and sampled tokens of a left-padded batch are equal."""
    processor.tokenizer.padding_side = "left"
    inputs = chat_inputs(processor, conversations, processor_kwargs={"padding": True})
    is_token = inputs["attention_mask"].bool()
    with torch.no_grad():
        logits, expected = (each(**inputs).logits[is_token] for each in (exported, model))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    for settings in ({}, {"num_beams": 3}, {"do_sample": True, "temperature": 2.0}):
        answers = []
        for each in (exported, model):
            torch.manual_seed(0)
            answers.append(each.generate(**inputs, **{**GREEDY, **settings}))
        assert torch.equal(*answers), settings


def test_onnx_answers_as_pytorch(digits_onnx, digits, capsys):
    exported, (model, processor) = JinaVLMRuntimeModel.from_pretrained(digits_onnx), digits
    pages = {page.grid: page.image for page in held_out_pages(12)}
    conversations = [[user(pages[3, 4], QUESTIONS[0])], [user(pages[1, 1], pages[2, 2], QUESTIONS[1])], [user("Hi")]]
    assert_same_answers(exported, model, processor, conversations)
    text = pipeline("image-text-to-text", model=exported, processor=processor)(
        conversations[0], return_full_text=False, generate_kwargs=dict(GREEDY)
    )[0]["generated_text"]
    inputs = chat_inputs(processor, conversations[0])
    exported.generate(**inputs, **GREEDY, streamer=TextStreamer(processor, skip_prompt=True, skip_special_tokens=True))
    assert capsys.readouterr().out.strip() == text.strip() != ""


@pytest.mark.parametrize(("layout", "runtime"), [("stitched", "torch"), ("independent", "openvino")])
def test_runtimes_answer_as_pytorch(build_model, build_processor, tmp_path, layout, runtime):
    if runtime == "openvino":
        pytest.importorskip("openvino")
    model, processor = build_model(layout), build_processor(layout)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "checkpoint")
    exported = JinaVLMRuntimeModel.from_pretrained(
        export_runtime(tmp_path / "checkpoint", runtime, tmp_path / "exported"), runtime
    )
    black = PIL.Image.new("RGB", (90, 60))
    conversations = [[user(make_image(90, 200), "Who?")], [user(make_image(40, 40), black, "Which?")], [user("Well?")]]
    assert_same_answers(exported, model, processor, conversations)


def test_command_asks_an_export(digits_onnx, digits, tmp_path, capsys):
    image = held_out_pages(12)[-1].image
    image.save(tmp_path / "page.png")
    command = ["ask", str(tmp_path / "page.png"), QUESTIONS[0], "--model"]
    answers = []
    for model in (digits_onnx, MODEL):
        assert main([*command, str(model)]) is None
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != ""
    with pytest.raises(SystemExit):
        main([*command, str(digits_onnx), "--dtype", "bfloat16"])
    assert "was exported for the CPU in float32; leave out --device and --dtype." in capsys.readouterr().err


def test_second_question_reuses_the_features(digits_onnx, digits, monkeypatch):
    exported, (model, processor) = JinaVLMRuntimeModel.from_pretrained(digits_onnx), digits
    tower, encoded = exported.model.vision_tower, []
    session = tower.session
    monkeypatch.setattr(tower, "session", lambda tiles: encoded.append(len(tiles)) or session(tiles))
    image = held_out_pages(12)[-1].image
    for question in QUESTIONS[:2]:
        inputs = chat_inputs(processor, [user(image, question)])
        assert torch.equal(exported.generate(**inputs, **GREEDY), model.generate(**inputs, **GREEDY))
    assert len(encoded) == 1
    # A further turn of the chat goes on from the cache.
    first = chat_inputs(processor, [user(image, QUESTIONS[0])])
    output = exported.generate(**first, **GREEDY, return_dict_in_generate=True)
    answer = processor.decode(output.sequences[0, first["input_ids"].shape[1] :], skip_special_tokens=True)
    chat = chat_inputs(processor, [user(image, QUESTIONS[0]), assistant(answer.strip()), user(QUESTIONS[1])])
    assert torch.equal(exported.generate(**chat, **GREEDY, **{CACHE: output[CACHE]}), model.generate(**chat, **GREEDY))


def test_number_of_threads(digits_onnx):
    with pytest.raises(ValueError, match="`num_threads` must be at least 1, got 0"):
        JinaVLMRuntimeModel.from_pretrained(digits_onnx, num_threads=0)


def test_what_a_runtime_lacks_is_an_error(digits_onnx, digits):
    exported, inputs = JinaVLMRuntimeModel.from_pretrained(digits_onnx), chat_inputs(digits[1], [user("Hi")])
    with pytest.raises(ValueError, match="`output_attentions` is not available: the graphs of onnx"):
        exported(**inputs, output_attentions=True)
    with pytest.raises(ValueError, match="StaticCache, but an exported model works with a DynamicCache"):
        exported.generate(**inputs, **GREEDY, cache_implementation="static")
    with pytest.raises(ValueError, match="cannot be saved; copy its folder"):
        exported.save_pretrained("elsewhere")
    dropped = {"drop_uniform_cells": True, "drop_uniform_patches": True}
    page = digits[1](images=held_out_pages(12)[-1].image, text="<|image|>", return_tensors="pt", **dropped)
    with pytest.raises(ValueError, match="The graph encodes whole tiles; leave out `drop_uniform_patches`"):
        exported(**page)


def test_connector_of_programs_with_limited_memory():
    connector = _Connector(lambda features, cells, is_last: [cells[:, None] * features[0, 0] + is_last[:, None]], 4)
    cells, features = torch.arange(10), torch.ones(2, 3, 5)
    expected = (cells + (cells > 5))[:, None].expand(10, 5)
    assert torch.equal(connector(features, cells, cells > 5), expected)


def test_wrong_folders(copy, digits_onnx, monkeypatch):
    load = JinaVLMRuntimeModel.from_pretrained
    with pytest.raises(FileNotFoundError, match=r"has no runtime.json, so it is no export"):
        load(MODEL)
    with pytest.raises(ValueError, match="was exported for onnx, not for openvino"):
        load(copy, runtime="openvino")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        ImportError, match=r"needs the package onnxruntime; install it with `pip install 'jvlm\[onnx\]'"
    ):
        load(copy)
    monkeypatch.undo()

    weights = copy / "head.onnx.data"
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged or of another export: head.onnx.data\."):
        load(copy)
    weights.unlink()
    with pytest.raises(ValueError, match=r"lacks head.onnx.data\. Check that the copy is complete"):
        load(copy)

    manifest = json.loads((digits_onnx / "runtime.json").read_text())
    for change, text in (
        ({"format": 2}, "has the format 2, but this version of jvlm reads 1"),
        ({"runtime": "tflite"}, "does not name a known runtime"),
        ({"graphs": None}, "is damaged"),
        ({"speed": 1}, "unexpected keyword argument 'speed'"),
    ):
        (copy / "runtime.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(ValueError, match=text):
            load(copy)


def test_opset_that_the_runtime_does_not_know(copy):
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(copy / "head.onnx", load_external_data=False)
    graph.opset_import[0].version = 999
    onnx.save(graph, copy / "head.onnx")
    manifest = json.loads((copy / "runtime.json").read_text())
    manifest["files"]["head.onnx"] = digest(copy / "head.onnx")
    (copy / "runtime.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"head\.onnx cannot be loaded by onnxruntime .*opset"):
        JinaVLMRuntimeModel.from_pretrained(copy)


def test_digest_of_a_large_file_depends_on_its_end(tmp_path):
    path, content = tmp_path / "weights", bytearray(2**24 + 12345)
    digests = set()
    for place in (None, 0, -1):
        if place is not None:
            content[place] = 1
        path.write_bytes(content)
        digests.add(digest(path))
    assert len(digests) == 3


def test_what_the_script_cannot_load_is_one_sentence(copy):
    onnx = pytest.importorskip("onnx")
    path = copy / "head.onnx.data"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    command = [sys.executable, copy / "answer.py", "Hi"]
    damaged = subprocess.run(command, capture_output=True, text=True, check=False)
    assert damaged.returncode == 1
    assert f"{path} is damaged or of another export. Copy the whole folder again." in damaged.stderr
    assert "Traceback" not in damaged.stderr

    graph = onnx.load(copy / "vision.onnx", load_external_data=False)
    graph.opset_import[0].version = 999
    onnx.save(graph, copy / "vision.onnx")
    manifest = json.loads((copy / "runtime.json").read_text())
    for name in ("vision.onnx", path.name):
        manifest["files"][name] = digest(copy / name)
    (copy / "runtime.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"vision\.onnx cannot be loaded by onnxruntime .*opset"):
        load_script(copy).Answerer(copy)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"runtime": "tflite"}, "`runtime` must be one of onnx, openvino, torch, executorch, got 'tflite'"),
        (
            {"runtime": "onnx", "dtype": "bfloat16"},
            "onnx cannot compute in bfloat16 on CPUs; choose float32 or float16",
        ),
        ({"runtime": "torch", "weights": "int8"}, "`weights` can be int8 or int4 for onnx and openvino, got 'int8'"),
    ],
)
def test_wrong_exports(tmp_path, arguments, text):
    with pytest.raises(ValueError, match=text):
        export_runtime(MODEL, output=tmp_path / "exported", **arguments)


def test_whole_tiles_alone_are_exported(build_model, build_processor, tmp_path):
    for part in (build_model(), build_processor(drop_uniform_cells=True, drop_uniform_patches=True)):
        part.save_pretrained(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="the image processor has `drop_uniform_patches=True`"):
        export_runtime(tmp_path / "checkpoint", "torch", tmp_path / "exported")


def test_executorch_reserves_memory_for_all_tokens(build_model, build_processor, tmp_path, monkeypatch):
    monkeypatch.setattr("jvlm.conversion_scripts.export_runtime.find_spec", lambda name: True)
    model = build_model("independent")
    model.config.text_config.max_position_embeddings = 40960
    for part in (model, build_processor("independent")):
        part.save_pretrained(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="`max_position_embeddings` = 40960 tokens, 54 GB for their attention mask"):
        export_runtime(tmp_path / "checkpoint", "executorch", tmp_path / "exported")


def test_export_needs_packages_and_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("jvlm.conversion_scripts.export_runtime.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"needs onnx, onnxruntime, onnxscript; install with `pip install 'jvlm\[onnx\]'"
    ):
        export_runtime(MODEL, "onnx", tmp_path / "exported")
    with pytest.raises(FileExistsError, match="exists already"):
        export_runtime(MODEL, "torch", tmp_path)


def test_verify_names_the_first_stage(copy, digits_onnx):
    page = held_out_pages(12)[-1].image
    assert [stage.name for stage in verify(MODEL, digits_onnx, "float32", [page]) if not stage.is_equal] == []
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").write_text(template.replace("' Assistant:'", "'Assistant:'"))
    stages = verify(MODEL, copy, "float32", [page])
    assert next(stage.name for stage in stages if not stage.is_equal) == "prompt tokens"
    with pytest.raises(ValueError, match="was exported in float32, not in float16"):
        verify(digits_onnx, digits_onnx, "float16")


def load_script(folder: Path):
    """The module `answer.py` of a folder, with the modules beside it."""
    sys.path.insert(0, str(folder))
    try:
        for name in ("digests", "geometry"):
            sys.modules.pop(name, None)
        spec = importlib.util.spec_from_file_location("answer", folder / "answer.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(folder))


def images() -> list[PIL.Image.Image]:
    """Images of many sizes, also noise, which shows differences of rounding, and of other modes."""
    rng = np.random.default_rng(0)
    sizes = [(1, 12), (12, 1), (50, 52), (56, 56), (96, 56), (130, 90), (211, 97), (64, 64), (900, 700)]
    noise = [PIL.Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    palette, transparent = noise[5].convert("P"), noise[6].convert("RGBA")
    transparent.putalpha(noise[6].convert("L"))
    deep = PIL.Image.fromarray(np.asarray(noise[4].convert("L")).astype(np.uint16) * 257)
    return [
        *noise,
        palette,
        transparent,
        deep,
        noise[5].convert("1"),
        noise[5].convert("LA"),
        noise[5].convert("CMYK"),
    ]


@pytest.mark.parametrize("layout", [*LAYOUTS, "published"])
def test_pixels_and_prompts_of_the_script_are_those_of_the_processor(
    digits_onnx, build_processor, released_processor, tmp_path, monkeypatch, layout
):
    processor = released_processor
    if layout != "published":
        processor = build_processor(layout, add_bos_token=layout == "stitched")
    folder = shutil.copytree(digits_onnx, tmp_path / "folder")  # the graphs are not run
    processor.save_pretrained(folder)
    write_answer_script(processor, folder)
    answerer = load_script(folder).Answerer(folder)
    for image in images():
        inputs = chat_inputs(processor, [user(image, "Which digits?")], return_tensors="np")
        pixels, grid = answerer.pixels(image)
        assert np.array_equal(pixels, inputs["pixel_values"]), image
        assert answerer.token_ids([grid], "Which digits?") == inputs["input_ids"][0].tolist()
    for count in (0, 2):
        inputs = chat_inputs(processor, [user(*count * [image], "Hi")], return_tensors="np")
        assert answerer.token_ids(count * [grid], "Hi") == inputs["input_ids"][0].tolist()


def test_processors_that_the_script_does_not_know(build_processor, tmp_path, caplog):
    for processor, text in (
        (build_processor(antialias=True), "it resizes 8-bit images bilinearly"),
        (build_processor(do_normalize=False), "it rescales, normalizes and converts"),
        (build_processor(drop_uniform_cells=True), "it gives image tokens to all cells"),
        (build_processor(max_image_tokens=100), "it gives image tokens to all cells"),
    ):
        write_answer_script(processor, tmp_path)
        assert text in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_script_answers_without_torch_and_transformers(digits_onnx, digits, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    packages = ["onnxruntime", "tokenizers", "numpy", "pillow"]
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "-c", ROOT / "constraints.txt"]
    installed = subprocess.run([*pip, *packages], capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"The packages cannot be installed: {installed.stderr.strip().splitlines()[-1]}")
    absent = "import importlib.util; print([importlib.util.find_spec(n) for n in ('torch', 'transformers', 'jvlm')])"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run([python, "-c", absent], capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.strip() == "[None, None, None]"
    model, processor = digits
    pages = {page.grid: page.image for page in held_out_pages(12)}
    for grid, question in zip([(1, 1), (2, 2), (3, 4)], QUESTIONS, strict=False):
        pages[grid].save(tmp_path / "page.png")
        answer = subprocess.run(
            [python, digits_onnx / "answer.py", tmp_path / "page.png", question],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env=environment,
        ).stdout.strip()
        inputs = chat_inputs(processor, [user(pages[grid], question)])
        expected = model.generate(**inputs, do_sample=False, max_new_tokens=64)[0, inputs["input_ids"].shape[1] :]
        assert answer == processor.decode(expected, skip_special_tokens=True).strip()


def test_wrong_arguments_of_the_script_are_one_sentence(digits_onnx, tmp_path):
    (tmp_path / "damaged.png").write_bytes(b"no image")
    for argv, message in (
        (["missing.png", "Why?"], "No such file or directory: 'missing.png'"),
        (["damaged.png", "Why?"], "cannot identify image file"),
        (["damaged.png"], "damaged.png is a file; ask a question about it."),
    ):
        command = [sys.executable, digits_onnx / "answer.py", *argv]
        finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert finished.returncode != 0
        assert message in finished.stderr
        assert "Traceback" not in finished.stderr


def test_quantized_weights_are_exported_quietly(tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    argv = ["export-runtime", "--checkpoint", str(MODEL), "--runtime", "onnx", "--weights", "int8"]
    command = [sys.executable, "-m", "jvlm", *argv, "--output", tmp_path / "int8"]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "INFO" not in finished.stderr
    assert read_manifest(tmp_path / "int8").weights == "int8"


def test_weights_are_stored_as_they_are_multiplied(digits_onnx):
    """Otherwise every start of the runtime would transpose them."""
    onnx = pytest.importorskip("onnx")
    for path in digits_onnx.glob("*.onnx"):
        graph = onnx.load(path, load_external_data=False).graph
        weights = {weight.name for weight in graph.initializer}
        assert not [node.name for node in graph.node if node.op_type == "Transpose" and node.input[0] in weights]


def test_manifest(digits_onnx):
    manifest = read_manifest(digits_onnx)
    assert (manifest.runtime, manifest.dtype, manifest.weights, manifest.opset) == ("onnx", "float32", None, 20)
    assert {"jvlm", "torch", "transformers", "onnx"} <= set(manifest.versions)
    # Weights are written once, whether tokens are new or from the cache.
    num_bytes = sum(path.stat().st_size for path in digits_onnx.glob("*.onnx.data"))
    model = AutoModelForImageTextToText.from_pretrained(MODEL, dtype="float32")
    assert num_bytes < 1.02 * 4 * model.num_parameters()
