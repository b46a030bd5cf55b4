# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Trains the vision tower of the document model: a SigLIP encoder that names the character at every half patch."""

from pathlib import Path

import torch
from transformers import EvalPrediction

from ..patch_reader import PatchReader, train_patch_reader
from .data import BACKGROUND, PARTS, DocumentTiles
from .ingredients import TEST
from .pages import PATCH_SIZE, TILE_SIZE


BATCH_SIZE = 16
NUM_TEST_TILES = 64  # tiles with held-out fonts and words, on which the characters read are counted
BACKGROUND_WEIGHT = 0.3  # of the loss: most places are empty


def build_patch_reader() -> PatchReader:
    """A classifier of the characters in the halves of a patch, and of the background."""
    weight = torch.ones(BACKGROUND + 1)
    weight[BACKGROUND] = BACKGROUND_WEIGHT
    return PatchReader(192, TILE_SIZE, PATCH_SIZE, num_classes=BACKGROUND + 1, parts=PARTS, weight=weight)


def characters_read(prediction: EvalPrediction) -> dict[str, float]:
    """The share of the places with a character at which the classifier names it: a metric for the Trainer."""
    is_character = prediction.label_ids != BACKGROUND
    return {"characters": float((prediction.predictions == prediction.label_ids)[is_character].mean())}


def train_vision_tower(
    folder: Path, max_steps: int, seed: int, weights: dict[str, torch.Tensor] | None = None, **arguments
) -> list[dict]:
    """
    Trains a vision tower, from scratch or from the `weights` of one, saves it in `folder` and returns the log history
    of the Trainer.
    """
    model = build_patch_reader()
    if weights is not None:  # a JinaVLM has no norm after the last block, which it does not use
        model.vision_tower.load_state_dict({**model.vision_tower.state_dict(), **weights})
    return train_patch_reader(
        model,
        folder,
        DocumentTiles(max_steps * BATCH_SIZE, seed),
        {
            "eval_dataset": DocumentTiles(NUM_TEST_TILES, seed, TEST),
            "compute_metrics": characters_read,
            "preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1),
        },
        max_steps=max_steps,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=1e-3,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=min(100, max_steps // 10),
        eval_strategy="steps",
        eval_steps=arguments["save_steps"],
        seed=seed,
        **arguments,
    )
