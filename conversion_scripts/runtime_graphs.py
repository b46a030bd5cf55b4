# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Writes the parts of a model as graphs of a runtime. A runtime's packages are imported when they are needed."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .runtime_components import Component


OPSET = 20
_BITS = {"int8": 8, "int4": 4}
_BLOCK_SIZE = 32  # weights with a common scale


def write_onnx(component: Component, path: Path, weights: str | None) -> None:
    """Writes a graph for ONNX Runtime, `path`, and its weights, `path` with `.data` at its end."""
    import onnx_ir

    with _quiet():
        program: Any = torch.onnx.export(
            component.export(),
            input_names=[*component.inputs],
            output_names=component.outputs,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    model = program.model
    _transpose_weights(model.graph)
    if weights is not None:
        _quantize(model.graph, _BITS[weights])
        model.graph.opset_imports["com.microsoft"] = 1
    onnx_ir.save(model, path, external_data=f"{path.name}.data")


def _transpose_weights(graph: Any) -> None:
    """Stores weights as `MatMul` takes them. Otherwise every start of the runtime would transpose them."""
    import onnx_ir

    for node in list(graph):
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        if weight is None or weight.const_value is None or not weight.is_initializer():
            continue
        order, stored = node.attributes["perm"].as_ints(), weight.const_value
        shape = [weight.shape[axis] for axis in order]
        value = node.outputs[0]
        transposed = onnx_ir.Value(name=f"{weight.name}.T", shape=onnx_ir.Shape(shape), type=weight.type)
        transposed.const_value = onnx_ir.LazyTensor(
            # One weight at a time is in memory, while the file is written.
            lambda stored=stored, order=order: onnx_ir.tensor(np.ascontiguousarray(stored.numpy().transpose(order))),
            dtype=stored.dtype,
            shape=onnx_ir.Shape(shape),
            name=transposed.name,
        )
        graph.register_initializer(transposed)
        value.replace_all_uses_with(transposed)
        graph.remove(node, safe=True)
        if not weight.uses():
            del graph.initializers[weight.name]


def write_openvino(component: Component, path: Path, weights: str | None) -> None:
    """Writes a graph for OpenVINO, `path`, and its weights, `path` with `.bin` in place of `.xml`."""
    import openvino

    with _quiet():
        model = openvino.convert_model(component.export())
    for names, ports in (([*component.inputs], model.inputs), (component.outputs, model.outputs)):
        for name, port in zip(names, ports, strict=True):
            port.set_names({name})
    openvino.save_model(model, path, compress_to_fp16=False)


def write_torch(component: Component, path: Path, weights: str | None) -> None:
    """Writes a program of `torch.export`."""
    with _quiet():
        torch.export.save(component.export(), path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes on themselves: on torchvision, which is not used, and deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            yield
    finally:
        logger.setLevel(level)


def write_executorch(component: Component, path: Path, weights: str | None) -> None:
    """Writes a program of ExecuTorch for CPUs, with its weights in it."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with _quiet():
        program = to_edge_transform_and_lower(component.export(is_bounded=True), partitioner=[XnnpackPartitioner()])
        path.write_bytes(program.to_executorch().buffer)
