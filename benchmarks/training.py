# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Benchmark stages of a training step: packed rows against padded ones, a frozen vision tower, its kept features."""

from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from jvlm.modeling.image_plan import digest
from jvlm.training.vision_features import VisionFeatures, tower_settings

from .models import Bench


ROW_LENGTHS = (32, 48, 64, 96, 128, 192, 256, 512)  # tokens; padding makes 4096 of these 1328


def _step(model, inputs: dict, labels: torch.Tensor) -> None:
    """Forward and backward pass; other stages are measured without gradients."""
    with torch.inference_mode(False), torch.enable_grad():
        model(**inputs, labels=labels, use_cache=False).loss.backward()
    model.zero_grad(set_to_none=True)


def packed_and_padded(bench: Bench) -> dict:
    """Steps with the same rows of text, packed and padded, as functions by name."""
    model = bench.model.train()
    rows = [bench.text(length)[0] for length in ROW_LENGTHS]
    positions = torch.cat([torch.arange(length, device=bench.device) for length in ROW_LENGTHS])[None]
    packed = {"input_ids": torch.cat(rows)[None], "position_ids": positions}
    padded = {
        "input_ids": pad_sequence(rows, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
    }
    padded_labels = padded["input_ids"].masked_fill(padded["attention_mask"] == 0, -100)
    padded_labels[:, 0] = -100
    packed_labels = packed["input_ids"].masked_fill(positions == 0, -100)
    return {
        "packed": lambda: _step(model, packed, packed_labels),
        "padded": lambda: _step(model, padded, padded_labels),
    }


def frozen_tower(bench: Bench) -> dict:
    """Steps with gradient checkpointing and a frozen vision tower. The last one runs its backward pass."""
    model = bench.model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    inputs = bench.prompt(bench.tiles(4))
    # Gradients of the pixels need the backward pass of the tower, with its blocks computed again.
    with_backward = {**inputs, "pixel_values": inputs["pixel_values"].clone().requires_grad_(True)}
    model.model.vision_tower.requires_grad_(False)
    return {
        "frozen": lambda: _step(model, inputs, inputs["input_ids"]),
        "with the backward pass of the tower": lambda: _step(model, with_backward, inputs["input_ids"]),
    }


def kept_features(bench: Bench, folder: Path) -> dict:
    """
    Steps that train all but a frozen vision tower: with the features of the tiles read from `folder`, and with the
    tower. Both begin with pixels, as a collator makes them.
    """
    model = bench.model.train()
    model.model.vision_tower.requires_grad_(False)
    inputs = bench.prompt(bench.tiles(5))
    pixel_values = inputs.pop("pixel_values")
    kept = VisionFeatures(folder, tower_settings(model.model))
    with torch.no_grad():
        features = model.model.get_vision_features(pixel_values).last_hidden_state
    for tile, of_tile in zip(pixel_values, features, strict=True):
        kept.add(digest(tile), of_tile)
    kept.flush()

    def from_disk() -> None:
        _step(model, {**inputs, "vision_features": kept.read(pixel_values).to(bench.device)}, inputs["input_ids"])

    return {
        "kept features": from_disk,
        "with the vision tower": lambda: _step(model, {**inputs, "pixel_values": pixel_values}, inputs["input_ids"]),
    }
