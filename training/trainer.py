# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The paper's training recipe: `transformers.Trainer` with a learning rate and a warm-up for each module."""

import copy
import math
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accelerate import ParallelismConfig
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments, get_scheduler
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import LabelSmoother
from transformers.trainer_utils import EvalLoopOutput, has_length
from transformers.utils import logging

from .data_collator import DataCollatorForJinaVLM
from .vision_features import keep_vision_features


logger = logging.get_logger(__name__)

# Modules with their own settings. Parameters outside of these modules, such as `lm_head`, belong to the last one.
MODULES = ("vision_tower", "connector", "language_model")

# LoRA trains well at rates far above those of full weights: the usual 1e-4 to 2e-4 are 20 times a stage's rates.
ADAPTER_RATE_FACTOR = 20

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

    `stage` sets learning rates, warm-ups, batch size and number of steps, each unless an argument sets it:
    `learning_rate` and `warmup_steps` are for all modules without their own, `gradient_accumulation_steps` replaces
    the batch size, `num_train_epochs` the number of steps. The rates of a stage are for full weights; its rates of
    LoRA adapters are 20 times as high.

    Raises:
        ValueError: if `stage` is unknown, `global_batch_size` is not a multiple of the rows that all devices process
            at once, or contradicts `gradient_accumulation_steps`, or `remove_unused_columns` is set.
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
    keep_vision_features: str | None = field(
        default=None,
        metadata={
            "help": "Folder for the output of a frozen vision tower, which is computed once for every tile of the "
            "training rows and read in every epoch."
        },
    )
    # `None` where Transformers has a number, to tell a given value from none.
    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Learning rate of modules without their own. Default: that of the stage or recipe, or 5e-5."
        },
    )
    warmup_steps: float | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Warm-up of modules without their own, in steps, or below 1 as a fraction of all. Default: the "
            "stage's, or 0."
        },
    )
    num_train_epochs: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Number of epochs. Default: the stage's number of steps, or 3."}
    )
    gradient_accumulation_steps: int | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Batches per step. Default: what --global_batch_size or the stage needs, or 1."},
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "Beta2 of AdamW."})
    adam_epsilon: float = field(default=1e-6, metadata={"help": "Epsilon of AdamW."})
    lr_scheduler_type: str = field(default="cosine_with_min_lr", metadata={"help": "Learning rate schedule."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must be false: the collator needs all columns."}
    )

    def __post_init__(self):
        if self.stage is not None and self.stage not in STAGES:
            raise ValueError(f"`stage` is {self.stage!r}, but must be one of {', '.join(map(repr, STAGES))}.")
        if self.remove_unused_columns:
            raise ValueError("`remove_unused_columns` must be false: the collator needs all columns of the rows.")
        given_accumulation = self.gradient_accumulation_steps
        self._set_defaults()
        super().__post_init__()
        if self.global_batch_size is not None:
            self._set_accumulation(self.global_batch_size, given_accumulation)
        _keep_batches_whole(self)

    def _set_defaults(self):
        """Sets what nobody has given, from the stage or else to the default of Transformers."""
        stage = STAGES.get(self.stage or "", {})
        self.modules_at_stage_rate = {
            module
            for module in MODULES
            if stage and self.learning_rate is None and getattr(self, f"{module}_learning_rate") is None
        }
        for name in ("learning_rate", "warmup_steps"):
            for module in MODULES:
                if getattr(self, name) is None and getattr(self, f"{module}_{name}") is None:
                    setattr(self, f"{module}_{name}", stage.get(f"{module}_{name}"))
        if self.gradient_accumulation_steps is None and self.global_batch_size is None:
            self.global_batch_size = stage.get("global_batch_size")
        if self.num_train_epochs is None and self.max_steps < 0:
            self.max_steps = stage.get("max_steps", self.max_steps)
        for name in ("learning_rate", "warmup_steps", "num_train_epochs", "gradient_accumulation_steps"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(TrainingArguments, name))
        if self.lr_scheduler_type == "cosine_with_min_lr" and not self.lr_scheduler_kwargs:
            self.lr_scheduler_kwargs = {"min_lr_rate": 0.1}

    def _set_accumulation(self, global_batch_size: int, given: int | None) -> None:
        rows = self.per_device_train_batch_size * max(1, self.n_gpu) * self.world_size
        if global_batch_size % rows:
            raise ValueError(
                f"`global_batch_size` is {global_batch_size}, but must be a multiple of {rows}: "
                f"{rows // self.per_device_train_batch_size} device(s) × `per_device_train_batch_size` "
                f"({self.per_device_train_batch_size})."
            )
        self.gradient_accumulation_steps = global_batch_size // rows
        if given not in (None, self.gradient_accumulation_steps):
            raise ValueError(
                f"`global_batch_size` ({global_batch_size}) needs {self.gradient_accumulation_steps} batches per "
                f"step, but `gradient_accumulation_steps` is {given}; give only one of the two."
            )


def _keep_batches_whole(args: TrainingArguments) -> None:
    # A batch cannot be split by rows among processes: `pixel_values` has one row per tile, not per sequence.
    if args.accelerator_config.dispatch_batches is None:
        args.accelerator_config.dispatch_batches = False


def _check_parallelism(args: TrainingArguments) -> None:
    parallelism = args.parallelism_config
    if parallelism is None and os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "").lower() == "true":
        parallelism = ParallelismConfig()  # that of `accelerate launch`
    for name in ("cp_size", "sp_size"):
        if (size := getattr(parallelism, name, 1)) > 1:
            raise ValueError(
                f"`{name}` of the parallelism configuration is {size}, but must be 1: context and sequence "
                "parallelism cut sequences, and with them the tokens of an image. FSDP2, ZeRO-3 and gradient "
                "checkpointing reduce the memory."
            )


