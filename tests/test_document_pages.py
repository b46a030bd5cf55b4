# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The printed documents: pages, labels, scores, and the training program of the document model."""

import json
import subprocess
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from matplotlib import font_manager
from transformers import AutoModelForImageTextToText

from examples.digits.demo import ask, load
from examples.documents import data, evaluate, ingredients, layout, scores, train
from examples.documents.ingredients import TEST, TRAIN
from examples.documents.pages import GRIDS, KINDS, NOTE, READ, TILE_SIZE, draw_page
from jvlm import JinaVLMImageProcessor


@pytest.fixture(scope="module", autouse=True)
def shipped_fonts():
    """Only the fonts of packages, so that the pages are the same on every machine."""
    ingredients.fonts.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(font_manager, "findSystemFonts", lambda: [])
        yield
    ingredients.fonts.cache_clear()


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_printed_in_their_boxes(kind):
    for seed in range(8):
        page = draw_page([seed], TRAIN, kind, strength=0.0)
        pixels = np.asarray(page.image.convert("L"), float)
        paper = np.median(pixels)
        printed = " ".join(page.text)
        for question in page.questions:
            if question.box is None:
                continue
            left, top, right, bottom = (round(value) for value in question.box)
            assert -1 <= left < right <= page.image.width + 1, question
            assert -1 <= top < bottom <= page.image.height + 4, question
            assert np.abs(pixels[max(0, top) : bottom, max(0, left) : right] - paper).max() > 80, question
            if question.answer not in ("yes", "no"):
                assert question.answer in printed, question


def test_answers_follow_from_the_page():
    for seed in range(6):
        receipt = {q.text: q.answer for q in draw_page([seed], TRAIN, "receipt", strength=0.0).questions}
        page = draw_page([seed], TRAIN, "receipt", strength=0.0)
        assert receipt["How many items are there?"] == str(len(page.text) - 3)  # merchant, date, total
        assert page.text[0] == receipt["Who is the merchant?"]
        assert page.text[-1].endswith(receipt["What is the total?"])
        bars = draw_page([seed], TRAIN, "bar chart", strength=0.0)
        values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in bars.text[1:]}
        answers = {q.text: q.answer for q in bars.questions}
        assert answers["Which bar is the largest?"] == max(values, key=values.get)
        assert answers["Which bar is the smallest?"] == min(values, key=values.get)
        assert float(answers["What is the largest value?"]) == max(values.values())


def test_turned_pages_move_the_boxes():
    sheet = layout.Sheet(300, 200, layout_font())
    sheet.draw.rectangle((250, 150, 270, 160), fill=(0, 0, 0))
    rng = np.random.default_rng(2)
    image, matrix = layout.photograph_of(sheet, rng, TRAIN, strength=4.0)
    assert abs(matrix[0, 1]) > 0.01
    (left, top, right, bottom) = layout.transform(np.array([[250.0, 150, 270, 160]]), matrix)[0]
    ys, xs = np.nonzero(np.asarray(image.convert("L")) < 60)
    inside = (np.abs(xs - (left + right) / 2) < 16) & (np.abs(ys - (top + bottom) / 2) < 12)
    assert inside.sum() > 100
    assert abs(xs[inside].mean() - (left + right) / 2) < 1.5
    assert abs(ys[inside].mean() - (top + bottom) / 2) < 1.5


def layout_font() -> str:
    return next(iter(ingredients.fonts(TRAIN).values()))[0]


@pytest.mark.parametrize("grid", GRIDS)
def test_image_processor_selects_the_grid_of_a_page(grid):
    processor = JinaVLMImageProcessor()
    for seed in range(3):
        page = draw_page([seed], TRAIN, "sign", grid)
        assert processor.get_image_grid(page.image.height, page.image.width) == page.grid == grid


def test_test_pages_have_other_ingredients():
    families = {split: set(ingredients.fonts(split)) for split in (TRAIN, TEST)}
    assert len(families[TEST]) == len(ingredients.TEST_FONT_PACKAGES)
    assert not families[TRAIN] & families[TEST]
    for script in ingredients.SCRIPTS:
        train_words, test_words = (set(ingredients.words(split, script)) for split in (TRAIN, TEST))
        assert len(test_words) > 40
        assert len(train_words) > 2.5 * len(test_words)
        assert not train_words & test_words
    for kind in ("first_name", "last_name", "city", "company"):
        assert ingredients.names(TEST, kind)
        assert not set(ingredients.names(TRAIN, kind)) & set(ingredients.names(TEST, kind))
    columns = [{tuple(table.columns) for table in ingredients.tables(split)} for split in (TRAIN, TEST)]
    assert not columns[0] & columns[1]


