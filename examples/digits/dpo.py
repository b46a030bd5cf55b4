# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Trains the digit model further with TRL's `DPOTrainer` on pairs of a right and a wrong answer:

    python -m examples.digits.dpo --output_dir OUT [--seed 0] [--steps 40]

The wrong answers are those that the model samples to questions about training pages. Prints how well the model tells
right from wrong answers about held-out pages, and its exact answers, before and after the training. OUT/seed-0 holds
the model, its processor and checkpoints. The same command resumes from the last complete checkpoint.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, HfArgumentParser, set_seed
from trl import DPOConfig, DPOTrainer

from .comparison import compare, markdown
from .evaluate import MODEL, ask, rows_of
from .pages import Page, held_out_pages
from .questions import ASKED, completion, load, log_probabilities, prompt, run, settings, uncertain_questions


Pairs = tuple[list[tuple[Page, str]], list[str]]  # questions, and a wrong answer to each


@dataclass
class DPOArguments:
    output_dir: Path = field(metadata={"help": "Folder of the run, which is named after the seed."})
    model: Path = field(default=MODEL, metadata={"help": "Folder of the model to start from."})
    steps: int = field(default=40, metadata={"help": "Number of steps."})
    batch_size: int = field(default=16, metadata={"help": "Pairs per step."})
    num_questions: int = field(default=600, metadata={"help": "Questions whose wrong answers give the pairs."})
    learning_rate: float = field(default=1e-5, metadata={"help": "Learning rate of connector and decoder."})
    beta: float = field(default=0.1, metadata={"help": "The β of DPO."})
    save_steps: int = field(default=20, metadata={"help": "Steps between checkpoints."})
    num_pages: int = field(default=360, metadata={"help": "Held-out pages of the comparison."})
    seed: int = field(default=0, metadata={"help": "Random seed of pages and answers."})


def wrong_answers(model: Path, rows: list[tuple[Page, str]]) -> Pairs:
    """Samples an answer to each question and returns those questions with a wrong one."""
    rows = sorted(rows, key=lambda row: row[0].grid)
    answers = ask(model, rows, do_sample=True)
    is_wrong = [answer != page.answer(question) for (page, question), answer in zip(rows, answers, strict=True)]
    return tuple([one for one, wrong in zip(many, is_wrong, strict=True) if wrong] for many in (rows, answers))


def margins(model, processor, pairs: Pairs) -> torch.Tensor:
    """The log-probability of the right answer minus that of the wrong one: `[pairs]`."""
    rows, wrong = pairs
    right = [page.answer(question) for page, question in rows]
    return log_probabilities(model, processor, rows, right) - log_probabilities(model, processor, rows, wrong)


def train(args: DPOArguments) -> DPOTrainer:
    """Trains the model and saves it with its processor in a subfolder of `args.output_dir`."""
    output = args.output_dir / f"seed-{args.seed}"
    set_seed(args.seed)
    model, processor = load(args.model)
    pairs = wrong_answers(args.model, uncertain_questions(model, processor, args.num_questions, args.seed))
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            **settings(args, output, args.seed),
            per_device_train_batch_size=args.batch_size,
            beta=args.beta,
            max_length=None,
        ),
        train_dataset=datasets.Dataset.from_list(
            [
                {
                    "prompt": prompt(question),
                    "chosen": completion(page.answer(question)),
                    "rejected": completion(wrong),
                    "images": [page.image],
                }
                for (page, question), wrong in zip(*pairs, strict=True)
            ]
        ),
        processing_class=processor,
    )
    run(trainer)
    return trainer


def main(argv: list[str] | None = None) -> None:
    (args,) = HfArgumentParser(DPOArguments).parse_args_into_dataclasses(args=argv)
    train(args)
    models = [args.model, args.output_dir / f"seed-{args.seed}"]
    held_out = wrong_answers(args.model, rows_of(held_out_pages(args.num_pages, seed=2), ASKED))
    print(f"{len(held_out[0])} held-out pairs. Log-probability of the right answer minus that of the wrong one:")
    for folder in models:
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
        found = margins(model, AutoProcessor.from_pretrained(folder), held_out)
        print(f"{folder.name}: mean {found.mean():.2f}, positive for {int((found > 0).sum())}")
    print(markdown(compare(models, args.num_pages)))


if __name__ == "__main__":
    main(sys.argv[1:])
