# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Time and memory of every stage at full size, with random weights, on a CPU:

    python -m benchmarks.full_size [--dtype bfloat16] [--new_tokens 8]

The default configuration answers a question of 12 tokens about a drawn picture of 1176 × 910 pixels: 12 tiles and a
thumbnail, 2366 image tokens. It needs about 6 GB of memory, 11 GB in float32, which processors without bfloat16
instructions compute much faster; no download and no accelerator.
"""

import argparse
import resource
import sys
import time

import numpy as np
import PIL.Image
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast
from transformers import initialization as init

from jvlm import JinaVLMConfig, JinaVLMImageProcessor, JinaVLMProcessor


QUESTION = "What is the name of this lady?"
WIDTH, HEIGHT = 1176, 910


class Stages:
    """Prints the seconds since the last call, and the largest memory of the process so far."""

    def __init__(self):
        self.start = time.perf_counter()
        print(f"{'stage':<18}{'seconds':>9}{'peak memory':>14}")

    def done(self, name: str, steps: int = 1) -> None:
        seconds = time.perf_counter() - self.start
        # Linux counts in KiB, macOS in bytes.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        each = f"   {seconds / steps:.2f} s a token" if steps > 1 else ""
        print(f"{name:<18}{seconds:>9.2f}{peak / 2**30:>10.2f} GiB{each}", flush=True)
        self.start = time.perf_counter()


def build_processor(config: JinaVLMConfig) -> JinaVLMProcessor:
    """The default image processor, and a word-level tokenizer that cuts `QUESTION` into as many tokens as Qwen3's."""
    pre_tokenizer = pre_tokenizers.Whitespace()
    words = [word for word, _ in pre_tokenizer.pre_tokenize_str(f"User: {QUESTION} Assistant:")]
    image_tokens = {
        "<im_start>": config.image_start_token_id,
        "<im_end>": config.image_end_token_id,
        "<im_patch>": config.image_token_id,
        "<im_col>": config.image_column_token_id,
        "<|image|>": config.image_column_token_id + 1,
    }
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary | image_tokens))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_special_tokens(list(image_tokens))
    return JinaVLMProcessor(JinaVLMImageProcessor(), PreTrainedTokenizerFast(tokenizer_object=tokenizer))


@torch.no_grad
def build_model(config: JinaVLMConfig, dtype: str):
    """A model with normal weights, quicker than the careful initialisation that training needs."""
    with init.no_init_weights():
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.02)
        else:
            parameter.fill_(float(name.endswith("weight")))  # norms are one, biases zero
    return model


def run(config: JinaVLMConfig, new_tokens: int, dtype: str = "bfloat16") -> torch.Tensor:
    """Runs and prints all stages; returns prompt and answer, token ids `[1, sequence]`."""
    stages = Stages()
    processor = build_processor(config)
    model = build_model(config, dtype)
    stages.done("build")
    ramp = np.linspace(0, 255, WIDTH)[None, :, None] * np.linspace(0, 1, HEIGHT)[:, None, None]
    image = PIL.Image.fromarray((ramp * [1.0, 0.7, 0.4]).astype(np.uint8))
    conversation = [
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]}
    ]
    inputs = processor.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    inputs.pop("token_type_ids", None)
    inputs = inputs.to(model.dtype)
    stages.done("image processing")

    num_calls = 0

    def after_language_model(*_):
        nonlocal num_calls
        num_calls += 1
        if num_calls == 1:
            stages.done("prefill")

    model.model.vision_tower.register_forward_hook(lambda *_: stages.done("vision tower"))
    model.model.connector.register_forward_hook(lambda *_: stages.done("connector"))
    model.model.language_model.register_forward_hook(after_language_model)
    output = model.generate(**inputs, do_sample=False, min_new_tokens=new_tokens, max_new_tokens=new_tokens)
    stages.done(f"decode ({new_tokens - 1} tokens)", steps=new_tokens - 1)

    num_image_tokens = int((inputs["input_ids"] == processor.image_token_id).sum())
    print(
        f"\n{len(inputs['pixel_values'])} tiles, {num_image_tokens} image tokens + "
        f"{inputs['input_ids'].shape[1] - num_image_tokens} text tokens, "
        f"{model.num_parameters():,} parameters in {dtype}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    return output


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time and memory of every stage at full size, on a CPU.")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="number type")
    parser.add_argument("--new_tokens", default=8, type=int, help="tokens to generate, at least 2")
    args = parser.parse_args(argv)
    if args.new_tokens < 2:
        parser.error(f"--new_tokens is {args.new_tokens}, but must be at least 2: prefill gives the first one.")
    run(JinaVLMConfig(), args.new_tokens, args.dtype)


if __name__ == "__main__":
    main()
