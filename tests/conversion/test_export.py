# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""export_to_hub: the exported folder loads, runs and saves without the `jvlm` package."""

import json
import os
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from packaging.requirements import Requirement
from packaging.version import Version
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from jvlm import JinaVLMConfig
from jvlm.conversion_scripts import export_to_hub as module
from jvlm.conversion_scripts.convert_release import convert_release
from jvlm.conversion_scripts.export_space import GRADIO_VERSION
from jvlm.conversion_scripts.export_to_hub import code_files, export_to_hub, main
from jvlm.conversion_scripts.verify import verify
from jvlm_cli.answering import shipped_model


MESSAGES = [
    {
        "role": "user",
        "content": [{"type": "image", "path": "image.png"}, {"type": "text", "text": "What is in this image?"}],
    }
]

# Runs in the folder of the image. Arguments: exported checkpoint, output folder for saving, messages, output file.
STRANGER = """
import json, sys

class NoPackage:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "jvlm":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, NoPackage())

from safetensors.torch import save_file
from transformers import (
    AutoConfig, AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor,
    pipeline,
)

checkpoint, saved, messages, outputs = sys.argv[1:]
messages = json.loads(messages)
remote = {"trust_remote_code": True}

def run(folder):
    model = AutoModelForImageTextToText.from_pretrained(folder, **remote).eval()
    processor = AutoProcessor.from_pretrained(folder, **remote)
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    return model, processor, {**inputs, "logits": model(**inputs).logits.detach(), "tokens": tokens}

model, processor, tensors = run(checkpoint)
assert AutoConfig.from_pretrained(checkpoint, **remote).layout == model.config.layout
assert AutoImageProcessor.from_pretrained(checkpoint, **remote).to_dict() == processor.image_processor.to_dict()
base = AutoModel.from_pretrained(checkpoint, **remote).eval()
inputs = {name: tensors[name] for name in ("input_ids", "pixel_values", "image_token_positions")}
tensors["hidden"] = base(**inputs).last_hidden_state.detach()
assert type(AutoModelForCausalLM.from_pretrained(checkpoint, **remote)) is type(model)
answer = pipeline("image-text-to-text", model=checkpoint, **remote)(
    text=messages, max_new_tokens=6, generate_kwargs={"do_sample": False}, return_full_text=False
)[0]["generated_text"]
assert answer == processor.decode(tensors["tokens"][0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)

model.save_pretrained(saved)
processor.save_pretrained(saved)
again = run(saved)[2]
assert all(again[name].equal(tensors[name]) for name in again)
assert not any(name.partition(".")[0] == "jvlm" for name in sys.modules)
save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, outputs)
"""


@pytest.fixture(scope="module", params=["stitched", "independent"])
def exported(request, converted, tmp_path_factory):
    """An exported folder, for each layout, and the checkpoint that was exported."""
    output = tmp_path_factory.mktemp(request.param) / "repository"
    if request.param == "stitched":
        return export_to_hub(converted, output), converted
    source = output.parent / "source"
    model = AutoModelForImageTextToText.from_pretrained(
        converted, layout="independent", pooled_grid=[13, 14], use_last_tile_embedding=True
    )
    model.save_pretrained(source)
    processor = AutoProcessor.from_pretrained(converted)
    processor.image_processor.layout = "independent"
    processor.save_pretrained(source)
    return export_to_hub(source, output), source


def test_exported_folder_works_without_the_package(exported, make_image, tmp_path):
    folder, source = exported
    make_image(300, 420).save(tmp_path / "image.png")
    (tmp_path / "stranger.py").write_text(STRANGER)
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "home"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "PYTHONPATH": "",
    }
    arguments = [str(folder), str(tmp_path / "saved"), json.dumps(MESSAGES), str(tmp_path / "outputs.safetensors")]
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "stranger.py", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]

    outputs = load_file(tmp_path / "outputs.safetensors")
    model = AutoModelForImageTextToText.from_pretrained(source).eval()
    processor = AutoProcessor.from_pretrained(source)
    messages = json.loads(json.dumps(MESSAGES).replace("image.png", str(tmp_path / "image.png")))
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert {name: tensor.shape for name, tensor in inputs.items()}.items() <= {
        name: tensor.shape for name, tensor in outputs.items()
    }.items()
    assert all(torch.equal(tensor, outputs[name]) for name, tensor in inputs.items())
    with torch.inference_mode():
        torch.testing.assert_close(outputs["logits"], model(**inputs).logits)
        torch.testing.assert_close(outputs["hidden"], model.model(**inputs).last_hidden_state)
    assert torch.equal(outputs["tokens"], model.generate(**inputs, max_new_tokens=6, do_sample=False))


