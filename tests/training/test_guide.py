# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Every block of docs/training.md runs, in order and in one folder, with a small model and few steps."""

import json
import re
import shlex
import tomllib
from concurrent.futures import Future
from pathlib import Path

import pytest
from helpers import make_image
from transformers import HfArgumentParser, Trainer

from examples import memory
from examples.digits.dpo import DPOArguments
from examples.digits.evaluate import MODEL
from examples.digits.grpo import GRPOArguments
from examples.printed_numbers import data, scores
from jvlm.training import finetune, formats


ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", GUIDE, re.M | re.S)
TRAINING_PROGRAMS = {"examples.digits.grpo": GRPOArguments, "examples.digits.dpo": DPOArguments}
SMALL = ["--use_cpu", "--max_steps", "2", "--global_batch_size", "2", "--per_device_train_batch_size", "2"]
SMALL += ["--max_new_tokens", "2", "--disable_tqdm", "true", "--eval_steps", "1", "--save_steps", "1"]


def name_repository(trainer: Trainer, **kwargs) -> None:
    trainer.hub_model_id, trainer.push_in_progress = "me/prices", None


class Hub:
    """Stands in for the Hub."""

    def upload_folder(self, repo_id, folder_path, **kwargs):
        assert repo_id == "me/prices"
        assert (Path(folder_path) / "README.md").is_file()
        done = Future()
        done.set_result(None)
        return done


def run_command(line: str, folder: Path) -> None:
    program, *words = re.split(r"-m (?=jvlm|examples)", line, maxsplit=1)
    if program.startswith("pip install"):
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"\[(\w+)\]", line)) <= set(extras)
        return
    module, *arguments = shlex.split(words[0])
    if module == "examples.memory":
        memory.main([*arguments, "--model_name_or_path", "my-jina-vlm"])
    elif module in TRAINING_PROGRAMS:
        # test_digits_with_trl.py runs them; here, that there are such arguments.
        HfArgumentParser(TRAINING_PROGRAMS[module]).parse_args_into_dataclasses(args=arguments)
    elif module == "examples.printed_numbers.data":
        data.main([*arguments, "--num_train", "4", "--num_test", "2"])
    elif module == "examples.printed_numbers.scores":
        scores.main(arguments)
    elif program.startswith("accelerate launch"):
        # test_distributed.py runs the files; here, that there is such a file and such arguments.
        config = shlex.split(program)[3]
        assert (ROOT / config).is_file()
        finetune.parse_arguments([*arguments, *SMALL])
    else:
        assert (program, module) == ("python ", "jvlm.training.finetune")
        finetune.main([*arguments, *SMALL])


@pytest.fixture
def folder(tmp_path, build_model, build_processor, monkeypatch):
    """A folder with what the guide takes for granted: a model, captions and texts."""
    build_model().save_pretrained(tmp_path / "my-jina-vlm")
    build_processor(max_crops=4).save_pretrained(tmp_path / "my-jina-vlm")
    rows = []
    for number in range(4):
        make_image(60, 90, number).save(tmp_path / f"{number}.png")
        rows.append(json.dumps({"image": f"{number}.png", "caption": "A lake."}))
    (tmp_path / "captions.jsonl").write_text("\n".join(rows))
    texts = [json.dumps({"question": f"{number}?", "answer": "Yes."}) for number in range(4)]
    (tmp_path / "texts.jsonl").write_text("\n".join(texts))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as `python -m` does
    monkeypatch.setattr(Trainer, "init_hf_repo", name_repository)
    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    return tmp_path


def test_blocks_run_in_order(folder):
    kinds = set()
    for number, (kind, block) in enumerate(BLOCKS):
        kinds.add(kind)
        block = (
            block.replace("range(200)", "range(20)")
            .replace("199.png", "19.png")
            .replace("max_steps=20", "max_steps=1")
            .replace("examples/digits/model", str(MODEL))
        )
        if kind == "python":
            exec(compile(block, f"block {number}", "exec"), {"__name__": f"block {number}"})
        elif kind == "yaml":
            name = re.match(r"# (\S+)\n", block)[1]
            (folder / name).write_text(block)
        else:
            assert kind == "bash"
            for line in block.replace("\\\n", "").strip().splitlines():
                run_command(line, folder)
    assert kinds == {"bash", "python", "yaml"}
    # What the guide says that the folder holds.
    table = GUIDE[GUIDE.index("| file | content |") :].split("\n\n")[0]
    for name in re.findall(r"`([\w.]+\.(?:safetensors|json|jinja|md|jsonl|png))`", table):
        assert (folder / "tuned" / name).is_file() or (folder / "adapters" / name).is_file(), name
    assert (folder / "stages" / "instruction" / "answers_prices.jsonl").is_file()


def test_the_tables_of_formats_and_recipes_are_complete():
    columns = GUIDE[GUIDE.index("| columns | conversation |") :].split("\n\n")[0]
    for names, _ in formats.FORMATS.values():
        assert all(f"`{name}`" in columns for name in names)
    files = GUIDE[GUIDE.index("| files | read as |") :].split("\n\n")[0]
    assert all(f"`{end}`" in files for end in (*formats.BUILDERS, *formats.COMPRESSIONS) if end != ".ndjson")
    recipes = GUIDE[GUIDE.index("| `--recipe` |") :].split("\n\n")[0]
    for recipe in finetune.RECIPES:
        (line,) = [line for line in recipes.splitlines() if line.startswith(f"| `{recipe}`")]
        rates = finetune.recipe_defaults(recipe, set())
        expected = [rates[f"{module}_learning_rate"] for module in finetune.MODULES]
        found = line.split("|")[3].replace("none", str(expected[0])).split(",")
        assert [float(rate) for rate in found] == pytest.approx(expected)
