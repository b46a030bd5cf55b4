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

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    HfArgumentParser,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    set_seed,
)

from jvlm.conversion_scripts.compose_from_pretrained import compose_from_pretrained
from jvlm.training import DataCollatorForJinaVLM, JinaVLMTrainingArguments
from jvlm.training.evaluation import draw_log
from jvlm.training.finetune import finetune

from .pages import DESCRIBE, MAX_DIGITS, QUESTIONS, DigitPages
from .vision_tower import train_vision_tower


END_OF_TEXT = "<|endoftext|>"
LOG = "log.json"


@dataclass
class DigitsArguments:
    output_dir: Path = field(metadata={"help": "Working folder. The final model is in its subfolder `model`."})
    vision_steps: int = field(default=9000, metadata={"help": "Steps of the vision tower."})
    language_steps: int = field(default=600, metadata={"help": "Steps of the decoder on pages given as text."})
    caption_steps: int = field(default=1500, metadata={"help": "Steps of the first stage, captions."})
    question_steps: int = field(default=5300, metadata={"help": "Steps of the second stage, questions."})
    batch_size: int = field(default=32, metadata={"help": "Pages per step."})
    learning_rate: float = field(
        default=1e-3, metadata={"help": "Learning rate of connector and decoder. The vision tower uses a third of it."}
    )
    save_steps: int = field(default=500, metadata={"help": "Steps between checkpoints."})
    num_workers: int = field(default=1, metadata={"help": "Number of data loader workers."})
    seed: int = field(default=0, metadata={"help": "Random seed."})


def train_tokenizer(corpus: list[str], max_length: int, **settings) -> PreTrainedTokenizerFast:
    """Byte-level BPE over a corpus, with the special tokens of Qwen3. `settings` are those of the `BpeTrainer`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        show_progress=False,
        special_tokens=[END_OF_TEXT, "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        **settings,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        padding_side="left",
        model_max_length=max_length,
    )


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of questions and answers about digits."""
    prompts = [f" User: {question} Assistant:" for question in [*QUESTIONS, DESCRIBE]]
    captions = [f" {MAX_DIGITS} digits, line {line}:" for line in range(1, MAX_DIGITS + 1)]
    # Every " 7" must be one token: there are no merges across spaces, and each digit is frequent enough to be merged.
    corpus = prompts * 20 + captions * 20 + [" 0 1 2 3 4 5 6 7 8 9"] * 200
    return train_tokenizer(corpus, max_length=1024, vocab_size=370)


def save_decoder(folder: Path, tokenizer: PreTrainedTokenizerFast, **sizes) -> None:
    """Saves a new Qwen3 of these sizes and its tokenizer."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        head_dim=32,
        num_key_value_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


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
    common = {
        "save_steps": args.save_steps,
        "save_total_limit": 2,
        "logging_steps": 50,
        "dataloader_num_workers": args.num_workers,
        "report_to": "none",
        "seed": args.seed,
    }
    set_seed(args.seed)
    if not (output / "vision_tower" / LOG).is_file():
        log = train_vision_tower(output / "vision_tower", args.vision_steps, **common)
        (output / "vision_tower" / LOG).write_text(json.dumps(log))
    start = output / "composed"
    if not start.is_dir():
        compose(output, args.seed)
    for name, (rows, settings) in stages(args).items():
        if not (output / name / LOG).is_file():
            training_args = JinaVLMTrainingArguments(
                output_dir=str(output / name),
                per_device_train_batch_size=args.batch_size,
                learning_rate=args.learning_rate,
                vision_tower_learning_rate=args.learning_rate / 3,
                warmup_steps=0.03,
                weight_decay=0.05,
                train_sampling_strategy="sequential",
                resume_from_checkpoint="True",
                **common,
                **settings,
            )
            model = AutoModelForImageTextToText.from_pretrained(start)
            collator = DataCollatorForJinaVLM(AutoProcessor.from_pretrained(start))
            trainer = finetune(model, collator, training_args, rows)
            (output / name / LOG).write_text(json.dumps(trainer.state.log_history))
        start = output / name
    AutoModelForImageTextToText.from_pretrained(start, dtype="bfloat16").save_pretrained(output / "model")
    AutoProcessor.from_pretrained(start).save_pretrained(output / "model")
    logs = {name: json.loads((output / name / LOG).read_text()) for name in ("vision_tower", *stages(args))}
    (output / "model" / "training_log.json").write_text(json.dumps(logs, indent=1) + "\n")
    draw_log(logs, output / "model" / "losses.png")
    return output / "model"


def main(argv: list[str] | None = None) -> None:
    (args,) = HfArgumentParser(DigitsArguments).parse_args_into_dataclasses(args=argv)
    print(f"Written: {train(args)}")


if __name__ == "__main__":
    main(sys.argv[1:])
