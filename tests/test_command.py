# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The command `jvlm` and its subcommands."""

import io
import json
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub
import PIL.Image
import pytest
from transformers import pipeline

import jvlm
from jvlm_cli import ask, batch, chat, serve
from jvlm_cli.answering import Answerer, find_checkpoint, shipped_model, user_message
from jvlm_cli.main import COMMANDS, main


ROOT = Path(__file__).parents[1]
SAMPLES = json.loads((ROOT / "examples" / "digits" / "model" / "samples" / "samples.json").read_text())
PAGES = [str(ROOT / "examples" / "digits" / "model" / "samples" / sample["image"]) for sample in SAMPLES]


@pytest.fixture(scope="module")
def answerer():
    return Answerer(device="cpu", max_new_tokens=16)


def test_the_help_comes_without_importing_pytorch():
    program = "import sys\nfrom jvlm_cli.main import main\ntry: main({})\nfinally: print('torch' in sys.modules)"
    for argv, usage in (["--help"], "usage: jvlm"), (["batch", "--help"], "usage: jvlm batch"):
        command = [sys.executable, "-c", program.format(argv)]
        finished = subprocess.run(command, cwd=ROOT / "src", capture_output=True, text=True)
        assert finished.returncode == 0
        assert finished.stdout.startswith(usage)
        assert finished.stdout.splitlines()[-1] == "False"


def test_python_m_jvlm_is_the_same_command():
    command = [sys.executable, "-m", "jvlm", "--help"]
    assert subprocess.run(command, cwd=ROOT / "src", capture_output=True, text=True, check=True).stdout.startswith(
        "usage: jvlm [-h] [--version] COMMAND"
    )


def test_pip_puts_the_command_on_the_path():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["project"]["scripts"]["jvlm"] == f"{main.__module__}:{main.__name__}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(capsys, name):
    module, line = COMMANDS[name]
    assert callable(import_module(module).main)
    assert line[0].islower()
    with pytest.raises(SystemExit) as exit_info:
        main([name, "--help"])
    assert exit_info.value.code == 0
    assert "usage: " in capsys.readouterr().out


def test_an_unknown_command_is_named(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["aks"])
    assert exit_info.value.code == 2
    assert "'aks'" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"jvlm {jvlm.__version__}\n"


@pytest.mark.parametrize("number", range(len(SAMPLES)))
def test_ask_prints_the_answer_to_every_sample(capsys, number):
    assert main(["ask", PAGES[number], SAMPLES[number]["question"], "--device", "cpu"]) is None
    assert capsys.readouterr().out == SAMPLES[number]["answer"] + "\n"


def test_answers_are_those_of_the_pipeline(answerer):
    ask_pipeline = pipeline(
        "image-text-to-text", model=answerer.model, image_processor=None, processor=answerer.processor
    )
    message = user_message([PAGES[3]], "How many digits are there?")
    expected = ask_pipeline(text=[message], max_new_tokens=16, return_full_text=False)[0]["generated_text"]
    assert "".join(answerer.stream([message])).strip() == expected.strip()


def test_an_answer_comes_in_pieces(answerer):
    pieces = list(answerer.stream([user_message([PAGES[2]], "Which digits are written here?")]))
    assert len(pieces) > 2
    assert "".join(pieces).strip() == SAMPLES[2]["answer"]


def test_closing_the_iterator_ends_generation(answerer, monkeypatch):
    lengths = []
    generate = answerer.model.generate
    monkeypatch.setattr(answerer.model, "generate", lambda **kwargs: lengths.append(generate(**kwargs).shape[1]))
    monkeypatch.setattr(answerer.model.generation_config, "eos_token_id", None)
    monkeypatch.setattr(answerer, "max_new_tokens", 2000)
    pieces = answerer.stream([user_message([PAGES[0]], "Which digits are written here?")])
    next(pieces)
    pieces.close()
    assert len(lengths) == 1
    assert lengths[0] < 1000


