# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The benchmark program at its smallest size: measurements, stages, tables and plots."""

import json

import PIL.Image
import pytest
import torch

from benchmarks import __main__ as program
from benchmarks import dropped_tokens, efficiency, many_images, report, runtimes, stages
from benchmarks.measure import measure
from benchmarks.models import OTHERS, Bench, build_config
from benchmarks.stages import STAGES, merge_images


CPU = torch.device("cpu")
# All except those that start processes, need extra packages, or a model that the oldest Transformers lacks.
QUICK = [name for name in STAGES if name not in ("loading", "quantization", "end_to_end_molmo2")]


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench("tiny", torch.float32, CPU)


def test_measure_alternates_between_functions():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    measured = measure(functions, CPU, max_rounds=4)
    assert calls == ["a", "b"] * 4
    assert [len(each.seconds) for each in measured.values()] == [3, 3]  # without the warm-up round
    assert [len(each.seconds) for each in measure(functions, CPU, max_seconds=0).values()] == [1, 1]


def test_peak_memory():
    measured = measure({"": lambda: torch.zeros(25_000_000)}, CPU, max_rounds=1)[""]
    if measured.peak_memory is not None:  # not available on every system
        assert 100e6 <= measured.peak_memory < 130e6


@torch.no_grad
def test_baselines_share_the_weights_of_the_model(bench):
    tiles, input_ids = bench.tiles(3), bench.text(9)
    features = bench.model.get_image_features(**tiles).last_hidden_state
    hidden_states = bench.tower.encoder(bench.tower.embeddings(tiles["pixel_values"])).last_hidden_state
    assert len(bench.tower.encoder.layers) == max(bench.config.vision_feature_layer) + 1
    # The output of block 2, the last block in use, comes first in the features.
    assert torch.equal(features[..., : hidden_states.shape[-1]], hidden_states)
    assert torch.equal(bench.model(input_ids).logits, bench.decoder(input_ids).logits)


@torch.no_grad
def test_prompts_contain_the_image_tokens(bench):
    prompt = bench.prompt(bench.tiles(13))
    embeddings = merge_images(bench.model.model, prompt)
    outputs = bench.model(**prompt, use_cache=False)
    features = outputs.image_hidden_states
    image_token = bench.model.get_input_embeddings().weight[bench.model.config.image_token_id]
    assert torch.equal(embeddings[0, : len(features)], features + image_token)
    assert bench.prompt(bench.tiles(1))["input_ids"].shape[1] < bench.prompt(bench.tiles(2))["input_ids"].shape[1]


def test_full_size_is_the_default_configuration():
    config = build_config("full")
    assert (config.vision_config.hidden_size, config.text_config.hidden_size) == (1152, 2048)
    assert config.vision_feature_layer == [24, 18]


def test_stages_write_results_and_table(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "IMAGES", {(60, 80): "≤ 1/8"})
    monkeypatch.setattr(stages, "BATCHES", [(20, 30)])
    monkeypatch.setattr(stages, "NUM_PAGES", 1)
    results = program.run("tiny", "float32", "cpu", QUICK, tmp_path, max_seconds=0)
    assert [result["stage"] for result in results] == QUICK
    assert json.loads((tmp_path / "results.json").read_text()) == results
    for result in results:
        for record in result["records"]:
            assert record["median"] > 0
    table = (tmp_path / "results.md").read_text()
    for stage, expected in {
        "image_processing": ["80 × 60", "SmolVLM, Pillow", "JinaVLM, antialiased"],
        "vision": ["bare tower", "≤ 1.05"],
        "prefill": ["bare tower + bare Qwen3", "220 tokens in all"],
        "decode": ["batch 4 after 220 tokens", "tokens/s"],
        "end_to_end_smolvlm": ["first token", "a later token"],
        "growth_text": ["2048 tokens"],
        "training_packing": ["8 rows of 1328 tokens"],
        "training_frozen_tower": ["4 tiles, gradient checkpointing"],
    }.items():
        lines = [line for line in table.splitlines() if line.startswith(f"| {stage.replace('_', ' ')}, float32")]
        for text in expected:
            assert any(text in line for line in lines), (stage, text)
    # A repeated stage replaces its result. A stage with other settings is added.
    again = program.run("tiny", "bfloat16", "cpu", ["connector"], tmp_path, max_seconds=0)
    assert len(again) == len(QUICK) + 1
    again = program.run("tiny", "bfloat16", "cpu", ["connector"], tmp_path, max_seconds=0)
    assert len(again) == len(QUICK) + 1


def test_answers_by_dropped_tokens(tmp_path):
    settings = {"drop_uniform_cells": True, "uniform_tolerance": 0.0}
    point = dropped_tokens.measure(dropped_tokens.MODEL, settings, 2, tmp_path)
    assert point["all"] == 10
    assert 0.3 < point["dropped"] < 0.8
    nothing = {"settings": {}, "dropped": 0.0, "right": 9, "all": 10}
    results = {name: {"one": [nothing, point], "other": [nothing, point]} for name in ("before", "after")}
    table = dropped_tokens.table(results).splitlines()
    assert table[2] == "| default | 0% | 90.0% | 90.0% |"
    assert len(table) == 5  # both curves begin at the same point
    clean, _, photograph, _ = (
        dropped_tokens._dropped_share("sign", *each, num_pages=1) for each in dropped_tokens.PHOTOGRAPHS
    )
    assert clean > 0.5 > photograph
    dropped_tokens.plot(results, tmp_path / "curve.png")
    with PIL.Image.open(tmp_path / "curve.png") as image:
        assert min(image.size) > 300


