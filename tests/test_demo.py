# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The demo, the evaluation, the parameter counts and the pinned versions."""

import json
from pathlib import Path

import PIL.Image
import pytest
from packaging.requirements import Requirement
from transformers import set_seed

from benchmarks import parameters
from examples.digits import demo, evaluate, train
from examples.digits.pages import GRIDS, QUESTIONS, READ
from examples.digits.vision_tower import build_patch_reader
from jvlm import JinaVLMConfig, JinaVLMForConditionalGeneration


ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def digits_model(tmp_path_factory):
    """A folder with the digit model's processor and an untrained model."""
    folder = tmp_path_factory.mktemp("model")
    set_seed(0)
    build_patch_reader().vision_tower.save_pretrained(folder / "vision_tower")
    return train.compose(folder)


@pytest.fixture
def answers(monkeypatch):
    """Makes a saved model say something else: a function (image, question) to an answer."""

    def replace(answer):
        class Answering:
            def __call__(self, conversations, **kwargs):
                contents = [conversation[0]["content"] for conversation in conversations]
                return [[{"generated_text": f" {answer(image['image'], text['text'])}"}] for image, text in contents]

        monkeypatch.setattr(evaluate, "pipeline", lambda *args, **kwargs: Answering())

    return replace


def test_the_demo_asks_about_every_page_and_draws_them(digits_model, tmp_path, capsys):
    right, total = demo.demo(digits_model, tmp_path / "demo.png")
    printed = capsys.readouterr().out
    assert 0 <= right <= total == len(demo.GRIDS) * len(QUESTIONS)
    for rows, cols in demo.GRIDS:
        assert f"{rows} × {cols} tiles and a thumbnail, {(1 + rows * cols) * 12} image tokens" in printed
    assert all(printed.count(question) == len(demo.GRIDS) for question in QUESTIONS)
    assert str(tmp_path / "demo.png") in printed
    with PIL.Image.open(tmp_path / "demo.png") as image:
        assert min(image.size) > 500


def test_the_demo_counts_right_answers(digits_model, tmp_path, capsys, monkeypatch):
    pages = demo.held_out_pages()
    known = {page.image.tobytes(): page for page in pages}
    monkeypatch.setattr(
        demo,
        "ask",
        lambda model, processor, image, question: (
            known[image.tobytes()].answer(question),
            {"image_tokens": 0, "text_tokens": 0},
        ),
    )
    right, total = demo.demo(digits_model, tmp_path / "demo.png")
    assert right == total
    assert "wrong" not in capsys.readouterr().out


def test_the_demo_takes_any_image(digits_model, tmp_path, make_image, capsys):
    make_image(150, 90).save(tmp_path / "page.png")
    output = tmp_path / "seen.png"
    question = "How many digits are there?"
    arguments = ["--model", digits_model, "--image", tmp_path / "page.png", "--question", question, "--output", output]
    demo.main(list(map(str, arguments)))
    printed = capsys.readouterr().out
    assert "A page of 90 × 150 pixels: 4 × 2 tiles" in printed or "tiles and a thumbnail" in printed
    assert question in printed
    with PIL.Image.open(output) as drawn:
        assert drawn.width > 300


def test_evaluation_counts_every_question(digits_model):
    results = evaluate.evaluate(digits_model, num_pages=3, batch_size=4)
    assert results["exact"]["all"] == 3 * len(QUESTIONS)
    assert list(results["questions"]) == QUESTIONS
    assert all(part["exact"]["all"] == 3 for part in results["questions"].values())
    assert list(results["grids"]) == ["1x1", "1x2", "1x3"]
    assert all(part["exact"]["all"] == len(QUESTIONS) for part in results["grids"].values())
    assert 0 <= results["exact"]["right"] <= results["exact"]["all"]
    assert 0 <= results["digits"]["rate"] <= 1
    assert "digits" in results["questions"][READ]