def test_an_error_of_generation_is_raised(answerer, monkeypatch):
    def fail(**kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(answerer.model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(answerer.stream([user_message([], "Hello")]))


def test_ask_draws_the_tiles_of_every_image(capsys, tmp_path):
    output = tmp_path / "tiles.png"
    ask.main([*PAGES[:2], "How many digits are there?", "--tiles", str(output), "--max-crops", "2"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == [
        f"The tiles of {PAGES[0]}: {output}",
        f"The tiles of {PAGES[1]}: {tmp_path / 'tiles-2.png'}",
    ]
    assert PIL.Image.open(tmp_path / "tiles-2.png").width > 300


def test_ask_draws_where_the_answer_comes_from(capsys, tmp_path):
    output = tmp_path / "evidence.png"
    ask.main([PAGES[3], SAMPLES[3]["question"], "--evidence", str(output), "--device", "cpu"])
    answer, line = capsys.readouterr().out.splitlines()
    assert answer == SAMPLES[3]["answer"]
    assert (
        line == f"Where the answer comes from: {output}. {jvlm.EvidenceMeasurement.from_pretrained(shipped_model())}"
    )
    assert PIL.Image.open(output).width > 600


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([PAGES[0], PAGES[1], "Where?"], "--evidence needs exactly one image, got 2."),
        ([PAGES[0], "Where?", "--model", "MODEL"], "has no evidence.json: nobody has measured how often"),
    ],
)
def test_evidence_that_cannot_be_shown(capsys, tmp_path, argv, message):
    model = shutil.copytree(shipped_model(), tmp_path / "model", ignore=shutil.ignore_patterns("evidence.json"))
    with pytest.raises(SystemExit) as exit_info:
        ask.main([*(str(model) if part == "MODEL" else part for part in argv), "--evidence", str(tmp_path / "e.png")])
    assert exit_info.value.code == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""
    assert not (tmp_path / "e.png").exists()


def test_ask_names_a_missing_image(capsys):
    with pytest.raises(SystemExit) as exit_info:
        ask.main(["missing.png", "What is this?"])
    assert exit_info.value.code == 1
    error = capsys.readouterr().err
    assert "jvlm ask: error:" in error
    assert "missing.png" in error


def test_ask_names_a_missing_model(capsys, tmp_path):
    with pytest.raises(SystemExit) as exit_info:
        ask.main([PAGES[0], "What is this?", "--model", str(tmp_path / "nothing")])
    assert exit_info.value.code == 1
    assert "nothing', and the name cannot be that of a repository" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (huggingface_hub.errors.RepositoryNotFoundError("404", response=Mock()), "and no repository of this name on"),
        (ConnectionError("no network"), "and the Hugging Face Hub cannot be reached: no network"),
    ],
)
def test_a_missing_model_is_found_at_once(found, message, capsys, monkeypatch):
    """Without the Hub, Transformers tries again and again, for each file of the model."""
    monkeypatch.setattr(huggingface_hub, "model_info", Mock(side_effect=found))
    commands = ((serve.main, ["outputs/modle"]), (chat.main, ["--model", "outputs/modle"]))
    for run, argv in (
        *commands,
        (batch.main, [str(Path(PAGES[0]).parent), "a", "--question", "?", "--model", "modle"]),
    ):
        with pytest.raises(SystemExit):
            run(argv)
        error = capsys.readouterr().err
        assert f"There is no folder '{argv[-1]}', {message}" in error
        assert len(error.splitlines()) == 1


def test_a_repository_is_not_refused(monkeypatch):
    """One that is in the cache, also without a network, and one about which the Hub has another error."""
    asked = Mock(side_effect=huggingface_hub.errors.HfHubHTTPError("503", response=Mock()))
    monkeypatch.setattr(huggingface_hub, "model_info", asked)
    assert find_checkpoint("jinaai/jina-vlm") == "jinaai/jina-vlm"
    assert asked.call_count == 1
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **kwargs: "config.json")
    assert find_checkpoint("jinaai/jina-vlm") == "jinaai/jina-vlm"
    assert asked.call_count == 1


def test_a_cut_answer_is_marked(capsys, monkeypatch):
    ask.main([PAGES[2], SAMPLES[2]["question"], "--device", "cpu", "--max-new-tokens", "2"])
    note = "the answer was cut after 2 tokens; increase --max-new-tokens.\n"
    assert capsys.readouterr().err.endswith(f"jvlm ask: {note}")
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(["/help", SAMPLES[2]["question"], "How many?"])))
    chat.main([PAGES[2], "--device", "cpu", "--max-new-tokens", "2"])
    printed = capsys.readouterr()
    assert printed.err.count(f"jvlm chat: {note}") == 2
    assert [line.split()[0] for line in printed.out.splitlines()[:4]] == ["/image", "/clear", "/help", "/exit"]
    ask.main([PAGES[2], SAMPLES[2]["question"], "--device", "cpu"])
    assert "cut" not in capsys.readouterr().err


