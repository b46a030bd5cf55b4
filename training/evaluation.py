# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Evaluation while training: generated answers and their scores beside the loss."""

import json
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.utils import gather_object
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import logging

from ..processing.prompt_inputs import prompt_inputs
from .data_collator import DataCollatorForJinaVLM, conversation
from .trainer import JinaVLMTrainer


def exact_answers(answer: str, reference: str) -> float:
    """1 if the answer is the reference, else 0."""
    return float(answer == reference)


@torch.no_grad()
def generate_answers(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: list[dict],
    batch_size: int = 8,
    max_new_tokens: int = 128,
    rank: int = 0,
    world_size: int = 1,
    synced_gpus: bool = False,
) -> list[dict]:
    """
    Generates a greedy answer for every assistant turn of `rows`, given the messages before it.

    Args:
        model (`PreTrainedModel`): the model, in training mode or not.
        processor ([`JinaVLMProcessor`]): its processor.
        rows (`list[dict]`): rows as [`DataCollatorForJinaVLM`] takes them.
        batch_size (`int`): number of answers at once.
        max_new_tokens (`int`): maximum length of an answer in tokens.
        rank, world_size (`int`): this process answers every `world_size`-th turn from the `rank`-th on.
        synced_gpus (`bool`): whether all processes must run the model equally often, as sharded models need.

    Returns:
        `list[dict]`: for every turn of this process its `row` and `turn` index, the `question` (the text of the
        message before it), the generated `answer` and the `reference`.
    """
    turns = [
        (index, turn, row)
        for index, row in enumerate(rows)
        for turn, message in enumerate(row["messages"])
        if message["role"] == "assistant"
    ]
    num_batches = math.ceil(math.ceil(len(turns) / world_size) / batch_size)
    own = turns[rank::world_size]
    collator = DataCollatorForJinaVLM(processor)
    was_training = model.training
    model.eval()
    answers = []
    for number in logging.tqdm(range(num_batches), desc="Answers", unit="batch", disable=rank > 0):
        batch = own[number * batch_size : (number + 1) * batch_size]
        if not batch and not synced_gpus:
            break
        # A process without a turn left answers the first one again, because the others wait for it.
        asked = [conversation(row, processor.chat_template)[:turn] for _, turn, row in batch or turns[:1]]
        inputs = prompt_inputs(processor, asked, padding=True, padding_side="left").to(model.device)
        if synced_gpus:  # all processes run the vision tower, or those with images would wait for the others
            inputs = BatchFeature(collator._with_blank_tile(inputs)).to(model.device)
        output = model.generate(
            **inputs, do_sample=False, max_new_tokens=max_new_tokens, use_cache=True, synced_gpus=synced_gpus
        )
        texts = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for (index, turn, row), messages, text in zip(batch, asked, texts, strict=False):
            answers.append(
                {
                    "row": index,
                    "turn": turn,
                    "question": _text(messages[-1]) if messages else "",
                    "answer": text.strip(),
                    "reference": _text(row["messages"][turn]),
                }
            )
    model.train(was_training)
    return answers


def _text(message: dict) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content.strip()
    return "".join(part.get("text") or "" for part in content or []).strip()


def scores_by_question(answers: list[dict]) -> dict[str, tuple[int, float]]:
    """For each question that was asked more than once: how often, and the mean score of its answers."""
    scores = defaultdict(list)
    for answer in answers:
        scores[answer["question"]].append(answer["score"])
    return {question: (len(of_one), sum(of_one) / len(of_one)) for question, of_one in scores.items() if of_one[1:]}


