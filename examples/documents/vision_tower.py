# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Trains the vision tower of the document model: a SigLIP encoder that names the character at every half patch."""

from pathlib import Path

import torch
from torch import nn
from transformers import EvalPrediction, SiglipVisionConfig, SiglipVisionModel, Trainer, TrainingArguments

from jvlm.training import last_complete_checkpoint

from .data import BACKGROUND, PARTS, DocumentTiles
from .ingredients import TEST
from .pages import PATCH_SIZE, TILE_SIZE


BATCH_SIZE = 16
NUM_TEST_TILES = 64  # tiles with held-out fonts and words, on which the characters read are counted
BACKGROUND_WEIGHT = 0.3  # of the loss: most places are empty


class PatchReader(nn.Module):
    """A SigLIP vision tower with a linear classifier of the characters at every patch."""

    def __init__(self):
        super().__init__()
        config = SiglipVisionConfig(
            hidden_size=192,
            intermediate_size=576,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=TILE_SIZE,
            patch_size=PATCH_SIZE,
            vision_use_head=False,
        )
        self.vision_tower = SiglipVisionModel(config)
        self.classifier = nn.Linear(config.hidden_size, PARTS * (BACKGROUND + 1))
        weight = torch.ones(BACKGROUND + 1)
        weight[BACKGROUND] = BACKGROUND_WEIGHT
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.classifier(
            self.vision_tower(pixel_values).last_hidden_state
        )  # [tiles, patches, parts * classes]
        logits = logits.unflatten(-1, (PARTS, -1))
        loss = nn.functional.cross_entropy(logits.flatten(0, 2), labels.flatten(), weight=self.weight)
        return {"loss": loss, "logits": logits}


def characters_read(prediction: EvalPrediction) -> dict[str, float]:
    """The share of the places with a character at which the classifier names it: a metric for the Trainer."""
    is_character = prediction.label_ids != BACKGROUND
    return {"characters": float((prediction.predictions == prediction.label_ids)[is_character].mean())}


def train_vision_tower(
    folder: Path, max_steps: int, weights: dict[str, torch.Tensor] | None = None, **arguments
) -> list[dict]:
    """
    Trains a vision tower, from scratch or from the `weights` of one, saves it in `folder` and returns the log history
    of the Trainer.
    """
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=max_steps,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=1e-3,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=min(100, max_steps // 10),
        weight_decay=0.05,
        adam_beta2=0.98,
        eval_strategy="steps",
        eval_steps=arguments["save_steps"],
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        **arguments,
    )
    model = PatchReader()
    if weights is not None:  # a JinaVLM has no norm after the last block, which it does not use
        model.vision_tower.load_state_dict({**model.vision_tower.state_dict(), **weights})
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=DocumentTiles(max_steps * BATCH_SIZE, args.seed),
        eval_dataset=DocumentTiles(NUM_TEST_TILES, args.seed, TEST),
        compute_metrics=characters_read,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder))
    model.vision_tower.save_pretrained(folder)
    return trainer.state.log_history
