# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The weight names of the published checkpoint `jinaai/jina-vlm`, in Transformers' own weight-conversion operations.

Registered for `model_type = "jvlm"`, the table lets `from_pretrained` read the published names.
`revert_weight_conversion` applies it in reverse, to save them. Our own names are not changed.
"""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import Chunk, ConversionOps, WeightConverter, WeightRenaming


class Convert(ConversionOps):
    """
    A conversion given as a function and its reverse.

    Each takes the list of source tensors, the model and the names of the targets, and returns the target tensors.
    """

    def __init__(self, function: Callable, reverse: Callable):
        self.function, self.reverse = function, reverse

    @torch.no_grad()
    def convert(self, input_dict, source_patterns, target_patterns, full_layer_name=None, model=None, **kwargs):
        found = [input_dict[pattern] for pattern in source_patterns if pattern in input_dict]
        tensors = [value[0] if isinstance(value, list) else value for value in found]
        names = [full_layer_name.replace(target_patterns[0], pattern) for pattern in target_patterns]
        try:
            outputs = self.function(tensors, model, names)
        except (RuntimeError, ValueError) as error:
            shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors)
            raise ValueError(f"cannot convert a tensor for {full_layer_name} from {shapes}: {error}") from error
        return {target: tensor.contiguous() for target, tensor in zip(target_patterns, outputs, strict=True)}

    @property
    def reverse_op(self) -> ConversionOps:
        return Convert(self.reverse, self.function)


def _join(tensors: list[torch.Tensor], *_) -> list[torch.Tensor]:
    return [torch.cat(tensors)]


def _split(tensors: list[torch.Tensor], model: PreTrainedModel, names: list[str]) -> list[torch.Tensor]:
    """Fused queries, keys and values. With grouped-query attention there are fewer rows of keys and values."""
    return [part.clone() for part in tensors[0].split([len(model.get_parameter(name)) for name in names])]


def _drop_zero_biases(tensors: list[torch.Tensor], *_) -> list[torch.Tensor]:
    """Qwen3 has no attention biases. They are converted with the output projection, so that they are checked."""
    weight, *biases = tensors
    if weight.ndim != 2:
        raise ValueError("attn.out.weight is missing")
    if any(bias.any() for bias in biases):
        raise ValueError("attn.q_b, attn.k_b or attn.v_b is not zero, but Qwen3 has no such biases")
    return [weight]


def _add_zero_biases(tensors: list[torch.Tensor], model: PreTrainedModel, names: list[str]) -> list[torch.Tensor]:
    text = model.config.text_config
    heads = (text.num_attention_heads, text.num_key_value_heads, text.num_key_value_heads)
    return [tensors[0], *(tensors[0].new_zeros(count * text.head_dim) for count in heads)]


def _to_convolution(tensors: list[torch.Tensor], model: PreTrainedModel, names: list[str]) -> list[torch.Tensor]:
    """From a linear layer over patches that are flattened in the order row, column, channel."""
    _, channels, height, width = model.get_parameter(names[0]).shape
    return [tensors[0].unflatten(1, (height, width, channels)).permute(0, 3, 1, 2)]


def _pad_head(tensors: list[torch.Tensor], model: PreTrainedModel, names: list[str]) -> list[torch.Tensor]:
    """The published head has no rows for the image tokens. A head under our name, which is the same, has them."""
    head, config = tensors[0], model.config
    num_missing = config.text_config.vocab_size - len(head) if len(head) == config.image_start_token_id else 0
    return [torch.cat([head, head.new_zeros(num_missing, head.shape[1])]) if num_missing else head]


_VISION = r"(vision_model\.layers\.\d+)"
_TEXT = r"(language_model\.layers\.\d+)"

# Transformers applies the renamings in this order, each to the result of the previous ones, and in reverse order when
# it saves. A pattern that is the start of another one's target is therefore listed first, and prefixes are last.
_RENAMINGS = {
    rf"{_VISION}\.attn_lnorm\.": r"\1.layer_norm1.",
    rf"{_VISION}\.ffn_lnorm\.": r"\1.layer_norm2.",
    **{rf"{_VISION}\.attn\.{name}_b": rf"\1.self_attn.{name}_proj.bias" for name in "qkv"},
    rf"{_VISION}\.attn\.out\.": r"\1.self_attn.out_proj.",
    rf"{_VISION}\.ffn\.up\.": r"\1.mlp.fc1.",
    rf"{_VISION}\.ffn\.down\.": r"\1.mlp.fc2.",
    rf"{_TEXT}\.attn_lnorm\.": r"\1.input_layernorm.",
    rf"{_TEXT}\.ffn_lnorm\.": r"\1.post_attention_layernorm.",
    **{rf"{_TEXT}\.attn\.{name}_lnorm\.": rf"\1.self_attn.{name}_norm." for name in "qk"},
    rf"{_TEXT}\.ffn\.down\.": r"\1.mlp.down_proj.",
    r"language_model\.ln_f\.": "language_model.norm.",
    r"pooling\.q_w\.": "pooling.q_proj.",
    **{rf"pooling\.{name}_b": f"pooling.{name}_proj.bias" for name in "qkv"},
    r"pooling\.out\.": "pooling.out_proj.",
    r"projector\.down\.": "projector.down_proj.",
    r"vision_model\.patch_embed\.proj\.bias": "vision_tower.embeddings.patch_embedding.bias",
    r"vision_model\.pos_embed": "vision_tower.embeddings.position_embedding.weight",
    r"vision_model\.layers\.": "vision_tower.encoder.layers.",
    r"vision_model\.vl_connector\.": "connector.",
}

# Source names, target names and operation.
_CONVERSIONS: list[tuple[list[str], list[str], ConversionOps]] = [
    (["attn.qkv_w.weight"], [f"self_attn.{name}_proj.weight" for name in "qkv"], Convert(_split, _join)),
    (
        ["attn.out.weight", "attn.q_b", "attn.k_b", "attn.v_b"],
        ["self_attn.o_proj.weight"],
        Convert(_drop_zero_biases, _add_zero_biases),
    ),
    # In both gated layers the rows of the value come first, those of the gate second.
    (["ffn.up.weight"], ["mlp.up_proj.weight", "mlp.gate_proj.weight"], Chunk(dim=0)),
    (["projector.up.weight"], ["projector.up_proj.weight", "projector.gate_proj.weight"], Chunk(dim=0)),
    (["pooling.kv_w.weight"], ["pooling.k_proj.weight", "pooling.v_proj.weight"], Chunk(dim=0)),
    (
        ["connector.pad_embed"],
        ["connector.last_tile_embedding"],
        # The published model has two padding embeddings and never uses the first one.
        Convert(
            lambda tensors, *_: [tensors[0].split([1, 1])[1][0].clone()],
            lambda tensors, *_: [torch.stack([torch.zeros_like(tensors[0]), tensors[0]])],
        ),
    ),
    (
        ["vision_model.patch_embed.proj.weight"],
        ["vision_tower.embeddings.patch_embedding.weight"],
        Convert(_to_convolution, lambda tensors, *_: [tensors[0].permute(0, 2, 3, 1).flatten(1)]),
    ),
    (
        ["language_model.embedding.embedding", "language_model.embedding.new_embedding"],
        ["language_model.embed_tokens.weight"],
        # The published format stores the embeddings of the image tokens in a table of their own.
        Convert(_join, lambda tensors, model, _: tensors[0].tensor_split([model.config.image_start_token_id])),
    ),
    (["lm_head.weight"], ["lm_head.weight"], Convert(_pad_head, lambda tensors, *_: tensors)),
]


def published_weights() -> list[WeightRenaming | WeightConverter]:
    """The table from published weight names to ours: renamings, then conversions of what they leave."""
    return [
        *(WeightRenaming(source, target) for source, target in _RENAMINGS.items()),
        *(WeightConverter(sources, targets, operations=[operation]) for sources, targets, operation in _CONVERSIONS),
    ]


__all__ = ["published_weights"]
