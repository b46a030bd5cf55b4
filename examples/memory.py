# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Estimates the memory per GPU that fine-tuning needs. Requires neither a GPU nor weights:

    python -m examples.memory [--model_name_or_path my-jina-vlm] [--strategy fsdp2] [--gpus 8]
    python -m examples.memory --strategy one --recipe full frozen_tower lora qlora

The model, by default the full-size one, is built and run on tensors without storage. Weights, gradients and Adam
states are computed from the number of parameters, by the printed formulas. Activations are counted when autograd saves
them. Not counted: the CUDA context (about 1 GiB per GPU), fragmentation, communication buffers and the attention masks
of padded rows.
"""

import argparse
import sys
from collections.abc import Callable
from itertools import product

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from transformers import AutoConfig, AutoModelForImageTextToText

from jvlm import JinaVLMConfig
from jvlm.training.finetune import ADAPTER_RECIPES, ModelArguments, add_adapters


GIB = 2**30
STRATEGIES = {
    "one": "One GPU, --bf16: P × (4 weights + 4 gradients + 8 Adam) bytes.",
    "ddp": "DDP, --bf16: P × (4 weights + 8 gradients + 8 Adam) bytes; each gradient is also stored in a bucket.",
    "fsdp2": "FSDP2, bf16: P × (4 weights + 4 gradients + 8 Adam) bytes / GPUs; the two largest units (blocks, "
    "embeddings, output head) are unsharded, with weights and gradients of 2 bytes each.",
    "deepspeed_zero3": "ZeRO-3, bf16: P × (2 + 4 weights + 2 gradients + 8 Adam) bytes / GPUs; up to 1e9 weights "
    "(stage3_max_live_parameters) are unsharded, 2 bytes each.",
}
# Recipes of `jvlm.training.finetune`.
RECIPE_NOTES = {
    "full": "all weights are trained.",
    "frozen_tower": "the tower has no gradients, no Adam states, and keeps no activations.",
    "lora": "P × 2 bytes, and those of the strategy for each trained parameter: adapters and connector.",
    "dora": "as lora; what it keeps for the norms of the weights is not counted.",
    "qlora": "as lora, but the linear layers of tower and language model take 0.52 bytes per weight (nf4); with one "
    "GPU or DDP.",
}
NF4_BYTES = 0.5 + (1 + 4 / 256) / 64  # 4 bits, and a scale of 8 bits per block, in blocks of 256


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def count_trained(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)


def without_storage(model: nn.Module) -> None:
    """Replaces the meta tensors of a model by fake CPU tensors, for which PyTorch selects CPU kernels."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty_like(buffer, device="cpu")
        for name, weight in module.named_parameters(recurse=False):
            empty = torch.empty_like(weight, device="cpu")
            module._parameters[name] = nn.Parameter(empty, requires_grad=weight.requires_grad)


def kept_for_backward(model: nn.Module, function: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, int]:
    """Returns the result of a function and the bytes saved for its backward pass, without the weights of the model."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = function()
    return result, sum(storage.nbytes() for storage in kept.values())


def activations(model: nn.Module, batch_size: int, tiles: int, length: int) -> dict[str, int]:
    """Bytes saved for the backward pass by module, in bf16 autocast, for rows of `tiles` tiles and `length` tokens."""
    config, parts = model.config, model.model
    side, cells = config.vision_config.image_size, config.pooled_grid[0] * config.pooled_grid[1]
    tiles *= batch_size
    pixel_values = torch.zeros(tiles, config.vision_config.num_channels, side, side)
    embeddings = torch.zeros(batch_size, length, config.text_config.hidden_size, requires_grad=True)
    layers = len(config.vision_feature_layer)

    def vision_tower():
        hidden_states = parts.vision_tower(pixel_values, output_hidden_states=True).hidden_states
        return torch.cat(hidden_states[-layers:], dim=-1)

    def connector():
        return parts.connector(features, torch.zeros(tiles, dtype=bool), torch.zeros(tiles * cells, dtype=int))

    def decoder():
        # All rows have the same length, so attention needs no mask.
        mask = {"full_attention": None}
        return parts.language_model(inputs_embeds=embeddings, attention_mask=mask, use_cache=False).last_hidden_state

    def loss():
        labels = torch.zeros(batch_size, length, dtype=int)
        logits = model.lm_head(hidden_states)
        return model.loss_function(logits=logits, labels=labels, vocab_size=config.text_config.vocab_size)

    kept = {}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, kept["vision tower"] = kept_for_backward(model, vision_tower)
        _, kept["connector"] = kept_for_backward(model, connector)
        hidden_states, kept["decoder"] = kept_for_backward(model, decoder)
        _, kept["loss"] = kept_for_backward(model, loss)
    return kept


def build(config: JinaVLMConfig, recipe: str, dtype: str) -> nn.Module:
    """The model on the meta device, with the trainable parameters of a recipe."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
        if recipe in ADAPTER_RECIPES:
            return add_adapters(model, ModelArguments(model_name_or_path="", recipe=recipe))
    if recipe == "frozen_tower":
        model.model.vision_tower.requires_grad_(False)
    return model


