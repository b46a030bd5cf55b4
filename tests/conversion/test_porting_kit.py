# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The porting kit: our own port passes, and faults that ports had are found in the stage where they are."""

import json
import re
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import save_file

from jvlm.conversion_scripts.check_port import (
    STAGES,
    PortError,
    PortProcess,
    check_port,
    decode_array,
    encode_array,
    format_results,
    main,
)
from jvlm.conversion_scripts.porting_kit import porting_kit
from jvlm.conversion_scripts.reference_port import ReferencePort, answer


CASES = ["one_tile", "no_image", "photo", "black_tile", "exif"]
TEXT_STAGES = ["prompt", "input_ids", "embeddings", "logits", "tokens"]
# A port in a few lines that only renders the prompt of text.
PROMPT_PORT = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    answer = {"id": request["id"], "protocol": 1, "stages": ["prompt"], "checkpoints": ["published"]}
    if request["type"] == "case":
        text = request["messages"][-1]["content"][-1]["text"]
        answer["stages"] = {"prompt": f"SPACEUser: {text} Assistant:"}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    return porting_kit(tmp_path_factory.mktemp("porting") / "kit", case=CASES)


@pytest.fixture(scope="module")
def index(kit) -> dict:
    return json.loads((kit / "index.json").read_text())


@pytest.fixture(scope="module")
def port(kit) -> ReferencePort:
    return ReferencePort(kit / "checkpoints" / "published")


@pytest.fixture
def ask(port):
    """A function (request) to the answer of the port, both as JSON."""
    return lambda request: json.loads(json.dumps(answer(json.loads(json.dumps(request)), lambda checkpoint: port)))


@pytest.fixture
def first_difference(kit, ask):
    """A function (case, stages that are not offered) to the first result that is not equal."""

    def check(case: str, without=()):
        def ask_for_fewer(request):
            found = ask(request)
            if request["type"] == "hello":
                found["stages"] = [stage for stage in STAGES if stage not in without]
            return found

        results = check_port(kit, ask_for_fewer, ["published"], [case])
        assert {result.stage for result in results if result.verdict == "skipped"} == set(without)
        return next((result for result in results if result.verdict not in ("equal", "skipped")), None)

    return check


def test_the_kit_is_small_and_complete(kit, index):
    assert sum(file.stat().st_size for file in kit.rglob("*")) < 8e6
    assert [case["name"] for case in index["cases"]] == CASES
    for case in index["cases"]:
        assert f"| {case['name']} |" in (kit / "README.md").read_text()
        assert all((kit / image).is_file() for image in case["images"])
        assert set(case["golden"]) == {"stitched", "independent"}
        for golden in case["golden"].values():
            assert list(golden["stages"]) == [s for s in STAGES[1:] if case["images"] or s in TEXT_STAGES]
    assert set(index["checkpoints"]) == {"published", "stitched", "independent"}
    assert index["checkpoints"]["independent"]["bos_token"] is None


def test_no_weight_is_degenerate(port):
    head = port.model.lm_head.weight
    assert not head[512:].any()
    for name, weight in port.model.named_parameters():
        values = head[:512] if weight is head else weight
        assert values.std() > 0.02, name
        assert (values == 0).float().mean() < 0.01, name


@pytest.mark.parametrize("name", ["published", "stitched", "independent"])
def test_our_own_port_is_equal(name, kit, ask, port):
    other = port if name == "published" else ReferencePort(kit / "checkpoints" / name)
    results = check_port(
        kit, lambda request: json.loads(json.dumps(answer(request, lambda checkpoint: other))), [name], CASES
    )
    assert {result.verdict for result in results} == {"equal"}
    assert len(results) == 4 * len(STAGES) + len(TEXT_STAGES)
    assert format_results(results).endswith("\nequal")


def test_stages_are_those_of_the_model(port, kit, index):
    """The stages one by one give what `forward` and `generate` give for the processor's inputs."""
    case = next(case for case in index["cases"] if case["name"] == "photo")
    image = PIL.Image.open(kit / case["images"][0])
    stages = ["embeddings", "logits", "tokens"]
    request = {"messages": case["messages"], "images": [kit / case["images"][0]], "given": {}, "max_new_tokens": 4}
    values = dict(port.compute({**request, "stages": stages}))
    prompt = port.processor.apply_chat_template(case["messages"], add_generation_prompt=True)
    inputs = port.processor(text=[prompt], images=[image], return_tensors="pt")
    with torch.no_grad():
        logits = port.model(**inputs).logits[0, -1]
    torch.testing.assert_close(torch.from_numpy(values["logits"]), logits, rtol=0, atol=1e-5)
    tokens = port.model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert values["tokens"].tolist() == tokens.tolist()


