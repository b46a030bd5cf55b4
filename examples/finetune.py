# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Fine-tunes a JinaVLM on conversations about images: all weights, some modules or LoRA adapters, on one or more devices:

    python -m examples.finetune --model_name_or_path my-jina-vlm --dataset_name rows.jsonl --output_dir OUT \\
        --stage instruction --bf16
    accelerate launch --config_file examples/accelerate/fsdp2.yaml -m examples.finetune ...

Rows are `{"messages": [...], "images": [...]}`, see [`DataCollatorForJinaVLM`]. All arguments of
`transformers.TrainingArguments` are accepted; `--args_file FILE` reads them from a file. After training, OUT contains
the model, the processor, the Trainer's log, a plot of the losses and a model card. With an evaluation split, it also
contains eval_results.json and answers.jsonl, with a generated answer for every assistant turn.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from datasets import (
    Dataset,
    Features,
    Image,
    IterableDataset,
    Value,
    interleave_datasets,
    load_dataset,
    load_from_disk,
)
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    HfArgumentParser,
    PreTrainedModel,
    ProcessorMixin,
    set_seed,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.utils import logging

import jvlm  # noqa: F401 - registers the model with the Auto classes
from jvlm.training import DataCollatorForJinaVLM, JinaVLMTrainer, JinaVLMTrainingArguments
from jvlm.training.data_collator import content_parts, conversation


FILE_FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}


@dataclass
class ModelArguments:
    model_name_or_path: str = field(metadata={"help": "Folder or Hub id of the checkpoint to start from."})
    dtype: str = field(default="float32", metadata={"help": "Dtype of the weights: float32, bfloat16 or auto."})
    attn_implementation: str = field(default="sdpa", metadata={"help": "sdpa, flash_attention_2, eager, ..."})
    max_crops: int | None = field(default=None, metadata={"help": "Maximum number of tiles of an image."})
    use_peft: bool = field(default=False, metadata={"help": "Train LoRA adapters and the whole connector."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        metadata={"help": "Layers with adapters. The connector has none, its weights are trained."},
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=32, metadata={"help": "Scaling factor of the adapters, multiplied by their rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before the adapters."})


@dataclass
class DataArguments:
    dataset_name: str = field(
        metadata={
            "help": "Hub id; JSON, JSONL or Parquet file; folder of such files named after splits; saved data set."
        }
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str | None = field(default=None, metadata={"help": "Split to evaluate on, if any."})
    streaming: bool = field(default=False, metadata={"help": "Stream the rows. Requires --max_steps."})
    text_dataset_name: str | None = field(
        default=None, metadata={"help": "Data set of rows without images to mix in."}
    )
    text_only_share: float = field(default=0.15, metadata={"help": "Fraction of rows from --text_dataset_name."})
    max_length: int | None = field(default=None, metadata={"help": "Maximum length of a conversation in tokens."})
    max_new_tokens: int = field(default=128, metadata={"help": "Maximum length of a generated answer in tokens."})


def load_rows(data: DataArguments, name: str, split: str) -> Dataset | IterableDataset:
    """Loads the rows of a data set. Relative image paths in local files are relative to the folder of the file."""
    path = Path(name)
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        rows = load_from_disk(name)
        rows = rows[split] if isinstance(rows, dict) else rows
        return rows.to_iterable_dataset() if data.streaming else rows
    if path.suffix in FILE_FORMATS:
        options = {"path": FILE_FORMATS[path.suffix], "data_files": {split: name}}
    else:
        options = {"path": name, "name": data.dataset_config}
    rows = load_dataset(**options, split=split, streaming=data.streaming)
    feature = (rows.features or {}).get("images")
    if isinstance(getattr(feature, "feature", None), Image):
        # The collator decodes the images, in the workers of the DataLoader.
        return rows.cast_column("images", type(feature)(Image(decode=False)))
    if path.exists():
        folder = path if path.is_dir() else path.parent
        rows = rows.map(lambda row: {"images": [_resolve(folder, image) for image in row.get("images") or []]})
    return rows


def _resolve(folder: Path, image):
    # URLs and base64 strings are returned unchanged.
    return str(folder / image) if isinstance(image, str) and (folder / image).is_file() else image


def mix(rows, text, share: float, seed: int) -> Dataset | IterableDataset:
    """Interleaves `rows` with a fraction `share` of `text` rows at random, until one of the two is exhausted."""
    columns = ["messages", "images"]
    # Both must have the same features to be interleaved.
    features = Features({name: rows.features[name] for name in columns}) if rows.features else None
    content = features["messages"].feature["content"] if features else None

    def as_rows_with_images(row: dict) -> dict:
        messages = row["messages"]
        if content != Value("string"):
            messages = [{**message, "content": content_parts(message["content"])} for message in messages]
        return {"messages": messages, "images": []}

    text = text.map(as_rows_with_images, features=features, remove_columns=text.column_names)
    return interleave_datasets([rows.select_columns(columns), text], probabilities=[1 - share, share], seed=seed)


def lora(model: PreTrainedModel, args: ModelArguments) -> PeftModel:
    """Adds LoRA adapters and makes the connector trainable, both in float32."""
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=args.lora_target_modules,
        modules_to_save=["connector"],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:  # bfloat16 would round small updates away
            parameter.data = parameter.data.float()
    return model


def finetune(
    model: PreTrainedModel | PeftModel,
    processor: ProcessorMixin,
    args: JinaVLMTrainingArguments,
    train_dataset,
    eval_dataset=None,
    max_length: int | None = None,
) -> JinaVLMTrainer:
    """Trains the model, saves model, processor and log in `args.output_dir`, and plots the losses."""
    trainer = JinaVLMTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=DataCollatorForJinaVLM(processor, max_length=max_length),
        processing_class=processor,
    )
    resume = args.resume_from_checkpoint
    trainer.train(resume_from_checkpoint={"true": True, "True": True}.get(resume, resume))
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        draw_losses({Path(args.output_dir).name: trainer.state.log_history}, Path(args.output_dir) / "losses.png")
    return trainer


def draw_losses(logs: dict[str, list[dict]], path: Path) -> None:
    """Plots the training and evaluation losses of each run in its own panel."""
    figure, axes = plt.subplots(1, len(logs), figsize=(6 * len(logs), 4), squeeze=False, layout="constrained")
    for (name, log), axis in zip(logs.items(), axes[0], strict=True):
        for key, label in (("loss", "training"), ("eval_loss", "evaluation")):
            if points := [(entry["step"], entry[key]) for entry in log if key in entry]:
                axis.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 50 else None)
        axis.set(title=name, xlabel="step", ylabel="loss", yscale="log")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