def test_auto_map_names_every_auto_class(exported):
    folder, _ = exported
    config = json.loads((folder / "config.json").read_text())["auto_map"]
    processor = json.loads((folder / "processor_config.json").read_text())
    assert config.keys() == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForCausalLM",
        "AutoModelForImageTextToText",
        "AutoModelForVision2Seq",
    }
    assert processor["auto_map"].keys() == {"AutoImageProcessor", "AutoProcessor"}
    assert processor["image_processor"]["auto_map"].keys() == {"AutoImageProcessor"}
    for reference in {*config.values(), *processor["auto_map"].values()}:
        file, name = reference.split(".")
        assert f"\nclass {name}(" in (folder / f"{file}.py").read_text()


def test_exported_code_equals_the_package_except_for_imports(exported):
    folder, _ = exported
    files = code_files()
    assert {file.name for file in folder.glob("*.py")} == files.keys()
    for name, code in files.items():
        assert (folder / name).read_text() == code
        assert "from .." not in code
        assert "jvlm." not in "".join(line for line in code.splitlines() if "import " in line)
        compile(code, name, "exec")
    relative = {line.split()[1] for code in files.values() for line in code.splitlines() if line.startswith("from .")}
    assert {f"{module.removeprefix('.')}.py" for module in relative} < files.keys()


