# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The paper's training recipe: `transformers.Trainer` with a learning rate and a warm-up for each module."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerState, TrainingArguments, get_scheduler
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Modules with their own settings. Parameters outside of these modules, such as `lm_head`, belong to the last one.
MODULES = ("vision_tower", "connector", "language_model")

# Table 2 of arXiv 2512.04032.
STAGES = {
    "alignment": {
        "vision_tower_learning_rate": 6e-6,
        "vision_tower_warmup_steps": 0.1,
        "connector_learning_rate": 2e-4,
        "connector_warmup_steps": 0.01,
        "language_model_learning_rate": 2e-5,
        "language_model_warmup_steps": 0.1,
        "global_batch_size": 128,
        "max_steps": 25_000,
    },
    "instruction": {
        "vision_tower_learning_rate": 5e-6,
        "vision_tower_warmup_steps": 0.1,
        "connector_learning_rate": 5e-6,
        "connector_warmup_steps": 0.1,
        "language_model_learning_rate": 1e-5,
        "language_model_warmup_steps": 0.1,
        "global_batch_size": 256,
        "max_steps": 60_000,
    },
}


@dataclass
class JinaVLMTrainingArguments(TrainingArguments):
    r"""
    [`TrainingArguments`] with settings for each module and the paper's defaults (table 2 of arXiv 2512.04032): Adam
    with β = 0.9 / 0.95 and ε = 1e-6, and a cosine schedule that ends at a tenth of the learning rate.

    `stage` sets the default learning rates, warm-ups and batch size, and the number of steps unless
    `num_train_epochs` is set. Explicit arguments take precedence.

    Raises:
        ValueError: if `stage` is unknown, or `global_batch_size` is not a multiple of the rows that all devices
            process at once.
    """

    stage: str | None = field(
        default=None, metadata={"help": "Stage of the paper's recipe.", "choices": [None, *STAGES]}
    )
    vision_tower_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the vision tower. Default: --learning_rate."}
    )
    connector_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the connector. Default: --learning_rate."}
    )
    language_model_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of language model and output head. Default: --learning_rate."}
    )
    vision_tower_warmup_steps: float | None = field(
        default=None,
        metadata={
            "help": "Warm-up of the vision tower in steps, or below 1 as a fraction of all. Default: --warmup_steps."
        },
    )
    connector_warmup_steps: float | None = field(
        default=None,
        metadata={
            "help": "Warm-up of the connector in steps, or below 1 as a fraction of all. Default: --warmup_steps."
        },
    )
    language_model_warmup_steps: float | None = field(
        default=None,
        metadata={
            "help": "Warm-up of the language model in steps, or below 1 as a fraction of all. Default: --warmup_steps."
        },
    )
    freeze: list[str] | None = field(
        default=None,
        metadata={
            "help": "Modules to freeze: vision_tower, connector, language_model (with its output head) or the name of "
            "any submodule, such as language_model.layers.0."
        },
    )
    global_batch_size: int | None = field(
        default=None,
        metadata={"help": "Rows per step over all devices. Sets --gradient_accumulation_steps."},
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "Beta2 of AdamW."})
    adam_epsilon: float = field(default=1e-6, metadata={"help": "Epsilon of AdamW."})
    lr_scheduler_type: str = field(default="cosine_with_min_lr", metadata={"help": "Learning rate schedule."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must be false: the collator needs all columns."}
    )
    prediction_loss_only: bool = field(
        default=True,
        metadata={"help": "Evaluate the loss only: the logits of a whole data set do not fit into memory."},
    )

    def __post_init__(self):
        if self.stage is not None:
            if self.stage not in STAGES:
                raise ValueError(f"`stage` is {self.stage!r}, but must be one of {', '.join(map(repr, STAGES))}.")
            for name, value in STAGES[self.stage].items():
                if getattr(self, name) is None:
                    setattr(self, name, value)
            if self.max_steps < 0 and self.num_train_epochs == TrainingArguments.num_train_epochs:
                self.max_steps = STAGES[self.stage]["max_steps"]
        if self.lr_scheduler_type == "cosine_with_min_lr" and not self.lr_scheduler_kwargs:
            self.lr_scheduler_kwargs = {"min_lr_rate": 0.1}
        super().__post_init__()
        if self.global_batch_size is not None:
            rows = self.per_device_train_batch_size * max(1, self.n_gpu) * self.world_size
            if self.global_batch_size % rows:
                raise ValueError(
                    f"`global_batch_size` is {self.global_batch_size}, but must be a multiple of {rows}: "
                    f"{rows // self.per_device_train_batch_size} device(s) × `per_device_train_batch_size` "
                    f"({self.per_device_train_batch_size})."
                )
            self.gradient_accumulation_steps = self.global_batch_size // rows
        if self.accelerator_config.dispatch_batches is None:
            # A batch cannot be split by rows among processes: `pixel_values` has one row per tile, not per sequence.
            self.accelerator_config.dispatch_batches = False


class JinaVLMTrainer(Trainer):
    """
    [`Trainer`] with a separate learning rate and warm-up for vision tower, connector and language model. It freezes
    the modules in `args.freeze`. `args` are [`JinaVLMTrainingArguments`].

    `train(resume_from_checkpoint=True)` resumes from the last complete checkpoint, or starts from the beginning if
    there is none. In several processes, a streaming data set of 🤗 Datasets is repeated until `max_steps` is reached.

    Raises:
        ValueError: if a name in `args.freeze` matches no parameter of the model.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        is_stream = isinstance(self.train_dataset, IterableDataset) and hasattr(self.train_dataset, "repeat")
        if is_stream and self.args.world_size > 1:
            # Each process reads its own files. A process that runs out of rows first would block all others.
            self.train_dataset = self.train_dataset.repeat(None)
        for name in self.args.freeze or []:
            parts = [name, "lm_head"] if name == "language_model" else [name]
            frozen = [
                parameter
                for parameter_name, parameter in self.model.named_parameters()
                if any(f".{part}." in f".{parameter_name}." for part in parts)
            ]
            if not frozen:
                raise ValueError(f"`freeze` contains {name!r}, but the model has no module of that name.")
            for parameter in frozen:
                parameter.requires_grad_(False)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
        output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        if num_skipped := getattr(self.data_collator, "num_skipped_rows", 0):
            # Each process counts its own rows.
            logger.warning(f"{num_skipped} rows were skipped in this process; a warning above says why for each.")
        return output

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # A step may have no label if the collator skips bad rows; a mean over none would be NaN, and so the weights.
        if num_items_in_batch is not None:
            num_items_in_batch = torch.as_tensor(num_items_in_batch).clamp(min=1)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def create_model_card(self, *args, **kwargs) -> None:
        """Also states the learning rate of each module, the stage and the frozen modules, in `README.md`."""
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            path = Path(self.args.output_dir) / "README.md"
            settings = [f"- {name}: {value}\n" for name, value in self._recipe().items()]
            text = re.sub(r"- lr_scheduler_warmup_steps: .*\n", "", path.read_text(encoding="utf-8"))
            text = re.sub(r"- learning_rate: .*\n", lambda _: "".join(settings), text)
            path.write_text(text, encoding="utf-8")

    def _recipe(self) -> dict[str, Any]:
        """What the model card states in place of the one learning rate and warm-up of [`TrainingArguments`]."""
        recipe: dict[str, Any] = {"stage": self.args.stage} if self.args.stage else {}
        trained = {_module_of(name) for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        for module in MODULES:
            rate, warmup = self._setting(module, "learning_rate"), self._setting(module, "warmup_steps")
            recipe[f"{module}_learning_rate"] = rate if module in trained else "none, all its weights are frozen"
            recipe |= {f"{module}_warmup_steps": warmup} if module in trained else {}
        return recipe | ({"freeze": ", ".join(self.args.freeze)} if self.args.freeze else {})

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new:
            names = {parameter: name for name, parameter in (model or self.model).named_parameters()}
            optimizer.param_groups = [
                {**group, "params": parameters, "lr": self._setting(module, "learning_rate"), "module": module}
                for group in optimizer.param_groups
                for module in MODULES
                if (parameters := [p for p in group["params"] if _module_of(names[p]) == module])
            ]
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None) -> LambdaLR:
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            factors = {}
            for module in MODULES:
                warmup = self._setting(module, "warmup_steps")
                # Builds any schedule of Transformers and keeps its function from step to learning rate factor.
                (factors[module],) = get_scheduler(
                    self.args.lr_scheduler_type,
                    optimizer=torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0),
                    num_warmup_steps=int(warmup) if warmup >= 1 else math.ceil(num_training_steps * warmup),
                    num_training_steps=num_training_steps,
                    scheduler_specific_kwargs=self.args.lr_scheduler_kwargs,
                ).lr_lambdas
            schedules = [factors[group["module"]] for group in optimizer.param_groups]
            self.lr_scheduler: LambdaLR | None = LambdaLR(optimizer, schedules)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _setting(self, module: str, name: str) -> float:
        value = getattr(self.args, f"{module}_{name}")
        return getattr(self.args, name) if value is None else value


def _module_of(name: str) -> str:
    return next((module for module in MODULES if f".{module}." in f".{name}"), MODULES[-1])


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """
    The folder of the last complete checkpoint in `output_dir`, or `None`. A run that is killed while saving leaves an
    incomplete checkpoint. [`Trainer`] writes its state last, so a checkpoint with a readable state is complete.
    """
    by_step = {
        int(path.parent.name.removeprefix("checkpoint-")): path
        for path in Path(output_dir).glob(f"checkpoint-[0-9]*/{TRAINER_STATE_NAME}")
    }
    for step in sorted(by_step, reverse=True):
        try:
            TrainerState.load_from_json(str(by_step[step]))
        except ValueError:
            continue
        return str(by_step[step].parent)
    return None
