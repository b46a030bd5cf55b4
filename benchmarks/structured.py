# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
CPU time that structured answers add to generation, on one thread: for the vocabulary of Qwen3 and the digit model's,
the time to read the vocabulary, to make a format, and to mask the logits of a step; and the time per step of the digit
model with and without a format.

    python -m benchmarks.structured [--tokens 64] [--batch 8]
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

import jvlm
from jvlm.structured import AnswerFormats
from jvlm_cli.answering import shipped_model


QWEN3 = Path(__file__).parents[1] / "tests" / "fixtures" / "qwen3_tokenizer"
ROWS = 152_064  # of the published output head
FIELD = {"type": "string", "maxLength": 40}
SCHEMA = {
    "type": "object",
    "properties": {
        "title": FIELD,
        "lines": {
            "type": "array",
            "items": {"type": "object", "properties": {"text": FIELD, "n": {"type": "integer"}}},
        },
    },
    "required": ["title", "lines"],
}
ANSWER = {"title": "Invoice 17", "lines": [{"text": "Paper, A4", "n": 12}, {"text": "Ink", "n": 3}]}


def seconds(function: Callable) -> tuple[float, object]:
    """CPU time of a call, and what it returns."""
    start = time.process_time()
    value = function()
    return time.process_time() - start, value


def mask_times(model, tokenizer, batch: int) -> dict[str, float]:
    """Seconds to read the vocabulary, to make a format and, per step of a batch, to mask the logits."""
    processor = SimpleNamespace(tokenizer=tokenizer)
    vocabulary, formats = seconds(lambda: AnswerFormats(model, processor))
    compilation, json_format = seconds(lambda: formats.json(SCHEMA))
    tokens = tokenizer(json.dumps(ANSWER), return_tensors="pt")["input_ids"].expand(batch, -1)
    scores = torch.zeros(batch, model.get_output_embeddings().weight.shape[0])
    steps = []
    for _ in range(5):
        for count in range(tokens.shape[1]):
            prompt = torch.ones(batch, 1, dtype=torch.long)
            ids = torch.cat([prompt, tokens[:, :count]], dim=1)
            steps.append(seconds(lambda ids=ids: json_format(ids, scores))[0])
    return {"read the vocabulary": vocabulary, "make the format": compilation, "mask a step": median(steps)}


def generation_times(model, processor, num_tokens: int, batch: int) -> dict[str, float]:
    """Seconds per step of `generate`, without a format and with one that never ends."""
    inputs = processor(text=[" User: Well? Assistant:"] * batch, return_tensors="pt")
    endless = AnswerFormats(model, processor).json({"type": "array", "items": FIELD, "minItems": 9999})
    settings = {"do_sample": False, "max_new_tokens": num_tokens, "min_new_tokens": num_tokens}
    times: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(7):
        for name, processors in (("without", []), ("with", [endless])):
            taken, _ = seconds(lambda it=processors: model.generate(**inputs, **settings, logits_processor=it))
            times[name].append(taken / num_tokens)
    return {f"a step of the digit model {name} a format": median(values) for name, values in times.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64, help="steps of generation, default: %(default)s")
    parser.add_argument("--batch", type=int, default=8, help="rows of a batch, default: %(default)s")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = AutoModelForImageTextToText.from_pretrained(shipped_model(), dtype="float32").eval()
    processor = AutoProcessor.from_pretrained(shipped_model())
    tokenizer = AutoTokenizer.from_pretrained(QWEN3)
    jvlm.add_image_tokens(tokenizer)
    head = torch.nn.Linear(1, ROWS, device="meta")
    published = SimpleNamespace(
        generation_config=SimpleNamespace(eos_token_id=tokenizer.eos_token_id), get_output_embeddings=lambda: head
    )
    print(f"| milliseconds of CPU time, batches of {args.batch} | digit model | Qwen3's vocabulary |\n|---|---|---|")
    small = mask_times(model, processor.tokenizer, args.batch)
    large = mask_times(published, tokenizer, args.batch)
    for name, taken in small.items():
        print(f"| {name} | {1000 * taken:.2f} | {1000 * large[name]:.2f} |")
    for name, taken in generation_times(model, processor, args.tokens, args.batch).items():
        print(f"| {name} | {1000 * taken:.2f} | |")


if __name__ == "__main__":
    main()
