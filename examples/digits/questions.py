# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""What the programs with TRL's trainers share: questions, how sure a model is of answers, settings, the run itself."""

import itertools
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer

from jvlm.training import DataCollatorForJinaVLM, last_complete_checkpoint

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


def load(folder: Path) -> tuple:
    """The model to train, with a frozen vision tower, and its processor."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
    model.model.vision_tower.requires_grad_(False)
    return model, AutoProcessor.from_pretrained(folder)


def settings(args: Any, output: Path, seed: int) -> dict[str, Any]:
    """The training arguments that do not depend on the method."""
    return {
        "output_dir": str(output),
        "max_steps": args.steps,
        "learning_rate": args.learning_rate,
        "warmup_steps": min(10, args.steps // 2),
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 10,
        "save_steps": args.save_steps,
        "save_total_limit": 1,
        "report_to": "none",
        "seed": seed,
    }


def run(trainer: Trainer) -> None:
    """Trains from the last complete checkpoint on, and saves model, processor and state."""
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(trainer.args.output_dir))
    trainer.save_model()
    trainer.save_state()
