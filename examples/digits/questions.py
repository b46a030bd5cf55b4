# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Questions about training pages for TRL's trainers, and how sure a model is of answers."""

import itertools

import torch

from jvlm.training import DataCollatorForJinaVLM

from .pages import COUNT, READ, DigitPages, Page


ASKED = [READ, COUNT]  # the questions that the shipped model answers worst
UNCERTAIN = 0.05, 0.95
BATCH_SIZE = 32
FIRST_SEED = 1000  # the supervised training has small seeds


def prompt(question: str) -> list[dict]:
    """The user message of a row with one image, in TRL's format."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]


def completion(answer: str) -> list[dict]:
    """The assistant message of a row, in TRL's format."""
    return [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]


@torch.no_grad()
def log_probabilities(model, processor, rows: list[tuple[Page, str]], answers: list[str]) -> torch.Tensor:
    """The log-probability that the model samples an answer to the question of each row, at temperature 1: `[rows]`."""
    collator = DataCollatorForJinaVLM(processor)
    found = []
    for start in range(0, len(rows), BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        batch = collator(
            [
                {"messages": prompt(question) + completion(answer), "images": [page.image]}
                for (page, question), answer in zip(rows[part], answers[part], strict=True)
            ]
        )
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch).logits[:, :-1].transpose(1, 2)
        losses = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="none")
        found.append(-losses.sum(dim=1))
    return torch.cat(found)


def uncertain_questions(
    model, processor, num_rows: int, seed: int, bounds: tuple[float, float] = UNCERTAIN
) -> list[tuple[Page, str]]:
    """
    Draws training pages with one of `ASKED` each, and keeps the first `num_rows` of them whose right answer has a
    probability within `bounds`. The others teach little: almost all sampled answers would be right, or wrong.
    """
    pages = DigitPages(1, ASKED, BATCH_SIZE, seed=FIRST_SEED + seed)
    kept: list[tuple[Page, str]] = []
    for start in itertools.count(0, BATCH_SIZE):
        if len(kept) >= num_rows:
            break
        drawn = [pages.draw(index) for index in range(start, start + BATCH_SIZE)]
        rows = [(page, questions[0]) for page, questions in drawn]
        right = log_probabilities(model, processor, rows, [page.answer(question) for page, question in rows]).exp()
        is_uncertain = (bounds[0] <= right) & (right <= bounds[1])
        kept += [row for row, keep in zip(rows, is_uncertain, strict=True) if keep]
    return kept[:num_rows]
