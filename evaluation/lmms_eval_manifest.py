# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""What the entry point `lmms_eval.models` names: lmms-eval calls it at its start, and loads the class later."""

from typing import Any


def manifest() -> Any:
    """The `lmms_eval.models.registry_v2.ModelManifest` of the model `jvlm`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="jvlm", chat_class_path="jvlm.evaluation.lmms_eval_model.JinaVLM")