def test_flops_are_those_counted_by_hand():
    config = build_config("tiny")
    config.pooled_grid = [4, 4]
    costs = efficiency.efficiency(config)
    text, vision, patches, tiles = config.text_config, config.vision_config, 64, 13
    for cost, cells in zip(costs.values(), (tiles * patches, tiles * 16), strict=True):
        assert cost.tokens == cells
        width, kv_width = (heads * text.head_dim for heads in (text.num_attention_heads, text.num_key_value_heads))
        weights = text.hidden_size * (2 * width + 2 * kv_width + 3 * text.intermediate_size)
        attention = 4 * cells**2 * width * text.num_hidden_layers
        assert cost.attention == attention
        assert cost.prefill - attention == 2 * (
            weights * text.num_hidden_layers * cells + text.hidden_size * text.vocab_size
        )
        assert cost.cache == 2 * cells * kv_width * text.num_hidden_layers * 2
        blocks = 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size
        tower = 3 * (2 * blocks * patches + 4 * patches**2 * vision.hidden_size)  # blocks 0, 1 and 2
        tower += 2 * 3 * vision.patch_size**2 * vision.hidden_size * patches
        inner = config.connector_num_attention_heads * config.connector_head_dim
        window = patches * tiles // cells * 2 if cells < tiles * patches else 2  # keys and values of each patch
        pooling = 2 * inner * (config.feature_size * (1 + window) + inner) + 2 * window * inner
        projector = 2 * config.connector_intermediate_size * (2 * inner + text.hidden_size)
        assert cost.vision == tiles * tower + cells * (pooling + projector)


def test_the_memory_of_many_images(bench, capsys):
    group, num_bytes = many_images.vision_side(bench, 3, 13)
    assert group.median > 0
    assert num_bytes == 3 * 13 * bench.geometry.cells_per_tile * 64 * 4
    many_images.main(["--images", "1", "2", "--groups", "4", "--device", "cpu"])
    rows = [line.split(" | ")[:2] for line in capsys.readouterr().out.splitlines()[2:]]
    expected = [["| groups of 4", "1"], ["| groups of 4", "2"], ["| all tiles at once", "1"]]
    assert rows == [*expected, ["| all tiles at once", "2"]]


def test_plot_of_growth_curves(tmp_path):
    points = [{"axis": "tiles", "value": value, "name": "tower", "median": value / 2} for value in (1, 4, 13)]
    result = {"stage": "growth_tiles", "dtype": "float32", "records": points}
    assert report.plot([result], tmp_path / "growth.png")
    with PIL.Image.open(tmp_path / "growth.png") as image:
        assert min(image.size) > 300
    assert not report.plot([{**result, "records": []}], tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()


def test_molmo2_accepts_its_inputs(bench):
    pytest.importorskip("transformers.models.molmo2")
    model, inputs = bench.other(OTHERS[0])
    with torch.no_grad():
        assert model(**inputs).logits.shape[1] == inputs["input_ids"].shape[1]


def test_stages_are_selected_by_prefix(capsys):
    assert program.select([]) == list(STAGES)
    assert program.select(["growth", "vision"]) == ["vision", *(name for name in STAGES if name.startswith("growth"))]
    with pytest.raises(SystemExit):
        program.main(["--stages", "vision", "speed"])
    assert "no stage 'speed'" in capsys.readouterr().err


def test_format_of_the_table():
    record = {"case": "c", "name": "n", "wanted": "", "peak_memory": 1_500_000_000}
    rows = [
        record | {"median": 0.0123, "ratios": [0.09, 0.11, 0.1]},
        record | {"median": 2.5, "ratios": [], "agreement": 0.75},
    ]
    lines = report.table([{"stage": "decode", "dtype": "bfloat16", "records": rows}]).splitlines()
    assert lines[2] == "| decode, bfloat16 | c | n | 12.3 ms | 0.10 (0.09–0.11) |  | 1.50 GB |  |"
    assert lines[3] == "| decode, bfloat16 | c | n | 2.50 s |  |  | 1.50 GB | 75% of the answers as in bfloat16 |"


def test_table_of_runtimes():
    export = {"export_s": 10.0, "export_gb": 2.5, "files_gb": 2.0}
    runs = [{"load_s": 1.0, "first_s": seconds, "next_s": seconds / 10, "run_gb": 3.0} for seconds in (1, 2, 4)]
    slow = [{**run, "first_s": 2 * run["first_s"]} for run in runs]
    text = runtimes.table(
        {"eager": {}, "onnx": export, "torch": export}, {"eager": slow, "onnx": runs, "torch": [{}] * 3}
    )
    *_, eager, onnx, torch_row = text.splitlines()
    assert eager == "| eager | – | – | – | 1 | 4 |  | 0.2 |  | 3 |"
    assert onnx == "| onnx | 10 | 2.5 | 2 | 1 | 2 | 0.50 (0.50–0.50) | 0.2 | 1.00 (1.00–1.00) | 3 |"
    assert torch_row == "| torch | 10 | 2.5 | 2 |"  # it was exported and did not run
