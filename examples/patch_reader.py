# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Trains the vision tower of a small model: a SigLIP encoder that classifies what is at every patch of a tile."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import SiglipVisionConfig, SiglipVisionModel, Trainer, TrainingArguments

from jvlm.training import last_complete_checkpoint


class PatchReader(nn.Module):
    """
    A SigLIP vision tower with four blocks and a linear classifier at every patch.

    Args:
        hidden_size (`int`): hidden size of the tower.
        image_size, patch_size (`int`): sides of a tile and of a patch, in pixels.
        num_classes (`int`): number of classes.
        parts (`int`, *optional*, defaults to 1): number of places in a patch that are classified.
        weight (`torch.Tensor`, *optional*): weight of each class in the loss.
    """

    def __init__(
        self,
        hidden_size: int,
        image_size: int,
        patch_size: int,
        num_classes: int,
        parts: int = 1,
        weight: torch.Tensor | None = None,
    ):
        super().__init__()
        config = SiglipVisionConfig(
            hidden_size=hidden_size,
            intermediate_size=3 * hidden_size,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=image_size,
            patch_size=patch_size,
            vision_use_head=False,
        )
        self.parts = parts
        self.vision_tower = SiglipVisionModel(config)
        self.classifier = nn.Linear(hidden_size, parts * num_classes)
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Labels `[tiles, patches, parts]`, without the last axis for one part; logits have an axis of classes."""
        logits = self.classifier(self.vision_tower(pixel_values).last_hidden_state).unflatten(-1, (self.parts, -1))
        loss = nn.functional.cross_entropy(logits.flatten(0, 2), labels.flatten(), weight=self.weight)
        return {"loss": loss, "logits": logits}


def train_patch_reader(
    model: PatchReader, folder: Path, rows: Dataset, trainer_arguments: dict[str, Any] | None = None, **arguments
) -> list[dict]:
    """
    Trains a [`PatchReader`] and saves its vision tower.

    Args:
        model ([`PatchReader`]): the model.
        folder (`Path`): gets the tower and the checkpoints. Training resumes from the last complete one.
        rows (`Dataset`): rows of `pixel_values` and `labels`, in the order in which they are trained on.
        trainer_arguments (`dict`, *optional*): further arguments of `Trainer`.
        **arguments: arguments of `TrainingArguments`.

    Returns:
        `list[dict]`: the log history of the Trainer.
    """
    args = TrainingArguments(
        output_dir=str(folder),
        weight_decay=0.05,
        adam_beta2=0.98,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        **arguments,
    )
    trainer = Trainer(model=model, args=args, train_dataset=rows, **(trainer_arguments or {}))
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder))
    model.vision_tower.save_pretrained(folder)
    return trainer.state.log_history