def test_folder_is_complete_and_loads_with_the_package(exported):
    folder, source = exported
    # Engines get the complete prompt from the chat template, so it contains the BOS token that the processor adds.
    template = (folder / "chat_template.jinja").read_text()
    assert template == "{{- bos_token or eos_token -}}" + (source / "chat_template.jinja").read_text()
    assert (folder / "README.md").read_text().startswith("---\n")
    a, b = load_file(folder / "model.safetensors"), load_file(source / "model.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert type(AutoModelForImageTextToText.from_pretrained(folder)).__module__ == "jvlm.modeling.modeling_jvlm"
    assert type(AutoProcessor.from_pretrained(folder)).__module__ == "jvlm.processing.processing_jvlm"


def test_large_weights_have_an_index(converted, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_SHARD_SIZE", "300KB")
    folder = export_to_hub(converted, tmp_path / "repository")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in folder.glob("*.safetensors")}


def test_published_checkpoint_is_converted(published, converted, tmp_path):
    folder = export_to_hub(published, tmp_path / "repository")
    assert load_file(folder / "model.safetensors").keys() == load_file(converted / "model.safetensors").keys()


def test_dtype_of_the_weights_is_kept(converted, changed_copy, tmp_path):
    source = changed_copy(converted)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    folder = export_to_hub(source, tmp_path / "repository")
    weights = load_file(converted / "model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in load_file(folder / "model.safetensors").items())
    assert AutoConfig.from_pretrained(folder).dtype == torch.float32


def test_exported_folder_can_be_exported_and_converted_again(exported, tmp_path):
    folder, _ = exported
    again = export_to_hub(folder, tmp_path / "again")
    for file in folder.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes()
    if "stitched" in str(folder):
        back = convert_release(folder, tmp_path / "published", reverse=True)
        assert not list(back.glob("*.py"))
        assert not (back / "chat_template.jinja").read_text().startswith("{{- bos_token")


class Hub:
    """Records the uploads. The first `failures` ones fail."""

    failures = 0

    def __init__(self):
        self.calls, self.kinds = [], []

    def create_repo(self, repo_id, exist_ok, repo_type=None, space_sdk=None):
        self.calls.append(("create", repo_id, exist_ok))
        self.kinds.append(repo_type)
        assert space_sdk == ("gradio" if repo_type == "space" else None)
        return type("RepoUrl", (), {"repo_id": repo_id if "/" in repo_id else f"me/{repo_id}"})

    def upload_folder(self, repo_id, repo_type, folder_path, commit_message):
        if self.failures:
            self.failures -= 1
            raise RuntimeError("no connection")
        files = {file.name for file in folder_path.iterdir()}
        self.kinds.append(repo_type)
        expected = (
            {"app.py", "jvlm", "jvlm_cli"} if repo_type else {"config.json", "modeling_jvlm.py", "model.safetensors"}
        )
        self.calls.append(("upload", repo_id, expected <= files))


@pytest.fixture
def hub(monkeypatch) -> Hub:
    hub = Hub()
    monkeypatch.setattr(module, "HfApi", lambda: hub)
    return hub


def test_push(converted, tmp_path, hub, capsys):
    main(["--checkpoint", str(converted), "--output", str(tmp_path / "a")])
    assert hub.calls == []
    main(["--checkpoint", str(converted), "--output", str(tmp_path / "b"), "--push", "small"])
    assert hub.calls == [("create", "small", True), ("upload", "me/small", True)]
    assert str(tmp_path / "b") in capsys.readouterr().out


def test_failed_push_can_be_repeated(converted, tmp_path, hub, capsys):
    output = tmp_path / "repository"
    arguments = ["--checkpoint", str(converted), "--output", str(output), "--push", "small"]
    hub.failures = 1
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "repository is complete, but its upload to small failed (no connection). Repeat the same command" in message
    (output / "README.md").write_text("edited")
    main(arguments)
    assert hub.calls[-1] == ("upload", "me/small", True)
    assert (output / "README.md").read_text() == "edited"
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


def test_other_output_is_not_pushed(converted, changed_copy, tmp_path, hub):
    output = export_to_hub(converted, tmp_path / "repository")
    trained = changed_copy(converted, lambda tensors: tensors["lm_head.weight"].mul_(2))
    with pytest.raises(FileExistsError, match=r"repository exists already.*files differ: model.safetensors\. Remove"):
        export_to_hub(trained, output, push="small")
    (output / "modeling_jvlm.py").unlink()
    with pytest.raises(FileExistsError, match=r"files differ: modeling_jvlm\.py"):
        export_to_hub(converted, output, push="small")
    with pytest.raises(FileExistsError, match="exists already; remove it"):
        export_to_hub(converted, output)
    assert hub.calls == []


@pytest.mark.parametrize("repo_id", ["a/b/c", "me/two words", "me/x--y", "x.git", ""])
def test_impossible_repository_names(converted, tmp_path, hub, repo_id):
    with pytest.raises(ValueError, match=r"[Rr]epo"):
        export_to_hub(converted, tmp_path / "repository", push=repo_id)
    assert list(tmp_path.iterdir()) == []
    assert hub.calls == []


def test_several_chat_templates(converted, changed_copy, tmp_path):
    source = changed_copy(converted)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "brief.jinja").write_text("{{ 'brief' }}")
    folder = export_to_hub(source, tmp_path / "repository")
    bos, template = "{{- bos_token or eos_token -}}", (source / "chat_template.jinja").read_text()
    templates = AutoProcessor.from_pretrained(folder).chat_template
    assert templates == {"default": bos + template, "brief": bos + "{{ 'brief' }}"}
    assert all(stage.is_equal for stage in verify(source, folder))


SPACE = """
import app, json, jvlm, jvlm_cli, pathlib, sys
from jvlm_cli.answering import user_message

here = pathlib.Path.cwd()
assert here in pathlib.Path(jvlm.__file__).parents and here in pathlib.Path(jvlm_cli.__file__).parents
sample = json.loads(pathlib.Path("model/samples/samples.json").read_text())[0]
answer = "".join(app.answerer.stream([user_message(["model/samples/" + sample["image"]], sample["question"])]))
print(json.dumps([app.page.title, answer.strip(), sample["answer"]]))
"""


def test_space_runs_with_its_own_code(tmp_path):
    """The page itself is tested in test_web_page.py."""
    gradio = pytest.importorskip("gradio", reason="Gradio is not installed (extra `page`).")
    assert Version(GRADIO_VERSION) <= Version(gradio.__version__)
    space = export_to_hub(shipped_model(), tmp_path / "digits", space=True)
    card = ModelCard.load(space / "README.md")
    assert (
        card.data.to_dict().items() >= {"sdk": "gradio", "sdk_version": GRADIO_VERSION, "app_file": "app.py"}.items()
    )
    needed = {Requirement(line).name for line in (space / "requirements.txt").read_text().splitlines()}
    assert needed >= {"torch", "transformers", "pillow"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", SPACE], cwd=space, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    title, answer, expected = json.loads(done.stdout.splitlines()[-1])
    assert title == "JinaVLM"
    assert answer == expected


def test_space_of_a_checkpoint_on_the_hub(tmp_path, hub, monkeypatch):
    """The weights stay on the Hub."""
    with pytest.raises(OSError, match="me/small"):
        export_to_hub("me/small", tmp_path / "space", space=True)
    assert not (tmp_path / "space").exists()
    monkeypatch.setattr(JinaVLMConfig, "from_pretrained", lambda name: JinaVLMConfig())
    main(["--checkpoint", "me/small", "--output", str(tmp_path / "space"), "--space", "--push", "me/space"])
    assert hub.calls == [("create", "me/space", True), ("upload", "me/space", True)]
    assert hub.kinds == ["space", "space"]
    assert "Answerer('me/small')" in (tmp_path / "space" / "app.py").read_text()
    assert not (tmp_path / "space" / "model").exists()
    assert ModelCard.load(tmp_path / "space" / "README.md").data.models == ["me/small"]
