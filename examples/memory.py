# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Estimates the memory that fine-tuning takes on each GPU, without a GPU and without weights:

    python -m examples.memory [--model_name_or_path my-jina-vlm] [--strategy fsdp2] [--gpus 8]

The model, at full size if no other is named, is built and run on tensors without storage. Weights, gradients and Adam
states follow from its parameters by the formulas that are printed; what the backward pass keeps is counted as it is
kept. Not counted: CUDA's own memory (about 1 GiB on each GPU), fragmentation, buffers of the communication, and the
attention masks of rows that are padded.
"""

import argparse
import sys
from collections.abc import Callable

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from transformers import AutoConfig, AutoModelForImageTextToText

from examples.finetune import ModelArguments, lora
from jvlm import JinaVLMConfig


GIB = 2**30
STRATEGIES = {
    "one": "One GPU, --bf16: P × (4 weights + 4 gradients + 8 Adam) bytes.",
    "lora": "LoRA on each GPU, --dtype bfloat16 --bf16: 2 P bytes, and for what is trained its weights, gradients and "
    "twice as much for Adam, all in float32.",
    "ddp": "DDP, --bf16: P × (4 weights + 8 gradients + 8 Adam) bytes; gradients are kept by weight and by bucket.",
    "fsdp2": "FSDP2, bf16: P × (4 weights + 4 gradients + 8 Adam) bytes / GPUs; the two largest of blocks, embeddings "
    "and output head are whole, weights and gradients, 2 bytes each.",
    "deepspeed_zero3": "ZeRO-3, bf16: P × (2 + 4 weights + 2 gradients + 8 Adam) bytes / GPUs; up to 1e9 weights "
    "(stage3_max_live_parameters) are whole, 2 bytes each.",
}


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def without_storage(model: nn.Module) -> None:
    """Makes the tensors of a model on the meta device such that kernels of a device are chosen for them."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty_like(buffer, device="cpu")
        for name, weight in module.named_parameters(recurse=False):
            empty = torch.empty_like(weight, device="cpu")
            module._parameters[name] = nn.Parameter(empty, requires_grad=weight.requires_grad)


def kept_for_backward(model: nn.Module, function: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, int]:
    """The function's result and the bytes that its backward pass would keep, the model's weights excepted."""
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
    """Bytes kept for the backward pass by part, in bf16 autocast, for rows of `tiles` tiles and `length` tokens."""
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
        # Rows of one length: nothing is padded, and attention needs no mask.
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


def estimate(
    config: JinaVLMConfig, strategy: str, gpus: int = 8, batch_size: int = 1, tiles: int = 13, length: int = 2400
) -> dict[str, float]:
    """
    Bytes on each GPU: `weights`, `gradients` and `adam` states, `whole` what comes together of divided weights,
    `activations` and, with gradient checkpointing, `checkpointed`, both with what the backward pass adds at its peak.
    """
    is_divided = strategy in ("fsdp2", "deepspeed_zero3")
    with torch.device("meta"):
        dtype = "bfloat16" if is_divided or strategy == "lora" else "float32"
        base = AutoModelForImageTextToText.from_config(config, dtype=dtype)
        model = lora(base, ModelArguments(model_name_or_path="")) if strategy == "lora" else base
    with FakeTensorMode(allow_non_fake_inputs=True):
        without_storage(model.train())
        kept = activations(base, batch_size, tiles, length)
        # The name since Transformers 5.23, and the one before.
        getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)()
        checkpointed = activations(base, batch_size, tiles, length)

    total, whole = count(model), 0
    if is_divided:
        weights, gradients, adam = (4, 4, 8) if strategy == "fsdp2" else (6, 2, 8)
        weights, gradients, adam = (total * size / gpus for size in (weights, gradients, adam))
        if strategy == "fsdp2":
            blocks = [*base.model.vision_tower.encoder.layers, *base.model.language_model.layers]
            units = sorted(count(unit) for unit in (*blocks, base.get_input_embeddings(), base.lm_head))
            whole = 2 * 2 * sum(units[-2:])
        else:
            whole = 2 * min(total, int(1e9))
    else:
        weights = sum(parameter.nbytes for parameter in model.parameters())
        gradients = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
        adam = 2 * gradients
        gradients *= 2 if strategy == "ddp" else 1

    # At its start the backward pass holds the gradient of the logits; later a block that is computed again. Before it,
    # autocast holds the weights that it has converted, which without checkpointing are kept for the backward pass.
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
        "whole": whole,
        "activations": sum(kept.values()) + logits,
        "checkpointed": sum(checkpointed.values()) + max(logits, block - checkpointed["loss"], converted),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Memory of fine-tuning on each GPU, estimated.")
    parser.add_argument("--model_name_or_path", help="checkpoint; the full-size model if not given")
    parser.add_argument("--strategy", choices=STRATEGIES, nargs="+", default=list(STRATEGIES))
    parser.add_argument("--gpus", type=int, default=8, help="among which fsdp2 and deepspeed_zero3 divide the model")
    parser.add_argument("--batch_size", type=int, default=1, help="rows on each GPU at once")
    parser.add_argument("--tiles", type=int, default=13, help="tiles of a row, thumbnails included")
    parser.add_argument("--length", type=int, default=2400, help="tokens of a row, those of its images included")
    args = parser.parse_args(argv)
    for name in ("gpus", "batch_size", "tiles", "length"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}, but must be at least 1.")
    config = AutoConfig.from_pretrained(args.model_name_or_path) if args.model_name_or_path else JinaVLMConfig()

    with torch.device("meta"):
        total = AutoModelForImageTextToText.from_config(config).num_parameters()
    print(
        f"P = {total:,} parameters; {args.gpus} GPUs; {args.batch_size} × {args.length} tokens and {args.tiles} tiles "
        "on each; GiB on each GPU; all* and activations* with gradient checkpointing\n"
    )
    columns = ("weights", "gradients", "Adam", "whole blocks", "activations", "activations*", "all", "all*")
    print(f"| strategy | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for strategy in args.strategy:
        *states, plain, checkpointed = estimate(
            config, strategy, args.gpus, args.batch_size, args.tiles, args.length
        ).values()
        numbers = [*states, plain, checkpointed, sum(states) + plain, sum(states) + checkpointed]
        print(f"| {strategy} | {' | '.join(f'{number / GIB:.1f}' for number in numbers)} |")
    print()
    for strategy in args.strategy:
        print(f"- {STRATEGIES[strategy]}")


if __name__ == "__main__":
    main(sys.argv[1:])
