# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Models that were exported to ONNX Runtime, OpenVINO, `torch.export` or ExecuTorch, with the interface of the original:

    model = JinaVLMRuntimeModel.from_pretrained("my-jina-vlm-onnx")
    processor = AutoProcessor.from_pretrained("my-jina-vlm-onnx")
"""

from .manifest import RUNTIMES, Manifest, is_runtime_folder, read_manifest
from .runtime_model import JinaVLMRuntimeModel


__all__ = ["RUNTIMES", "JinaVLMRuntimeModel", "Manifest", "is_runtime_folder", "read_manifest"]
