# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
The benchmarks of the paper (arXiv 2512.04032, v3) as data: the published number, and what measures it.

Published numbers are the paper's. Task, split, suffix, limit and metric are those of lmms-eval 0.7.3 and lm-eval
0.4.13; tests/harness compares them with the installed harness. The paper used VLMEvalKit for images and own code for
text, so these may differ from what was used for the published numbers. What is not known is `None`, or is said in
`unknown`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any


# Prompts that the paper quotes, for choices and for short answers. Which benchmarks had them, and how they were
# attached to the question, is not known; the harness has prompts of its own.
PAPER_PROMPTS = "Return only the letter of the best answer option", "Respond very briefly"

LETTER = "\nAnswer with the option's letter from the given choices directly."
SHORT = "\nAnswer the question using a single word or phrase."


@dataclass(frozen=True)
class Benchmark:
    """
    One published number, and how a harness measures it.

    Args:
        name (`str`): name of the benchmark in the paper.
        group (`str`): group of benchmarks in the paper.
        published (`float`): the paper's number for jina-vlm.
        task (`str`, *optional*): task or group of tasks of the harness, `None` if it has none for this benchmark.
        split (`str`, *optional*): split of the data set that the task reads.
        metrics (`tuple[str, ...]`): metrics of the task; `"metric,filter"` if several filters compute it.
        suffix (`str`, *optional*): what the task appends to a question; `None` if it writes prompts in another way.
        max_new_tokens (`int`, *optional*): limit of the task; `None` if it sets none.
        scale (`float`, *optional*, defaults to 100.0): factor from the metric of the harness to the paper's number.
        combine (`Callable`, *optional*, defaults to `fmean`): makes one number of several metrics.
        harness (`str`, *optional*, defaults to `"lmms-eval"`): `"lmms-eval"` or `"lm-eval"`.
        judge (`bool`, *optional*, defaults to `False`): whether a language model behind OpenAI's API scores answers.
        unknown (`str`, *optional*): what about the published number is not known, or differs.
    """

    name: str
    group: str
    published: float
    task: str | None = None
    split: str | None = None
    metrics: tuple[str, ...] = ()
    suffix: str | None = None
    max_new_tokens: int | None = None
    scale: float = 100.0
    combine: Callable[[Iterable[float]], float] = fmean
    harness: str = "lmms-eval"
    judge: bool = False
    unknown: str = ""

    @property
    def slug(self) -> str:
        """The name on the command line and of the folder."""
        return self.name.lower().replace(" ", "-").replace("(", "").replace(")", "")


def _text(name: str, published: float, task: str, **facts: Any) -> Benchmark:
    unknown = "The paper used its own code; its prompts, examples and metric are not known."
    return Benchmark(name, "text only", published, task, harness="lm-eval", unknown=unknown, **facts)


NO_TASK = "lmms-eval 0.7.3 has no task for it."
SPLIT = "The paper's split is not known."

