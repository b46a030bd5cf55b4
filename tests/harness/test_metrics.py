# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
The metrics of lmms-eval against independent ones, on random predictions. Where they differ, a test shows the case and
docs/evaluation.md names it. A release that mends one of them fails that test.
"""

import re
import statistics
from difflib import SequenceMatcher

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st


pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; `make harness` installs it.")

from lmms_eval.api.metrics import anls
from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer
from lmms_eval.tasks.chartqa.utils import relaxed_correctness
from lmms_eval.tasks.textvqa.utils import textvqa_process_results


CASES = settings(max_examples=400, deadline=None)
WORDS = st.lists(st.text("abAB1é.", min_size=1, max_size=6), min_size=1, max_size=3).map(" ".join)


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's distance by the recursion over prefixes."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def anls_of_the_paper(references: list[str], prediction: str) -> float:
    """Average normalized Levenshtein similarity with threshold 0.5 (arXiv 1907.00490), lower case, spaces merged."""

    def similarity(reference: str) -> float:
        a, b = (" ".join(text.lower().split()) for text in (reference, prediction))
        distance = edit_distance(a, b) / max(len(a), len(b), 1)
        return 1 - distance if distance < 0.5 else 0.0

    return max(map(similarity, references))


@CASES
@given(st.lists(WORDS, min_size=1, max_size=3), WORDS, st.integers(0, 3))
def test_anls(references, prediction, edits):
    prediction = references[0][: len(references[0]) - edits] or prediction
    prediction = " ".join(prediction.split())
    assume(all(max(len(prediction), len(each)) for each in references))
    ours, theirs = anls_of_the_paper(references, prediction), anls(references, [prediction])["anls"]
    if theirs != pytest.approx(ours, abs=1e-9):
        assert theirs == 0.5  # a similarity of exactly 0.5 counts as 0.5 there, as 0 in the paper
        assert ours == 0


@pytest.mark.parametrize(
    ("references", "prediction", "score"),
    [
        (["1 6 4 6 6"], "1 6 4 6 6", 1),
        (["1 6 4 6 6"], "1 6 4 6", 1 - 2 / 9),  # two characters are missing
        (["Invoice"], "invoise", 1 - 1 / 7),
        (["no", "1 6 4 6"], "1 7 4 6", 1 - 1 / 7),  # the best of several
        (["1 6 4 6 6"], "9", 0),  # below the threshold
        (["zzzz"], "5", 0),
    ],
)
def test_anls_by_hand(references, prediction, score):
    assert anls(references, [prediction])["anls"] == pytest.approx(score, abs=1e-9)
    assert anls_of_the_paper(references, prediction) == pytest.approx(score, abs=1e-9)


def test_anls_counts_spaces_only_in_the_length():
    """It merges spaces for the distance but divides by the length with them."""
    assert anls(["ab"], ["a  " + " " * 10 + "c"])["anls"] > 0.5
    assert anls_of_the_paper(["ab"], "a  " + " " * 10 + "c") == 0


def relaxed_of_the_paper(prediction: str, target: str) -> bool:
    """Relaxed accuracy (arXiv 2203.10244): numbers within 5 %, anything else equal; percent signs are read."""

    def number(text: str) -> float | None:
        match = re.fullmatch(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(%*)", text)
        return float(match[1]) / (100 if match[2] else 1) if match else None

    given_number, right = number(prediction), number(target)
    if given_number is not None and right:
        return abs(given_number - right) / abs(right) <= 0.05
    return prediction.lower() == target.lower()


NUMBERS = st.one_of(
    st.integers(-1000, 1000).map(str),
    st.floats(-1000, 1000, allow_nan=False).map(lambda each: f"{each:.3g}"),
    st.integers(0, 100).map(lambda each: f"{each}%"),
)


@CASES
@given(st.one_of(NUMBERS, WORDS), st.one_of(NUMBERS, WORDS))
@example("105", "100")
@example("0", "0")
@example("0.0", "0")
def test_relaxed_accuracy(prediction, target):
    assert relaxed_correctness(prediction, target) == relaxed_of_the_paper(prediction, target)


@CASES
@given(st.integers(1, 10**6), st.floats(0.94, 1.06))
def test_relaxed_accuracy_near_the_limit(target, factor):
    prediction = f"{target * factor:.6f}"
    assert relaxed_correctness(prediction, str(target)) == relaxed_of_the_paper(prediction, str(target))


def test_relaxed_accuracy_reads_no_units_or_separators():
    assert not relaxed_correctness("1,000", "1000")
    assert not relaxed_correctness("$5", "5")
    assert not relaxed_correctness("50", "50%")  # 50 against 0.5
    assert not relaxed_correctness("0.0", "0")  # a target of zero is compared as text


def vqa_of_the_paper(answers: list[str], prediction: str) -> float:
    """VQA score: for each of the ten annotators, a third of the number of others who agree, at most 1."""
    agree = [min(1, sum(other == prediction for j, other in enumerate(answers) if j != i) / 3) for i in range(10)]
    return statistics.mean(agree)


@CASES
@given(
    st.lists(st.sampled_from(["red", "blue", "42", "no sign"]), min_size=10, max_size=10),
    st.sampled_from(["red", "42", "no"]),
)
def test_vqa_score(answers, prediction):
    doc = {"answers": list(answers), "question_id": 1}
    found = textvqa_process_results(doc, [prediction])["exact_match"]
    assert found == pytest.approx(vqa_of_the_paper(answers, prediction))


def test_vqa_score_normalizes_as_the_official_program():
    """Articles and punctuation are dropped, number words are read: the ten answers are those of the right column."""
    for prediction, answer in [
        ("The dog", "dog"),
        ("two", "2"),
        ("dont", "don't"),
        ("1,000", "1000"),
        ("Yes.", "yes"),
    ]:
        doc = {"answers": [answer] * 10, "question_id": 1}
        assert textvqa_process_results(doc, [prediction])["exact_match"] == 1, prediction


CHOICES = ["A", "B", "C", "D"]
STATEMENTS = ["{}", "{}.", "({})", "{}) {}", "{}: {}", "{}. {}", "The answer is {}.", "The correct answer is ({})."]


@CASES
@given(st.sampled_from(CHOICES), st.sampled_from(STATEMENTS), st.text("xyz ", max_size=8))
def test_clear_choices_are_read(letter, statement, option):
    response = statement.replace("{}", letter, 1).replace("{}", option.strip() or "x")
    assert extract_mcq_answer(response, CHOICES) == letter


def test_choices_that_are_misread():
    """After a phrase such as "the answer is", the last capital letter of any word counts."""
    assert extract_mcq_answer("The answer is B because Apples are red", CHOICES) == "A"
    assert extract_mcq_answer("b", CHOICES) == ""  # lower case


def test_tasks_that_read_the_answer_without_an_extractor():
    from lmms_eval.tasks.pope.utils import pope_process_results
    from lmms_eval.tasks.seedbench_2_plus.utils import seed_process_result

    pope = {"answer": "yes", "question_id": 1}
    assert pope_process_results(pope, ["Yes"])["pope_accuracy"]["score"] == 1
    assert pope_process_results(pope, ["Yes."])["pope_accuracy"]["score"] == 0
    seed = {"answer": "B", "question_image_type": "chart", "question_id": 1}
    assert seed_process_result(seed, ["B. two"])["seedbench_2_plus_all"]["pred"] == "B"
    assert seed_process_result(seed, ["(B)"])["seedbench_2_plus_all"]["pred"] == "("


def test_a_choice_that_is_not_found_is_random_in_mmt_bench():
    import random

    from lmms_eval.tasks.mmt.utils import parse_multi_choice_response

    random.seed(0)
    assert len({parse_multi_choice_response("no idea", CHOICES) for _ in range(50)}) > 1


def test_edit_distance_bounds():
    """Of the independent metric itself, against difflib's blocks, which are a lower bound of the common part."""
    for a, b in [("kitten", "sitting"), ("", "abc"), ("abc", "abc")]:
        blocks = sum(block.size for block in SequenceMatcher(None, a, b).get_matching_blocks())
        assert edit_distance(a, b) <= max(len(a), len(b)) + min(len(a), len(b)) - 2 * blocks + abs(len(a) - len(b))
    assert edit_distance("kitten", "sitting") == 3