def test_installed_fonts_of_held_out_families_are_not_trained_on(monkeypatch):
    path = ingredients.fonts(TEST)["Roboto"][0]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [path])
    ingredients.fonts.cache_clear()
    assert "Roboto" not in ingredients.fonts(TRAIN)
    ingredients.fonts.cache_clear()


def test_held_out_pages_are_deterministic_and_cover_kinds_and_grids():
    first, second = data.held_out_pages(8), data.held_out_pages(8)
    assert [page.image.tobytes() for page in first] == [page.image.tobytes() for page in second]
    assert [page.kind for page in first] == [*KINDS, next(iter(KINDS))]
    assert [page.grid for page in first] == [GRIDS[0]] * 7 + [GRIDS[1]]
    assert evaluate.NUM_PAGES % (len(KINDS) * len(GRIDS)) == 0


def test_labels_are_the_characters_at_half_patches():
    window = (0.0, 0.0, TILE_SIZE, TILE_SIZE)
    # "A" covers the right half of the patch in row 1, column 2; "é" both halves of the next; "漢" is not known.
    boxes = np.array([[35.0, 16, 42, 26], [42, 14, 56, 28], [56, 14, 70, 28]])
    labels = data.character_labels("Aé漢", boxes, window).reshape(27, 27, 2)
    where = np.argwhere(labels != data.BACKGROUND).tolist()
    assert where == [[1, 2, 1], [1, 3, 0], [1, 3, 1]]
    assert [ingredients.CHARACTERS[labels[tuple(place)]] for place in where] == ["A", "é", "é"]
    moved = data.character_labels("Aé漢", boxes + 266, (266.0, 266, 644, 644)).reshape(27, 27, 2)
    assert (moved == labels).all()


def test_tiles_show_what_their_labels_name():
    darker = []
    for index in range(6):
        row = data.DocumentTiles(8, note_share=1.0)[index]
        assert row["pixel_values"].shape == (3, TILE_SIZE, TILE_SIZE)
        pixels = row["pixel_values"].mean(0)
        patches = pixels.reshape(27, 14, 54, 7).std(axis=(1, 3)).reshape(-1, 2)
        is_text = row["labels"] != data.BACKGROUND
        darker.append(patches[is_text].mean() - patches[~is_text].mean())
    assert min(darker) > 0.1


def test_conversations():
    rows = data.DocumentPages(40, 4, read_share=1.0, text_only_share=0.5, grid_shares=(0.5, 0.5, 0.0, 0.0))
    is_text = [not rows[index]["images"] for index in range(0, 40, 4)]
    assert 0 < sum(is_text) < 10
    processor = JinaVLMImageProcessor()
    grids = set()
    for start in (0, 4, 8, 12):
        batch = [rows[index] for index in range(start, start + 4)]
        assert len({bool(row["images"]) for row in batch}) == 1
        for row in batch:
            first, answer, *rest = row["messages"]
            assert first["content"][-1]["text"] == READ
            assert len(answer["content"][0]["text"]) <= data.LONGEST_TEXT
            assert len(rest) % 2 == 0
            if not row["images"]:
                assert first["content"][0]["text"].startswith(answer["content"][0]["text"])
        in_batch = {processor.get_image_grid(*image.size[::-1]) for row in batch for image in row["images"]}
        assert len(in_batch) <= 1
        grids |= in_batch
    assert grids


@pytest.mark.parametrize("kind", [*KINDS, NOTE])
def test_questions_about_text_can_be_answered_from_it(kind):
    for seed in range(4):
        page = draw_page([seed], TRAIN, kind, strength=0.0)
        text = " ".join(page.text)
        for question in page.questions:
            counted = question.answer.isdigit() and question.text.startswith("How many")
            if question.answer not in ("yes", "no", *ingredients.SCRIPTS) and not counted:
                assert question.answer in text, question


def test_scores():
    assert [scores.exact("a", "a"), scores.exact("A", "a")] == [1, 0]
    assert scores.anls("Cafe Roma", "cafe roma") == 1
    assert scores.anls("cafe rome", "cafe roma") == pytest.approx(8 / 9)
    assert scores.anls("bar", "cafe roma") == 0
    assert [scores.relaxed_accuracy(*pair) for pair in [("95", "100"), ("94.9", "100"), ("Ham", "ham")]] == [1, 0, 1]
    assert scores.relaxed_accuracy("ham", "100") == 0


