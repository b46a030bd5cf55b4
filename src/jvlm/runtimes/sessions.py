# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Graphs of the runtimes as functions from tensors to tensors. A runtime's package is imported when it is needed."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import torch


# Takes the inputs of a graph in their order, and returns its outputs.
Session: TypeAlias = Callable[..., list[torch.Tensor]]
# The package of a runtime, and the extra that installs it.
PACKAGES = {
    "onnx": ("onnxruntime", "onnx"),
    "openvino": ("openvino", "openvino"),
    "torch": ("torch", ""),
    "executorch": ("executorch.runtime", "executorch"),
}


def import_runtime(runtime: str) -> Any:
    """
    The package of a runtime.

    Raises:
        ImportError: if it is not installed, with the command that installs it.
    """
    package, extra = PACKAGES[runtime]
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        name = package.partition(".")[0]
        raise ImportError(
            f"A folder for {runtime} needs the package {name}; install it with `pip install 'jvlm[{extra}]'`.",
            name=name,
        ) from error


def open_session(runtime: str, graph: Path, num_threads: int | None = None) -> Session:
    """
    Loads a graph onto the CPU.

    Args:
        runtime (`str`): the runtime of the graph.
        graph (`Path`): its file.
        num_threads (`int`, *optional*): number of threads, by default the runtime's choice.

    Raises:
        ImportError: if the package of the runtime is not installed.
        ValueError: if the runtime cannot load the graph, or `num_threads` is below 1.
    """
    if num_threads is not None and num_threads < 1:
        raise ValueError(f"`num_threads` must be at least 1, got {num_threads}.")
    package = import_runtime(runtime)
    try:
        return _OPEN[runtime](package, graph, num_threads)
    except Exception as error:  # of many classes, in the runtimes
        version = getattr(package, "__version__", "")
        raise ValueError(
            f"{graph} cannot be loaded by {package.__name__} {version}: {str(error).splitlines()[0]} Use a version "
            "that is at least the one in runtime.json, or export the checkpoint again."
        ) from error


def _open_onnx(onnxruntime: Any, graph: Path, num_threads: int | None) -> Session:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or 0
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(*inputs: torch.Tensor) -> list[torch.Tensor]:
        arrays = {name: tensor.detach().numpy() for name, tensor in zip(names, inputs, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, arrays)]

    return run


def _open_openvino(openvino: Any, graph: Path, num_threads: int | None) -> Session:
    # Its default is bfloat16 where the processor has instructions for it.
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if num_threads is not None:
        settings["INFERENCE_NUM_THREADS"] = num_threads
    request = openvino.Core().compile_model(graph, "CPU", settings).create_infer_request()

    def run(*inputs: torch.Tensor) -> list[torch.Tensor]:
        outputs = request.infer([tensor.detach().numpy() for tensor in inputs], share_inputs=True)
        return [torch.from_numpy(array) for array in outputs.to_tuple()]

    return run


def _open_torch(_: Any, graph: Path, num_threads: int | None) -> Session:
    program = torch.export.load(graph).module()

    def run(*inputs: torch.Tensor) -> list[torch.Tensor]:
        outputs = program(*inputs)
        return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)

    return run


def _open_executorch(runtime: Any, graph: Path, num_threads: int | None) -> Session:
    method = runtime.Runtime.get().load_program(graph).load_method("forward")

    def run(*inputs: torch.Tensor) -> list[torch.Tensor]:
        return list(method.execute([tensor.detach().contiguous() for tensor in inputs]))

    return run


_OPEN = {"onnx": _open_onnx, "openvino": _open_openvino, "torch": _open_torch, "executorch": _open_executorch}


__all__ = ["PACKAGES", "Session", "import_runtime", "open_session"]
