# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Trains the document model in `examples/documents/model`, in the steps of a full-size model:

    python -m examples.documents.train --output_dir OUT
    python -m examples.documents.train --output_dir OUT --continue_from examples/documents/model --seed 1

1. `vision_tower`: trains a SigLIP encoder to name the character at every half patch.
2. `decoder`: creates a new Qwen3 and its tokenizer.
3. `language`: trains the decoder on questions about pages given as text.
4. `composed`: combines both with `jvlm.conversion_scripts.compose_from_pretrained`.
5. `captions`: the paper's first stage, on page images and their text.
6. `questions`: the paper's second stage, on page images and questions, mostly on pages of few tiles.

`--continue_from` starts from a trained model, on other pages if `--seed` is another one: its vision tower goes on
naming characters, then the model goes on answering questions. Each step has a folder in OUT. Complete steps are
skipped, and interrupted ones resume from their last complete checkpoint: the same command goes on where it stopped.
OUT/model is the final model in bfloat16, with the Trainer's logs and a plot of the losses. Needs the extras
`documents` and `train`, and the fonts of `fonts.txt`; other fonts give another model.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    HfArgumentParser,
    PreTrainedTokenizerFast,
    SiglipVisionModel,
    set_seed,
)

from jvlm.conversion_scripts.compose_from_pretrained import compose_from_pretrained

from ..training_steps import LOG, StepsArguments, save_decoder, save_model, train_stages, train_tokenizer
from .data import DocumentPages
from .ingredients import CYRILLIC, GREEK, LATIN, TRAIN
from .pages import KINDS, NOTE, READ, draw_page
from .vision_tower import train_vision_tower


@dataclass
class DocumentsArguments(StepsArguments):
    continue_from: Path | None = field(
        default=None,
        metadata={"help": "Trained model whose vision tower and answers to train on. Default: train all steps."},
    )
    vision_steps: int = field(default=1500, metadata={"help": "Steps of the vision tower, of 16 tiles."})
    language_steps: int = field(default=1500, metadata={"help": "Steps of the decoder on pages given as text."})
    caption_steps: int = field(default=600, metadata={"help": "Steps of the first stage, the text of pages."})
    question_steps: int = field(default=1200, metadata={"help": "Steps of the second stage, questions."})
    batch_size: int = field(default=16, metadata={"help": "Pages per step; 2 times as many as text."})
    save_steps: int = field(default=100, metadata={"help": "Steps between checkpoints."})


def question_templates() -> list[str]:
    """The words of all questions, without those that come from a page."""
    found = {READ}
    for seed in range(40):
        for kind in (*KINDS, NOTE):
            page = draw_page([seed], TRAIN, kind, strength=0.0)
            on_page = {word for line in page.text for word in line.split()}
            for question in page.questions:
                words = [word for word in question.text.split() if word.strip("?") not in on_page]
                found.add(" ".join(word for word in words if not any(map(str.isdigit, word))))
    return sorted(found)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """
    Byte-level BPE with the special tokens of Qwen3. The words of the questions are tokens; everything else is written
    letter by letter, in every script.
    """
    prompts = [f" User: {template} Assistant:" for template in question_templates()]
    letters = list(LATIN + GREEK + CYRILLIC)
    return train_tokenizer(letters * 1000 + prompts * 5, max_length=4096, vocab_size=700, min_frequency=5)


def build_decoder(folder: Path) -> None:
    """Saves a new Qwen3 with five blocks and its tokenizer."""
    save_decoder(
        folder,
        build_tokenizer(),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=6,
        initializer_range=0.05,
    )


def stages(args: DocumentsArguments) -> dict[str, tuple[DocumentPages, dict]]:
    """Rows and training arguments of the stages that train the composed model, in order."""

    def pages(steps: int, seed: int, batch_size: int = args.batch_size, **settings) -> DocumentPages:
        return DocumentPages(steps * batch_size, batch_size, seed=3 * args.seed + seed, **settings)

    return {
        "language": (
            pages(args.language_steps, 1, 2 * args.batch_size, text_only_share=1.0, read_share=0.5),
            {
                "max_steps": args.language_steps,
                "freeze": ["vision_tower", "connector"],
                "per_device_train_batch_size": 2 * args.batch_size,
            },
        ),
        "captions": (
            pages(args.caption_steps, 2, read_share=1.0, note_share=0.3, text_only_share=0.15, num_questions=3),
            {"max_steps": args.caption_steps},
        ),
        "questions": (
            pages(
                args.question_steps,
                3,
                read_share=0.15,
                text_only_share=0.18,
                grid_shares=(0.6, 0.22, 0.12, 0.06),
            ),
            {"max_steps": args.question_steps, "lr_scheduler_kwargs": {"min_lr_rate": 0.02}},
        ),
    }


def prepare(args: DocumentsArguments, common: dict) -> Path:
    """Trains the vision tower and returns the folder of the model with it: a new one, or the one to continue from."""
    output = args.output_dir
    start, folder = output / "composed", output / "vision_tower"
    model = None
    if args.continue_from is not None:
        model = AutoModelForImageTextToText.from_pretrained(args.continue_from, dtype="float32")
    if not (folder / LOG).is_file():
        weights = None if model is None else model.model.vision_tower.state_dict()
        log = train_vision_tower(folder, args.vision_steps, weights=weights, **common)
        (folder / LOG).write_text(json.dumps(log))
    if start.is_dir():
        return start
    if model is None:
        build_decoder(output / "decoder")
        return compose_from_pretrained(folder, output / "decoder", start, vision_feature_layer=[3, 1], seed=args.seed)
    tower = SiglipVisionModel.from_pretrained(folder).state_dict()
    model.model.vision_tower.load_state_dict({name: tower[name] for name in model.model.vision_tower.state_dict()})
    model.save_pretrained(start)
    AutoProcessor.from_pretrained(args.continue_from).save_pretrained(start)
    return start


def train(args: DocumentsArguments) -> Path:
    """Runs all steps that are not complete yet and returns the folder of the final model. See the module docstring."""
    output = args.output_dir
    common = args.common(save_steps=args.save_steps, logging_steps=20)
    set_seed(args.seed)
    start = prepare(args, common)
    steps = stages(args)
    if args.continue_from is not None:
        steps = {"questions": steps["questions"]}
    trained = train_stages(args, start, steps, {"per_device_train_batch_size": args.batch_size, **common})
    logs = _earlier_logs(args)
    for name in ("vision_tower", *steps):
        part = name if args.continue_from is None else f"{name} {len(logs)}"
        logs[part] = json.loads((output / name / LOG).read_text())
    return save_model(trained, output / "model", logs)


def _earlier_logs(args: DocumentsArguments) -> dict[str, list[dict]]:
    """The logs of the model that the training continues from."""
    if args.continue_from is None:
        return {}
    return json.loads((args.continue_from / "training_log.json").read_text())


def main(argv: list[str] | None = None) -> None:
    (args,) = HfArgumentParser(DocumentsArguments).parse_args_into_dataclasses(args=argv)
    print(f"Written: {train(args)}")


if __name__ == "__main__":
    main(sys.argv[1:])