# Faults that ports had. Each changes a port; the parameters below say where it is found.


def missing_bos(port, patch):
    patch.setattr(port.processor, "add_bos_token", False)


def doubled_bos(port, patch):
    change(port, patch, "input_ids", lambda ids: torch.cat([ids[:1], ids]))


def lost_space(port, patch):
    change(port, patch, "prompt", str.lstrip)


def space_lost_by_the_tokenizer(port, patch):
    space = port.processor.tokenizer.convert_tokens_to_ids("Ġ")
    text = port.processor.tokenizer.encode("User:", add_special_tokens=False)
    with_space = port.processor.tokenizer.encode(" User:", add_special_tokens=False)
    assert space != with_space[0]
    change(port, patch, "input_ids", lambda ids: torch.cat([ids[:1], torch.tensor(text), ids[1 + len(with_space) :]]))


def doubled_assistant(port, patch):
    change(port, patch, "prompt", lambda prompt: f"{prompt} Assistant:")


def bicubic(port, patch):
    patch.setattr(port.processor.image_processor, "resample", PIL.Image.Resampling.BICUBIC)


def no_orientation(port, patch):
    patch.setattr(
        "jvlm.conversion_scripts.reference_port.load_image", lambda path: PIL.Image.open(path).convert("RGB")
    )


def blue_first(port, patch):
    change(port, patch, "pixels", lambda pixels: pixels.flip(1))


def tile_by_tile(port, patch):
    """The order of the independent layout, of the cells that the stitched one keeps."""

    def reorder(positions):
        index = torch.arange((positions >= 0).sum())
        return positions.masked_scatter(positions >= 0, index)

    change(port, patch, "positions", reorder)


def cells_of_the_other_layout(port, patch):
    """13×14 = 182 cells a tile instead of 14×14 = 196."""
    start, column = (port.processor.tokenizer.convert_tokens_to_ids(token) for token in ("<im_start>", "<im_col>"))

    def without_first_row(ids):
        keep = torch.ones(len(ids), dtype=torch.bool)
        for place in (ids == start).nonzero().flatten().tolist():
            length = (ids[place:] == column).nonzero()[0].item()
            keep[place + 1 : place + 1 + length] = False
        return ids[keep]

    change(port, patch, "positions", lambda positions: positions[:, :182])
    change(port, patch, "input_ids", without_first_row)


def foreign_image_tokens(port, patch):
    change(port, patch, "input_ids", lambda ids: torch.where((ids >= 512) & (ids < 516), ids - 100, ids))


def black_tile_not_zeroed(port, patch):
    features = port.features

    def run(values, request):
        return features({**values, "pixels": values["pixels"] + 1e-7}, request)

    patch.setattr(port, "features", run)


def wrong_blocks(port, patch):
    patch.setattr(port.config, "vision_feature_layer", [6, 0])


def exact_gelu(port, patch):
    """For its approximation with tanh; the smallest fault."""
    for layer in port.model.model.vision_tower.encoder.layers:
        patch.setitem(layer.mlp._modules, "activation_fn", torch.nn.GELU())


def last_tile_embedding_on_the_thumbnail(port, patch):
    forward = port.model.model.connector.forward

    def run(features, cell_indices, is_last_tile):
        return forward(features, cell_indices, cell_indices < 196)

    patch.setattr(port.model.model.connector, "forward", run)


def no_last_tile_embedding(port, patch):
    patch.setitem(port.model.model.connector._parameters, "last_tile_embedding", None)


def swapped_projector(port, patch):
    swap(port.model.model.connector.projector, patch)


def swapped_language_model(port, patch):
    for layer in port.model.model.language_model.layers:
        swap(layer.mlp, patch)


