# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Trains the digit model further with TRL's `GRPOTrainer` and an exact-match reward, once for each seed, and counts the
exact answers on held-out pages before and after it:

    python -m examples.digits.grpo --output_dir OUT [--seeds 0 1 2] [--steps 100]

Every step samples 8 answers to each of 8 questions about training pages. An answer that equals the reference has
reward 1, any other 0. OUT/seed-0 and so on hold a model, its processor and checkpoints. The same command resumes from
the last complete checkpoint.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import datasets
from transformers import HfArgumentParser
from trl import GRPOConfig, GRPOTrainer

from jvlm.training import processor_for_trl

from .comparison import compare, markdown
from .evaluate import MODEL
from .pages import MAX_DIGITS
from .questions import load, prompt, run, settings, uncertain_questions


@dataclass
class GRPOArguments:
    output_dir: Path = field(metadata={"help": "Folder of the runs, which are named after their seeds."})
    model: Path = field(default=MODEL, metadata={"help": "Folder of the model to start from."})
    steps: int = field(default=100, metadata={"help": "Number of steps."})
    prompts_per_step: int = field(default=8, metadata={"help": "Questions per step."})
    num_generations: int = field(default=8, metadata={"help": "Sampled answers per question."})
    learning_rate: float = field(default=2e-5, metadata={"help": "Learning rate of connector and decoder."})
    save_steps: int = field(default=50, metadata={"help": "Steps between checkpoints."})
    num_pages: int = field(default=360, metadata={"help": "Held-out pages of the comparison."})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Random seeds of pages and answers."})


def exact_match(completions: list[list[dict]], answer: list[str], **kwargs) -> list[float]:
    """The reward: 1 for a sampled answer that equals the reference, ignoring spaces around it, else 0."""
    texts = [completion[0]["content"].strip() for completion in completions]
    return [float(text == right) for text, right in zip(texts, answer, strict=True)]


def train(args: GRPOArguments, seed: int) -> GRPOTrainer:
    """Trains the model and saves it with its processor in a subfolder of `args.output_dir`."""
    output = args.output_dir / f"seed-{seed}"
    model, processor = load(args.model)
    rows = uncertain_questions(model, processor, args.steps * args.prompts_per_step, seed)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=exact_match,
        args=GRPOConfig(
            **settings(args, output, seed),
            per_device_train_batch_size=args.prompts_per_step * args.num_generations,
            num_generations=args.num_generations,
            max_completion_length=4 + 2 * MAX_DIGITS,
        ),
        train_dataset=datasets.Dataset.from_list(
            [
                {"prompt": prompt(question), "images": [page.image], "answer": page.answer(question)}
                for page, question in rows
            ]
        ),
        processing_class=processor_for_trl(processor),
    )
    run(trainer)
    return trainer


def main(argv: list[str] | None = None) -> None:
    (args,) = HfArgumentParser(GRPOArguments).parse_args_into_dataclasses(args=argv)
    for seed in args.seeds:
        train(args, seed)
    print(markdown(compare([args.model, *(args.output_dir / f"seed-{seed}" for seed in args.seeds)], args.num_pages)))


if __name__ == "__main__":
    main(sys.argv[1:])