BENCHMARKS = [
    Benchmark("AI2D", "VQA", 82.0, "ai2d", "test", ("exact_match",), LETTER, 16),
    Benchmark(
        "ChartQA",
        "VQA",
        81.9,
        "chartqa",
        "test",
        ("relaxed_overall",),
        "\nAnswer the question with a single word.",
        16,
        unknown="The paper averages the two halves of the test set; this is the rate of all rows.",
    ),
    Benchmark("TextVQA", "VQA", 83.2, "textvqa_val", "validation", ("exact_match",), SHORT),
    Benchmark("DocVQA", "VQA", 90.6, "docvqa_val", "validation", ("anls",), SHORT, 32),
    Benchmark("InfoVQA", "VQA", 71.6, "infovqa_val", "validation", ("anls",), SHORT, 32),
    Benchmark("OCRBench", "VQA", 778, "ocrbench", "test", ("ocrbench_accuracy",), "", 128, scale=1000.0),
    Benchmark(
        "SEED-Bench-2-Plus",
        "VQA",
        67.2,
        "seedbench_2_plus",
        "test",
        ("seedbench_2_plus_all",),
        "\n" + LETTER.strip(),
        16,
    ),
    Benchmark(
        "CharXiv reasoning",
        "VQA",
        32.3,
        "charxiv_val_reasoning",
        "validation",
        ("reasoning_acc",),
        max_new_tokens=32768,
        judge=True,
        unknown=SPLIT,
    ),
    Benchmark(
        "CharXiv descriptive",
        "VQA",
        63.5,
        "charxiv_val_descriptive",
        "validation",
        ("descriptive_acc",),
        max_new_tokens=32768,
        judge=True,
        unknown=SPLIT,
    ),
    Benchmark(
        "MME",
        "general",
        1965.8,
        "mme",
        "test",
        ("mme_perception_score", "mme_cognition_score"),
        SHORT,
        16,
        scale=1.0,
        combine=sum,
    ),
    Benchmark(
        "MMBench-1.1 (EN)",
        "general",
        75.8,
        unknown="lmms-eval 0.7.3 has MMBench, but does not say in which version.",
    ),
    Benchmark("MMStar", "general", 56.2, "mmstar", "val", ("average",), LETTER.removesuffix(".")),
    Benchmark("RealWorldQA", "general", 68.2, "realworldqa", "test", ("exact_match",), "", 16),
    Benchmark(
        "MME-RealWorld (EN)",
        "general",
        50.7,
        "mmerealworld",
        "train",
        ("mme_realworld_score",),
        "\nSelect the best answer to the above multiple-choice question based on the image. "
        "Respond with only the letter (A, B, C, D, or E) of the correct option.",
        16,
    ),
    Benchmark("R-Bench (dis)", "general", 66.7, unknown=NO_TASK),
    Benchmark("BLINK", "several images", 50.1, "blink", "val", ("blink_acc",), max_new_tokens=1024),
    Benchmark("MuirBench", "several images", 34.7, "muirbench", "test", ("muirbench_score_overall",), LETTER, 16),
    Benchmark(
        "MMT-Bench (MI)",
        "several images",
        57.2,
        "mmt_mi_val",
        "val",
        ("accuracy",),
        "\nAnswer the question using a single character from the given options.",
        8,
        unknown=SPLIT,
    ),
    Benchmark(
        "HallusionBench",
        "hallucination",
        39.1,
        "hallusion_bench_image",
        "image",
        ("aAcc", "fAcc", "qAcc"),
        "",
        128,
        scale=1.0,
        judge=True,
        unknown="Which numbers the paper averages is not known.",
    ),
    Benchmark(
        "POPE",
        "hallucination",
        90.3,
        "pope",
        "test",
        ("pope_accuracy",),
        SHORT,
        128,
        unknown="What the paper averages, and whether it is accuracy or F1, is not known.",
    ),
    Benchmark("MMMU", "reasoning", 45.6, "mmmu_val", "validation", ("mmmu_acc",), None, 128, unknown=SPLIT),
    Benchmark(
        "MathVista",
        "reasoning",
        59.5,
        "mathvista_testmini_format",
        "testmini",
        ("llm_as_judge_eval",),
        max_new_tokens=16384,
        judge=True,
        unknown=SPLIT,
        scale=1.0,
    ),
    Benchmark(
        "MathVision",
        "reasoning",
        19.2,
        "mathvision_test",
        "test",
        ("mathvision_standard_eval",),
        max_new_tokens=16384,
        unknown=SPLIT,
        scale=1.0,
    ),
    Benchmark(
        "MathVerse (vision only)",
        "reasoning",
        23.9,
        "mathverse_testmini_vision_only",
        "vision_only",
        ("gpt_eval_score",),
        max_new_tokens=1024,
        judge=True,
        unknown=SPLIT,
    ),
    Benchmark(
        "WeMath",
        "reasoning",
        17.1,
        "wemath_testmini_reasoning",
        "testmini",
        ("wemath_strict",),
        max_new_tokens=49152,
        judge=True,
        unknown="Whether the paper's number is the strict one is not known. The task asks for reasoning in tags.",
        scale=1.0,
    ),
    Benchmark(
        "LogicVista",
        "reasoning",
        33.3,
        "logicvista_reasoning",
        "test",
        ("acc_score",),
        max_new_tokens=49152,
        judge=True,
        unknown="The task asks for reasoning in tags.",
    ),
    Benchmark("MMMB", "multilingual", 78.8, unknown=NO_TASK),
    Benchmark(
        "multilingual MMBench",
        "multilingual",
        74.3,
        unknown="lmms-eval 0.7.3 has English, Chinese and Russian, but does not say in which version.",
    ),
    Benchmark(
        "MTVQA",
        "multilingual",
        25.6,
        "mtvqa",
        "test",
        ("mtvqa_score",),
        "\nAnswer the question using a word or phrase in the language of the question.",
        64,
        scale=1.0,
    ),
    _text("MMLU", 56.1, "mmlu", split="test", metrics=("acc",)),
    _text("MMLU-Pro", 30.3, "mmlu_pro", split="test", metrics=("exact_match",), max_new_tokens=2048),
    _text("GSM-8k", 71.3, "gsm8k", split="test", metrics=("exact_match,flexible-extract",)),
    _text("ARC-C", 77.3, "arc_challenge", split="test", metrics=("acc",)),
    _text("HellaSwag", 59.4, "hellaswag", split="validation", metrics=("acc_norm",)),
]


__all__ = ["BENCHMARKS", "PAPER_PROMPTS", "Benchmark"]