def replaced_embeddings(port, patch):
    def run(values, request):
        embeddings = port.model.get_input_embeddings()(values["input_ids"]).clone()
        embeddings[values["input_ids"] == port.config.image_token_id] = values["connector"]
        return embeddings

    patch.setattr(port, "embeddings", run)


def full_attention(port, patch):
    """The decoder sees later tokens, too."""

    def run(values, request):
        length = len(values["embeddings"])
        mask = torch.zeros(1, 1, length, length)
        return port.model(inputs_embeds=values["embeddings"][None], attention_mask=mask).logits[0, -1]

    patch.setattr(port, "logits", run)


def image_tokens_in_the_answer(port, patch):
    change(port, patch, "tokens", lambda tokens: torch.cat([torch.tensor([514]), tokens]))


def change(port, patch, stage, edit):
    before = getattr(port, stage)
    patch.setattr(port, stage, lambda *args: edit(before(*args)))


def swap(layer, patch):
    gate, up = layer.gate_proj, layer.up_proj
    patch.setitem(layer._modules, "gate_proj", up)
    patch.setitem(layer._modules, "up_proj", gate)


@pytest.mark.parametrize(
    ("fault", "case", "stage", "hint"),
    [
        (missing_bos, "no_image", "input_ids", r"BOS \d+, is missing"),
        (missing_bos, "one_tile", "input_ids", r"BOS \d+, is missing"),
        (doubled_bos, "no_image", "input_ids", r"BOS \d+ is there twice"),
        (lost_space, "no_image", "prompt", "the leading space is lost"),
        (space_lost_by_the_tokenizer, "no_image", "input_ids", "the text is split into other tokens"),
        (doubled_assistant, "one_tile", "prompt", '"Assistant:" is written once too often'),
        (bicubic, "photo", "pixels", "^bicubic interpolation instead of bilinear$"),
        (no_orientation, "exif", "pixels", "the EXIF orientation is not applied|another number of tiles"),
        (blue_first, "photo", "pixels", "blue, green, red"),
        (tile_by_tile, "photo", "positions", "cells are in another order"),
        (cells_of_the_other_layout, "photo", "positions", r"182 cells a tile; .* 14×14 = 196 cells"),
        (foreign_image_tokens, "one_tile", "input_ids", "read them from the tokenizer"),
        (black_tile_not_zeroed, "black_tile", "features", "all-black tile must be 0"),
        (wrong_blocks, "black_tile", "features", "counted without the final norm"),
        (exact_gelu, "photo", "features", ""),
        (last_tile_embedding_on_the_thumbnail, "photo", "connector", "last tile is added to the thumbnail"),
        (no_last_tile_embedding, "photo", "connector", "embedding of the last tile is missing"),
        (no_last_tile_embedding, "one_tile", "connector", "only the last tile of each image differs"),
        (swapped_projector, "photo", "connector", "value and gate of the projector are swapped"),
        (replaced_embeddings, "photo", "embeddings", "replaces the embedding of <im_patch>"),
        (swapped_language_model, "photo", "logits", "value and gate are swapped in the language model"),
        (full_attention, "no_image", "logits", ""),
        (image_tokens_in_the_answer, "no_image", "tokens", "suppressed tokens"),
    ],
)
def test_a_fault_is_found_in_its_stage(fault, case, stage, hint, port, first_difference, monkeypatch):
    fault(port, monkeypatch)
    found = first_difference(case)
    assert (found.stage, found.verdict) == (stage, "different")
    assert found.difference > (2 if fault is exact_gelu else 20) * found.tolerance
    assert re.search(hint, found.hint)


@pytest.mark.parametrize(
    ("fault", "without", "stage", "hint"),
    [
        (tile_by_tile, ["positions"], "connector", "tile by tile instead of row by row"),
        (cells_of_the_other_layout, ["positions"], "input_ids", r"\d+ tokens of cells instead of \d+; .*14×14 = 196"),
        (bicubic, ["pixels"], "features", ""),
    ],
)
def test_a_fault_is_found_without_its_stage(fault, without, stage, hint, port, first_difference, monkeypatch):
    fault(port, monkeypatch)
    found = first_difference("photo", without)
    assert (found.stage, found.verdict) == (stage, "different")
    assert re.search(hint, found.hint)


