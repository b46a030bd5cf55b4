# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Writes the parts of a model as graphs of a runtime. A runtime's packages are imported when they are needed."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from .runtime_components import Component


OPSET = 20
_BITS = {"int8": 8, "int4": 4}
_BLOCK_SIZE = 32  # weights with a common scale
_INT8_PRODUCTS = 4  # accuracy level of `MatMulNBits`: the inputs are quantized too


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
    with TemporaryDirectory(dir=path.parent) as folder:
        if weights is not None:
            _quantize(program.model, _BITS[weights], Path(folder))
        onnx_ir.save(program.model, path, external_data=f"{path.name}.data")


def _quantize(model: Any, num_bits: int, folder: Path) -> None:
    """
    Replaces the weights of linear layers by quantized ones: blocks of a column have a scale and a zero point. They lie
    in `folder` until the graph is saved, as there may be no memory for them beside the weights.
    """
    import onnx_ir
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    settings = {"bits": num_bits, "block_size": _BLOCK_SIZE}
    quantizer = nbits.DefaultWeightOnlyQuantizer(nbits.DefaultWeightOnlyQuantConfig(**settings))
    graph = model.graph
    model.opset_imports["com.microsoft"] = 1
    for node in list(graph):
        weight = graph.initializers.get(node.inputs[1].name) if node.op_type == "MatMul" else None
        if weight is None:
            continue
        arrays = quantizer.qbits_block_quant(np.ascontiguousarray(weight.const_value.numpy()))
        quantized = [onnx_ir.Value(name=f"{weight.name}.{kind}") for kind in ("weight", "scales", "zero_points")]
        for value, array in zip(quantized, arrays, strict=True):
            path = folder / f"{value.name}.npy"
            np.save(path, array)
            value.const_value = onnx_ir.LazyTensor(
                partial(_mapped, path),
                dtype=onnx_ir.DataType.from_numpy(array.dtype),
                shape=onnx_ir.Shape(array.shape),
                name=value.name,
            )
            graph.register_initializer(value)
        rows, columns = weight.shape
        layer = onnx_ir.node(
            "MatMulNBits",
            [node.inputs[0], *quantized],
            {**settings, "K": rows, "N": columns, "accuracy_level": _INT8_PRODUCTS},
            domain="com.microsoft",
            name=node.name,
        )
        onnx_ir.convenience.replace_nodes_and_values(graph, node, [node], [layer], node.outputs, layer.outputs)
        del graph.initializers[weight.name]


def _mapped(path: Path) -> Any:
    """The tensor of a file, mapped into memory."""
    import onnx_ir

    return onnx_ir.tensor(np.load(path, mmap_mode="r"))


def write_openvino(component: Component, path: Path, weights: str | None) -> None:
    """Writes a graph for OpenVINO, `path`, and its weights, `path` with `.bin` in place of `.xml`."""
    import openvino

    if weights is not None:  # OpenVINO's own quantization is a package with a dozen dependencies
        with TemporaryDirectory(dir=path.parent) as folder:
            graph = Path(folder) / f"{path.stem}.onnx"
            write_onnx(component, graph, weights)
            openvino.save_model(openvino.convert_model(graph), path, compress_to_fp16=False)
        return
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
    logging.disable(logging.INFO)  # ONNX Runtime's quantizer sets up the root logger and has a line for every node
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            yield
    finally:
        logging.disable(logging.NOTSET)
        logger.setLevel(level)


def write_executorch(component: Component, path: Path, weights: str | None) -> None:
    """Writes a program of ExecuTorch for CPUs, with its weights in it."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with _quiet():
        program = to_edge_transform_and_lower(component.export(is_bounded=True), partitioner=[XnnpackPartitioner()])
        path.write_bytes(program.to_executorch().buffer)
