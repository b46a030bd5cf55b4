# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The programs that train the digit model further with TRL, in small, and what they count."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from examples.digits import comparison, dpo, grpo
from examples.digits.evaluate import MODEL, ask, rows_of
from examples.digits.pages import COUNT, QUESTIONS, READ, Page, held_out_pages
from examples.digits.questions import ASKED, log_probabilities, uncertain_questions


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(MODEL, dtype="float32")


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(MODEL)


def changed_parts(model, folder) -> set[str]:
    after = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").state_dict()
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, after[name])]
    return {name.removeprefix("model.").split(".")[0] for name in changed}


def test_log_probabilities_are_those_of_greedy_decoding(model, processor):
    """A greedy answer is more probable than others, and probabilities of different answers add up to at most 1."""
    rows = rows_of(held_out_pages(4), [COUNT])
    greedy = ask(MODEL, rows)
    answers = [str(number) for number in range(1, 7)]
    table = torch.stack([log_probabilities(model, processor, rows, [answer] * len(rows)) for answer in answers])
    assert [answers[index] for index in table.argmax(dim=0)] == greedy
    assert (table.exp().sum(dim=0) <= 1 + 1e-4).all()
    assert (table.exp().sum(dim=0) > 0.9).all()


def test_uncertain_questions(model, processor):
    bounds = (0.2, 0.97)
    rows = uncertain_questions(model, processor, 5, seed=3, bounds=bounds)
    right = log_probabilities(model, processor, rows, [page.answer(question) for page, question in rows]).exp()
    assert len(rows) == 5
    assert ((right >= bounds[0] - 1e-3) & (right <= bounds[1] + 1e-3)).all()
    assert {question for _, question in rows} <= set(ASKED)
    again = uncertain_questions(model, processor, 5, seed=3, bounds=bounds)
    assert [page.image.tobytes() for page, _ in again] == [page.image.tobytes() for page, _ in rows]
    other = uncertain_questions(model, processor, 5, seed=4, bounds=bounds)
    assert {page.image.tobytes() for page, _ in other}.isdisjoint(page.image.tobytes() for page, _ in rows)


def test_the_reward_is_exact_match():
    completions = [[{"role": "assistant", "content": text}] for text in (" 3 1", "3 1 ", "31", "3 1 4", "")]
    assert grpo.exact_match(completions, ["3 1"] * 5, prompts=None) == [1, 1, 0, 0, 0]


def test_wrong_answers_are_wrong(monkeypatch):
    pages = [Page([[number]], grid=(1, 1)) for number in range(4)]
    monkeypatch.setattr(dpo, "ask", lambda model, rows, **settings: ["0", "7", "2", "7"])
    rows, wrong = dpo.wrong_answers(MODEL, [(page, READ) for page in pages])
    assert ([page.digits for page, _ in rows], wrong) == ([[1], [3]], ["7", "7"])


def test_grpo_trains_connector_and_decoder(model, tmp_path, capsys):
    words = ["--output_dir", str(tmp_path), "--steps", "2", "--prompts_per_step", "2", "--num_generations", "4"]
    words += ["--learning_rate", "1e-3", "--num_pages", "1", "--seeds", "0"]
    grpo.main(words)
    assert changed_parts(model, tmp_path / "seed-0") == {"connector", "language_model", "lm_head"}
    table = capsys.readouterr().out.splitlines()
    assert any(line.startswith("| model | ") and " of 5 | " in line for line in table)
    assert any(line.startswith("| seed-0 | ") for line in table)


def test_dpo_raises_the_margin(model, processor, tmp_path, capsys, monkeypatch):
    rows = rows_of(held_out_pages(2), [READ, COUNT])
    pairs = rows, ["8 8"] * len(rows)
    monkeypatch.setattr(dpo, "uncertain_questions", lambda *args: rows)
    monkeypatch.setattr(dpo, "wrong_answers", lambda *args: pairs)
    words = ["--output_dir", str(tmp_path), "--steps", "3", "--batch_size", "4", "--learning_rate", "1e-4"]
    dpo.main([*words, "--num_pages", "1"])
    assert changed_parts(model, tmp_path / "seed-0") == {"connector", "language_model", "lm_head"}
    trained = AutoModelForImageTextToText.from_pretrained(tmp_path / "seed-0", dtype="float32")
    before, after = (dpo.margins(one, processor, pairs).mean() for one in (model, trained))
    assert after > before + 0.1
    printed = capsys.readouterr().out
    assert f"model: mean {before:.2f}, positive for " in printed
    assert f"seed-0: mean {after:.2f}, positive for " in printed
    assert "4 held-out pairs" in printed
    assert "| seed-0 | " in printed


def test_comparison_counts_gained_and_lost_answers(monkeypatch):
    """Of ten answers, the second model has three right that were wrong, and one wrong that was right."""
    verdicts = {"a": [1, 1, 1, 1, 1, 0, 0, 0, 0, 0], "b": [0, 1, 1, 1, 1, 1, 1, 1, 0, 0]}

    def answer(model, rows):
        right = [page.answer(question) for page, question in rows]
        return [one if verdict else "none" for one, verdict in zip(right, verdicts[model], strict=True)]

    monkeypatch.setattr(comparison, "ask", answer)
    first, second = comparison.compare(["a", "b"], num_pages=2)
    assert (first["right"], second["right"], second["all"]) == (5, 7, 10)
    assert (second["gained"], second["lost"]) == (3, 1)
    assert second["p"] == pytest.approx(2 * (1 + 4) / 2**4)  # at least three of four, or at most one
    assert sum(second["questions"].values()) == 7
    assert set(second["questions"]) == set(QUESTIONS)
    assert second["interval"] == pytest.approx((0.397, 0.892), abs=1e-3)
    rows = comparison.markdown([first, second]).splitlines()
    assert rows[3] == "| b | 7 of 10 | 70.0% | 39.7% to 89.2% | 3 | 1 | 0.62 |"
    assert {row.count("|") for row in rows} == {8}
