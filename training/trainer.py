# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The paper's recipe: `transformers.Trainer` with learning rates and warm-ups by module."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerState, TrainingArguments, get_scheduler
from transformers.trainer import TRAINER_STATE_NAME


# Modules that have settings of their own; what belongs to neither of the others belongs to the decoder.
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
    [`TrainingArguments`] with settings by module and the paper's defaults (table 2 of arXiv 2512.04032): Adam with
    β = 0.9 / 0.95 and ε = 1e-6, a cosine down to a tenth of the learning rate.

    A `stage` fills in what is not given: learning rates, warm-ups, batch size and, unless epochs are asked for, steps.

    Raises:
        ValueError: if `stage` is unknown or `global_batch_size` cannot be divided among the devices.
    """

    stage: str | None = field(
        default=None, metadata={"help": "Stage of the paper's recipe.", "choices": [None, *STAGES]}
    )
    vision_tower_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the vision tower; --learning_rate if not given."}
    )
    connector_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the connector; --learning_rate if not given."}
    )
    language_model_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of decoder and output head; --learning_rate if not given."}
    )
    vision_tower_warmup_steps: float | None = field(
        default=None, metadata={"help": "Warm-up of the vision tower: steps, or a share below 1; else --warmup_steps."}
    )
    connector_warmup_steps: float | None = field(
        default=None, metadata={"help": "Warm-up of the connector: steps, or a share below 1; else --warmup_steps."}
    )
    language_model_warmup_steps: float | None = field(
        default=None, metadata={"help": "Warm-up of the decoder: steps, or a share below 1; else --warmup_steps."}
    )
    freeze: list[str] | None = field(
        default=None,
        metadata={
            "help": "Modules to leave as they are: vision_tower, connector, language_model (with its output head) or "
            "any part of the model by its name, such as language_model.layers.0."
        },
    )
    global_batch_size: int | None = field(
        default=None,
        metadata={"help": "Rows per step on all devices together; sets --gradient_accumulation_steps."},
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "Beta2 for AdamW optimizer."})
    adam_epsilon: float = field(default=1e-6, metadata={"help": "Epsilon for AdamW optimizer."})
    lr_scheduler_type: str = field(default="cosine_with_min_lr", metadata={"help": "The scheduler type to use."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator needs the rows as they are."})
    prediction_loss_only: bool = field(
        default=True, metadata={"help": "Logits of a whole data set, vocabulary wide, fit into no memory."}
    )

    def __post_init__(self):
        if self.stage is not None:
            if self.stage not in STAGES:
                raise ValueError(f"`stage` is {self.stage!r}; the paper's stages are {', '.join(map(repr, STAGES))}.")
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
                    f"`global_batch_size` is {self.global_batch_size}, no multiple of the {rows} rows that "
                    f"{rows // self.per_device_train_batch_size} device(s) take at once; change "
                    "`per_device_train_batch_size`."
                )
            self.gradient_accumulation_steps = self.global_batch_size // rows
        if self.accelerator_config.dispatch_batches is None:
            # Batches of one process cannot be cut by rows for the others: pixel values have more rows, one per tile.
            self.accelerator_config.dispatch_batches = False


class JinaVLMTrainer(Trainer):
    """
    [`Trainer`] that gives vision tower, connector and language model learning rates and warm-ups of their own and
    leaves the modules in `args.freeze` alone. Takes [`JinaVLMTrainingArguments`]. `train(resume_from_checkpoint=True)`
    goes on from the last checkpoint that is complete, or from the start where there is none. In several processes a
    streaming data set of 🤗 Datasets begins again where it ends.

    Raises:
        ValueError: if nothing in the model has a name in `args.freeze`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        is_stream = isinstance(self.train_dataset, IterableDataset) and hasattr(self.train_dataset, "repeat")
        if is_stream and self.args.world_size > 1:
            # Files are divided among processes. One whose files hold fewer rows would be done first, the others wait.
            self.train_dataset = self.train_dataset.repeat(None)
        for name in self.args.freeze or []:
            parts = [name, "lm_head"] if name == "language_model" else [name]
            frozen = [
                parameter
                for parameter_name, parameter in self.model.named_parameters()
                if any(f".{part}." in f".{parameter_name}." for part in parts)
            ]
            if not frozen:
                raise ValueError(f"`freeze` names {name!r}, but no parameter of the model is in a part of that name.")
            for parameter in frozen:
                parameter.requires_grad_(False)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

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
                # Any schedule of Transformers; its function of the step, applied to the module's learning rate.
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
    The folder of the last checkpoint that was written to its end, if there is any. A run that dies while saving leaves
    one behind that was not; Trainer writes its own state last.
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
