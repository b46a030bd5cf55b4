# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""What the tests share: the fixtures on disk, a small tokenizer, processors and random models of few parameters."""

import os
from pathlib import Path


# Both before the libraries are imported. The models are so small that threads would mostly wait for one another.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import PIL.Image
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerFast, set_seed

from jvlm import (
    JinaVLMConfig,
    JinaVLMForConditionalGeneration,
    JinaVLMImageProcessor,
    JinaVLMProcessor,
    add_image_tokens,
)
from jvlm.processing import resizing


FIXTURES = Path(__file__).parent / "fixtures"
END_OF_TEXT = "<|endoftext|>"
CORPUS = [
    " User: What is the name of this lady? Assistant: Her name is Ada.<|endoftext|>",
    " User: Which of the two images is darker? Assistant: The first one is darker.<|endoftext|>",
]


@pytest.fixture(scope="session")
def exact_resize() -> None:
    """Skips what compares pixels to the last bit where PyTorch's resize rounds the places it samples twice: 2.6."""
    before, after, weight = resizing._samples(1300, 378)
    expected = torch.from_numpy(before).float().lerp(torch.from_numpy(after).float(), weight)
    ramp = torch.arange(1300.0).view(1, 1, 1, -1)
    if not torch.equal(torch.nn.functional.interpolate(ramp, size=(1, 378), mode="bilinear").flatten(), expected):
        pytest.skip(f"PyTorch {torch.__version__} resizes with other roundings than the published code had.")


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on two sentences, without image tokens; pads on the left, has no BOS token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS * 5, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        padding_side="left",
        model_max_length=4096,
    )


@pytest.fixture
def bare_tokenizer() -> PreTrainedTokenizerFast:
    """A new small tokenizer without image tokens."""
    return train_tokenizer()


@pytest.fixture
def build_processor():
    """
    A function (layout, **settings of either processor) to a new small processor: tiles of 56 pixels, 7×7 patches of 8
    pixels, neighbours overlapping by two patches; 3×4 pooled cells a tile in the independent layout, 4×4 stitched.
    """

    def build(layout: str = "independent", tokenizer=None, add_bos_token: bool = False, **image_settings):
        settings = {"size": {"height": 56, "width": 56}, "patch_size": 8, "overlap_margins": [1, 1], **image_settings}
        image_processor = JinaVLMImageProcessor(layout=layout, **settings)
        return JinaVLMProcessor(image_processor, tokenizer or train_tokenizer(), add_bos_token=add_bos_token)

    return build


@pytest.fixture
def build_config():
    """A function (layout, **fields) to the configuration that goes with `build_processor`."""

    def build(layout: str = "independent", **fields) -> JinaVLMConfig:
        tokenizer = train_tokenizer()
        add_image_tokens(tokenizer)
        marker = tokenizer.convert_tokens_to_ids
        vision_config = {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 8,
        }
        text_config = {
            "vocab_size": len(tokenizer) + 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 4096,
            "initializer_range": 0.2,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        defaults = {
            "vision_feature_layer": [2, 1],
            "connector_num_attention_heads": 2,
            "connector_head_dim": 8,
            "connector_intermediate_size": 24,
            "image_token_id": marker("<im_patch>"),
            "image_start_token_id": marker("<im_start>"),
            "image_end_token_id": marker("<im_end>"),
            "image_column_token_id": marker("<im_col>"),
            "initializer_range": 0.2,
        }
        sub_configs = {
            "vision_config": {**vision_config, **fields.pop("vision_config", {})},
            "text_config": {**text_config, **fields.pop("text_config", {})},
        }
        return JinaVLMConfig(layout=layout, **sub_configs, **{**defaults, **fields})

    return build


@pytest.fixture
def build_model(build_config):
    """A function (layout, **fields of the configuration) to a new random model, always the same, in eval mode."""

    def build(layout: str = "independent", attn_implementation: str = "sdpa", **fields):
        set_seed(0)
        config = build_config(layout, **fields)
        config._attn_implementation = attn_implementation
        model = JinaVLMForConditionalGeneration(config)
        if config.use_last_tile_embedding:
            torch.nn.init.normal_(model.model.connector.last_tile_embedding)
        return model.eval()

    return build


def make_image(height: int, width: int, seed: int = 0) -> PIL.Image.Image:
    """A smooth random RGB image."""
    rng = np.random.default_rng(seed)
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), PIL.Image.Resampling.BICUBIC)


@pytest.fixture(name="make_image")
def make_image_fixture():
    """A function (height, width, seed) to a smooth random RGB image."""
    return make_image


@pytest.fixture(scope="session")
def release() -> Path:
    """The folder of the small checkpoint in the published layout and the published code's answers."""
    return FIXTURES / "release_tiny"


@pytest.fixture(scope="session")
def qwen3_vocabulary() -> Path:
    """The folder of the Qwen3 vocabulary."""
    return FIXTURES / "qwen3_tokenizer"


@pytest.fixture(scope="session")
def released_model(release):
    """The small checkpoint in the published layout, loaded once; tests must not change it."""
    return AutoModelForImageTextToText.from_pretrained(release / "checkpoint").eval()


@pytest.fixture
def released_processor(release):
    """The processor of the small checkpoint in the published layout."""
    return AutoProcessor.from_pretrained(release / "checkpoint")


def user(*parts) -> dict:
    """A user's message of images and texts."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part} for part in parts
    ]
    return {"role": "user", "content": content}


def assistant(text: str) -> dict:
    """An assistant's message."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


@pytest.fixture(name="user")
def user_message():
    """A function (*images and texts) to a user's message."""
    return user


@pytest.fixture(name="assistant")
def assistant_message():
    """A function (text) to an assistant's message."""
    return assistant
