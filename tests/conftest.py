# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Shared fixtures: checkpoints on disk, and small tokenizers, processors, models and model inputs."""

import os
from pathlib import Path


# Set before the libraries are imported. The models are so small that several threads would only slow them down.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import PIL.Image
import PIL.ImageDraw
import pytest
import torch
from helpers import END_OF_TEXT, LAYOUTS, assistant, make_image, user
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerFast, set_seed

from jvlm import (
    JinaVLMConfig,
    JinaVLMForConditionalGeneration,
    JinaVLMImageProcessor,
    JinaVLMProcessor,
    add_image_tokens,
)


FIXTURES = Path(__file__).parent / "fixtures"
CORPUS = [
    " User: What is the name of this lady? Assistant: Her name is Ada.<|endoftext|>",
    " User: Which of the two images is darker? Assistant: The first one is darker.<|endoftext|>",
]


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on two sentences. It has no image tokens and no BOS token, and pads on the left."""
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
    A function (layout, tokenizer, add_bos_token, **image processor settings) that builds a small processor: tiles of
    56 pixels with 7×7 patches, overlapping by two patches. A tile has 3×4 pooled cells in the independent layout and
    4×4 in the stitched one.
    """

    def build(layout: str = "independent", tokenizer=None, add_bos_token: bool = False, **image_settings):
        settings = {"size": {"height": 56, "width": 56}, "patch_size": 8, "overlap_margins": [1, 1], **image_settings}
        image_processor = JinaVLMImageProcessor(layout=layout, **settings)
        return JinaVLMProcessor(image_processor, tokenizer or train_tokenizer(), add_bos_token=add_bos_token)

    return build


@pytest.fixture
def build_config():
    """A function (layout, **fields) that builds a configuration matching `build_processor`."""

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
    """A function (layout, **configuration fields) that builds a model in eval mode, with the same random weights."""

    def build(layout: str = "independent", attn_implementation: str = "sdpa", **fields):
        set_seed(0)
        config = build_config(layout, **fields)
        config._attn_implementation = attn_implementation
        model = JinaVLMForConditionalGeneration(config)
        if config.use_last_tile_embedding:
            torch.nn.init.normal_(model.model.connector.last_tile_embedding)
        return model.eval()

    return build


@pytest.fixture
def page() -> PIL.Image.Image:
    """A white page of 3 × 4 tiles of the small processor, with two words and a light smudge."""
    image = PIL.Image.new("RGB", (176, 136), "white")
    draw = PIL.ImageDraw.Draw(image)
    draw.text((30, 20), "Total", "black")
    draw.text((120, 110), "17", "blue")
    draw.rectangle((60, 60, 70, 64), (250, 255, 255))
    return image


@pytest.fixture
def build_inputs(build_processor):
    """
    A function (layout, text, images) that builds model inputs. The default is a padded batch of a row with one image,
    a row with two images and a row without images.
    """

    def build(layout: str = "independent", text=None, images=None):
        if text is None:
            text = ["<|image|> Who is this?", "Between <|image|> and <|image|>?", "Well?"]
            images = [[make_image(90, 130, 0)], [make_image(40, 40, 1), make_image(60, 200, 2)], []]
        return build_processor(layout)(images=images, text=text, padding=True, return_tensors="pt")

    return build


@pytest.fixture(name="make_image")
def make_image_fixture():
    """A function (height, width, seed) that makes a smooth random RGB image."""
    return make_image


@pytest.fixture(scope="session")
def release() -> Path:
    """The folder with the small published checkpoint and the outputs of the published code."""
    return FIXTURES / "release_tiny"


@pytest.fixture(scope="session")
def qwen3_vocabulary() -> Path:
    """The folder of Qwen3's tokenizer."""
    return FIXTURES / "qwen3_tokenizer"


@pytest.fixture(scope="session")
def released_model(release):
    """The model of the small published checkpoint, loaded once. Tests must not modify it."""
    return AutoModelForImageTextToText.from_pretrained(release / "checkpoint").eval()


@pytest.fixture
def released_processor(release):
    """The processor of the small published checkpoint."""
    return AutoProcessor.from_pretrained(release / "checkpoint")


@pytest.fixture(name="user")
def user_message():
    """A function (*images and texts) that makes a user message."""
    return user


@pytest.fixture(name="assistant")
def assistant_message():
    """A function (text) that makes an assistant message."""
    return assistant


@pytest.fixture(params=[*LAYOUTS, "published"])
def checkpoint(request, release, build_model, build_processor, tmp_path):
    """The folder of a model, with rows that no token has, and its processor: in either layout, and as published."""
    if request.param == "published":
        return release / "checkpoint"
    folder = tmp_path / "checkpoint"
    build_model(request.param).save_pretrained(folder)
    build_processor(request.param).save_pretrained(folder)
    return folder
