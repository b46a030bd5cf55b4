# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Training of JinaVLM with `transformers.Trainer`: a data collator for conversations, and the paper's recipe."""

from .data_collator import DataCollatorForJinaVLM
from .trainer import STAGES, JinaVLMTrainer, JinaVLMTrainingArguments, last_complete_checkpoint
from .trl_processor import processor_for_trl


__all__ = [
    "STAGES",
    "DataCollatorForJinaVLM",
    "JinaVLMTrainer",
    "JinaVLMTrainingArguments",
    "last_complete_checkpoint",
    "processor_for_trl",
]
