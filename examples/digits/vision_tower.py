# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Trains the vision tower of the digit model: a SigLIP encoder that classifies the digit at every patch of a tile."""

from pathlib import Path

from ..patch_reader import PatchReader, train_patch_reader
from .pages import BACKGROUND, PATCH_SIZE, TILE_SIZE, DigitTiles


BATCH_SIZE = 96


def build_patch_reader() -> PatchReader:
    """A classifier of digits, and of the background."""
    return PatchReader(hidden_size=96, image_size=TILE_SIZE, patch_size=PATCH_SIZE, num_classes=BACKGROUND + 1)


def train_vision_tower(folder: Path, max_steps: int, seed: int, **arguments) -> list[dict]:
    """Trains a vision tower, saves it in `folder` and returns the log history of the Trainer."""
    return train_patch_reader(
        build_patch_reader(),
        folder,
        DigitTiles(max_steps * BATCH_SIZE, seed),
        max_steps=max_steps,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=1.5e-3,
        lr_scheduler_type="cosine",
        warmup_steps=min(200, max_steps // 10),
        seed=seed,
        **arguments,
    )
