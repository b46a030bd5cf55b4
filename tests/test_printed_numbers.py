# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The data set of printed numbers, and the run of the guide that trains on it, in small."""

import json
import re
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageFont
import pytest
from matplotlib import font_manager

from examples.digits.evaluate import MODEL
from examples.digits.pages import READ
from examples.printed_numbers import data, scores
from jvlm.training import finetune


SHIPPED_FONTS = Path(font_manager.__file__).parent / "mpl-data" / "fonts" / "ttf"


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """A folder with few rows, in the fonts of matplotlib."""
    folder = tmp_path_factory.mktemp("numbers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(font_manager, "findSystemFonts", lambda: [])
        data.main(["--output_dir", str(folder), "--num_train", "8", "--num_test", "6"])
    return folder


def read_rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_the_test_rows_have_other_photographs_and_half_of_them_other_fonts(numbers):
    train, test = read_rows(numbers / "train"), read_rows(numbers / "test")
    assert (len(train), len(test)) == (8, 6)
    assert not {row["photograph"] for row in train} & {row["photograph"] for row in test}
    assert {row["fonts"] for row in train} == {data.SEEN}
    assert [row["fonts"] for row in test] == [data.SEEN, data.HELD_OUT] * 3
    for split, rows in (("train", train), ("test", test)):
        for row in rows:
            assert row["question"] == READ
            assert re.fullmatch(r"\d( \d){0,4}", row["answer"])
            with PIL.Image.open(numbers / split / row["file_name"]) as image:
                assert 72 <= image.width <= 136
                assert 40 <= image.height <= 56


def test_held_out_families_are_not_seen():
    fonts = {f"family {number}": [f"{number}.ttf", f"{number}-bold.ttf"] for number in range(9)}
    split = data.split_fonts(fonts)
    assert sorted(split[data.SEEN] + split[data.HELD_OUT]) == sorted(fonts.values())
    assert len(split[data.HELD_OUT]) == 2


def test_fonts_have_ten_different_digits(monkeypatch, tmp_path):
    damaged = tmp_path / "damaged.ttf"
    damaged.write_bytes(b"no font")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(damaged)])
    fonts = data.find_fonts()
    assert {Path(path).name for path in fonts["DejaVu"]} >= {"DejaVuSans.ttf", "DejaVuSerif-Bold.ttf"}
    found = {Path(path).name for paths in fonts.values() for path in paths}
    assert "cmr10.ttf" in found
    assert not found & {"damaged.ttf", "cmsy10.ttf", "cmex10.ttf", "STIXSizOneSymReg.ttf"}


def test_the_number_is_in_the_image():
    """Its pixels differ from the photograph, and nothing else does."""
    photograph = PIL.Image.new("RGB", (300, 200), (120, 120, 120))
    font = str(SHIPPED_FONTS / "DejaVuSans.ttf")
    for seed in range(10):
        image, number = data.draw_number(photograph, font, np.random.default_rng(seed))
        changed = np.abs(np.asarray(image.convert("L"), int) - 120) > 40
        columns = np.flatnonzero(changed.any(axis=0))
        assert columns.size > 3 * len(number)
        assert 0.003 < changed.mean() < 0.6


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_number_can_be_drawn_on_every_grey(grey, strength):
    """There is a colour with enough contrast, also on medium grey."""
    photograph, font = PIL.Image.new("RGB", (300, 200), (grey,) * 3), str(SHIPPED_FONTS / "DejaVuSans.ttf")
    image, _ = data.draw_number(photograph, font, np.random.default_rng(0), strength)
    pixels = np.asarray(image.convert("L"), int)
    assert np.ptp(pixels) >= 85
    assert abs(np.median(pixels) - (255 + strength * (grey - 255))) < 3  # the background


def test_the_run_of_the_guide(numbers, tmp_path, capsys):
    """From files on disk to an evaluated folder with a card."""
    output = tmp_path / "reader"
    words = ["--model_name_or_path", str(MODEL), "--dataset_name", str(numbers / "train"), "--use_cpu"]
    words += ["--dataset_test_name", str(numbers / "test"), "--output_dir", str(output), "--learning_rate", "1e-3"]
    words += ["--vision_tower_learning_rate", "3e-4", "--max_steps", "2", "--per_device_train_batch_size", "2"]
    finetune.main([*words, "--max_new_tokens", "2", "--disable_tqdm", "true"])
    card = (output / "README.md").read_text()
    results = json.loads((output / "eval_results.json").read_text())
    assert f"| exact answers | {results['eval_exact_answers']:.1%} |" in card
    assert f"| {READ} | 6 |" in card
    assert str(tmp_path) not in card
    capsys.readouterr()
    scores.main(["--data", str(numbers / "test"), "--answers", str(output / "answers.jsonl")])
    printed = capsys.readouterr().out
    assert "| seen fonts | " in printed
    assert f"| all | {round(6 * results['eval_exact_answers'])} of 6 | " in printed


def test_scores(tmp_path):
    rows = [{"answer": "7", "fonts": "seen"}, {"answer": "1 2", "fonts": "held-out"}, {"answer": "3", "fonts": "seen"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [{"row": 0, "reference": "7", "score": 1.0}, {"row": 1, "reference": "1 2", "score": 1.0}]
    given.append({"row": 2, "reference": "3", "score": 0.0})
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in given))
    counts = scores.count(tmp_path, tmp_path / "answers.jsonl")
    expected = {"seen fonts": (1, 2), "held-out fonts": (1, 1), "1 digit": (1, 2), "2 digits": (1, 1), "all": (2, 3)}
    assert counts == expected
    assert scores.markdown(counts).splitlines()[-1] == "| all | 2 of 3 | 66.7% |"
    (tmp_path / "metadata.jsonl").write_text(json.dumps(rows[1]) + "\n")
    with pytest.raises(ValueError, match="another answer in row 0"):
        scores.count(tmp_path, tmp_path / "answers.jsonl")