def test_answers_do_not_depend_on_the_batch(digits_model):
    one, many = (evaluate.evaluate(digits_model, num_pages=2, batch_size=size) for size in (1, 10))
    assert one == many


def test_evaluation_of_right_and_wrong_answers(answers):
    pages = {page.image.tobytes(): page for page in evaluate.held_out_pages(24)}
    answers(lambda image, question: pages[image.tobytes()].answer(question))
    results = evaluate.evaluate("a model that is always right", num_pages=24)
    assert results["exact"]["rate"] == results["digits"]["rate"] == 1
    assert results["digits"]["all"] == sum(len(page.digits) for page in pages.values())
    assert len(results["grids"]) == len(GRIDS)
    answers(lambda image, question: pages[image.tobytes()].answer(question) if question == READ else "none")
    results = evaluate.evaluate("a model that only reads", num_pages=24)
    assert results["exact"]["right"] == 24
    assert results["digits"]["rate"] == results["questions"][READ]["exact"]["rate"] == 1
    assert all(part["exact"]["right"] == 2 for part in results["grids"].values())


@pytest.mark.parametrize(
    ("answer", "right", "counts"),
    [
        ("3 1 9", "3 1 9", (3, 3)),
        ("3 9", "3 1 9", (2, 3)),  # one missing
        ("3 1 7 9", "3 1 9", (3, 4)),  # one invented
        ("4 1 9", "3 1 9", (2, 3)),  # one misread
        ("", "3 1 9", (0, 3)),
        ("319", "3 1 9", (0, 3)),  # not in the form of an answer
    ],
)
def test_digits_read(answer, right, counts):
    assert evaluate.digits_read(answer, right) == counts


def test_evaluation_writes_its_numbers(digits_model, tmp_path, capsys):
    evaluate.main(["--model", str(digits_model), "--num_pages", "1", "--json", str(tmp_path / "n.json"), "--markdown"])
    results = json.loads((tmp_path / "n.json").read_text())
    printed = capsys.readouterr().out
    assert printed.strip() == evaluate.markdown(results)
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(QUESTIONS) + 1 + 2 + 1
    assert {row.count("|") for row in rows} == {4}


@pytest.mark.parametrize("program", [demo, evaluate])
def test_a_missing_model_is_refused(program, tmp_path, capsys):
    with pytest.raises(SystemExit):
        program.main(["--model", str(tmp_path / "nothing")])
    assert "nothing is no folder; train a model" in capsys.readouterr().err


def test_an_evaluation_of_nothing_is_refused(digits_model):
    with pytest.raises(ValueError, match="num_pages"):
        evaluate.evaluate(digits_model, num_pages=0)


def test_parameters_are_those_of_the_model(build_config, build_model):
    counts, notes = parameters.parameters(build_config())
    assert counts["all"] == build_model().num_parameters()
    assert counts["all"] == sum(counts[part] for part in parameters.LABELS)
    assert set(notes) == set(parameters.LABELS)
    assert "3 of 4 blocks" in notes["vision tower"]


def test_tied_embeddings_count_once(build_config):
    tied, untied = (parameters.parameters(build_config(tie_word_embeddings=tie))[0] for tie in (True, False))
    text_config = build_config().text_config
    assert untied["all"] - tied["all"] == text_config.vocab_size * text_config.hidden_size
    assert tied["all"] == sum(tied[part] for part in parameters.LABELS)


def test_pinned_versions_are_supported_ones():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {pin.name: pin for pin in map(Requirement, lines)}
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    assert all(Requirement(requirement).name in pins for requirement in project["dependencies"])
    for requirement in map(Requirement, [*project["dependencies"], *extras]):
        if requirement.name in pins:
            (pin,) = pins[requirement.name].specifier
            assert pin.operator == "=="
            assert requirement.specifier.contains(pin.version), str(requirement)


def test_the_default_model_is_the_documented_one():
    assert JinaVLMForConditionalGeneration.config_class is JinaVLMConfig
    assert evaluate.MODEL == ROOT / "examples" / "digits" / "model"
