# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""What the vLLM plugin needs of this package, without vLLM. `make vllm` checks the plugin with vLLM itself."""

import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig

import jvlm_vllm
from jvlm import JinaVLMForConditionalGeneration, JinaVLMImageProcessor


ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "tests" / "fixtures" / "release_tiny" / "checkpoint"


def test_entry_point_names_the_function():
    entry_points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert entry_points["vllm.general_plugins"] == {"jvlm": f"{jvlm_vllm.__name__}:{jvlm_vllm.register.__name__}"}


def test_import_loads_no_library():
    """vLLM imports the plugins of all packages, whatever it serves."""
    code = "import sys, jvlm_vllm; print({'jvlm', 'torch', 'transformers', 'vllm'} & sys.modules.keys())"
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT / "src")}
    )
    assert finished.stdout.strip() == "set()"


def test_other_vllm_is_a_warning(monkeypatch):
    """An error would keep vLLM from serving any model."""
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.warns(UserWarning, match="vLLM cannot serve JinaVLM: .*vllm"):
        jvlm_vllm.register()


@pytest.mark.parametrize("max_crops", [1, 2, 3, 4, 6, 7, 12, 25])
@pytest.mark.parametrize(
    "settings",
    [{"layout": "independent"}, {"layout": "stitched"}, {"layout": "stitched", "do_resize": True}],
    ids=["independent", "stitched", "published"],
)
def test_no_image_has_more_tokens_than_the_maximum(settings, max_crops):
    """vLLM sets memory aside for the largest image, and refuses larger ones."""
    image_processor = JinaVLMImageProcessor(**settings)
    maximum = image_processor.max_num_tokens({"max_crops": max_crops})

    def most_tokens(sizes) -> int:
        grids = image_processor.get_image_grids(sizes, {"max_crops": max_crops})
        return max(image_processor.geometry().num_tokens(grid)[0] for grid in grids)

    rng = np.random.default_rng(0)
    assert most_tokens(np.exp(rng.uniform(np.log(60), np.log(6000), (200, 2))).astype(int).tolist()) <= maximum
    canvases = most_tokens(image_processor.canvas_sizes({"max_crops": max_crops}))
    if "do_resize" in settings:
        assert 0.6 * maximum < canvases <= maximum
    else:
        assert canvases == maximum
    if max_crops == 12:  # no square has as many tiles
        assert most_tokens([(side, side) for side in range(60, 6000, 50)]) < canvases


@pytest.mark.parametrize(
    ("kwargs", "is_equal"),
    [
        ({"max_crops": 3}, True),
        ({"min_pixels": 10_000, "do_resize": True}, True),
        ({"layout": "stitched"}, False),
        ({"size": {"height": 112, "width": 112}}, False),
        ({"overlap_margins": [0, 0]}, False),
    ],
)
def test_geometry_tells_which_arguments_change_the_tiles(build_processor, kwargs, is_equal):
    image_processor = build_processor("independent").image_processor
    assert (image_processor.geometry(kwargs) == image_processor.geometry()) is is_equal


@pytest.mark.parametrize(
    "kwargs", [{"size": {"height": 112, "width": 112}}, {"size": {"height": 3, "width": 4}}, {"pooled_grid": [99, 9]}]
)
def test_a_request_for_other_tiles_is_refused(build_processor, kwargs):
    """The error suggests no other tiles, which would be refused, too. Without a request for them, vLLM goes on."""
    pytest.importorskip("vllm")
    from jvlm_vllm.model import JinaVLMMultiModalProcessor

    info = SimpleNamespace(get_hf_processor=build_processor, images_kwargs=lambda kwargs: kwargs)
    with pytest.raises(ValueError, match=r"made for one size, overlap and layout of tiles\. Leave out the") as error:
        JinaVLMMultiModalProcessor._apply_hf_processor_main(SimpleNamespace(info=info), None, kwargs)
    assert str(kwargs) in str(error.value)
    assert "multiple" not in str(error.value)


def test_published_weights_of_a_stream():
    """vLLM reads the weights itself and hands them on one by one."""
    from safetensors.torch import load_file

    weights = load_file(PUBLISHED / "model.safetensors")
    model, info = JinaVLMForConditionalGeneration.from_pretrained(
        None,
        config=AutoConfig.from_pretrained(PUBLISHED),
        state_dict=weights,
        dtype=torch.float32,
        output_loading_info=True,
    )
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = JinaVLMForConditionalGeneration.from_pretrained(PUBLISHED, dtype="float32").state_dict()
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_missing_published_weights_are_reported():
    from safetensors.torch import load_file

    weights = load_file(PUBLISHED / "model.safetensors")
    del weights["model.language_model.layers.1.attn.qkv_w.weight"]
    _, info = JinaVLMForConditionalGeneration.from_pretrained(
        None, config=AutoConfig.from_pretrained(PUBLISHED), state_dict=weights, output_loading_info=True
    )
    names = {f"model.language_model.layers.1.self_attn.{name}_proj.weight" for name in "qkv"}
    assert set(info["missing_keys"]) == names