def test_results_by_kind_and_grid():
    rows = evaluate.rows_of(data.held_out_pages(9))
    right = evaluate.score(rows, [question.answer for _, question in rows])
    wrong = evaluate.score(rows, ["?"] * len(rows))
    assert {*KINDS, "all", "1x1", "1x2"} == set(right)
    for part, sums in right.items():
        assert sums["exact"] == sums["ANLS"] == sums["relaxed"] == sums["questions"] > 0
        assert sums["printed"][0] == sums["printed"][1] <= sums["questions"]
        assert wrong[part]["exact"] == wrong[part]["ANLS"] == wrong[part]["printed"][0] == 0
    table = evaluate.markdown({"num_pages": 9, "parts": right}, {"all": [1, 2]})
    assert f"| **all** | {len(rows)} | 100.0% | 100.0% | 100.0% | 100.0% | 50.0% |" in table.splitlines()


def test_tesseract_counts_printed_answers(monkeypatch):
    page = draw_page([1, 0, 2], TEST, "receipt")
    total = next(question for question in page.questions if question.text == "What is the total?")

    def run(command, input, **settings):
        assert command[0] == "tesseract"
        assert input.startswith(b"\x89PNG")
        return subprocess.CompletedProcess(command, 0, f"Shop\n{total.answer}\n".encode())

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(evaluate, "held_out_pages", lambda num_pages, seed: [page])
    assert evaluate.evaluate_tesseract(1)["receipt"][0] >= 1


def test_bad_number_of_pages():
    with pytest.raises(ValueError, match="`num_pages` must be at least 1, got 0"):
        evaluate.evaluate(num_pages=0)


def test_words_of_questions_are_tokens_and_answers_are_letters():
    tokenizer = train.build_tokenizer()
    question = tokenizer.tokenize(" User: What is the price of")
    assert len(question) == 7
    assert len(tokenizer.tokenize(" Zebra 17,50 €")) == len(" Zebra 17,50 €")
    for letter in ingredients.LATIN + ingredients.GREEK + ingredients.CYRILLIC:
        assert len(tokenizer.tokenize(letter)) == 1, letter


def test_training_runs_all_steps_once_and_continues(tmp_path, monkeypatch):
    monkeypatch.setattr("examples.documents.vision_tower.BATCH_SIZE", 2)
    monkeypatch.setattr("examples.documents.vision_tower.NUM_TEST_TILES", 2)
    steps = {"vision_steps": 1, "language_steps": 1, "caption_steps": 1, "question_steps": 1, "batch_size": 2}
    arguments = {**steps, "output_dir": tmp_path / "first", "num_workers": 0, "save_steps": 1}
    train.main([str(word) for name, value in arguments.items() for word in (f"--{name}", value)])
    model = tmp_path / "first" / "model"
    logs = json.loads((model / "training_log.json").read_text())
    assert list(logs) == ["vision_tower", "language", "captions", "questions"]
    assert any("eval_characters" in entry for entry in logs["vision_tower"])
    first = weights(model)
    assert all(tensor.dtype == torch.bfloat16 for tensor in first.values())

    # Two steps, because the learning rate of the first one is 0.
    more = {"continue_from": model, "output_dir": tmp_path / "second", "question_steps": 2, "vision_steps": 2}
    train.main([str(word) for name, value in {**arguments, **more}.items() for word in (f"--{name}", value)])
    folders = ["composed", "model", "questions", "vision_tower"]
    assert sorted(path.name for path in (tmp_path / "second").iterdir()) == folders
    logs = json.loads((tmp_path / "second" / "model" / "training_log.json").read_text())
    assert list(logs) == [
        *("vision_tower", "language", "captions", "questions"),
        *("vision_tower 4", "questions 5"),
    ]
    composed, second = weights(tmp_path / "second" / "composed"), weights(tmp_path / "second" / "model")
    for name, tensor in first.items():
        changes = tensor.shape[-1] > 1 and name.endswith("proj.weight")  # others may stay the same in bfloat16
        if changes:
            assert (".vision_tower." in name) != torch.equal(composed[name].bfloat16(), tensor), name
            assert not torch.equal(second[name], tensor), name


def weights(folder) -> dict[str, torch.Tensor]:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").state_dict()


def test_the_model_card_has_the_scores_of_the_shipped_model():
    results = json.loads((evaluate.MODEL / "evaluation.json").read_text())
    assert results["parts"]["all"]["questions"] >= 1000
    card = (Path(__file__).parent.parent / "model_card.md").read_text(encoding="utf-8")
    assert evaluate.markdown(results, results["tesseract"]) in card


def test_the_shipped_model_answers_its_samples():
    folder = evaluate.MODEL / "samples"
    samples = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    assert len(samples) == len(KINDS)
    model, processor = load(evaluate.MODEL)
    for sample in samples[:2]:
        with PIL.Image.open(folder / sample["image"]) as image:
            answer, _ = ask(model, processor, image, sample["question"], evaluate.MAX_NEW_TOKENS)
        assert answer == sample["answer"]