def quantized_bytes_saved(model: nn.Module) -> float:
    """What storing the linear layers of tower and language model in 4 bits saves."""
    parts = (model.model.vision_tower, model.model.language_model)
    layers = [module for part in parts for module in part.modules() if isinstance(module, nn.Linear)]
    adapters = {id(module) for part in parts for n, module in part.named_modules() if ".lora_" in n}
    return sum((2 - NF4_BYTES) * layer.weight.numel() for layer in layers if id(layer) not in adapters)


def estimate(
    config: JinaVLMConfig,
    strategy: str,
    gpus: int = 8,
    batch_size: int = 1,
    tiles: int = 13,
    length: int = 2400,
    recipe: str = "full",
    adam_bytes: int = 8,
) -> dict[str, float]:
    """
    Estimates the bytes per GPU.

    Args:
        config ([`JinaVLMConfig`]): the model.
        strategy (`str`): a key of `STRATEGIES`.
        gpus (`int`): number of GPUs that a sharded strategy shards over.
        batch_size, tiles, length (`int`): rows per GPU and step, tiles per row, thumbnails included, tokens per row.
        recipe (`str`): a key of `RECIPE_NOTES`.
        adam_bytes (`int`): bytes of the Adam states per trained parameter: 8, or 2 with 8-bit Adam.

    Raises:
        ValueError: if the recipe is `qlora`, which is estimated with one GPU or DDP only, and the strategy another.

    Returns:
        `dict[str, float]`: bytes of `weights`, `gradients`, `adam` states, `unsharded` weights and gradients,
        `activations`, and of activations with gradient checkpointing (`checkpointed`). Both activations include the
        peak of the backward pass.
    """
    is_sharded = strategy in ("fsdp2", "deepspeed_zero3")
    if is_sharded and recipe == "qlora":
        raise ValueError(f"The recipe {recipe} is estimated with the strategies one and ddp, not with {strategy}.")
    model = build(config, recipe, "bfloat16" if is_sharded or recipe in ADAPTER_RECIPES else "float32")
    base = model.get_base_model() if recipe in ADAPTER_RECIPES else model
    with FakeTensorMode(allow_non_fake_inputs=True):
        without_storage(model.train())
        kept = activations(base, batch_size, tiles, length)
        # Transformers 5.23 renamed the method.
        getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)()
        checkpointed = activations(base, batch_size, tiles, length)

    total, trained, unsharded = count(model), count_trained(model), 0
    if is_sharded:
        if strategy == "fsdp2":  # trained weights are in float32, the others as they were loaded
            weights = 4 * trained + (2 if recipe in ADAPTER_RECIPES else 4) * (total - trained)
            gradients = 4 * trained
            blocks = [*base.model.vision_tower.encoder.layers, *base.model.language_model.layers]
            units = [*blocks, base.get_input_embeddings(), base.lm_head]
            unsharded = 2 * sum(sorted(count(unit) + count_trained(unit) for unit in units)[-2:])
        else:
            weights, gradients = 2 * total + 4 * trained, 2 * trained
            unsharded = 2 * min(total, int(1e9))
        weights, gradients, adam = (size / gpus for size in (weights, gradients, adam_bytes * trained))
    else:
        weights = sum(parameter.nbytes for parameter in model.parameters())
        weights -= quantized_bytes_saved(base) if recipe == "qlora" else 0
        gradients = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
        adam = adam_bytes / 4 * gradients
        gradients *= 2 if strategy == "ddp" else 1

    # The backward pass first holds the gradient of the logits, later the activations of one recomputed block. Autocast
    # holds the weights that it converts; without checkpointing they are among the activations counted above.
    logits = 4 * batch_size * length * config.text_config.vocab_size
    block = max(
        (kept["vision tower"] - checkpointed["vision tower"]) / len(base.model.vision_tower.encoder.layers),
        (kept["decoder"] - checkpointed["decoder"]) / len(base.model.language_model.layers),
    )
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    converted = sum(2 * layer.weight.numel() for layer in layers if layer.weight.dtype == torch.float32)
    return {
        "weights": weights,
        "gradients": gradients,
        "adam": adam,
        "unsharded": unsharded,
        "activations": sum(kept.values()) + logits,
        "checkpointed": sum(checkpointed.values()) + max(logits, block - checkpointed["loss"], converted),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Estimates the memory per GPU that fine-tuning needs.")
    parser.add_argument("--model_name_or_path", help="checkpoint; by default the full-size model")
    parser.add_argument("--strategy", choices=STRATEGIES, nargs="+", default=list(STRATEGIES))
    parser.add_argument("--recipe", choices=RECIPE_NOTES, nargs="+", default=["full"], help="what is trained")
    parser.add_argument("--adam_8bit", action="store_true", help="Adam states of 8 bits, --optim adamw_8bit")
    parser.add_argument("--gpus", type=int, default=8, help="number of GPUs that fsdp2 and deepspeed_zero3 shard over")
    parser.add_argument("--batch_size", type=int, default=1, help="rows per GPU and step")
    parser.add_argument("--tiles", type=int, default=13, help="tiles per row, thumbnails included")
    parser.add_argument("--length", type=int, default=2400, help="tokens per row, image tokens included")
    args = parser.parse_args(argv)
    for name in ("gpus", "batch_size", "tiles", "length"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}, but must be at least 1.")
    config = AutoConfig.from_pretrained(args.model_name_or_path) if args.model_name_or_path else JinaVLMConfig()

    with torch.device("meta"):
        total = AutoModelForImageTextToText.from_config(config).num_parameters()
    print(
        f"P = {total:,} parameters; {args.gpus} GPUs; {args.batch_size} × {args.length} tokens and {args.tiles} tiles "
        "per row; GiB per GPU; activations* and total* are with gradient checkpointing\n"
    )
    columns = ("weights", "gradients", "Adam", "unsharded", "activations", "activations*", "total", "total*")
    adam_bytes = 2 if args.adam_8bit else 8
    print(f"| strategy | recipe | {' | '.join(columns)} |\n|---|---|{'---:|' * len(columns)}")
    for strategy, recipe in product(args.strategy, args.recipe):
        *states, plain, checkpointed = estimate(
            config, strategy, args.gpus, args.batch_size, args.tiles, args.length, recipe, adam_bytes
        ).values()
        numbers = [*states, plain, checkpointed, sum(states) + plain, sum(states) + checkpointed]
        print(f"| {strategy} | {recipe} | {' | '.join(f'{number / GIB:.1f}' for number in numbers)} |", flush=True)
    print()
    for strategy in args.strategy:
        print(f"- {STRATEGIES[strategy]}")
    for recipe in args.recipe:
        print(f"- {recipe}: {RECIPE_NOTES[recipe]}")


if __name__ == "__main__":
    main(sys.argv[1:])
