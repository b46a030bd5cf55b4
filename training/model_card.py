# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The model card of a fine-tuned model: what it is, how to use it, how it was trained and what it scored."""

import json
import platform
from pathlib import Path

import torch
import transformers
from huggingface_hub import ModelCard, ModelCardData

from .evaluation import scores_by_question
from .formats import is_hub_id
from .trainer import JinaVLMTrainer


MAX_QUESTIONS = 20

_LOAD = """from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{name}", dtype="auto")"""
_LOAD_ADAPTER = """from peft import PeftConfig, PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

base = PeftConfig.from_pretrained("{name}").base_model_name_or_path
model = AutoModelForImageTextToText.from_pretrained(base, dtype="auto")
model = PeftModel.from_pretrained(model, "{name}").eval()"""
_USAGE = """```python
import jvlm
{load}
processor = AutoProcessor.from_pretrained("{name}")

content = [{{"type": "image", "path": "photo.jpg"}}, {{"type": "text", "text": {question}}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)
output = model.generate(**inputs.to(model.device), max_new_tokens=64)
print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```"""


def base_metadata(base: str) -> tuple[str | None, str | None]:
    """
    The Hub id and the licence of a checkpoint, as far as it tells: from its model card, else from the id.

    Args:
        base (`str`): folder or Hub id.

    Returns:
        `tuple`: `base_model` and `license` of `huggingface_hub.ModelCardData`, each `None` if unknown. A local path is
        no Hub id.
    """
    is_local = Path(base).is_dir()
    try:
        data = ModelCard.load(Path(base) / "README.md" if is_local else base, ignore_metadata_errors=True).data
    except Exception:  # offline, a repository without a card, or no repository
        return None if is_local else base, None
    return (data.get("base_model") if is_local else base), data.get("license")


def training_card(
    trainer: JinaVLMTrainer,
    base: str | None = None,
    data_sets: list[str] | None = None,
    details: dict[str, object] | None = None,
    license: str | None = None,
) -> ModelCard:
    """
    The model card of what a trainer has trained.

    Args:
        trainer ([`JinaVLMTrainer`]): its arguments, logs and answers go into the card.
        base (`str`, *optional*): folder or Hub id of the checkpoint it began with. Its licence becomes that of the
            new model. The name of a folder stays out of the card.
        data_sets (`list[str]`, *optional*): names of the data sets; of absolute paths only their last part is told.
        details (`dict[str, object]`, *optional*): further settings by name.
        license (`str`, *optional*): the licence, if it is not that of the base.

    Returns:
        `huggingface_hub.ModelCard`: with the learning rate and warm-up of each module, the stage, what was frozen, the
        score of the answers by question, and a snippet that runs.
    """
    args = trainer.args
    name = args.hub_model_id or Path(args.output_dir).resolve().name
    base_model, base_license = base_metadata(base) if base else (None, None)
    license = license or base_license
    is_adapter = hasattr(trainer.accelerator.unwrap_model(trainer.model), "peft_config")
    metrics = _last_metrics(trainer)
    data = ModelCardData(
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="image-text-to-text",
        tags=["jvlm", "lora"] if is_adapter else ["jvlm"],
        base_model=base_model,
        license=license,
        datasets=[name for name in data_sets or [] if is_hub_id(name)] or None,
    )
    of_base = f"[{base_model}](https://huggingface.co/{base_model})" if base_model else "a JinaVLM checkpoint"
    shown = ", ".join(f"`{Path(name).name if Path(name).is_absolute() else name}`" for name in data_sets or [])
    sections = [
        f"# {name.split('/')[-1]}",
        f"{'LoRA adapters for' if is_adapter else 'A fine-tuned version of'} {of_base}"
        + (f", trained on {shown}." if shown else "."),
        f"Licence: {license}, that of the base model." if license and license == base_license else "",
        "" if license else "The licence of the base model is unknown. Its terms apply to this model, too.",
        "## Use\n\n" + _usage(name, is_adapter, _first_question(trainer)),
        _evaluation(trainer, metrics),
        "## Training\n\n" + _training(trainer, details or {}),
        "## Versions\n\n" + f"Transformers {transformers.__version__}, PyTorch {torch.__version__}, "
        f"Python {platform.python_version()}",
    ]
    text = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n", ignore_metadata_errors=True)


def _usage(name: str, is_adapter: bool, question: str) -> str:
    load = (_LOAD_ADAPTER if is_adapter else _LOAD).format(name=name)
    return _USAGE.format(name=name, load=load, question=json.dumps(question, ensure_ascii=False))


def _first_question(trainer: JinaVLMTrainer) -> str:
    for answers in getattr(trainer, "answers", {}).values():
        if answers and answers[0]["question"]:
            return answers[0]["question"]
    return "What is in this image?"


def _last_metrics(trainer: JinaVLMTrainer) -> dict[str, float]:
    """The last value of every metric of the evaluation."""
    metrics: dict[str, float] = {}
    for entry in trainer.state.log_history:
        metrics |= {
            key: value
            for key, value in entry.items()
            if key.startswith("eval_") and not key.endswith(("_runtime", "_per_second"))
        }
    return metrics


def _evaluation(trainer: JinaVLMTrainer, metrics: dict[str, float]) -> str:
    if not metrics:
        return "## Evaluation\n\nNone: no rows were held out."
    lines = ["## Evaluation", "", "| metric | value |", "|---|---:|"]
    for key, value in metrics.items():
        shown_value = f"{value:.1%}" if key.endswith(f"_{trainer.score_name}") else f"{value:.4g}"
        lines.append(f"| {key.removeprefix('eval_').replace('_', ' ')} | {shown_value} |")
    for prefix, answers in getattr(trainer, "answers", {}).items():
        of_set = prefix.removeprefix("eval").strip("_")
        lines += ["", f"{len(answers)} generated answers{f' of {of_set}' if of_set else ''}, greedy."]
        by_question = scores_by_question(answers)
        if by_question:
            lines += ["", f"| question | answers | {trainer.score_name.replace('_', ' ')} |", "|---|---:|---:|"]
        shown = sorted(by_question.items(), key=lambda item: -item[1][0])[:MAX_QUESTIONS]
        for question, (count, mean) in shown:
            text = " ".join(question.replace("|", "\\|").split())
            lines.append(f"| {text} | {count} | {mean:.1%} |")
        if len(by_question) > len(shown):
            lines += ["", f"The {len(by_question) - len(shown)} other questions are in `answers.jsonl`."]
    return "\n".join(lines)


def _training(trainer: JinaVLMTrainer, details: dict[str, object]) -> str:
    args = trainer.args
    settings = {
        "steps": trainer.state.global_step,
        "epochs": None if trainer.state.epoch is None else f"{trainer.state.epoch:.4g}",
        "rows per step": trainer.get_total_train_batch_size(args),
        **trainer._recipe(),
        "schedule": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        "Adam": f"β = {args.adam_beta1} / {args.adam_beta2}, ε = {args.adam_epsilon}",
        "weight decay": args.weight_decay,
        "precision": "bfloat16 autocast" if args.bf16 else "float16 autocast" if args.fp16 else "float32",
        "seed": args.seed,
        **details,
    }
    if num_skipped := getattr(trainer.data_collator, "num_skipped_rows", 0):
        settings["skipped rows"] = num_skipped
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    settings |= {"last training loss": f"{losses[-1]:.4g}"} if losses else {}
    lines = ["| setting | value |", "|---|---|"]
    return "\n".join(
        lines + [f"| {key.replace('_', ' ')} | {value} |" for key, value in settings.items() if value is not None]
    )


__all__ = ["base_metadata", "training_card"]
