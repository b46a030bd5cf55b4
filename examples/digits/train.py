# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Trains the small JinaVLM in `examples/digits/model`, in the steps of a full-size model:

    python -m examples.digits.train --output_dir OUT

1. `vision_tower`: trains a SigLIP encoder to classify the digit at every patch.
2. `decoder`: creates a new Qwen3 and its tokenizer.
3. `composed`: combines both with `jvlm.conversion_scripts.compose_from_pretrained`.
4. `language`: trains the decoder on questions about pages given as text.
5. `captions`: the paper's first stage, on page images and their descriptions.
6. `questions`: the paper's second stage, on page images and questions.

The last three steps call [`finetune`]. Each step has a folder in OUT. Complete steps are skipped, and interrupted ones
resume from their last complete checkpoint. OUT/model is the final model in bfloat16, with the Trainer's logs and a
plot of the losses.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser, PreTrainedTokenizerFast, set_seed

from jvlm.conversion_scripts.compose_from_pretrained import compose_from_pretrained

from ..training_steps import LOG, StepsArguments, save_decoder, save_model, train_stages, train_tokenizer
from .pages import DESCRIBE, MAX_DIGITS, QUESTIONS, DigitPages
from .vision_tower import train_vision_tower


@dataclass
class DigitsArguments(StepsArguments):
    vision_steps: int = field(default=9000, metadata={"help": "Steps of the vision tower."})
    language_steps: int = field(default=600, metadata={"help": "Steps of the decoder on pages given as text."})
    caption_steps: int = field(default=1500, metadata={"help": "Steps of the first stage, captions."})
    question_steps: int = field(default=5300, metadata={"help": "Steps of the second stage, questions."})
    batch_size: int = field(default=32, metadata={"help": "Pages per step."})
    save_steps: int = field(default=500, metadata={"help": "Steps between checkpoints."})


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of questions and answers about digits."""
    prompts = [f" User: {question} Assistant:" for question in [*QUESTIONS, DESCRIBE]]
    captions = [f" {MAX_DIGITS} digits, line {line}:" for line in range(1, MAX_DIGITS + 1)]
    # Every " 7" must be one token: there are no merges across spaces, and each digit is frequent enough to be merged.
    corpus = prompts * 20 + captions * 20 + [" 0 1 2 3 4 5 6 7 8 9"] * 200
    return train_tokenizer(corpus, max_length=1024, vocab_size=370)


def build_decoder(folder: Path) -> None:
    """Saves a new Qwen3 with four blocks and its tokenizer."""
    save_decoder(
        folder,
        build_tokenizer(),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        initializer_range=0.06,
    )


def compose(folder: Path, seed: int = 0) -> Path:
    """Composes `folder / "vision_tower"` and a new decoder to a JinaVLM in `folder / "composed"`."""
    build_decoder(folder / "decoder")
    return compose_from_pretrained(
        folder / "vision_tower", folder / "decoder", folder / "composed", vision_feature_layer=[3, 1], seed=seed
    )


def stages(args: DigitsArguments) -> dict[str, tuple[DigitPages, dict]]:
    """Rows and training arguments of the stages that train the composed model, in order."""
    questions = [*QUESTIONS, DESCRIBE]

    def pages(steps: int, asked: list[str], seed: int, **settings) -> DigitPages:
        return DigitPages(steps * args.batch_size, asked, args.batch_size, seed=args.seed + seed, **settings)

    return {
        "language": (
            pages(args.language_steps, questions, 1, text_only_share=1.0),
            {"max_steps": args.language_steps, "freeze": ["vision_tower", "connector"]},
        ),
        "captions": (
            pages(args.caption_steps, [DESCRIBE], 2, text_only_share=0.15, growth=0.5),
            {"max_steps": args.caption_steps},
        ),
        "questions": (
            pages(args.question_steps, questions, 3, text_only_share=0.18),
            {"max_steps": args.question_steps, "lr_scheduler_kwargs": {"min_lr_rate": 0.01}},
        ),
    }


def train(args: DigitsArguments) -> Path:
    """Runs all steps that are not complete yet and returns the folder of the final model. See the module docstring."""
    output = args.output_dir
    common = args.common(save_steps=args.save_steps, logging_steps=50)
    set_seed(args.seed)
    if not (output / "vision_tower" / LOG).is_file():
        log = train_vision_tower(output / "vision_tower", args.vision_steps, **common)
        (output / "vision_tower" / LOG).write_text(json.dumps(log))
    if not (output / "composed").is_dir():
        compose(output, args.seed)
    batch = {"per_device_train_batch_size": args.batch_size}
    trained = train_stages(args, output / "composed", stages(args), {**batch, **common})
    logs = {name: json.loads((output / name / LOG).read_text()) for name in ("vision_tower", *stages(args))}
    return save_model(trained, output / "model", logs)


def main(argv: list[str] | None = None) -> None:
    (args,) = HfArgumentParser(DigitsArguments).parse_args_into_dataclasses(args=argv)
    print(f"Written: {train(args)}")


if __name__ == "__main__":
    main(sys.argv[1:])
