# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Scores of answers, as the benchmarks of document and chart questions define them."""

from rapidfuzz.distance import Levenshtein


def exact(answer: str, reference: str) -> float:
    """1 if the answer is the reference, else 0."""
    return float(answer == reference)


def anls(answer: str, reference: str) -> float:
    """
    The normalized Levenshtein similarity of DocVQA (arXiv 1907.00490), ignoring case: 1 less the edit distance as a
    share of the longer text, and 0 where that is below 0.5.
    """
    similarity = Levenshtein.normalized_similarity(answer.lower().strip(), reference.lower().strip())
    return similarity if similarity >= 0.5 else 0.0


def relaxed_accuracy(answer: str, reference: str) -> float:
    """The accuracy of ChartQA (arXiv 2203.10244): numbers may be off by 5 %, other answers must agree but for case."""
    try:
        number, wanted = float(answer), float(reference)
    except ValueError:
        return float(answer.lower().strip() == reference.lower().strip())
    return float(abs(number - wanted) <= 0.05 * abs(wanted))


SCORES = {"exact": exact, "ANLS": anls, "relaxed": relaxed_accuracy}
