# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Checks that checkpoints saved with one version of Transformers give the same outputs with another version:

    python tools/cross_version.py save DIR      # with one version
    python tools/cross_version.py check DIR     # with the other version

`save` saves three checkpoints: the small checkpoint in the published format, and a random model of each layout. With
each it saves the model inputs of an image and the logits. `check` loads them, processes the image again and compares.
"""

import sys
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from jvlm import JinaVLMConfig, JinaVLMForConditionalGeneration, JinaVLMImageProcessor, JinaVLMProcessor


RELEASE = Path(__file__).parents[1] / "tests" / "fixtures" / "release_tiny" / "checkpoint"
PROMPT = " User: <|image|>describe the image. Assistant:"


def fresh(layout: str):
    """A random model and its processor, with the tokenizer of the small checkpoint."""
    torch.manual_seed(0)
    released = AutoModelForImageTextToText.from_pretrained(RELEASE).config
    config = JinaVLMConfig(
        layout=layout,
        vision_config=released.vision_config.to_dict(),
        text_config=released.text_config.to_dict(),
        **{name: getattr(released, name) for name in released.to_dict() if name.endswith("_token_id")},
        vision_feature_layer=[6, 3],
        connector_num_attention_heads=2,
        connector_head_dim=16,
        connector_intermediate_size=48,
    )
    processor = JinaVLMProcessor(
        JinaVLMImageProcessor(layout=layout), AutoProcessor.from_pretrained(RELEASE).tokenizer
    )
    return JinaVLMForConditionalGeneration(config).eval(), processor


@torch.no_grad()
def answers(model, processor) -> dict[str, torch.Tensor]:
    """Model inputs of an image, logits and greedy tokens."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = PIL.Image.fromarray(pixels).resize((600, 450), PIL.Image.Resampling.BICUBIC)
    inputs = dict(processor(images=image, text=PROMPT, return_tensors="pt"))
    tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return {**inputs, "logits": model(**inputs).logits, "tokens": tokens}


def save(folder: Path) -> None:
    """Saves the three checkpoints and their outputs."""
    models = {
        "published": (
            AutoModelForImageTextToText.from_pretrained(RELEASE).eval(),
            AutoProcessor.from_pretrained(RELEASE),
        ),
        "independent": fresh("independent"),
        "stitched": fresh("stitched"),
    }
    for name, (model, processor) in models.items():
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
        tensors = {key: tensor.contiguous() for key, tensor in answers(model, processor).items()}
        save_file(tensors, folder / name / "answers.st", {"transformers": transformers.__version__})
        print(f"saved {name} with transformers {transformers.__version__}")


def check(folder: Path) -> None:
    """Loads the three checkpoints and compares their outputs. Raises `AssertionError` for the first difference."""
    for name in ("published", "independent", "stitched"):
        model = AutoModelForImageTextToText.from_pretrained(folder / name).eval()
        processor = AutoProcessor.from_pretrained(folder / name)
        expected = load_file(folder / name / "answers.st")
        found = answers(model, processor)
        assert set(found) == set(expected), f"{name}: {set(found) ^ set(expected)}"
        for key, tensor in expected.items():
            tolerance = 1e-5 if key == "logits" else 0
            print(f"{name}: {key}")
            torch.testing.assert_close(found[key], tensor, rtol=0, atol=tolerance)
        difference = (found["logits"] - expected["logits"]).abs().max().item()
        print(f"{name}: equal with transformers {transformers.__version__}, logits to {difference:.1e}")


if __name__ == "__main__":
    commands = {"save": save, "check": check}
    if len(sys.argv) != 3 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    commands[sys.argv[1]](Path(sys.argv[2]))
