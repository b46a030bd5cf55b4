# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""README.md, the model card and docs/: their code runs, and what they refer to exists."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from benchmarks import efficiency, parameters


ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", ROOT / "model_card.md", ROOT / "examples/README.md", *ROOT.glob("docs/*.md"))
)
DIGITS_MODEL = ROOT / "examples" / "digits" / "model"

documents = pytest.mark.parametrize("document", DOCUMENTS)


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def python_blocks() -> list:
    """All Python blocks of the documents. Those of training.md run in order, in tests/training/test_guide.py."""
    return [
        pytest.param(block, id=f"{document}-{index}")
        for document in DOCUMENTS
        if document != "docs/training.md"
        for index, block in enumerate(re.findall(r"^```python\n(.*?)^```", read(document), re.M | re.S))
    ]


@pytest.mark.parametrize("block", python_blocks())
def test_code_runs(block, release, tmp_path, make_image, monkeypatch, request):
    if "torchao" in block:
        pytest.importorskip("torchao")
    make_image(120, 160).save(tmp_path / "photo.jpg")
    question = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    answer = [{"type": "text", "text": "A lake."}]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": messages, "images": ["photo.jpg"]}) + "\n")
    monkeypatch.chdir(tmp_path)
    # The same code with other weights: a small checkpoint for the published one, the digit model for a composed one.
    code = block.replace("jinaai/jina-vlm", str(release / "checkpoint"))
    for name in ("examples/digits/model", "my-jina-vlm"):
        code = code.replace(name, str(DIGITS_MODEL))
    exec(compile(code, request.node.name, "exec"), {"__name__": request.node.name})
    assert (tmp_path / "tuned" / "model.safetensors").is_file() == ("trainer.save_model()" in code)


def test_there_is_code_in_the_readme():
    assert len(re.findall(r"^```python\n", read("README.md"), re.M)) >= 3


@documents
def test_named_modules_exist(document):
    for module in re.findall(r"python -m (\w+(?:\.\w+)*)", read(document)):
        if module.split(".")[0] in ("lmms_eval", "pip", "pytest", "venv", "vllm"):
            continue
        spec = importlib.util.find_spec(module)
        assert spec is not None, f"python -m {module}"
        if spec.submodule_search_locations is not None:
            assert importlib.util.find_spec(f"{module}.__main__") is not None, f"python -m {module}"


@documents
def test_named_make_targets_exist(document):
    targets = re.findall(r"^(\w+):", read("Makefile"), re.M)
    for target in re.findall(r"(?:^|`)make (\w+)", read(document), re.M):
        assert target in targets, f"make {target}"


def anchors(document: Path) -> set[str]:
    """Anchors of the headings, as GitHub names them."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@documents
def test_relative_links_resolve(document):
    text = re.sub(r"^```.*?^```", "", read(document), flags=re.M | re.S)
    for link in re.findall(r"\]\((?!https?://)([^)]+)\)", text):
        target, _, anchor = link.partition("#")
        path = (ROOT / document).parent / target if target else ROOT / document
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(path), link


def test_the_index_links_every_page():
    index = read("docs/index.md")
    pages = {path.name for path in ROOT.glob("docs/*.md")} - {"index.md"}
    assert all(f"]({page})" in index for page in pages)


@documents
def test_the_licence_of_the_published_weights_is_stated(document):
    text = read(document)
    assert "jinaai/jina-vlm" not in text or "CC BY-NC" in text


def test_the_readme_is_short():
    assert len(read("README.md").split()) < 1500


def test_parameters_are_those_of_the_default_configuration():
    counts, _ = parameters.parameters()
    text = read("docs/benchmarks.md")
    assert all(f"{number:,}" in text for number in counts.values())


def test_the_memory_table_is_what_the_command_prints(capsys):
    parameters.main(["--memory"])
    assert capsys.readouterr().out in read("docs/faq.md")


def test_the_efficiency_table_is_what_the_command_prints(capsys):
    efficiency.main([])
    assert capsys.readouterr().out in read("docs/benchmarks.md")
