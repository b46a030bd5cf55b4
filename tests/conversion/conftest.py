# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Fixtures of the conversion tests: small checkpoints in all formats that the scripts read."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM, SiglipConfig, SiglipModel, set_seed

from jvlm.conversion_scripts.convert_release import convert_release


@pytest.fixture(scope="session")
def siglip(tmp_path_factory) -> Path:
    """A SigLIP checkpoint with text tower and pooling head. Images of 60 pixels have 4×4 patches of 14 pixels."""
    set_seed(1)
    text_config = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 20,
        "max_position_embeddings": 8,
        "projection_size": 32,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    vision_config = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 10,
        "num_attention_heads": 2,
        "image_size": 60,
        "patch_size": 14,
    }
    folder = tmp_path_factory.mktemp("siglip") / "checkpoint"
    SiglipModel(SiglipConfig(text_config=text_config, vision_config=vision_config)).save_pretrained(folder)
    return folder


@pytest.fixture
def qwen3(bare_tokenizer, tmp_path):
    """A function (tied) that saves a Qwen3 with 320 embeddings and a tokenizer with fewer tokens."""

    def build(tied: bool) -> Path:
        folder = tmp_path / f"qwen3-tied-{tied}"
        if not folder.exists():
            set_seed(2)
            config = Qwen3Config(
                vocab_size=320,
                hidden_size=48,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=16,
                max_position_embeddings=4096,
                initializer_range=0.2,
                tie_word_embeddings=tied,
                eos_token_id=bare_tokenizer.eos_token_id,
            )
            Qwen3ForCausalLM(config).save_pretrained(folder)
            bare_tokenizer.save_pretrained(folder)
        return folder

    return build


@pytest.fixture(scope="session")
def published(release) -> Path:
    """The folder of the small published checkpoint. Tests must not modify it."""
    return release / "checkpoint"


@pytest.fixture(scope="session")
def converted(published, tmp_path_factory) -> Path:
    """The published checkpoint converted to Transformers' format. Tests must not modify it."""
    return convert_release(published, tmp_path_factory.mktemp("converted") / "checkpoint")


@pytest.fixture
def changed_copy(tmp_path):
    """
    A function (source, weights=…, **JSON file names without suffix=…) that copies a checkpoint. The given functions
    modify the weights and the content of the JSON files in place.
    """

    def change(source: Path, weights=None, **files) -> Path:
        folder = tmp_path / f"copy-{len(list(tmp_path.glob('copy-*')))}"
        shutil.copytree(source, folder, copy_function=shutil.copyfile)
        if weights is not None:
            tensors = load_file(folder / "model.safetensors")
            weights(tensors)
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        for name, edit in files.items():
            content = json.loads((folder / f"{name}.json").read_text())
            edit(content)
            (folder / f"{name}.json").write_text(json.dumps(content))
        return folder

    return change
