# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Constants and functions that several test files share. Fixtures are in conftest.py."""

import base64
import io
from itertools import groupby

import numpy as np
import PIL.Image
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin, Trainer, TrainingArguments

from jvlm.cache_argument import cache_argument


# Names that Transformers changed, in 5.24 and in 5.23. The old ones print warnings.
CACHE = cache_argument()
CHECKPOINTING = "activation_checkpointing"
CHECKPOINTING = CHECKPOINTING if hasattr(TrainingArguments, CHECKPOINTING) else "gradient_checkpointing"
LAYOUTS = ["independent", "stitched"]
END_OF_TEXT = "<|endoftext|>"
MARKERS = ["<im_start>", "<im_end>", "<im_patch>", "<im_col>"]


def make_image(height: int, width: int, seed: int = 0) -> PIL.Image.Image:
    """A smooth random RGB image."""
    rng = np.random.default_rng(seed)
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), PIL.Image.Resampling.BICUBIC)


def encode_image(image: PIL.Image.Image, kind: str = "PNG", **settings) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def encode_base64(image: PIL.Image.Image) -> str:
    """A PNG file of the image as base64 string."""
    return base64.b64encode(encode_image(image)).decode()


def user(*parts) -> dict:
    """A user message of images and texts."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part} for part in parts
    ]
    return {"role": "user", "content": content}


def assistant(text: str) -> dict:
    """An assistant message."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def chat_inputs(processor: ProcessorMixin, messages: list, **kwargs) -> BatchFeature:
    """Model inputs of a conversation, ready for `generate`."""
    defaults = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    return processor.apply_chat_template(messages, **{**defaults, **kwargs})


def run_lengths(flags) -> list[int]:
    """Lengths of the runs of ones."""
    return [len(list(run)) for flag, run in groupby(np.asarray(flags).tolist()) if flag == 1]


def checkpoint_activations(model: PreTrainedModel, *args) -> None:
    """Turns on activation checkpointing, also called gradient checkpointing."""
    getattr(model, f"{CHECKPOINTING}_enable")(*args)


def losses(trainer: Trainer) -> list[float]:
    """The logged training losses."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
