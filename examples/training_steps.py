# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""What the training programs of the small models share: tokenizer and decoder, and the steps that train the model."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import Dataset
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from jvlm.training import DataCollatorForJinaVLM, JinaVLMTrainingArguments
from jvlm.training.evaluation import draw_log
from jvlm.training.finetune import finetune


END_OF_TEXT = "<|endoftext|>"
LOG = "log.json"


@dataclass
class StepsArguments:
    output_dir: Path = field(metadata={"help": "Working folder. The final model is in its subfolder `model`."})
    learning_rate: float = field(
        default=1e-3, metadata={"help": "Learning rate of connector and decoder. The vision tower uses a third of it."}
    )
    num_workers: int = field(default=1, metadata={"help": "Number of data loader workers."})
    seed: int = field(default=0, metadata={"help": "Random seed."})

    def common(self, **arguments) -> dict[str, Any]:
        """`TrainingArguments` of all steps."""
        return {
            "save_total_limit": 2,
            "dataloader_num_workers": self.num_workers,
            "report_to": "none",
            "seed": self.seed,
            **arguments,
        }


def train_tokenizer(corpus: list[str], max_length: int, **settings) -> PreTrainedTokenizerFast:
    """Byte-level BPE over a corpus, with the special tokens of Qwen3. `settings` are those of the `BpeTrainer`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        show_progress=False,
        special_tokens=[END_OF_TEXT, "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        **settings,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        padding_side="left",
        model_max_length=max_length,
    )


def save_decoder(folder: Path, tokenizer: PreTrainedTokenizerFast, **sizes) -> None:
    """Saves a new Qwen3 of these sizes and its tokenizer."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        head_dim=32,
        num_key_value_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_stages(args: StepsArguments, start: Path, stages: dict[str, tuple[Dataset, dict]], common: dict) -> Path:
    """
    Trains a model in stages, each of which has a folder in `args.output_dir`. Complete ones are skipped.

    Args:
        args ([`StepsArguments`]): learning rate and folder.
        start (`Path`): folder of the model.
        stages (`dict[str, tuple[Dataset, dict]]`): rows and training arguments by name, in order.
        common (`dict`): training arguments of all stages.

    Returns:
        `Path`: the folder of the last stage.
    """
    for name, (rows, settings) in stages.items():
        folder = args.output_dir / name
        if not (folder / LOG).is_file():
            training_args = JinaVLMTrainingArguments(
                output_dir=str(folder),
                learning_rate=args.learning_rate,
                vision_tower_learning_rate=args.learning_rate / 3,
                warmup_steps=0.03,
                weight_decay=0.05,
                train_sampling_strategy="sequential",
                resume_from_checkpoint="True",
                **{**common, **settings},
            )
            model = AutoModelForImageTextToText.from_pretrained(start, dtype="float32")
            collator = DataCollatorForJinaVLM(AutoProcessor.from_pretrained(start))
            trainer = finetune(model, collator, training_args, rows)
            (folder / LOG).write_text(json.dumps(trainer.state.log_history))
        start = folder
    return start


def save_model(trained: Path, folder: Path, logs: dict[str, list[dict]]) -> Path:
    """Saves the model of `trained` in bfloat16 in `folder`, with the logs of all steps and a plot of their losses."""
    AutoModelForImageTextToText.from_pretrained(trained, dtype="bfloat16").save_pretrained(folder)
    AutoProcessor.from_pretrained(trained).save_pretrained(folder)
    (folder / "training_log.json").write_text(json.dumps(logs, indent=1) + "\n")
    draw_log(logs, folder / "losses.png")
    return folder
