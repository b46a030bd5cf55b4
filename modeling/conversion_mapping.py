# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The published checkpoint's weight names, in Transformers' own weight-conversion operations.

Registered for `model_type = "jvlm"`, the table lets `from_pretrained` read a folder in the published layout; reversed,
it writes one. None of its patterns matches a name of our own layout but the output head's, which is kept as it is.
"""

from collections.abc import Callable

import torch
from transformers.core_model_loading import Chunk, ConversionOps, WeightConverter, WeightRenaming

from ..configuration.published_checkpoint import NUM_ADDITIONAL_TOKENS


class Reversible(ConversionOps):
    """
    A conversion given as two functions, there and back.

    Each takes the source tensors, by their place among the source patterns, and a function from the place of a target
    to the shape of that parameter in the model; it returns the target tensors in order.
    """

    def __init__(self, there: Callable, back: Callable):
        self.there, self.back = there, back

    @torch.no_grad
    def convert(self, input_dict, source_patterns, target_patterns, full_layer_name=None, model=None, **kwargs):
        tensors = {}
        for index, pattern in enumerate(source_patterns):
            if pattern in input_dict:
                value = input_dict[pattern]
                tensors[index] = value[0] if isinstance(value, list) else value

        def shape_of(index: int) -> torch.Size:
            return model.get_parameter(full_layer_name.replace(target_patterns[0], target_patterns[index])).shape

        outputs = self.there(tensors, shape_of)
        return {target: tensor.contiguous() for target, tensor in zip(target_patterns, outputs, strict=False)}

    @property
    def reverse_op(self) -> ConversionOps:
        return Reversible(self.back, self.there)


def split_rows(tensors, shape_of):
    # Grouped-query attention: fewer rows for keys and values than for queries.
    heights = [shape_of(index)[0] for index in range(3)]
    if sum(heights) != len(tensors[0]):
        raise ValueError(f"{len(tensors[0])} fused rows of queries, keys and values, {sum(heights)} expected")
    return [part.clone() for part in tensors[0].split(heights)]


def fuse_rows(tensors, shape_of):
    return [torch.cat(list(tensors.values()))]


def drop_zero_biases(tensors, shape_of):
    # Qwen3 has no attention biases. A conversion may gather many tensors, so they ride along to be checked.
    if 0 not in tensors:
        raise ValueError("attn.out.weight of the language model is missing")
    for index, name in enumerate(("q_b", "k_b", "v_b"), start=1):
        if index in tensors and tensors[index].any():
            raise ValueError(f"attn.{name} of the language model is not zero, but Qwen3 has no such bias")
    return [tensors[0]]


def first(tensors, shape_of):
    return [tensors[0]]


def patches_to_convolution(tensors, shape_of):
    # A linear layer over patches flattened (row, column, channel), the channel fastest.
    _, channels, height, width = shape_of(0)
    return [tensors[0].unflatten(1, (height, width, channels)).permute(0, 3, 1, 2)]


def convolution_to_patches(tensors, shape_of):
    return [tensors[0].permute(0, 2, 3, 1).flatten(1)]


def last_row(tensors, shape_of):
    if len(tensors[0]) != 2:
        raise ValueError(f"pad_embed has {len(tensors[0])} rows, 2 expected")
    # Of the two padding embeddings the first is never used.
    return [tensors[0][-1].clone()]


def behind_zero_row(tensors, shape_of):
    return [torch.stack([torch.zeros_like(tensors[0]), tensors[0]])]


def split_additional_tokens(tensors, shape_of):
    return tensors[0].split([len(tensors[0]) - NUM_ADDITIONAL_TOKENS, NUM_ADDITIONAL_TOKENS])


def append_zero_rows(tensors, shape_of):
    # The published head cannot predict image tokens. A head in our layout has their rows already.
    (head,) = tensors.values()
    if shape_of(0)[0] - len(head) == NUM_ADDITIONAL_TOKENS:
        head = torch.cat([head, head.new_zeros(NUM_ADDITIONAL_TOKENS, head.shape[1])])
    return [head]


def drop_additional_rows(tensors, shape_of):
    return [tensors[0][:-NUM_ADDITIONAL_TOKENS]]


_VISION = r"(vision_tower\.encoder\.layers\.\d+)"
_TEXT = r"(language_model\.layers\.\d+)"

# Applied in this order, each to what the ones before it made of a name.
RENAMINGS = {
    r"vision_model\.layers\.": "vision_tower.encoder.layers.",
    r"vision_model\.patch_embed\.proj\.bias": "vision_tower.embeddings.patch_embedding.bias",
    r"vision_model\.pos_embed": "vision_tower.embeddings.position_embedding.weight",
    r"vision_model\.post_lnorm\.": "vision_tower.post_layernorm.",
    r"vision_model\.vl_connector\.": "connector.",
    r"connector\.pooling\.q_w\.": "connector.pooling.q_proj.",
    r"connector\.pooling\.q_b": "connector.pooling.q_proj.bias",
    r"connector\.pooling\.k_b": "connector.pooling.k_proj.bias",
    r"connector\.pooling\.v_b": "connector.pooling.v_proj.bias",
    r"connector\.pooling\.out\.": "connector.pooling.out_proj.",
    r"connector\.projector\.down\.": "connector.projector.down_proj.",
    rf"{_VISION}\.attn_lnorm\.": r"\1.layer_norm1.",
    rf"{_VISION}\.ffn_lnorm\.": r"\1.layer_norm2.",
    rf"{_VISION}\.attn\.q_b": r"\1.self_attn.q_proj.bias",
    rf"{_VISION}\.attn\.k_b": r"\1.self_attn.k_proj.bias",
    rf"{_VISION}\.attn\.v_b": r"\1.self_attn.v_proj.bias",
    rf"{_VISION}\.attn\.out\.": r"\1.self_attn.out_proj.",
    rf"{_VISION}\.ffn\.up\.": r"\1.mlp.fc1.",
    rf"{_VISION}\.ffn\.down\.": r"\1.mlp.fc2.",
    rf"{_TEXT}\.attn_lnorm\.": r"\1.input_layernorm.",
    rf"{_TEXT}\.ffn_lnorm\.": r"\1.post_attention_layernorm.",
    rf"{_TEXT}\.attn\.q_lnorm\.": r"\1.self_attn.q_norm.",
    rf"{_TEXT}\.attn\.k_lnorm\.": r"\1.self_attn.k_norm.",
    rf"{_TEXT}\.ffn\.down\.": r"\1.mlp.down_proj.",
    r"language_model\.ln_f\.": "language_model.norm.",
}


def published_weights() -> list[WeightRenaming | WeightConverter]:
    """The table from published weight names to ours: renamings first, then conversions of what is left."""
    attention = ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"]
    tables = ["language_model.embedding.embedding", "language_model.embedding.new_embedding"]
    conversions = [
        ("attn.qkv_w.weight", attention, Reversible(split_rows, fuse_rows)),
        (
            ["attn.out.weight", "attn.q_b", "attn.k_b", "attn.v_b"],
            "self_attn.o_proj.weight",
            Reversible(drop_zero_biases, first),
        ),
        # In both gated layers the value's rows come first, the gate's second.
        ("ffn.up.weight", ["mlp.up_proj.weight", "mlp.gate_proj.weight"], Chunk(dim=0)),
        ("projector.up.weight", ["projector.up_proj.weight", "projector.gate_proj.weight"], Chunk(dim=0)),
        ("pooling.kv_w.weight", ["pooling.k_proj.weight", "pooling.v_proj.weight"], Chunk(dim=0)),
        ("connector.pad_embed", "connector.last_tile_embedding", Reversible(last_row, behind_zero_row)),
        (
            "vision_model.patch_embed.proj.weight",
            "vision_tower.embeddings.patch_embedding.weight",
            Reversible(patches_to_convolution, convolution_to_patches),
        ),
        (tables, "language_model.embed_tokens.weight", Reversible(fuse_rows, split_additional_tokens)),
        ("lm_head.weight", "lm_head.weight", Reversible(append_zero_rows, drop_additional_rows)),
    ]
    return [
        *(WeightRenaming(source, target) for source, target in RENAMINGS.items()),
        *(WeightConverter(source, target, operations=[operation]) for source, target, operation in conversions),
    ]


__all__ = ["published_weights"]