class JinaVLMTrainer(Trainer):
    """
    [`Trainer`] with a separate learning rate and warm-up for vision tower, connector and language model. It freezes
    the modules in `args.freeze`. Before the first step it prints its plan. The evaluation loss is the mean over all
    label tokens, whatever the batch size and the number of processes, and smoothed labels are those of the next token.

    `args` are [`JinaVLMTrainingArguments`], or [`TrainingArguments`] to train all modules at one rate. With
    `args.keep_vision_features`, training reads the output of a frozen vision tower from this folder. What is missing
    there is computed before the first step. Evaluation runs the tower.

    `train(resume_from_checkpoint=True)` resumes from the last complete checkpoint, or starts from the beginning if
    there is none. In several processes, a streaming data set of 🤗 Datasets is repeated until `max_steps` is reached.

    Raises:
        ValueError: if a name in `args.freeze` matches no parameter of the model, nothing is left to train, or `args`
            ask for Liger kernels or context parallelism, which the model does not have. In `train`, see
            [`keep_vision_features`].
    """

    def __init__(self, model=None, args=None, data_collator=None, *positional, **kwargs):
        args = JinaVLMTrainingArguments("tmp_trainer") if args is None else args
        if args.use_liger_kernel:
            raise ValueError("`use_liger_kernel` would change nothing: Liger has no kernels for JinaVLM. Remove it.")
        _check_parallelism(args)
        _keep_batches_whole(args)
        if isinstance(data_collator, DataCollatorForJinaVLM):
            args.remove_unused_columns = False  # the collator reads columns that the model does not know
            data_collator.allow_empty_batches = True  # `compute_loss` gives them no weight
        super().__init__(model, args, data_collator, *positional, **kwargs)
        for adapter in getattr(self.model, "peft_config", {}).values():
            # PEFT writes this path into the adapter, which is loaded from other folders, too.
            if os.path.isdir(adapter.base_model_name_or_path or ""):
                adapter.base_model_name_or_path = os.path.abspath(adapter.base_model_name_or_path)
        self._eval_sums = None  # sum of losses and number of label tokens, in evaluation
        if self.label_smoother is not None:
            self.label_smoother = _ShiftedLabelSmoother(self.args.label_smoothing_factor)
        self.add_callback(_PrintPlan(self))
        is_stream = isinstance(self.train_dataset, IterableDataset) and hasattr(self.train_dataset, "repeat")
        if is_stream and self.args.world_size > 1:
            # Each process reads its own files. A process that runs out of rows first would block all others.
            self.train_dataset = self.train_dataset.repeat(None)
        for name in self._given("freeze") or []:
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
        if folder := self._given("keep_vision_features"):
            self._keep_vision_features(folder)
        output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        if num_skipped := getattr(self.data_collator, "num_skipped_rows", 0):
            # Each process counts its own rows.
            logger.warning(f"{num_skipped} rows were skipped in this process; a warning above says why for each.")
        return output

    def _keep_vision_features(self, folder: str) -> None:
        if not isinstance(self.data_collator, DataCollatorForJinaVLM):
            raise ValueError(
                f"`keep_vision_features` needs a `DataCollatorForJinaVLM`, not {type(self.data_collator).__name__}."
            )
        self.data_collator.vision_features = keep_vision_features(
            folder,
            self.model,
            self.train_dataset,
            self.data_collator,
            self.accelerator,
            self.args.train_batch_size,
            self.args.dataloader_num_workers,
            show_progress=not self.args.disable_tqdm,
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # A step may have no label if the collator skips bad rows; a mean over none would be NaN, and so the weights.
        if num_items_in_batch is not None:
            num_items_in_batch = torch.as_tensor(num_items_in_batch).clamp(min=1)
        labels = inputs.get("labels")
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self._eval_sums is not None and labels is not None:
            self._eval_sums += self._sum_losses(outputs["logits"], labels)
        return (loss, outputs) if return_outputs else loss

    def _sum_losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The sum of the losses of all label tokens on all processes, and their number."""
        rows = []  # one at a time, for their logits are large in float32
        for row_logits, row_labels in zip(logits, labels, strict=True):
            targets = row_labels[1:].to(row_logits.device)
            loss = nn.functional.cross_entropy(
                row_logits[:-1].float(), targets, reduction="sum", label_smoothing=self.args.label_smoothing_factor
            )
            rows.append(torch.stack([loss, (targets != -100).sum().to(loss)]))
        # Without the rows that are repeated to fill the last batch.
        padded = self.accelerator.pad_across_processes(torch.stack(rows))
        return self.accelerator.gather_for_metrics(padded).sum(dim=0).double().cpu()

    def get_eval_dataloader(self, *args, **kwargs):
        with self._plain_batches():
            return super().get_eval_dataloader(*args, **kwargs)

    def get_test_dataloader(self, *args, **kwargs):
        with self._plain_batches():
            return super().get_test_dataloader(*args, **kwargs)

    @contextmanager
    def _plain_batches(self):
        # Losses and predictions are gathered by row, to leave out the rows that are repeated to fill the last batch.
        # Vision features are kept of the rows to train on only.
        collator = self.data_collator
        if isinstance(collator, DataCollatorForJinaVLM):
            self.data_collator = copy.copy(collator)
            self.data_collator.packing, self.data_collator.vision_features = False, None
        try:
            yield
        finally:
            self.data_collator = collator

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        """
        Also makes the loss the mean over all label tokens of the data set. That of [`Trainer`] is the mean over the
        means of batches, so it depends on the batch size.
        """
        # A loss function of the user need not be a mean over tokens.
        self._eval_sums = torch.zeros(2, dtype=torch.float64) if self.compute_loss_func is None else None
        try:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            if self._eval_sums is not None and self._eval_sums[1]:
                total, count = self._eval_sums.tolist()
                output.metrics[f"{metric_key_prefix}_loss"] = total / count
            return output
        finally:
            self._eval_sums = None

    def _get_learning_rate(self) -> float:
        self._rates = {group.get("module"): group["lr"] for group in self.optimizer.param_groups}
        return super()._get_learning_rate()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Also logs the learning rate of each module."""
        if "learning_rate" in logs:
            logs |= {f"{module}_learning_rate": rate for module, rate in self._rates.items() if module}
        super().log(logs, start_time)

    def create_model_card(self, *args, **kwargs) -> None:
        """Also states the learning rate of each module, the stage and the frozen modules, in `README.md`."""
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            path = Path(self.args.output_dir) / "README.md"
            settings = [f"- {name}: {value}\n" for name, value in self._recipe().items()]
            text = re.sub(r"- lr_scheduler_warmup_steps: .*\n", "", path.read_text(encoding="utf-8"))
            text = re.sub(r"- learning_rate: .*\n", lambda _: "".join(settings), text)
            path.write_text(text, encoding="utf-8")

    def describe_run(self, num_training_steps: int) -> str:
        """
        What a run of `num_training_steps` steps will do, in a few lines of text: steps and rows per step, and for each
        module the number of trainable parameters, the learning rate and the warm-up. It is printed when training
        begins, unless `disable_tqdm` is set.
        """
        args, stage = self.args, self._given("stage")
        rows = self.get_total_train_batch_size(args)
        per_device, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
        epochs = ""
        if has_length(self.train_dataset):
            epochs = f", {num_training_steps * rows / len(self.train_dataset):.3g} epochs"
        lines = [
            f"Training{f' (stage {stage})' if stage else ''}: {num_training_steps} steps of {rows} rows "
            f"({per_device} per device × {rows // (per_device * accumulated)} devices × {accumulated} batches){epochs}"
        ]
        for (module, is_adapter), number in self._num_trainable().items():
            rate, warmup = self._rate(module, is_adapter), self._warmup_steps(module, num_training_steps)
            settings = f"learning rate {rate:g}, warm-up {warmup} steps" if number else "frozen"
            kind = "adapter" if is_adapter else "trainable"
            lines.append(f"  {module:<14} {number:>13,} {kind} parameters, {settings}")
        return "\n".join(lines)

    def _num_trainable(self) -> dict[tuple[str, bool], int]:
        """The number of trainable parameters by module and whether they are adapters."""
        numbers = {(module, False): 0 for module in MODULES}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                key = _module_of(name), _is_adapter(name)
                # ZeRO-3 keeps a shard of no size in place of the parameter.
                numbers[key] = numbers.get(key, 0) + getattr(parameter, "ds_numel", parameter.numel())
        return {key: numbers[key] for key in sorted(numbers, key=lambda key: (MODULES.index(key[0]), key[1]))}

    def _recipe(self) -> dict[str, Any]:
        """What the model card states in place of the one learning rate and warm-up of [`TrainingArguments`]."""
        recipe: dict[str, Any] = {"stage": self._given("stage")} if self._given("stage") else {}
        for (module, is_adapter), number in self._num_trainable().items():
            name = f"{module}_adapters" if is_adapter else module
            recipe[f"{name}_learning_rate"] = self._rate(module, is_adapter) if number else "none, it is frozen"
            recipe |= {f"{name}_warmup_steps": self._setting(module, "warmup_steps")} if number else {}
        frozen = self._given("freeze")
        return recipe | ({"freeze": ", ".join(frozen)} if frozen else {})

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if not any(parameter.requires_grad for parameter in (model or self.model).parameters()):
            frozen = self._given("freeze")
            raise ValueError(
                f"There is nothing to train: all parameters are frozen{f' by `freeze` = {frozen}' * bool(frozen)}."
            )
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new:
            names = {parameter: name for name, parameter in (model or self.model).named_parameters()}
            optimizer.param_groups = [
                {**group, "params": parameters, "lr": self._rate(module, is_adapter), "module": module}
                for group in optimizer.param_groups
                for module, is_adapter in product(MODULES, (False, True))
                if (
                    parameters := [
                        parameter
                        for parameter in group["params"]
                        if (_module_of(names[parameter]), _is_adapter(names[parameter])) == (module, is_adapter)
                    ]
                )
            ]
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None) -> LambdaLR:
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            factors = {}
            for module in MODULES:
                # Builds any schedule of Transformers and keeps its function from step to learning rate factor.
                (factors[module],) = get_scheduler(
                    self.args.lr_scheduler_type,
                    optimizer=torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0),
                    num_warmup_steps=self._warmup_steps(module, num_training_steps),
                    num_training_steps=num_training_steps,
                    scheduler_specific_kwargs=self.args.lr_scheduler_kwargs,
                ).lr_lambdas
            schedules = [factors[group["module"]] for group in optimizer.param_groups]
            self.lr_scheduler: LambdaLR | None = LambdaLR(optimizer, schedules)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _given(self, name: str) -> Any:
        # Plain `TrainingArguments` lack the fields of this package.
        return getattr(self.args, name, None)

    def _setting(self, module: str, name: str) -> float:
        value = self._given(f"{module}_{name}")
        return getattr(self.args, name) if value is None else value

    def _rate(self, module: str, is_adapter: bool = False) -> float:
        rate = self._setting(module, "learning_rate")
        return (
            rate * ADAPTER_RATE_FACTOR
            if is_adapter and module in (self._given("modules_at_stage_rate") or ())
            else rate
        )

    def _warmup_steps(self, module: str, num_training_steps: int) -> int:
        warmup = self._setting(module, "warmup_steps")
        return int(warmup) if warmup >= 1 else math.ceil(num_training_steps * warmup)


class _ShiftedLabelSmoother(LabelSmoother):
    """Compares logits with the next token. [`Trainer`] does so for the models in its list of language models only."""

    def __call__(self, model_output, labels, shift_labels=False, num_items_in_batch=None):
        return super().__call__(model_output, labels, shift_labels=True, num_items_in_batch=num_items_in_batch)


class _PrintPlan(TrainerCallback):
    """Prints with the progress bar what a run will do, when the number of its steps is known."""

    def __init__(self, trainer: JinaVLMTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero and not args.disable_tqdm:
            print(self.trainer.describe_run(state.max_steps), flush=True)


def _is_adapter(name: str) -> bool:
    return ".lora_" in name


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