def test_a_fault_does_not_hide_a_later_one(kit, ask, port, monkeypatch):
    """The port is given the expected values of stages that differ."""
    missing_bos(port, monkeypatch)
    swapped_projector(port, monkeypatch)
    swapped_language_model(port, monkeypatch)
    results = {each.stage: each for each in check_port(kit, ask, ["published"], ["one_tile"])}
    assert [stage for stage in STAGES if results[stage].verdict == "different"] == ["input_ids", "connector", "logits"]
    assert results["connector"].given == ("input_ids",)
    assert results["logits"].given == ("input_ids", "connector")
    text = format_results(list(results.values()))
    assert re.search(r"one_tile +(= +){3}X +=\* +X\* +=\* +X\* +x\*", text)
    assert "published one_tile connector (given input_ids): " in text
    assert text.endswith("different from here on: published one_tile input_ids")


def test_an_error_of_a_case_is_reported(kit, ask):
    def fail(request):
        found = ask(request)
        if "no_image" in request["id"]:
            found["error"] = "out of memory"
            found["stages"] = {"prompt": found["stages"]["prompt"]}
        return found

    results = check_port(kit, fail, ["published"], ["one_tile", "no_image"])
    assert {result.verdict for result in results if result.case == "one_tile"} == {"equal"}
    assert [(each.stage, each.verdict) for each in results if each.case == "no_image"] == [
        ("prompt", "equal"),
        ("input_ids", "error"),
    ]
    assert "published no_image input_ids: the port reports out of memory" in format_results(results)


def test_kinds_of_arrays(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "a.npy", array)
    save_file({"logits": torch.from_numpy(array)}, tmp_path / "a.safetensors")
    for value in (array.tolist(), encode_array(array), {"file": "a.npy"}, {"file": str(tmp_path / "a.safetensors")}):
        assert decode_array("logits", value, tmp_path).tolist() == array.tolist()


def test_tokens_may_leave_out_the_end_and_logits_may_have_more_rows(kit, ask):
    def change(request):
        found = ask(request)
        if request["type"] == "case":
            tokens = decode_array("tokens", found["stages"]["tokens"], kit).tolist()
            logits = decode_array("logits", found["stages"]["logits"], kit).tolist()
            found["stages"]["logits"] = [logits + [-1e9] * 7]  # and a batch of one
            found["stages"]["tokens"] = [*tokens, *tokens]  # a near tie may have ended the expected ones
        return found

    results = check_port(kit, change, ["published"], ["no_image"])
    assert {result.verdict for result in results} == {"equal"}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"prompt": 3}, "prompt must be a string, got 3"),
        ({"logits": "many"}, "logits must be nested lists or an object"),
        ({"logits": [[1], [1, 2]]}, "logits cannot be read"),
        ({"logits": ["a"]}, "logits must hold numbers"),
        ({"logits": {"dtype": "bfloat16", "shape": [1], "base64": ""}}, '"dtype" of logits must be one of float32'),
        ({"logits": {"dtype": "float32", "base64": ""}}, "logits lacks 'shape'"),
        ({"logits": {"dtype": "float32", "shape": [3], "base64": "AAAA"}}, "logits cannot be read"),
        ({"logits": {"dtype": "float32", "shape": [1], "base64": "*"}}, "logits cannot be read"),
        ({"logits": {"file": "absent.npy"}}, "logits cannot be read .*absent.npy"),
        ([], 'has neither "stages" nor "error"'),
    ],
)
def test_wrong_answers(stages, message, kit, ask):
    def wrong(request):
        return {"id": request["id"], "stages": stages} if request["type"] == "case" else ask(request)

    with pytest.raises(PortError, match=message):
        check_port(kit, wrong, ["published"], ["no_image"])