def test_a_chat_goes_on_after_an_error_and_keeps_its_images(capsys, monkeypatch):
    lines = [SAMPLES[2]["question"], "/image missing.png", "How many digits are there?", "/clear", "/exit", "never"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    chat.main([PAGES[2], "--device", "cpu"])
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [SAMPLES[2]["answer"], "5"]
    assert "missing.png" in printed.err


def test_a_chat_reads_its_images_once(capsys, monkeypatch, answerer):
    lines = [SAMPLES[2]["question"], "How many digits are there?", f"/image {PAGES[3]}", "How many?", "Why?", "/clear"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join([*lines, "/image " + PAGES[0], "How many digits?"])))
    monkeypatch.setattr(chat, "Answerer", lambda **options: answerer)
    tower, num_tiles = answerer.model.model.vision_tower, []
    with tower.register_forward_pre_hook(lambda module, args: num_tiles.append(len(args[0]))):
        chat.main([PAGES[2], "--device", "cpu"])
    answers = capsys.readouterr().out.splitlines()
    assert len(answers) == 5
    assert answers[:2] == [SAMPLES[2]["answer"], "5"]
    # A second image is not at the start, and all are read again: 5 and 13 tiles, of which one is in both.
    assert num_tiles == [5, 17, 17, 1]
    turns = [user_message([PAGES[2]], lines[0]), {"role": "assistant", "content": answers[0]}]
    turns += [user_message([], lines[1])]
    assert "".join(answerer.stream(turns)).strip() == answers[1]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], ["serve", str(shipped_model())]),
        (["--port", "9000"], ["serve", str(shipped_model()), "--port", "9000"]),
        (["folder", "--port", "9000"], ["serve", "folder", "--port", "9000"]),
        (["me/model@v1"], ["serve", "me/model@v1"]),
    ],
)
def test_serve_is_the_command_of_transformers(monkeypatch, tmp_path, argv, expected):
    calls = []
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    module = pytest.importorskip("transformers.cli.transformers")
    monkeypatch.setattr(module, "app", calls.append)
    monkeypatch.setattr(huggingface_hub, "model_info", lambda model, **options: {"me/model": None}[model])
    serve.main(argv)
    assert calls == [expected]


@pytest.mark.parametrize("argv", [["folder", "--image-cache-gb", "0.5", "--port", "9000"], ["--image-cache-gb=0.5"]])
def test_serve_with_a_cache_of_image_features(monkeypatch, tmp_path, argv):
    calls = []
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    module = pytest.importorskip("transformers.cli.transformers")
    monkeypatch.setattr(module, "app", calls.append)
    monkeypatch.setattr(jvlm.JinaVLMModel, "image_cache", None)
    serve.main(argv)
    assert calls == [["serve", "folder", "--port", "9000"] if "folder" in argv else ["serve", str(shipped_model())]]
    assert jvlm.JinaVLMModel.image_cache.max_bytes == 5 * 10**8


@pytest.mark.parametrize("size", ["0", "-1", "much", "nan", "inf"])
def test_serve_names_a_wrong_size_of_the_cache(capsys, size):
    with pytest.raises(SystemExit):
        serve.main(["--image-cache-gb", size])
    assert f"argument --image-cache-gb: must be a positive number, got {size!r}" in capsys.readouterr().err


def test_the_shipped_model_is_that_of_the_examples():
    assert shipped_model().resolve() == ROOT / "examples" / "digits" / "model"


def test_without_gradio_the_demo_names_the_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "jvlm_cli.web_page", raising=False)
    with pytest.raises(SystemExit) as exit_info:
        main(["demo"])
    assert exit_info.value.code == 1
    assert "pip install 'jvlm[page]'" in capsys.readouterr().err


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr("jvlm_cli.main.find_spec", lambda name: None if name == "peft" else object())
    with pytest.raises(SystemExit) as exit_info:
        main(["finetune", "--help"])
    assert exit_info.value.code == 1
    error = capsys.readouterr().err
    assert error == "jvlm finetune: error: it needs peft; install with `pip install 'jvlm[train]'`.\n"


def test_a_device_that_cannot_be_used_is_an_error():
    with pytest.raises(ValueError, match="the device 'foo' cannot be used: "):
        Answerer(device="foo")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tiles", "x.png", "--evidence", "x.png"], "--evidence x.png would replace the drawing of --tiles."),
        (["--tiles", PAGES[0]], f"--tiles {PAGES[0]} would replace the image {PAGES[0]}."),
        (["--tiles", "none/tiles.png"], "--tiles none/tiles.png: there is no folder"),
        (["--tiles", "tiles.txt"], "--tiles tiles.txt must end in .png or the ending of another format of images."),
        (["--json-schema", "none.json"], "--json-schema none.json cannot be read: No such file or directory."),
    ],
)
def test_wrong_files_are_found_before_the_model_is_loaded(options, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ask, "Answerer", None)
    with pytest.raises(SystemExit):
        ask.main([PAGES[0], "Which digits are written here?", *options])
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