class AnswerTrainer(JinaVLMTrainer):
    """
    [`JinaVLMTrainer`] whose evaluation also generates answers, in all processes with the model in training, and scores
    them. `evaluate` adds the mean score to its metrics as `eval_SCORE`, so `metric_for_best_model="exact_answers"`
    with `load_best_model_at_end=True` keeps the best checkpoint by answers. The answers are in `self.answers`, by the
    prefix of the metrics, and in `answers.jsonl` of the output folder.

    Args:
        max_new_tokens (`int`): maximum length of an answer in tokens.
        score (`Callable[[str, str], float]`): the score of an answer and its reference.
        score_name (`str`, *optional*): its name in the metrics; by default that of the function, `score` for a lambda.
        kwargs: see [`JinaVLMTrainer`]. If the `data_collator` has a method `standard_row`, as [`RowCollator`] has, it
            converts the rows.
    """

    def __init__(
        self,
        *args,
        max_new_tokens: int = 128,
        score: Callable[[str, str], float] = exact_answers,
        score_name: str | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.max_new_tokens, self.score = max_new_tokens, score
        name = getattr(score, "__name__", "")
        self.score_name = score_name or (name if name.isidentifier() else "score")
        self.answers: dict[str, list[dict]] = {}

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(rows, dict):  # `Trainer` calls this method for each of them
            return metrics
        rows = self.eval_dataset[rows] if isinstance(rows, str) else rows
        with self.accelerator.autocast():  # adapters in float32 over weights in bfloat16
            answers = generate_answers(
                self.model,
                self.processing_class,
                self._standard_rows(rows),
                self.args.per_device_eval_batch_size,
                self.max_new_tokens,
                self.args.process_index,
                self.args.world_size,
                synced_gpus=self.is_fsdp_enabled or is_deepspeed_zero3_enabled(),
            )
        for answer in answers:
            answer["score"] = self.score(answer["answer"], answer["reference"])
        if self.args.world_size > 1:
            answers = gather_object(answers)
        answers.sort(key=lambda answer: (answer["row"], answer["turn"]))
        self.answers[metric_key_prefix] = answers
        scores = {f"{metric_key_prefix}_{self.score_name}": self._mean_score(answers)}
        self.log(scores)
        if self.is_world_process_zero():
            name = metric_key_prefix.removeprefix("eval").replace("/", "_")
            lines = [json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers]
            path = Path(self.args.output_dir) / f"answers{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(lines), encoding="utf-8")
        return metrics | scores

    def _standard_rows(self, rows) -> list[dict]:
        collator = self.data_collator
        standard_row = getattr(collator, "standard_row", lambda row: row)
        if not getattr(collator, "skip_bad_rows", False):
            return [standard_row(row) for row in rows]
        good = []
        for row in rows:
            try:
                collator._collate([row])
            except (ValueError, OSError):  # logged with the loss
                continue
            good.append(standard_row(row))
        return good

    def _mean_score(self, answers: list[dict]) -> float:
        return sum(answer["score"] for answer in answers) / len(answers)


def draw_log(logs: dict[str, list[dict]], path: Path, score_name: str | None = None) -> None:
    """
    Plots training and evaluation losses of each run in its own panel, or with `score_name` the scores of that name.
    Without any score, it writes no file.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(logs), figsize=(6 * len(logs), 4), squeeze=False, layout="constrained")
    for (name, log), axis in zip(logs.items(), axes[0], strict=True):
        for key in dict.fromkeys(key for entry in log for key in entry):
            if key != "loss" and not (key.startswith("eval") and key.endswith(f"_{score_name or 'loss'}")):
                continue
            if key == "loss" and score_name is not None:
                continue
            points = [(entry["step"], entry[key]) for entry in log if key in entry]
            label = {"loss": "training", "eval_loss": "evaluation"}.get(key, key.removeprefix("eval_"))
            axis.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 50 else None)
        axis.set(title=name, xlabel="step", ylabel=score_name or "loss", yscale="linear" if score_name else "log")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    if score_name is None or any(axis.lines for axis in axes[0]):
        figure.savefig(path, dpi=100)
    plt.close(figure)


__all__ = ["AnswerTrainer", "draw_log", "exact_answers", "generate_answers", "scores_by_question"]
