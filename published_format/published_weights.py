# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The weight names of the published checkpoint `jinaai/jina-vlm`, in Transformers' own weight-conversion operations.

Registered for `model_type = "jvlm"`, the table lets `from_pretrained` read the published names. Reversed by
`revert_weight_conversion`, it writes them. Names of our own layout are left as they are.
"""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import Chunk, ConversionOps, WeightConverter, WeightRenaming


class Convert(ConversionOps):
    """
    A conversion given as a function and its reverse.

    Each takes the list of source tensors, the model and the function from the index of a target pattern to the shape
    of that parameter, and returns the target tensors in the order of the target patterns.
    """

    def __init__(self, function: Callable, reverse: Callable):
        self.function, self.reverse = function, reverse

    @torch.no_grad
    def convert(self, input_dict, source_patterns, target_patterns, full_layer_name=None, model=None, **kwargs):
        found = [input_dict[pattern] for pattern in source_patterns if pattern in input_dict]
        tensors = [value[0] if isinstance(value, list) else value for value in found]

        def shape_of(index: int) -> torch.Size:
            name = full_layer_name.replace(target_patterns[0], target_patterns[index])
            return model.get_parameter(name).shape

        try:
            outputs = self.function(tensors, model, shape_of)
        except (RuntimeError, ValueError) as error:
            shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors)
            raise ValueError(f"cannot convert a tensor for {full_layer_name} from {shapes}: {error}") from error
        return {target: tensor.contiguous() for target, tensor in zip(target_patterns, outputs, strict=True)}

    @property
    def reverse_op(self) -> ConversionOps:
        return Convert(self.reverse, self.function)


def split_rows(tensors: list[torch.Tensor], model: PreTrainedModel, shape_of: Callable) -> list[torch.Tensor]:
    """Fused queries, keys and values; with grouped-query attention there are fewer rows of the latter."""
    return [part.clone() for part in tensors[0].split([shape_of(index)[0] for index in range(3)])]


def join_rows(tensors: list[torch.Tensor], model: PreTrainedModel, shape_of: Callable) -> list[torch.Tensor]:
    return [torch.cat(tensors)]


def drop_zero_biases(tensors: list[torch.Tensor], model: PreTrainedModel, shape_of: Callable) -> list[torch.Tensor]:
    """Qwen3 has no attention biases. They come with the output projection, so that they are checked."""
    weight, *biases = tensors
    if weight.ndim != 2:
        raise ValueError("attn.out.weight is missing")
    if any(bias.any() for bias in biases):
        raise ValueError("attn.q_b, attn.k_b or attn.v_b is not zero, but Qwen3 has no such biases")
    return [weight]


def add_zero_biases(tensors: list[torch.Tensor], model: PreTrainedModel, shape_of: Callable) -> list[torch.Tensor]:
    text = model.config.text_config
    heads = (text.num_attention_heads, text.num_key_value_heads, text.num_key_value_heads)
    return [tensors[0], *(tensors[0].new_zeros(count * text.head_dim) for count in heads)]


def patches_to_convolution(tensors: list, model: PreTrainedModel, shape_of: Callable) -> list[torch.Tensor]:
    """A linear layer over patches flattened (row, column, channel), the channel fastest."""
    _, channels, height, width = shape_of(0)
    return [tensors[0].unflatten(1, (height, width, channels)).permute(0, 3, 1, 2)]


def convolution_to_patches(tensors: list, model: PreTrainedModel, shape_of: Callable) -> list[torch.Tensor]:
    return [tensors[0].permute(0, 2, 3, 1).flatten(1)]


def take_last_row(tensors: list[torch.Tensor], model: PreTrainedModel, shape_of: Callable) -> list[torch.Tensor]:
    """Of the two padding embeddings the first is never used."""
    _, last = tensors[0].unbind()
    return [last.clone()]


def prepend_zero_row(tensors: list[torch.Tensor], model: PreTrainedModel, shape_of: Callable) -> list[torch.Tensor]:
    return [torch.stack([torch.zeros_like(tensors[0]), tensors[0]])]


def split_image_tokens(tensors: list[torch.Tensor], model: PreTrainedModel, shape_of: Callable) -> list[torch.Tensor]:
    """The published format keeps the embeddings from the first image token on in a table of their own."""
    first = model.config.image_start_token_id
    return [tensors[0][:first], tensors[0][first:]]


def pad_head(tensors: list[torch.Tensor], model: PreTrainedModel, shape_of: Callable) -> list[torch.Tensor]:
    """The published head has no rows for the image tokens; a head in our layout has them already."""
    head, first = tensors[0], model.config.image_start_token_id
    return [torch.cat([head, head.new_zeros(shape_of(0)[0] - first, head.shape[1])]) if len(head) == first else head]


def keep(tensors: list[torch.Tensor], model: PreTrainedModel, shape_of: Callable) -> list[torch.Tensor]:
    return tensors


_VISION = r"(vision_model\.layers\.\d+)"
_TEXT = r"(language_model\.layers\.\d+)"

# Applied in this order, each to the result of the ones before it; in reverse order when they are reversed. So a
# pattern that is the start of another one's target stands before it, and prefixes stand last.
_RENAMINGS = {
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
    r"pooling\.q_w\.": "pooling.q_proj.",
    r"pooling\.q_b": "pooling.q_proj.bias",
    r"pooling\.k_b": "pooling.k_proj.bias",
    r"pooling\.v_b": "pooling.v_proj.bias",
    r"pooling\.out\.": "pooling.out_proj.",
    r"projector\.down\.": "projector.down_proj.",
    r"vision_model\.patch_embed\.proj\.bias": "vision_tower.embeddings.patch_embedding.bias",
    r"vision_model\.pos_embed": "vision_tower.embeddings.position_embedding.weight",
    r"vision_model\.layers\.": "vision_tower.encoder.layers.",
    r"vision_model\.vl_connector\.": "connector.",
}


def published_weights() -> list[WeightRenaming | WeightConverter]:
    """The table from published weight names to ours: renamings, then conversions of what they leave."""
    attention = ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"]
    biases = ["attn.out.weight", "attn.q_b", "attn.k_b", "attn.v_b"]
    tables = ["language_model.embedding.embedding", "language_model.embedding.new_embedding"]
    convolution = "vision_tower.embeddings.patch_embedding.weight"
    conversions = [
        ("attn.qkv_w.weight", attention, Convert(split_rows, join_rows)),
        (biases, "self_attn.o_proj.weight", Convert(drop_zero_biases, add_zero_biases)),
        # In both gated layers the rows of the value come first, those of the gate second.
        ("ffn.up.weight", ["mlp.up_proj.weight", "mlp.gate_proj.weight"], Chunk(dim=0)),
        ("projector.up.weight", ["projector.up_proj.weight", "projector.gate_proj.weight"], Chunk(dim=0)),
        ("pooling.kv_w.weight", ["pooling.k_proj.weight", "pooling.v_proj.weight"], Chunk(dim=0)),
        ("connector.pad_embed", "connector.last_tile_embedding", Convert(take_last_row, prepend_zero_row)),
        (
            "vision_model.patch_embed.proj.weight",
            convolution,
            Convert(patches_to_convolution, convolution_to_patches),
        ),
        (tables, "language_model.embed_tokens.weight", Convert(join_rows, split_image_tokens)),
        ("lm_head.weight", "lm_head.weight", Convert(pad_head, keep)),
    ]
    return [
        *(WeightRenaming(source, target) for source, target in _RENAMINGS.items()),
        *(WeightConverter(source, target, operations=[operation]) for source, target, operation in conversions),
    ]


__all__ = ["published_weights"]
