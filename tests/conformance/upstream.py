# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Transformers' common tests, as `make conformance` unpacks them, made importable as `tests.…`."""

import importlib
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import PIL.Image
import transformers


ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "conformance" / f"transformers-{transformers.__version__}"

# Mixins that the source distribution lacks.
NOT_RUN = []


def overrides(reason: str):
    """Marks a test that replaces one of Transformers', with the reason in one line."""

    def mark(test):
        test.override_reason = reason
        return test

    return mark


def stand_in(module: str, lost: str | None = None, **attributes):
    """Imports a module, or puts one with these attributes in its place and notes the tests that are lost."""
    try:
        importlib.import_module(module)
    except ImportError:
        name = ""
        for part in module.split("."):
            name = f"{name}.{part}" if name else part
            if name not in sys.modules:
                sys.modules[name] = ModuleType(name)
                sys.modules[name].__path__ = []  # a package, should more follow
        vars(sys.modules[module]).update(attributes)
        if lost:
            NOT_RUN.append(f"{lost}: the source distribution lacks {module}")


def _local_image(url: str) -> str:
    """In place of an image on the Hub a random one on disk, of the same name; other files stay where they are."""
    path = FOLDER / "images" / Path(url).name
    if path.suffix not in (".jpg", ".png"):
        return url
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(path)
    return str(path)


def _tiny_models():
    """The small model where, and with the summary by which, the pipeline mixin looks for tiny models."""
    folder = FOLDER / "models"
    (folder / "reports").mkdir(parents=True, exist_ok=True)
    (folder / "jvlm").mkdir(exist_ok=True)
    model = folder / "jvlm" / "JinaVLMForConditionalGeneration"
    if not model.exists():
        model.symlink_to(ROOT / "examples" / "digits" / "model")
    summary = {"tokenizer_classes": ["AutoTokenizer"], "processor_classes": ["AutoImageProcessor"]}
    (folder / "reports" / "tiny_model_summary.json").write_text(json.dumps({model.name: summary}))
    # The mixin takes Transformers' classes from the package beside the tests; an empty one leaves it the installed.
    (FOLDER / "src" / "transformers").mkdir(parents=True, exist_ok=True)
    (FOLDER / "src" / "transformers" / "__init__.py").touch()
    os.environ["TRANSFORMERS_TINY_MODEL_PATH"] = str(folder)


def install():
    """Makes the unpacked tests importable."""
    sys.path.insert(0, str(FOLDER))
    (FOLDER / "tests" / "__init__.py").touch()  # or our own folder of tests would be a part of the same package
    _tiny_models()
    stand_in(
        "tests.generation.test_utils",
        "the generation mixin",
        GenerationTesterMixin=type("GenerationTesterMixin", (), {}),
    )
    stand_in("tests.exporters.test_export", "the export mixin", ExportTesterMixin=type("ExportTesterMixin", (), {}))
    stand_in("tests.vlm_tester", "the tester of vision-language models, which adds a few to the model mixin")
    stand_in("tests.distributed_testing_utils", "the mixins of tensor and expert parallelism and FSDP")
    stand_in("tests.utils.test_configuration_utils", config_common_kwargs={})  # of no use to composite configurations
    stand_in("fetch_hub_objects_for_ci", url_to_local_path=_local_image)
