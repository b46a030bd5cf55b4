# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Compares the parameter counts of the default configuration with the labels in figure 1 of arXiv 2512.04032, and prints
what weights and key-value cache of the published checkpoint need at inference:

    python -m benchmarks.parameters
    python -m benchmarks.parameters --memory

The parameters are counted on the model itself, built on the meta device.
"""

import argparse

import torch
from torch import nn
from transformers import AutoModel

from jvlm import JinaVLMConfig, JinaVLMForConditionalGeneration, JinaVLMImageProcessor


# Bytes of a weight of a linear layer, and of any other value.
BYTES = {"float32": (4, 4), "bfloat16, float16": (2, 2), "int8 in linear layers, else bfloat16": (1, 2)}
LABELS = {"vision tower": "about 400M", "connector": "about 50M", "language model": "1.7B"}


def count(*modules: nn.Module) -> int:
    """Number of parameters of modules. Shared parameters count once."""
    return sum({id(parameter): parameter.numel() for module in modules for parameter in module.parameters()}.values())


def parameters(config: JinaVLMConfig | None = None) -> tuple[dict[str, int], dict[str, str]]:
    """
    Counts the parameters of a configuration, by default of the default configuration.

    Returns:
        `tuple[dict[str, int], dict[str, str]]`: the number of parameters by part, including `"all"`, and an
        explanation for every part of `LABELS`.
    """
    config = config or JinaVLMConfig()
    with torch.device("meta"):
        model = JinaVLMForConditionalGeneration(config)
        vision_config = type(config.vision_config)(**{**config.vision_config.to_dict(), "vision_use_head": True})
        whole_tower = AutoModel.from_config(vision_config)
    tower, connector, language_model = model.model.vision_tower, model.model.connector, model.model.language_model
    counts = {
        "vision tower": count(tower),
        "connector": count(connector),
        "language model": count(language_model, model.lm_head),
        "all": count(model),
    }
    blocks, all_blocks = len(tower.encoder.layers), len(whole_tower.encoder.layers)
    table, head = count(language_model.embed_tokens), count(model.lm_head)
    is_tied = model.lm_head.weight is language_model.embed_tokens.weight
    rows, width = language_model.embed_tokens.weight.shape
    notes = {
        "vision tower": (
            f"{blocks} of {all_blocks} blocks of {count(tower.encoder.layers[0]) / 1e6:.1f}M are built, the deepest "
            "that feeds the connector being the last, and neither the final norm nor the pooling head; the whole "
            f"tower has {count(whole_tower) / 1e6:.1f}M."
        ),
        "connector": (
            f"Attention pooling of {count(connector.pooling) / 1e6:.1f}M and gated projector of "
            f"{count(connector.projector) / 1e6:.1f}M, in the shapes of the published weights; the figure's label is "
            "rounded up from these or counts something else."
        ),
        "language model": (
            f"{(counts['language model'] - table - (0 if is_tied else head)) / 1e9:.2f}B outside its embeddings. "
            f"The table of {rows} × {width} is {table / 1e9:.2f}B; input and output have "
            f"{'one table' if is_tied else 'one each'}, where 1.7B counts {'it' if is_tied else 'a single one'}."
        ),
    }
    return counts, notes


def memory(config: JinaVLMConfig | None = None) -> list[tuple[str, int, int, int, int]]:
    """
    Bytes that inference with one image of the largest grid needs, by default with the published checkpoint.

    Returns:
        `list`: dtype, `max_crops`, image tokens, bytes of the weights, and bytes of the key-value cache of the image
        tokens. Activations come on top. The output head is not quantized.
    """
    config = config or JinaVLMConfig(layout="stitched")
    text, needs = config.text_config, []
    with torch.device("meta"):
        model = JinaVLMForConditionalGeneration(config)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer is not model.lm_head]
    num_linear = sum(layer.weight.numel() for layer in layers)
    num_others = count(model) - num_linear
    values_per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    geometry = JinaVLMImageProcessor(layout=config.layout).geometry()
    for dtype, (linear_size, size) in BYTES.items():
        weights = num_linear * linear_size + num_others * size
        for max_crops in (1, 4, 12):
            grids = [(rows, cols) for rows in range(1, max_crops + 1) for cols in range(1, max_crops // rows + 1)]
            num_tokens = max(geometry.num_tokens(grid)[0] for grid in grids)
            needs.append((dtype, max_crops, num_tokens, weights, num_tokens * values_per_token * size))
    return needs


def print_parameters() -> None:
    counts, notes = parameters()
    print("| part | figure | parameters | why |\n|---|---:|---:|---|")
    for part, label in LABELS.items():
        print(f"| {part} | {label} | {counts[part]:,} | {notes[part]} |")
    print(f"| all | | {counts['all']:,} | |")


def print_memory() -> None:
    print("| dtype | `max_crops` | image tokens | weights | cache of the image tokens |\n|---|---:|---:|---:|---:|")
    for dtype, max_crops, num_tokens, weights, cache in memory():
        print(f"| {dtype} | {max_crops} | {num_tokens} | {weights / 1e9:.1f} GB | {cache / 1e6:.0f} MB |")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", help="print the memory that inference needs")
    print_memory() if parser.parse_args(argv).memory else print_parameters()


if __name__ == "__main__":
    main()