@pytest.mark.parametrize(
    ("hello", "message"),
    [
        ({}, '"protocol": 1'),
        ({"protocol": 2}, '"protocol": 1'),
        ({"protocol": 1}, '"stages" .* is empty'),
        ({"protocol": 1, "stages": ["pixel"]}, '"stages" .* must be a list of .*"pixel"'),
        ({"protocol": 1, "stages": ["pixels"], "checkpoints": "published"}, '"checkpoints" .* must be a list'),
    ],
)
def test_wrong_greetings(hello, message, kit):
    with pytest.raises(PortError, match=message):
        check_port(kit, lambda request: {"id": request["id"], **hello})


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            "import sys; sys.exit('no device')",
            "ended with exit status 1 before it answered the request 'hello'.* ends with: no device",
        ),
        ("print('Loading weights'); input()", "not JSON: Loading weights.*standard error"),
        ("print('{\"id\": 7}'); input()", 'with "id": \'hello\', got {"id": 7}'),
        ("print([]); input()", 'must be an object with "id"'),
        ("import time; time.sleep(60)", r"has not answered the request 'hello' within 0.5 s"),
    ],
)
def test_programs_that_are_no_ports(program, message, kit):
    timeout = 0.5 if "sleep" in program else 60
    with pytest.raises(PortError, match=message), PortProcess([sys.executable, "-c", program], timeout) as process:
        check_port(kit, process.ask)
    assert process._process.poll() is not None


def test_a_program_that_is_missing():
    with pytest.raises(PortError, match="'/absent/port' cannot be started: No such file"):
        PortProcess(["/absent/port"])


@pytest.mark.parametrize(("space", "status"), [(" ", 0), ("", 1)])
def test_the_copy_of_the_runner_needs_neither_pytorch_nor_this_package(space, status, kit):
    """It compares a program that only renders prompts."""
    run = "import runpy, sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'jvlm'])); "
    run += "runpy.run_path('check_port.py', run_name='__main__')"
    command = [sys.executable, "-c", run, ".", "--case", "no_image"]
    port = [sys.executable, "-c", PROMPT_PORT.replace("SPACE", space)]
    found = subprocess.run([*command, "--", *port], cwd=kit, capture_output=True, text=True)
    assert found.returncode == status, found.stderr
    if status:
        assert "likely cause: the leading space is lost" in found.stdout
    else:
        assert found.stdout.rstrip().endswith("equal, without input_ids, embeddings, logits, tokens")


def test_the_reference_port_as_a_program(kit, capsys):
    command = [str(kit), "--checkpoint", "published", "--case", "no_image", "--case", "one_tile"]
    stages = ["--stage", "prompt", "--stage", "pixels", "--stage", "logits"]
    port = [sys.executable, "-m", "jvlm.conversion_scripts.reference_port"]
    assert main([*command, *stages, "--", *port]) == 0
    skipped = "positions, input_ids, features, connector, embeddings, tokens"
    assert capsys.readouterr().out.endswith(f"\nequal, without {skipped}\n")


def test_wrong_arguments_of_the_runner(kit, tmp_path, capsys):
    for arguments, message in (
        ([str(tmp_path)], "is no porting kit: it has no index.json"),
        ([str(kit), "--case", "selfie"], "'selfie' is no case of the kit; choose from one_tile, no_image"),
        ([str(kit), "--stage", "pixel"], "invalid choice: 'pixel'"),
        ([str(kit), "--checkpoint", "large"], "'large' is no checkpoint of the kit; choose from published"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main([*arguments, "--", sys.executable, "-c", PROMPT_PORT])
        assert message in capsys.readouterr().err


def test_another_protocol(kit, index, tmp_path):
    (tmp_path / "index.json").write_text(json.dumps({**index, "protocol": 0}))
    with pytest.raises(ValueError, match="has the protocol 0, but this program 1; write it again"):
        check_port(tmp_path, lambda request: {})


def test_a_kit_of_a_given_checkpoint(release, tmp_path):
    """Its values come from that checkpoint, which is not copied."""
    kit = porting_kit(tmp_path / "kit", release / "checkpoint", ["no_image"])
    assert not (kit / "checkpoints").exists()
    other = ReferencePort(release / "checkpoint")
    results = check_port(kit, lambda request: answer(request, lambda checkpoint: other))
    assert [result.checkpoint for result in results] == ["given"] * len(TEXT_STAGES)
    assert {result.verdict for result in results} == {"equal"}


def test_a_kit_is_complete_or_absent(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="'selfie' is no case; choose from one_tile"):
        porting_kit(tmp_path / "kit", case=["selfie"])
    monkeypatch.setattr("jvlm.conversion_scripts.porting_kit.write_checkpoints", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        porting_kit(tmp_path / "kit", case=["no_image"])
    (tmp_path / "other").mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        porting_kit(tmp_path / "other", case=["no_image"])
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
