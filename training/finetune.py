# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Fine-tunes a JinaVLM on conversations about images: all weights, some modules or adapters, on one or more devices:

    python -m jvlm.training.finetune --model_name_or_path my-jina-vlm --dataset_name rows.jsonl --output_dir OUT
    python -m jvlm.training.finetune --config run.yaml [further arguments, which win]
    accelerate launch --config_file fsdp2.yaml -m jvlm.training.finetune ...

Files and columns may have any format in `jvlm.training.formats`. All arguments of [`JinaVLMTrainingArguments`] are
accepted. After training, OUT holds the model or its adapters, the processor, the log, plots of losses and scores and a
model card; with rows to evaluate on also eval_results.json, and answers.jsonl with an answer for every assistant turn.
"""

import argparse
import importlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    HfArgumentParser,
    PreTrainedModel,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

import jvlm  # noqa: F401 - registers the model with the Auto classes

from .data_collator import DataCollatorForJinaVLM
from .evaluation import AnswerTrainer, draw_log, exact_answers
from .formats import DATA_SET, RowCollator, RowFormat, check_test_rows, load_rows
from .mixtures import Mixture, MixtureConfig
from .model_card import training_card
from .trainer import ADAPTER_RATE_FACTOR, MODULES, STAGES, JinaVLMTrainingArguments


logger = logging.get_logger(__name__)

ADAPTER_RECIPES = ("lora", "dora", "qlora")
RECIPES = ("full", "frozen_tower", *ADAPTER_RECIPES)
_NOT_GIVEN = object()


@dataclass
class ModelArguments:
    model_name_or_path: str = field(metadata={"help": "Folder or Hub id of the checkpoint to start from."})
    recipe: str = field(
        default="full",
        metadata={
            "help": "What to train. full: all weights. frozen_tower: all but the vision tower. lora, dora: adapters "
            "in vision tower and language model, and the whole connector. qlora: lora over weights in 4 bits. Without "
            "--stage and --learning_rate it sets the rates of the paper's second stage, for adapters 20 times those.",
            "choices": RECIPES,
        },
    )
    dtype: str | None = field(
        default=None,
        metadata={
            "help": "Dtype of the weights: float32, bfloat16 or auto. Default: float32, for adapters with --bf16 "
            "bfloat16."
        },
    )
    attn_implementation: str = field(default="sdpa", metadata={"help": "sdpa, flash_attention_2, eager, ..."})
    max_crops: int | None = field(default=None, metadata={"help": "Maximum number of tiles of an image."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"],
        metadata={
            "help": "Layers with adapters. Default: all linear layers of vision tower and language model. The "
            "connector has none, its weights are trained."
        },
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=32, metadata={"help": "Scaling factor of the adapters, multiplied by their rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before the adapters."})


@dataclass
class DataArguments:
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "JSON, JSONL, CSV, TSV, Parquet or tar file, also compressed; glob of files; folder of them, "
            "named after splits; ImageFolder with metadata.jsonl; saved data set; Hub id."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a data set of the Hub."})
    dataset_train_split: str = field(
        default="train", metadata={"help": "Split to train on, or a slice of one: 'train[:90%%]'."}
    )
    dataset_test_split: str | None = field(
        default=None, metadata={"help": "Split to evaluate on, if any, or a slice: 'train[90%%:]'."}
    )
    dataset_test_name: str | None = field(
        default=None,
        metadata={"help": "Data set to evaluate on, if it is not --dataset_name. Its split is train by default."},
    )
    dataset_columns: list[str] | None = field(
        default=None,
        metadata={"help": "Columns by what they mean, such as question=query answer=label image=page."},
    )
    dataset_question: str | None = field(
        default=None, metadata={"help": "The question of every row, for data with answers only, such as captions."}
    )
    image_marker: str = field(
        default="<image>", metadata={"help": "What marks the place of an image in a text; '' for nothing."}
    )
    image_folder: str | None = field(
        default=None, metadata={"help": "Where relative paths of images begin. Default: the folder of the data."}
    )
    mixture: str | None = field(
        default=None, metadata={"help": "YAML file of weighted data sets to train on, in place of --dataset_name."}
    )
    streaming: bool = field(default=False, metadata={"help": "Stream the training rows. Requires --max_steps."})
    skip_bad_rows: bool = field(
        default=False, metadata={"help": "Skip rows that cannot be read, and count and report them."}
    )
    packing: bool = field(
        default=False, metadata={"help": "Put the rows of a batch into one sequence, without padding."}
    )
    max_length: int | None = field(default=None, metadata={"help": "Maximum length of a conversation in tokens."})
    max_new_tokens: int = field(default=128, metadata={"help": "Maximum length of a generated answer in tokens."})
    score: str = field(
        default="jvlm.training.evaluation:exact_answers",
        metadata={
            "help": "Score of a generated answer, as module:function. The function takes the answer and its reference "
            "and returns a number; its name is that of the metric."
        },
    )

    def __post_init__(self):
        self.score_function = load_score(self.score)
        pairs = [pair.partition("=")[::2] for pair in self.dataset_columns or []]
        if bad := [target for target, column in pairs if not target or not column]:
            raise ValueError(f"`dataset_columns` has {bad[0]!r}, but needs pairs such as question=query.")
        self.columns = dict(pairs)

    def row_format(self, name: str) -> RowFormat:
        """The format of the data set `name`."""
        options = {"columns": self.columns, "question": self.dataset_question, "image_marker": self.image_marker}
        return RowFormat.of(name, self.image_folder, **options)


def load_score(name: str) -> Callable[[str, str], float]:
    """
    The function that `module:function` names. Modules in the current folder are found, too.

    Raises:
        ValueError: if there is none.
    """
    module, _, function = name.partition(":")
    try:
        score = getattr(importlib.import_module(module), function, None) if module else None
    except ModuleNotFoundError as error:
        raise ValueError(f"--score is {name!r}, but there is no module {error.name!r}.") from error
    if not callable(score):
        raise ValueError(f"--score is {name!r}, but must name a function of answer and reference, as module:function.")
    return score


# Model


def load_model(model_args: ModelArguments, args: JinaVLMTrainingArguments) -> PreTrainedModel | PeftModel:
    """
    Loads the model, with adapters if the recipe has them.

    Raises:
        ValueError: if adapters would be trained in another dtype than the model computes in.
    """
    is_adapter = model_args.recipe in ADAPTER_RECIPES
    dtype = model_args.dtype or ("bfloat16" if is_adapter and args.bf16 else "float32")
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": model_args.attn_implementation}
    if model_args.recipe == "qlora":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            # The connector is trained. Its short name would not match its layers.
            llm_int8_skip_modules=["model.connector", "lm_head"],
        )
    model = AutoModelForImageTextToText.from_pretrained(model_args.model_name_or_path, **options)
    if not is_adapter:
        return model
    if model.dtype != torch.float32 and not (args.bf16 or args.fp16):
        raise ValueError(f"--dtype is {model.dtype}, but adapters are trained in float32: add --bf16.")
    return add_adapters(model, model_args, args.freeze or ())


def add_adapters(model: PreTrainedModel, model_args: ModelArguments, frozen: Sequence[str] = ()) -> PeftModel:
    """
    Adds LoRA or DoRA adapters and makes the connector trainable, both in float32. Modules whose names are in `frozen`
    get no adapters.
    """
    targets = model_args.lora_target_modules
    config = LoraConfig(
        r=model_args.lora_r,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        use_dora=model_args.recipe == "dora",
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        exclude_modules=rf"(.*\.)?({'|'.join(map(re.escape, frozen))})\..*" if frozen else None,
        modules_to_save=["connector"],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:  # bfloat16 would round small updates away
            parameter.data = parameter.data.float()
    return model


# Data


def load_training_rows(data: DataArguments, args: JinaVLMTrainingArguments):
    """
    The rows to train on, and their formats by data set, see [`RowCollator`].

    Raises:
        ValueError: if there are none, their format is unknown, or the arguments do not go with a mixture.
    """
    if data.mixture is not None and data.dataset_name is None:
        return load_mixture(data.mixture, data, args)
    if data.mixture is not None or data.dataset_name is None:
        raise ValueError("Name the rows to train on with either --dataset_name or --mixture.")
    rows = load_rows(data.dataset_name, data.dataset_train_split, data.dataset_config, data.streaming)
    row_format = data.row_format(data.dataset_name)
    check_format(rows, row_format)
    return rows, {None: row_format}


def load_mixture(
    name: str, data: DataArguments, args: JinaVLMTrainingArguments
) -> tuple[Mixture, dict[str | None, RowFormat]]:
    """The rows of a mixture and their formats. Sets the sampling strategy that a mixture needs."""
    if args.max_steps <= 0:
        raise ValueError("A mixture needs its number of steps: set --max_steps or --stage.")
    if data.streaming or args.train_sampling_strategy not in ("random", "sequential"):
        raise ValueError("A mixture has an order of its own; it takes neither --streaming nor a sampling strategy.")
    args.train_sampling_strategy = "sequential"
    rows_per_step = args.train_batch_size * (args.gradient_accumulation_steps or 1) * args.world_size
    mixture = Mixture(MixtureConfig.load(name), int(args.max_steps), rows_per_step, args.seed)
    for source, rows in zip(mixture.config.datasets, mixture.data_sets, strict=True):
        check_format(rows, mixture.formats[source.name])
    if args.process_index == 0:
        print(mixture.describe(), flush=True)
    return mixture, dict(mixture.formats)


def check_format(rows, row_format: RowFormat) -> None:
    """Raises a `ValueError` if there are no rows or the first one has no known format."""
    first = next(iter(rows), None)
    if first is None:
        raise ValueError(f"{row_format.name} has no rows.")
    logger.info(f"{row_format.name} has the format {row_format.detect(first)}.")


def load_test_rows(data: DataArguments):
    """
    The rows to evaluate on, and their formats by data set: those of the arguments, or of each data set of a mixture
    by its name. They are never streamed. `None` and no format if there are none.
    """
    if data.dataset_test_split is not None or data.dataset_test_name is not None:
        name, split = data.dataset_test_name or data.dataset_name, data.dataset_test_split or "train"
        if name is None:
            raise ValueError("Name the rows to evaluate on with --dataset_test_name.")
        if data.dataset_name is not None:
            check_test_rows(data.dataset_name, data.dataset_train_split, name, split, data.dataset_config)
        elif data.mixture is not None:
            MixtureConfig.load(data.mixture).check_test_rows(name, split, data.dataset_config)
        rows = load_rows(name, split, data.dataset_config)
        check_format(rows, data.row_format(name))
        return rows.add_column(DATA_SET, [name] * len(rows)), {name: data.row_format(name)}
    if data.mixture is not None:
        by_name = {source.name: source.test_rows() for source in MixtureConfig.load(data.mixture).datasets}
        return {name: rows for name, rows in by_name.items() if rows is not None} or None, {}
    return None, {}


def add_lengths(rows: Dataset, collator: RowCollator, args: JinaVLMTrainingArguments) -> Dataset:
    """Adds the column by which `Trainer` groups rows of similar length, without decoding images."""
    with args.main_process_first(desc="lengths"):
        lengths = rows.map(
            lambda row: {args.length_column_name: collator.length(row)},
            remove_columns=rows.column_names,
            num_proc=args.dataloader_num_workers or None,
            desc="Lengths",
        )
    return rows.add_column(args.length_column_name, lengths[args.length_column_name])


# Training


class FineTuner(AnswerTrainer):
    """[`AnswerTrainer`] that writes the model card of [`training_card`]; `card` are arguments of that function."""

    def __init__(self, *args, card: dict[str, Any] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.card = card or {}

    def create_model_card(self, *args, **kwargs) -> None:
        """Writes the card of [`training_card`], whose arguments are those of this trainer."""
        if self.is_world_process_zero():
            training_card(self, **self.card).save(Path(self.args.output_dir) / "README.md")

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self.create_model_card()  # `Trainer` pushes checkpoints without one
        super()._push_from_checkpoint(checkpoint_folder)


def finetune(
    model: PreTrainedModel | PeftModel,
    collator: DataCollatorForJinaVLM,
    args: JinaVLMTrainingArguments,
    train_dataset,
    eval_dataset=None,
    max_new_tokens: int = 128,
    card: dict[str, Any] | None = None,
    score: Callable[[str, str], float] = exact_answers,
) -> FineTuner:
    """
    Trains the model, evaluates it, and writes everything into `args.output_dir`: model, processor, log, plots and
    model card. Pushes it at last if `args.push_to_hub` is set.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the model to train.
        collator ([`DataCollatorForJinaVLM`]): the collator with the processor of the model.
        args ([`JinaVLMTrainingArguments`]): the arguments of the training.
        train_dataset, eval_dataset: rows that the collator takes; those to evaluate on are optional.
        max_new_tokens (`int`): maximum length of a generated answer in tokens.
        card (`dict`, *optional*): further arguments of [`training_card`].
        score (`Callable[[str, str], float]`): the score of an answer and its reference, named as the function.
    """
    trainer = FineTuner(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=collator,
        processing_class=collator.processor,
        max_new_tokens=max_new_tokens,
        score=score,
        card=card,
    )
    resume = args.resume_from_checkpoint
    trainer.train(resume_from_checkpoint={"true": True, "True": True}.get(resume, resume))
    # Not `save_model()`, which would push a model without its evaluation.
    trainer.save_model(_internal_call=True)
    if eval_dataset is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        output = Path(args.output_dir)
        log = {output.resolve().name: trainer.state.log_history}
        draw_log(log, output / "losses.png")
        draw_log(log, output / "scores.png", trainer.score_name)
    trainer.create_model_card()
    trainer.save_state()  # last, so that a folder with a state is complete
    if args.push_to_hub:
        trainer.push_to_hub()
    return trainer


def run(model_args: ModelArguments, data_args: DataArguments, args: JinaVLMTrainingArguments) -> FineTuner:
    """Runs one training with the arguments of the command."""
    set_seed(args.seed)
    images_kwargs = {} if model_args.max_crops is None else {"max_crops": model_args.max_crops}
    processor = AutoProcessor.from_pretrained(model_args.model_name_or_path, **images_kwargs)
    test_rows, test_formats = load_test_rows(data_args)
    rows, formats = load_training_rows(data_args, args)
    collator = RowCollator(
        processor,
        {**formats, **test_formats},
        max_length=data_args.max_length,
        skip_bad_rows=data_args.skip_bad_rows,
        packing=data_args.packing,
    )
    if args.train_sampling_strategy in ("group_by_length", "batch_rebalance"):
        rows = add_lengths(rows, collator, args)
    details = {
        "recipe": model_args.recipe,
        "weights": "4 bits (nf4)" if model_args.recipe == "qlora" else None,
        "LoRA": f"rank {model_args.lora_r}, alpha {model_args.lora_alpha}, dropout {model_args.lora_dropout}"
        if model_args.recipe in ADAPTER_RECIPES
        else None,
        "max_crops": processor.image_processor.max_crops,
        "max_length": data_args.max_length,
        "packing": "yes" if data_args.packing else None,
    }
    card = {
        "base": model_args.model_name_or_path,
        "data_sets": [one.name for one in formats.values()],
        "details": details,
    }
    return finetune(
        load_model(model_args, args),
        collator,
        args,
        rows,
        test_rows,
        data_args.max_new_tokens,
        card,
        data_args.score_function,
    )


# Arguments


def recipe_defaults(recipe: str, given: set[str]) -> dict[str, Any]:
    """Training arguments that a recipe sets where none is given: what is frozen, and learning rates and warm-ups."""
    defaults: dict[str, Any] = {"logging_steps": 10}
    if torch.cuda.is_available() and torch.cuda.is_bf16_supported() and not given & {"fp16", "use_cpu"}:
        defaults["bf16"] = True
    if recipe == "frozen_tower":
        defaults["freeze"] = ["vision_tower"]
    if "stage" not in given and "learning_rate" not in given:
        for module in MODULES:
            rate = STAGES["instruction"][f"{module}_learning_rate"]
            is_adapter = recipe in ADAPTER_RECIPES and module != "connector"
            defaults[f"{module}_learning_rate"] = rate * ADAPTER_RATE_FACTOR if is_adapter else rate
        if "warmup_steps" not in given:
            defaults["warmup_steps"] = STAGES["instruction"]["language_model_warmup_steps"]
    return {name: value for name, value in defaults.items() if name not in given}


def parse_arguments(argv: list[str]) -> list[tuple[ModelArguments, DataArguments, JinaVLMTrainingArguments]]:
    """
    The arguments of the runs that a command line asks for: one, or those under `runs` of `--config`, in order.

    A YAML file sets arguments by name. Under `runs` it may have a list of further ones for each run, with a `name`:
    the folder of the run in `output_dir`. Every run begins with the model of the run before it. The command line wins
    over a run, a run over the rest of the file, and all of them over the recipe.
    """
    types = (ModelArguments, DataArguments, JinaVLMTrainingArguments)
    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument("--config", type=Path)
    config, argv = config_parser.parse_known_args(argv)
    settings = yaml.safe_load(config.config.read_text(encoding="utf-8")) if config.config else {}
    if not isinstance(settings, dict) or not isinstance(settings.get("runs", []), list):
        raise ValueError(f"{config.config} must set arguments by name, and `runs` be a list.")
    runs = settings.pop("runs", [{}])
    parsed: list[tuple[ModelArguments, DataArguments, JinaVLMTrainingArguments]] = []
    for entry in runs:
        name = entry.pop("name", None)
        words = _words({**settings, **entry}) + argv
        parser = HfArgumentParser(
            types, prog="python -m jvlm.training.finetune", description="Fine-tunes a JinaVLM. See docs/training.md."
        )
        parser.add_argument("--config", help="YAML file with arguments by name; further arguments win.")
        names = [one.name for of_type in types for one in fields(of_type) if one.init]
        sentinels = argparse.Namespace(**dict.fromkeys(names, _NOT_GIVEN))
        if parsed:
            words += ["--model_name_or_path", parsed[-1][2].output_dir]
        values = vars(parser.parse_known_args(words, sentinels)[0])
        given = {name for name in names if values[name] is not _NOT_GIVEN}
        if name is not None:
            base = values["output_dir"] if "output_dir" in given else "trainer_output"
            words += ["--output_dir", str(Path(base) / name)]
        parser.set_defaults(**recipe_defaults(values["recipe"] if "recipe" in given else "full", given))
        model_args, data_args, args, _ = parser.parse_args_into_dataclasses(args=words, look_for_args_file=False)
        parsed.append((model_args, data_args, args))
    return parsed


def _words(settings: dict[str, Any]) -> list[str]:
    """Arguments by name as words of a command line."""
    words = []
    for name, value in settings.items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(json.dumps(one) if isinstance(one, (bool, dict)) else str(one) for one in values)]
    return words


def main(argv: list[str] | None = None) -> None:
    runs = parse_arguments(sys.argv[1:] if argv is None else argv)
    for model_args, data_args, args in runs:
        if len(runs) > 1 and args.resume_from_checkpoint and (Path(args.output_dir) / TRAINER_STATE_NAME).is_file():
            logger.warning(f"{args.output_dir} is complete and is left as it is.")
            continue
        run(model_args, data_args, args)


if __name__ == "__main__":
    main()
