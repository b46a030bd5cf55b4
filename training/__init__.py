# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""What `transformers.Trainer` needs to train a JinaVLM: batches of conversations, and the paper's recipe."""

from .data_collator import DataCollatorForJinaVLM
from .trainer import STAGES, JinaVLMTrainer, JinaVLMTrainingArguments, last_complete_checkpoint


__all__ = [
    "STAGES",
    "DataCollatorForJinaVLM",
    "JinaVLMTrainer",
    "JinaVLMTrainingArguments",
    "last_complete_checkpoint",
]