@torch.no_grad()
def generate_answers(model, processor, rows, batch_size: int = 8, max_new_tokens: int = 128) -> list[dict]:
    """
    Generates a greedy answer for every assistant turn, given the messages before it.

    Returns:
        `list[dict]`: for every turn, in the order of the rows, its `row` and `turn` index, the generated `answer` and
        the `reference`.
    """
    turns = [
        (index, turn, messages)
        for index, messages in enumerate(map(conversation, rows))
        for turn, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    answers = []
    for start in logging.tqdm(range(0, len(turns), batch_size), desc="Answers", unit="batch"):
        batch = turns[start : start + batch_size]
        inputs = processor.apply_chat_template(
            [messages[:turn] for _, turn, messages in batch],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        ).to(model.device)
        output = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        texts = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for (index, turn, messages), text in zip(batch, texts, strict=True):
            reference = "".join(part["text"] for part in messages[turn]["content"])
            answers.append({"row": index, "turn": turn, "answer": text.strip(), "reference": reference.strip()})
    return answers


def evaluate(trainer: JinaVLMTrainer, model_args: ModelArguments, data_args: DataArguments, rows) -> None:
    """Computes the loss, loads the saved model to generate answers, and writes metrics and answers."""
    metrics = trainer.evaluate()
    # Only the main process loads the model. With ZeRO-3 configured, loading would wait for the other processes.
    unset_hf_deepspeed_config()
    if trainer.is_world_process_zero():
        options = {"dtype": model_args.dtype, "attn_implementation": model_args.attn_implementation}
        output = Path(trainer.args.output_dir)
        if model_args.use_peft:
            base = AutoModelForImageTextToText.from_pretrained(model_args.model_name_or_path, **options)
            model = PeftModel.from_pretrained(base, output).merge_and_unload()
        else:
            model = AutoModelForImageTextToText.from_pretrained(output, **options)
        model = model.to(trainer.args.device).eval()
        answers = generate_answers(
            model,
            trainer.processing_class,
            rows,
            trainer.args.per_device_eval_batch_size,
            data_args.max_new_tokens,
        )
        (output / "answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
        num_correct = sum(answer["answer"] == answer["reference"] for answer in answers)
        metrics["eval_exact_answers"] = num_correct / len(answers)
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser((ModelArguments, DataArguments, JinaVLMTrainingArguments))
    model_args, data_args, args = parser.parse_args_into_dataclasses(args=argv, args_file_flag="--args_file")
    set_seed(args.seed)
    images_kwargs = {} if model_args.max_crops is None else {"max_crops": model_args.max_crops}
    processor = AutoProcessor.from_pretrained(model_args.model_name_or_path, **images_kwargs)
    train_dataset = load_rows(data_args, data_args.dataset_name, data_args.dataset_train_split)
    if data_args.text_dataset_name is not None:
        text = load_rows(data_args, data_args.text_dataset_name, data_args.dataset_train_split)
        train_dataset = mix(train_dataset, text, data_args.text_only_share, args.seed)
    eval_dataset = None
    if data_args.dataset_test_split is not None:
        eval_dataset = load_rows(data_args, data_args.dataset_name, data_args.dataset_test_split)
    model = AutoModelForImageTextToText.from_pretrained(
        model_args.model_name_or_path, dtype=model_args.dtype, attn_implementation=model_args.attn_implementation
    )
    if model_args.use_peft:
        if model.dtype != torch.float32 and not (args.bf16 or args.fp16):
            raise ValueError(f"--dtype is {model.dtype}, but LoRA adapters are trained in float32: add --bf16.")
        model = lora(model, model_args)
    trainer = finetune(model, processor, args, train_dataset, eval_dataset, data_args.max_length)
    if eval_dataset is not None:
        evaluate(trainer, model_args, data_args, eval_dataset)
    trainer.create_model_card(
        model_name=Path(args.output_dir).name,
        finetuned_from=model_args.model_name_or_path,
        tasks="image-text-to-text",
        tags=["jvlm"],
        dataset=data_args.dataset_name,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
