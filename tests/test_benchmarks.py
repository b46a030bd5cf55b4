# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The benchmark program at its smallest size: every stage measures what it says, results are kept and shown."""

import json

import PIL.Image
import pytest
import torch

from benchmarks import __main__ as program
from benchmarks import report, stages
from benchmarks.measure import measure
from benchmarks.models import OTHERS, Bench, build_config
from benchmarks.stages import STAGES, merge_images


CPU = torch.device("cpu")
# Without those that start processes or need packages of their own, and a model that the oldest Transformers lacks.
QUICK = [name for name in STAGES if name not in ("loading", "quantization", "end_to_end_molmo2")]


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench("tiny", torch.float32, CPU)


def test_measure_takes_turns():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    measured = measure(functions, CPU, max_rounds=4)
    assert calls == ["a", "b"] * 4
    assert [len(each.seconds) for each in measured.values()] == [3, 3]  # the first round warmed up
    assert [len(each.seconds) for each in measure(functions, CPU, max_seconds=0).values()] == [1, 1]


def test_peak_memory():
    measured = measure({"": lambda: torch.zeros(25_000_000)}, CPU, max_rounds=1)[""]
    if measured.peak_memory is not None:  # only some systems tell
        assert 100e6 <= measured.peak_memory < 130e6


@torch.no_grad
def test_baselines_have_our_weights(bench):
    tiles, input_ids = bench.tiles(3), bench.text(9)
    features = bench.model.get_image_features(**tiles).last_hidden_state
    hidden_states = bench.tower.encoder(bench.tower.embeddings(tiles["pixel_values"])).last_hidden_state
    assert len(bench.tower.encoder.layers) == max(bench.config.vision_feature_layer) + 1
    # Block 2, the deepest one in use, is the first of the features.
    assert torch.equal(features[..., : hidden_states.shape[-1]], hidden_states)
    assert torch.equal(bench.model(input_ids).logits, bench.decoder(input_ids).logits)


@torch.no_grad
def test_prompts(bench):
    prompt = bench.prompt(bench.tiles(13))
    embeddings = merge_images(bench.model.model, prompt)
    outputs = bench.model(**prompt, use_cache=False)
    assert torch.equal(embeddings[:, : len(outputs.image_hidden_states)][0], outputs.image_hidden_states)
    assert bench.prompt(bench.tiles(1))["input_ids"].shape[1] < bench.prompt(bench.tiles(2))["input_ids"].shape[1]


def test_full_size_is_the_default_configuration():
    config = build_config("full")
    assert (config.vision_config.hidden_size, config.text_config.hidden_size) == (1152, 2048)
    assert config.vision_feature_layer == [24, 18]


def test_stages(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "IMAGES", {(60, 80): "≤ 1/8"})
    monkeypatch.setattr(stages, "BATCHES", [(20, 30)])
    results = program.run("tiny", "float32", "cpu", QUICK, tmp_path, max_seconds=0)
    assert [result["stage"] for result in results] == QUICK
    assert json.loads((tmp_path / "results.json").read_text()) == results
    for result in results:
        for record in result["records"]:
            assert record["median"] > 0
    table = (tmp_path / "results.md").read_text()
    for stage, words in {
        "image_processing": ["80 × 60", "SmolVLM, Pillow", "JinaVLM, antialiased"],
        "vision": ["bare tower", "≤ 1.05"],
        "prefill": ["bare tower + bare Qwen3", "220 tokens in all"],
        "decode": ["batch 4 after 220 tokens", "tokens/s"],
        "end_to_end_smolvlm": ["first token", "a later token"],
        "growth_text": ["2048 tokens"],
    }.items():
        lines = [line for line in table.splitlines() if line.startswith(f"| {stage.replace('_', ' ')}, float32")]
        for word in words:
            assert any(word in line for line in lines), (stage, word)
    # A stage that is run again replaces its result, one of other settings joins the others.
    again = program.run("tiny", "bfloat16", "cpu", ["connector"], tmp_path, max_seconds=0)
    assert len(again) == len(QUICK) + 1
    again = program.run("tiny", "bfloat16", "cpu", ["connector"], tmp_path, max_seconds=0)
    assert len(again) == len(QUICK) + 1


def test_growth_curves(tmp_path):
    points = [{"axis": "tiles", "value": value, "name": "tower", "median": value / 2} for value in (1, 4, 13)]
    result = {"stage": "growth_tiles", "dtype": "float32", "records": points}
    assert report.plot([result], tmp_path / "growth.png")
    with PIL.Image.open(tmp_path / "growth.png") as image:
        assert min(image.size) > 300
    assert not report.plot([{**result, "records": []}], tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()


def test_molmo2(bench):
    pytest.importorskip("transformers.models.molmo2")
    model, inputs = bench.other(OTHERS[0])
    with torch.no_grad():
        assert model(**inputs).logits.shape[1] == inputs["input_ids"].shape[1]


def test_selection_of_stages(capsys):
    assert program.select([]) == list(STAGES)
    assert program.select(["growth", "vision"]) == ["vision", *(name for name in STAGES if name.startswith("growth"))]
    with pytest.raises(SystemExit):
        program.main(["--stages", "vision", "speed"])
    assert "no stage 'speed'" in capsys.readouterr().err


def test_numbers_in_the_table():
    record = {"case": "c", "name": "n", "wanted": "", "peak_memory": 1_500_000_000}
    rows = [record | {"median": 0.0123, "ratio": 0.1}, record | {"median": 2.5, "ratio": 1.034, "agreement": 0.75}]
    lines = report.table([{"stage": "decode", "dtype": "bfloat16", "records": rows}]).splitlines()
    assert lines[2] == "| decode, bfloat16 | c | n | 12.3 ms | 1/10.0 |  | 1.50 GB |  |"
    assert lines[3] == "| decode, bfloat16 | c | n | 2.50 s | 1.03 |  | 1.50 GB | 75% of the answers as in bfloat16 |"
