# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Trains the vision tower of the small model: a SigLIP encoder that classifies the digit at every patch of a tile."""

from pathlib import Path

import torch
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel, Trainer, TrainingArguments

from jvlm.training import last_complete_checkpoint

from .pages import BACKGROUND, PATCH_SIZE, TILE_SIZE, DigitTiles


BATCH_SIZE = 96


class PatchReader(nn.Module):
    """A SigLIP vision tower with a linear classifier of the digit at every patch."""

    def __init__(self):
        super().__init__()
        config = SiglipVisionConfig(
            hidden_size=96,
            intermediate_size=288,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=TILE_SIZE,
            patch_size=PATCH_SIZE,
            vision_use_head=False,
        )
        self.vision_tower = SiglipVisionModel(config)
        self.classifier = nn.Linear(config.hidden_size, BACKGROUND + 1)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.classifier(self.vision_tower(pixel_values).last_hidden_state)  # [tiles, patches, classes]
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def train_vision_tower(folder: Path, max_steps: int, **arguments) -> list[dict]:
    """Trains a vision tower, saves it in `folder` and returns the log history of the Trainer."""
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=max_steps,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=1.5e-3,
        lr_scheduler_type="cosine",
        warmup_steps=min(200, max_steps // 10),
        weight_decay=0.05,
        adam_beta2=0.98,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        **arguments,
    )
    model = PatchReader()
    trainer = Trainer(model=model, args=args, train_dataset=DigitTiles(max_steps * BATCH_SIZE, args.seed))
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder))
    model.vision_tower.save_pretrained(folder)
    return trainer.state.log_history
