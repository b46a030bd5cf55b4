# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Ways to run the model on a CPU, and the matrix products that the image path consists of."""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.mkldnn import to_mkldnn
from transformers import AutoModelForImageTextToText, PreTrainedModel


def _dynamic_int8(model: PreTrainedModel) -> PreTrainedModel:
    with warnings.catch_warnings():
        # PyTorch recommends torchao instead. On CPUs, that needs torch.compile and is slower for one token.
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)


def _onednn(model: PreTrainedModel) -> PreTrainedModel:
    base = model.model
    for part in (base.vision_tower.encoder, base.connector, base.language_model):
        to_mkldnn(part)  # replaces its linear layers
    return model


@dataclass
class Way:
    """
    A way to run a checkpoint.

    Args:
        dtype (`torch.dtype`): the dtype to load it in.
        prepare (`Callable`, *optional*): what to do with the loaded model.
        precision (`str`, *optional*, defaults to `"highest"`): for `torch.set_float32_matmul_precision`.
    """

    dtype: torch.dtype
    prepare: Callable[[PreTrainedModel], PreTrainedModel] = lambda model: model
    precision: str = "highest"

    def load(self, folder: Path | str) -> PreTrainedModel:
        return self.prepare(AutoModelForImageTextToText.from_pretrained(folder, dtype=self.dtype).eval())

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """Within it, matrix products have the precision of this way."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.precision)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


BASELINE = "float32"
WAYS = {
    "int8 weights, dynamic": Way(torch.float32, _dynamic_int8),
    "bfloat16": Way(torch.bfloat16),
    "float32, products of oneDNN": Way(torch.float32, _onednn),
    "float32, products in bfloat16": Way(torch.float32, precision="medium"),
    BASELINE: Way(torch.float32),
}


class Clock:
    """A streamer that records when `generate` passes it the prompt and every token."""

    def __init__(self):
        self.times = [time.perf_counter()]

    def put(self, value) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass

    @property
    def first(self) -> float:
        """Seconds from the creation of the clock to the first token."""
        return self.times[2] - self.times[0]

    @property
    def later(self) -> float:
        """Mean seconds of each later token."""
        return (self.times[-1] - self.times[2]) / (len(self.times) - 3)


def matrix_products(config, num_tiles: int, num_cells: int, dtype: torch.dtype) -> Callable[[], None]:
    """
    A function that computes the matrix products of vision tower and connector, and nothing else.

    Args:
        config ([`JinaVLMConfig`]): the model's configuration.
        num_tiles (`int`): number of tiles.
        num_cells (`int`): number of pooled cells.
        dtype (`torch.dtype`): dtype of the factors.
    """
    vision, side, window = config.vision_config, config.patches_per_side, config.pooling_size**2
    width, inner, heads = vision.hidden_size, vision.intermediate_size, vision.num_attention_heads
    patches, pooled = num_tiles * side**2, config.connector_num_attention_heads * config.connector_head_dim
    hidden, features = config.connector_intermediate_size, config.feature_size
    block = [(patches, width, width)] * 4 + [(patches, width, inner), (patches, inner, width)]
    linear = [
        (patches, 3 * vision.patch_size**2, width),
        *block * config.num_vision_blocks,
        *[(num_cells, features, pooled), (num_cells, pooled, pooled)],  # query and output
        *[(num_cells * window, features, pooled)] * 2,  # key and value
        *[(num_cells, pooled, hidden)] * 2,
        (num_cells, hidden, config.text_config.hidden_size),
    ]
    weights = {shape: torch.randn(shape[2], shape[1], dtype=dtype) for shape in set(linear)}
    inputs = {shape: torch.randn(shape[:2], dtype=dtype) for shape in set(linear)}
    query = torch.randn(num_tiles * heads, side**2, width // heads, dtype=dtype)
    scores = torch.randn(num_tiles, side**2, side**2, dtype=dtype)  # of one head, to save memory

    def run() -> None:
        for shape in linear:
            nn.functional.linear(inputs[shape], weights[shape])
        for _ in range(config.num_vision_blocks):
            for head in range(heads):
                part = query[head * num_tiles : (head + 1) * num_tiles]
                torch.bmm(part, part.transpose(1, 2))
                torch.bmm(scores, part)

    return run
