# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Damaged checkpoints and full disks give an error that names the problem, and leave no partial output."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from jvlm.conversion_scripts import convert_release as convert_module
from jvlm.conversion_scripts.compose_from_pretrained import compose_from_pretrained
from jvlm.conversion_scripts.convert_release import convert_release, main
from jvlm.conversion_scripts.export_to_hub import export_to_hub
from jvlm.conversion_scripts.output_folder import new_folder
from jvlm.conversion_scripts.verify import verify
from jvlm_cli.command_line import argument_parser, run


@pytest.fixture
def refused(tmp_path):
    """A function (error, message, function, *arguments) that asserts the error and that no output is left."""

    def check(error, message, function, *sources, **kwargs):
        target = tmp_path / "target"
        target.mkdir(exist_ok=True)
        with pytest.raises(error, match=message):
            function(*sources, target / "output", **kwargs)
        assert list(target.iterdir()) == []

    return check


def in_shards(folder: Path) -> Path:
    """Splits a checkpoint's file in two, in place."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    return folder


def shorten(file: Path, share: float):
    with open(file, "r+b") as opened:
        opened.truncate(int(file.stat().st_size * share))


def test_missing_shard(published, siglip, qwen3, changed_copy, refused):
    message = "model-00002-of-00002.safetensors is missing.*download is complete"
    for source in (published, siglip, qwen3(True)):
        folder = in_shards(changed_copy(source))
        (folder / "model-00002-of-00002.safetensors").unlink()
        if source == published:
            refused(FileNotFoundError, message, convert_release, folder)
            refused(FileNotFoundError, message, export_to_hub, folder)
        elif source == siglip:
            refused(FileNotFoundError, message, compose_from_pretrained, folder, qwen3(True))
        else:
            refused(FileNotFoundError, message, compose_from_pretrained, siglip, folder)


@pytest.mark.parametrize("share", [0.9, 0.001])
def test_truncated_file(published, converted, siglip, qwen3, changed_copy, refused, share):
    message = "model.safetensors is damaged or truncated"
    folders = {source: changed_copy(source) for source in (published, converted, siglip)}
    for folder in folders.values():
        shorten(folder / "model.safetensors", share)
    refused(ValueError, message, convert_release, folders[published])
    refused(ValueError, message, convert_release, folders[converted], reverse=True)
    refused(ValueError, message, export_to_hub, folders[converted])
    refused(ValueError, message, compose_from_pretrained, folders[siglip], qwen3(True), dtype="float32")


def test_index_does_not_match_the_files(published, changed_copy, refused):
    folder = in_shards(changed_copy(published))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["lm_head.weight"] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    message = "lacks weights that .*model.safetensors.index.json assigns to it: lm_head.weight"
    refused(ValueError, message, convert_release, folder)


@pytest.mark.parametrize("target", ["../outside.safetensors", "parts/../../outside.safetensors", "absolute"])
def test_index_that_leaves_the_folder(published, converted, changed_copy, refused, tmp_path, target):
    folder = in_shards(changed_copy(published))
    part = (folder / "model-00002-of-00002.safetensors").rename(tmp_path / "outside.safetensors")
    (folder / "parts").mkdir()
    file = folder / "model.safetensors.index.json"
    target = str(part) if target == "absolute" else target
    file.write_text(file.read_text().replace(part.name, target).replace("model-00002-of-00002.safetensors", target))
    message = f"model.safetensors.index.json assigns .* to '{target}', which lies outside of its folder"
    refused(ValueError, message, convert_release, folder)
    refused(ValueError, message, export_to_hub, folder)
    with pytest.raises(ValueError, match=message):
        verify(folder, converted)
    for auto_class in (AutoModelForImageTextToText, AutoModel):
        with pytest.raises(ValueError, match=message):
            auto_class.from_pretrained(folder)
    with pytest.raises(ValueError, match=message):
        AutoModelForImageTextToText.from_pretrained(folder.parent, subfolder=folder.name)
    file.rename(folder / "model.safetensors.index.fp16.json")
    with pytest.raises(ValueError, match="lies outside of its folder"):
        AutoModelForImageTextToText.from_pretrained(folder, variant="fp16")


def hub_cache(folder: Path, cache: Path) -> Path:
    """A downloaded repository `somebody/small`. As in the cache of huggingface_hub, its files link to `blobs`."""
    repository = cache / "models--somebody--small"
    snapshot = repository / "snapshots" / ("0123abcd" * 5)
    for path in (repository / "blobs", snapshot, repository / "refs"):
        path.mkdir(parents=True)
    (repository / "refs" / "main").write_text(snapshot.name)
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copyfile(file, repository / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    return snapshot


def test_links_of_the_hub_cache_are_followed(published, changed_copy, tmp_path):
    snapshot = hub_cache(in_shards(changed_copy(published)), tmp_path / "cache")
    weights = load_file(convert_release(snapshot, tmp_path / "converted") / "model.safetensors")
    model = AutoModelForImageTextToText.from_pretrained("somebody/small", cache_dir=tmp_path / "cache")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_index_on_the_hub_that_leaves_the_folder(published, changed_copy, tmp_path):
    folder = in_shards(changed_copy(published))
    (folder / "model-00002-of-00002.safetensors").rename(tmp_path / "outside.safetensors")
    file = folder / "model.safetensors.index.json"
    file.write_text(file.read_text().replace("model-00002-of-00002.safetensors", "../../../../outside.safetensors"))
    assert (hub_cache(folder, tmp_path / "cache") / "../../../../outside.safetensors").is_file()
    with pytest.raises(ValueError, match=r"index.json assigns .* to '.*', which lies outside of its folder"):
        AutoModelForImageTextToText.from_pretrained("somebody/small", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "index.json is damaged or truncated"),
        ("[]", "index.json is damaged .*JSON object, not list"),
        ("{}", "index.json is damaged .*`weight_map` must be an object, got None"),
        ('{"weight_map": ["a.safetensors"], "metadata": {}}', "`weight_map` must be an object, got .'a.safetensors'"),
        ('{"weight_map": {}, "metadata": 3}', "`metadata` must be an object, got 3"),
        ('{"weight_map": {"a": 3}, "metadata": {}}', "assigns a to 3, which is not a safetensors file"),
        ('{"weight_map": {"a": "a.bin"}, "metadata": {}}', "assigns a to 'a.bin', which is not a safetensors file"),
        ("[" * 100_000, "index.json is damaged"),
    ],
)
def test_broken_index(published, changed_copy, refused, index, message):
    folder = in_shards(changed_copy(published))
    (folder / "model.safetensors.index.json").write_text(index)
    refused(ValueError, message, convert_release, folder)
    with pytest.raises(ValueError, match=message):
        AutoModelForImageTextToText.from_pretrained(folder)


def test_other_files_do_not_matter(published, converted, changed_copy, tmp_path):
    folder = changed_copy(published)
    for name in ("notes.json", "model.safetensors.index.json", "old.jinja", "optimizer.safetensors"):
        (folder / name).write_bytes(b"\xff{")  # Transformers does not read an index beside model.safetensors
    weights = load_file(convert_release(folder, tmp_path / "converted") / "model.safetensors")
    assert all(
        torch.equal(tensor, weights[name]) for name, tensor in load_file(converted / "model.safetensors").items()
    )
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config.json is damaged"):
        AutoProcessor.from_pretrained(folder)


def test_single_file_wins_over_an_index(published, changed_copy, tmp_path):
    folder = changed_copy(published)
    shutil.copyfile(folder / "model.safetensors", tmp_path / "new.safetensors")
    in_shards(folder)
    tensors = load_file(tmp_path / "new.safetensors")
    tensors["lm_head.weight"] *= 2
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    weights = load_file(convert_release(folder, tmp_path / "converted") / "model.safetensors")
    assert torch.equal(weights["lm_head.weight"][:512], tensors["lm_head.weight"])
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert torch.equal(model.lm_head.weight[:512], tensors["lm_head.weight"])


def test_other_weights_named_in_the_configuration(published, changed_copy, refused, monkeypatch):
    folder = changed_copy(published, config=lambda config: config.update(transformers_weights="adapter_model.bin"))
    torch.save(load_file(folder / "model.safetensors"), folder / "adapter_model.bin")
    monkeypatch.setattr(torch, "load", pytest.fail)
    message = "`transformers_weights` is 'adapter_model.bin': remove it"
    refused(ValueError, message, convert_release, folder)
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        AutoModelForImageTextToText.from_pretrained(folder)


def test_pickled_weights_are_not_read(published, changed_copy, refused):
    folder = changed_copy(published)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused(FileNotFoundError, "read from safetensors files only", convert_release, folder)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.vision_model.pos_embed", (700, 32)),
        ("model.language_model.layers.1.attn.qkv_w.weight", (100, 64)),
        ("model.language_model.layers.0.ffn.up.weight", (100, 64)),
        ("model.vision_model.post_lnorm.bias", (31,)),
        ("lm_head.weight", (511, 64)),
    ],
)
def test_wrong_shape(published, changed_copy, refused, name, shape):
    folder = changed_copy(published, lambda tensors: tensors.update({name: torch.zeros(shape)}))
    refused(ValueError, rf"{name} in .* has the shape \[{shape[0]}", convert_release, folder)


def test_wrong_shape_of_a_source(siglip, qwen3, changed_copy, refused):
    def narrow(tensors):
        tensors["vision_model.encoder.layers.1.mlp.fc1.weight"] = torch.zeros(47, 32)

    folder = changed_copy(siglip, narrow)
    refused(ValueError, r"fc1.weight in .* \[47, 32\].*\[48, 32\]", compose_from_pretrained, folder, qwen3(True))


def test_missing_weight(published, siglip, qwen3, changed_copy, refused):
    folder = changed_copy(published, lambda tensors: tensors.pop("model.language_model.ln_f.weight"))
    refused(ValueError, "lacks weights: model.language_model.ln_f.weight", convert_release, folder)
    folder = changed_copy(qwen3(True), lambda tensors: tensors.pop("model.norm.weight"))
    refused(ValueError, "lacks weights: model.norm.weight", compose_from_pretrained, siglip, folder)


def test_unknown_weights(published, converted, changed_copy, refused):
    def add(tensors):
        tensors["model.language_model.layers.7.ffn.up.weight"] = torch.zeros(2)

    message = "holds unknown weights: model.language_model.layers.7.ffn.up.weight"
    refused(ValueError, message, convert_release, changed_copy(published, add))
    refused(ValueError, message, export_to_hub, changed_copy(converted, add))


def test_non_zero_decoder_bias(published, changed_copy, refused):
    name = "model.language_model.layers.2.attn.v_b"
    folder = changed_copy(published, lambda tensors: tensors[name].__setitem__(3, 0.25))
    refused(ValueError, rf"{name} in .* is not zero \(up to 0.25\)", convert_release, folder)


@pytest.mark.parametrize(
    ("part", "path", "value"),
    [
        ("vision_config", ["use_cls_token"], True),
        ("vision_config", ["block_config", "postnorm"], True),
        ("text_config", ["block_config", "postnorm"], True),
        ("vision_config", ["vl_connector_config", "pooling_type"], "max"),
        ("vision_config", ["block_config", "attn_lscale_init"], 0.1),
        ("text_config", ["block_config", "ffn_lscale_init"], 0.1),
        ("text_config", ["rope_scaling"], {"factor": 2.0, "type": "linear"}),
    ],
)
def test_unsupported_published_field(published, changed_copy, refused, part, path, value):
    def edit(config):
        settings = config[part]
        for name in path[:-1]:
            settings = settings[name]
        settings[path[-1]] = value

    folder = changed_copy(published, config=edit)
    message = r"\.".join([part, *path]) + rf".*{str(value)[1:7]}"
    refused(ValueError, message, convert_release, folder)


def test_hidden_sizes_differ(published, converted, changed_copy, refused):
    folder = changed_copy(published, config=lambda config: config["vision_config"].update(output_size=96))
    refused(ValueError, "output_size.* is 96.*hidden_size.* is 64", convert_release, folder)
    folder = changed_copy(converted, config=lambda config: config["text_config"].update(hidden_size=96))
    refused(ValueError, r"has the shape \[.*64.*but its config.json requires \[.*96", export_to_hub, folder)


def test_tokenizer_of_another_checkpoint(published, converted, qwen3, siglip, changed_copy, refused, build_processor):
    for source, function in ((published, convert_release), (converted, export_to_hub)):
        folder = changed_copy(source)
        (folder / "tokenizer.json").unlink()
        build_processor("stitched").tokenizer.save_pretrained(folder)
        refused(ValueError, "<|endoftext|>|<im_start>", function, folder)

    def shift(config):
        config["image_token_id"] += 10

    folder = changed_copy(converted, config=shift)
    message = "<im_patch> has the id 514 in the tokenizer.*`config.image_token_id` is 524"
    refused(ValueError, message, export_to_hub, folder)
    with pytest.raises(ValueError, match=message):
        verify(folder, converted)

    folder = changed_copy(qwen3(True), config=lambda config: config.update(eos_token_id=77))
    message = r"`eos_token_id` is 77 .*<\|endoftext\|> has the id 0"
    refused(ValueError, message, compose_from_pretrained, siglip, folder)


def test_unsupported_models(siglip, qwen3, converted, refused, tmp_path):
    refused(ValueError, "'qwen3' checkpoint; --vision takes SigLIP", compose_from_pretrained, qwen3(True), qwen3(True))
    refused(ValueError, "'siglip' checkpoint; --decoder takes Qwen3", compose_from_pretrained, siglip, siglip)
    refused(ValueError, "'qwen3' checkpoint, not one of JinaVLM", convert_release, qwen3(True), reverse=True)
    refused(OSError, "neither a folder nor a repository", convert_release, "nobody/nothing")
    (tmp_path / "empty").mkdir()
    refused(FileNotFoundError, "no config.json", convert_release, tmp_path / "empty")


def test_too_few_vision_blocks(siglip, qwen3, refused):
    message = r"blocks \[12\].*only 10.*--vision_feature_layer"
    refused(ValueError, message, compose_from_pretrained, siglip, qwen3(True), vision_feature_layer=[12])


def test_output_exists(published, converted, siglip, qwen3, tmp_path):
    output = tmp_path / "output"
    output.mkdir()
    (output / "precious").write_text("data")
    for call in (
        lambda: convert_release(published, output),
        lambda: convert_release(converted, output, reverse=True),
        lambda: export_to_hub(converted, output),
        lambda: compose_from_pretrained(siglip, qwen3(True), output),
    ):
        with pytest.raises(FileExistsError, match="output exists already"):
            call()
    assert (output / "precious").read_text() == "data"
    assert not list(tmp_path.glob(".output*"))


def test_disk_too_small(converted, siglip, qwen3, refused, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    message = "needs 0.00[12] GB, but only 0.000 GB are free"
    refused(OSError, message, convert_release, converted, reverse=True)
    refused(OSError, message, export_to_hub, converted)
    refused(OSError, "GB are free", compose_from_pretrained, siglip, qwen3(True))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_disk_fills_up_while_writing(published, converted, refused, monkeypatch, error):
    def write_some(tensors, filename, **kwargs):
        Path(filename).write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(convert_module, "save_file", write_some)
    refused(OSError, "output needs .* make room", convert_release, converted, reverse=True)
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", write_some)
    refused(OSError, "output needs .* make room", convert_release, published)


def test_interrupted_program_leaves_no_files(tmp_path):
    def write_and_stop():
        with new_folder(tmp_path / "target" / "output") as folder:
            (folder / "file").write_text("half of it")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_stop()
    assert list((tmp_path / "target").iterdir()) == []


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs the signals of POSIX")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_terminated_program_leaves_no_files(tmp_path, name):
    number = getattr(signal, name)

    def write_and_stop():
        with new_folder(tmp_path / "target" / "output") as folder:
            (folder / "file").write_text("half of it")
            os.kill(os.getpid(), number)
            pytest.fail("The signal did not end the program.")

    with pytest.raises(SystemExit) as error:
        run(argument_parser("program", None), write_and_stop, [])
    assert error.value.code == 128 + number
    assert list((tmp_path / "target").iterdir()) == []
    assert signal.getsignal(number) == signal.SIG_DFL


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs the signals of POSIX")
def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        parser = argument_parser("program", None)
        assert run(parser, lambda: os.kill(os.getpid(), signal.SIGHUP) or "finished", []) == "finished"
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_programs_run_in_any_thread():
    with ThreadPoolExecutor() as pool:
        assert pool.submit(run, argument_parser("program", None), lambda: "finished", []).result() == "finished"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    def write_and_wait(folder: Path):
        os.setpgid(0, 0)
        with new_folder(folder / "output") as output:
            (output / "file").write_text("half of it")
            (tmp_path / "ready").touch()
            time.sleep(100)

    target = tmp_path / "target"
    other = target / ".output-notes"  # not one of ours
    other.mkdir(parents=True)
    process = multiprocessing.get_context("fork").Process(target=write_and_wait, args=(target,))
    process.start()
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    (running,) = set(target.iterdir()) - {other}
    with pytest.raises(KeyboardInterrupt), new_folder(target / "output"):
        raise KeyboardInterrupt
    assert (running / "output" / "file").is_file()  # in use
    process.kill()
    process.join()
    with new_folder(target / "output-2"):
        assert running.exists()
    with new_folder(target / "output"):
        assert not running.exists()
    assert sorted(path.name for path in target.iterdir()) == [".output-notes", "output", "output-2"]


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("config.json", '{"model_type": "jvlm", "vision_config": {"patch_size": 0}}', "`vision_config.patch_size`"),
        ("config.json", '{"model_type": "jvlm", "pooling_size": "2"}', "pooling_size"),
        ("config.json", "[]", "config.json"),
        ("processor_config.json", '{"image_processor": 3}', "copy-0"),
        ("tokenizer_config.json", '{"added_tokens_decoder": 3}', "copy-0"),
        ("generation_config.json", '{"watermarking_config": 3}', "copy-0"),
    ],
)
def test_damaged_settings_give_an_error_in_one_line(converted, changed_copy, tmp_path, capsys, name, content, word):
    folder = changed_copy(converted)
    (folder / name).write_text(content)
    with pytest.raises(SystemExit) as error:
        main(["--checkpoint", str(folder), "--output", str(tmp_path / "output"), "--reverse"])
    assert error.value.code == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("jvlm convert: error: ")
    assert word in last
    assert not (tmp_path / "output").exists()


def test_damaged_settings_of_a_source(siglip, qwen3, changed_copy, refused):
    folder = changed_copy(siglip, config=lambda config: config["vision_config"].update(patch_size="x"))
    refused(ValueError, f"{folder} cannot be loaded", compose_from_pretrained, folder, qwen3(True))
    folder = changed_copy(qwen3(True), config=lambda config: config.update(rope_parameters=3))
    refused(ValueError, f"{folder}", compose_from_pretrained, siglip, folder)


def test_program_prints_errors_in_one_line(published, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        main(["--checkpoint", str(published), "--output", str(tmp_path)])
    assert error.value.code == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("jvlm convert: error:")
    assert "exists already" in message
