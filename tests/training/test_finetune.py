# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The fine-tuning command, from data files to a model card."""

import json
import math
import re

import pytest
import torch
import yaml
from helpers import make_image
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer

from jvlm.training import STAGES, finetune
from jvlm.training.evaluation import generate_answers


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder that the tests of this module share. They do not change what is in it."""
    return tmp_path_factory.mktemp("finetune")


@pytest.fixture
def checkpoint(shared, build_model, build_processor):
    """The folder of a new small model and its processor, with the licence of a model card."""
    if not (shared / "checkpoint").exists():
        build_model().save_pretrained(shared / "checkpoint")
        build_processor().save_pretrained(shared / "checkpoint")
        card = "---\nlicense: cc-by-nc-4.0\nbase_model: some/base\n---\n# Base\n"
        (shared / "checkpoint" / "README.md").write_text(card)
    return shared / "checkpoint"


@pytest.fixture
def rows_folder(shared, build_row):
    """A folder with train.jsonl, test.jsonl and their images. Two of the questions in test.jsonl are the same."""
    folder = shared / "rows"
    if folder.exists():
        return folder
    (folder / "images").mkdir(parents=True)
    number = 0
    for split, count in (("train", 6), ("test", 3)):
        lines = []
        for _ in range(count):
            row = build_row(min(number, 7), num_images=1 + number % 2)
            paths = [f"images/{number}-{index}.png" for index in range(len(row["images"]))]
            for path, image in zip(paths, row["images"], strict=True):
                image.save(folder / path)
            lines.append(json.dumps({"messages": row["messages"], "images": paths}) + "\n")
            number += 1
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


def run(checkpoint, dataset, output, *arguments) -> None:
    defaults = {
        "model_name_or_path": checkpoint,
        "dataset_name": dataset,
        "output_dir": output,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "max_new_tokens": 8,
    }
    words = [str(word) for name, value in defaults.items() for word in (f"--{name}", value)]
    finetune.main([*words, "--use_cpu", "--disable_tqdm", "true", *arguments])


def parse(*arguments, **settings):
    """The arguments of one run on the CPU."""
    words = ["--model_name_or_path", "m", "--use_cpu", *arguments]
    (parsed,) = finetune.parse_arguments([*words, *finetune._words(settings)])
    return parsed


def weights(folder, **options) -> dict[str, torch.Tensor]:
    return AutoModelForImageTextToText.from_pretrained(folder, **options).state_dict()


def test_finetuning_writes_model_log_answers_and_card(checkpoint, rows_folder, tmp_path, monkeypatch):
    output = tmp_path / "tuned"
    run(checkpoint, rows_folder, output, "--dataset_test_split", "test", "--max_crops", "5")
    model, processor = AutoModelForImageTextToText.from_pretrained(output), AutoProcessor.from_pretrained(output)
    assert not torch.equal(model.lm_head.weight, weights(checkpoint)["lm_head.weight"])
    log = json.loads((output / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2]
    for name in ("losses.png", "scores.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG")

    answers = [json.loads(line) for line in (output / "answers.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (rows_folder / "test.jsonl").read_text().splitlines()]
    assert [answer["reference"] for answer in answers] == [row["messages"][1]["content"][0]["text"] for row in rows]
    for row in rows:
        row["images"] = [str(rows_folder / image) for image in row["images"]]
    again = generate_answers(model, processor, rows, batch_size=1, max_new_tokens=8)
    assert again == [{key: value for key, value in answer.items() if key != "score"} for answer in answers]
    metrics = json.loads((output / "eval_results.json").read_text())
    assert metrics["eval_exact_answers"] == sum(answer["answer"] == answer["reference"] for answer in answers) / 3
    assert math.isfinite(metrics["eval_loss"])

    # The model card
    card = ModelCard.load(output / "README.md")
    assert card.data.to_dict() == {
        "base_model": "some/base",
        "library_name": "transformers",
        "license": "cc-by-nc-4.0",
        "pipeline_tag": "image-text-to-text",
        "tags": ["jvlm"],
    }
    for part in (
        "| vision tower learning rate | 0.01 |",
        "| connector learning rate | 0.01 |",
        "| steps | 2 |",
        "| rows per step | 2 |",
        "| max crops | 5 |",
        "| recipe | full |",
        f"| exact answers | {metrics['eval_exact_answers']:.1%} |",
        "| Which image is darker 7 0? | 2 |",
        "Licence: cc-by-nc-4.0",
    ):
        assert part in card.text, part
    assert str(tmp_path) not in card.content
    assert str(rows_folder) not in card.content
    run_snippet(card, tmp_path, monkeypatch)


def run_snippet(card: ModelCard, folder, monkeypatch) -> None:
    """Runs the snippet of a card beside the folder of its model."""
    make_image(60, 90).save(folder / "photo.jpg")
    monkeypatch.chdir(folder)
    (snippet,) = re.findall(r"```python\n(.*?)```", card.text, re.S)
    namespace = {}
    exec(snippet, namespace)
    assert namespace["output"].shape[1] > namespace["inputs"]["input_ids"].shape[1]


def test_the_card_is_written_before_the_push(checkpoint, rows_folder, tmp_path, monkeypatch):
    pushed = []

    def name_repository(trainer, **kwargs):
        trainer.hub_model_id, trainer.push_in_progress = "me/tuned", None

    class Hub:
        def upload_folder(self, repo_id, folder_path, **kwargs):
            pushed.append((repo_id, (tmp_path / "tuned" / "README.md").read_text()))

    monkeypatch.setattr(Trainer, "init_hf_repo", name_repository)
    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    options = ("--dataset_test_split", "test", "--push_to_hub", "--hub_model_id", "me/tuned")
    run(checkpoint, rows_folder, tmp_path / "tuned", *options)
    assert [repository for repository, _ in pushed] == ["me/tuned"]
    assert "| exact answers |" in pushed[0][1]
    assert 'from_pretrained("me/tuned"' in pushed[0][1]


def test_the_best_checkpoint_by_answers_is_kept(checkpoint, rows_folder, tmp_path, monkeypatch):
    scores = iter([0.25, 0.75, 0.5, 0.75])
    monkeypatch.setattr(finetune.AnswerTrainer, "_mean_score", lambda self, answers: next(scores))
    run(
        *(checkpoint, rows_folder, tmp_path / "tuned", "--dataset_test_split", "test", "--max_steps", "3"),
        *("--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "1"),
        *("--load_best_model_at_end", "true", "--metric_for_best_model", "exact_answers"),
    )
    best, last = (weights(tmp_path / "tuned" / f"checkpoint-{step}") for step in (2, 3))
    for name, tensor in weights(tmp_path / "tuned").items():
        assert torch.equal(tensor, best[name]), name
    assert not torch.equal(best["lm_head.weight"], last["lm_head.weight"])
    log = json.loads((tmp_path / "tuned" / "trainer_state.json").read_text())["log_history"]
    assert [entry["eval_exact_answers"] for entry in log if "eval_exact_answers" in entry] == [0.25, 0.75, 0.5, 0.75]


# Recipes


@pytest.mark.parametrize("recipe", finetune.ADAPTER_RECIPES)
def test_adapters_train_on_bfloat16_in_float32(checkpoint, rows_folder, tmp_path, recipe, monkeypatch):
    if recipe == "qlora":
        pytest.importorskip("bitsandbytes")
    output = tmp_path / "adapter"
    options = ("--recipe", recipe, "--bf16", "true", "--lora_dropout", "0")
    run(checkpoint, rows_folder, output, *options, "--dataset_test_split", "test")
    saved = load_file(output / "adapter_model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.float32}
    assert not (output / "model.safetensors").exists()
    before = weights(checkpoint, dtype="bfloat16")
    for name, weight in saved.items():
        if "lora_B" in name:  # begins with zeros
            assert weight.abs().max() > 0, name
        elif "connector" in name and not name.endswith("k_proj.bias"):  # has no gradient but rounding errors
            assert not torch.equal(weight, before[name.removeprefix("base_model.model.")].float()), name
    with_adapters = {name.split(".lora_")[0].rpartition(".")[2] for name in saved if ".lora_" in name}
    assert with_adapters == {
        *("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),  # vision tower
        *("o_proj", "gate_proj", "up_proj", "down_proj"),
    }
    assert ("lora_magnitude_vector" in " ".join(saved)) == (recipe == "dora")
    assert len((output / "answers.jsonl").read_text().splitlines()) == 3
    card = ModelCard.load(output / "README.md")
    assert (card.data.library_name, card.data.license) == ("peft", "cc-by-nc-4.0")
    assert f"| recipe | {recipe} |" in card.text
    assert str(checkpoint) not in card.content
    if recipe == "lora":
        run_snippet(card, tmp_path, monkeypatch)
        merged = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(checkpoint), output)
        name = "model.language_model.layers.0.self_attn.q_proj.weight"
        assert not torch.equal(merged.merge_and_unload().state_dict()[name], weights(checkpoint)[name])


def test_packed_rows_give_the_weights_of_padded_ones(checkpoint, rows_folder, tmp_path):
    run(checkpoint, rows_folder, tmp_path / "padded", "--learning_rate", "1e-3")
    run(checkpoint, rows_folder, tmp_path / "packed", "--learning_rate", "1e-3", "--packing")
    losses = [
        [
            entry["loss"]
            for entry in json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"][:2]
        ]
        for name in ("padded", "packed")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert "| packing | yes |" in (tmp_path / "packed" / "README.md").read_text()


def test_adapters_on_bfloat16_need_autocast(checkpoint, rows_folder, tmp_path):
    with pytest.raises(ValueError, match="--bf16"):
        run(checkpoint, rows_folder, tmp_path, "--recipe", "lora", "--dtype", "bfloat16")


def test_frozen_tower(checkpoint, rows_folder, tmp_path):
    run(checkpoint, rows_folder, tmp_path / "tuned", "--recipe", "frozen_tower")
    before = weights(checkpoint)
    for name, tensor in weights(tmp_path / "tuned").items():
        if not name.endswith("k_proj.bias"):  # has no gradient but rounding errors
            assert torch.equal(tensor, before[name]) == ("vision_tower" in name), name
    card = (tmp_path / "tuned" / "README.md").read_text()
    assert "| vision tower learning rate | none, it is frozen |" in card
    assert "| freeze | vision_tower |" in card
    assert "None: no rows were held out." in card


def rates(arguments) -> tuple:
    return tuple(getattr(arguments[2], f"{module}_learning_rate") for module in finetune.MODULES)


@pytest.mark.parametrize("recipe", ["lora", "qlora"])
def test_adapters_beside_a_frozen_tower_train_on_kept_features(checkpoint, rows_folder, tmp_path, recipe):
    options = ("--recipe", recipe, "--freeze", "vision_tower", "--lora_dropout", "0")
    if recipe == "qlora":
        pytest.importorskip("bitsandbytes")
        options += ("--bf16", "true")
    run(checkpoint, rows_folder, tmp_path / "kept", *options, "--keep_vision_features", str(tmp_path / "features"))
    run(checkpoint, rows_folder, tmp_path / "plain", *options)
    assert list((tmp_path / "features").glob("*.safetensors"))
    saved, plain = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("kept", "plain"))
    assert not any("vision_tower" in name for name in saved)
    assert any("language_model" in name and ".lora_B" in name for name in saved)
    for name, tensor in saved.items():
        # Tiles are encoded in other batches, which rounds otherwise.
        tolerance = {"rtol": 1e-5, "atol": 1e-6} if recipe == "lora" else {"rtol": 0, "atol": 1e-3}
        torch.testing.assert_close(tensor, plain[name], **tolerance, msg=name)


def test_recipes_set_rates_unless_some_are_given():
    second = STAGES["instruction"]
    paper = tuple(second[f"{module}_learning_rate"] for module in finetune.MODULES)
    assert rates(parse()) == rates(parse("--recipe", "frozen_tower")) == paper
    assert rates(parse("--recipe", "lora")) == (20 * paper[0], paper[1], 20 * paper[2])
    assert parse("--recipe", "frozen_tower")[2].freeze == ["vision_tower"]
    assert parse("--recipe", "frozen_tower", "--freeze", "connector")[2].freeze == ["connector"]
    # Given for all modules, for one of them, or by a stage.
    assert rates(parse("--learning_rate", "1e-3")) == (None, None, None)
    assert rates(parse("--connector_learning_rate", "1e-3")) == (paper[0], 1e-3, paper[2])
    stage = tuple(STAGES["alignment"][f"{module}_learning_rate"] for module in finetune.MODULES)
    assert rates(parse("--stage", "alignment", "--global_batch_size", "8")) == stage
    assert parse()[2].warmup_steps == 0.1
    assert parse("--warmup_steps", "7")[2].warmup_steps == 7


# Data


def test_test_rows_are_not_those_of_the_training(checkpoint, rows_folder, tmp_path):
    file = rows_folder / "train.jsonl"
    for split in ("train", "train[:50%]", "train+test"):
        with pytest.raises(ValueError, match=r"has rows of the split 'train'.*train\[90%:\]"):
            run(checkpoint, file, tmp_path, "--dataset_test_split", split)
    with pytest.raises(ValueError, match="has rows of the split 'train'"):
        run(checkpoint, file, tmp_path, "--dataset_test_name", str(file))
    with pytest.raises(ValueError, match="no split 'test', but 'train'"):
        run(checkpoint, file, tmp_path, "--dataset_test_split", "test")
    held_out = parse("--dataset_train_split", "train[:50%]", "--dataset_test_split", "train[50%:]")[1]
    held_out.dataset_name = str(file)
    train, test = finetune.load_training_rows(held_out, None)[0], finetune.load_test_rows(held_out)[0]
    assert {row["images"][0] for row in train} & {row["images"][0] for row in test} == set()
    assert len(train) == len(test) == 3


def test_answers_are_scored_by_any_function(checkpoint, rows_folder, tmp_path, monkeypatch):
    (tmp_path / "my_scores.py").write_text("def length(answer, reference):\n    return len(reference)\n")
    monkeypatch.syspath_prepend(tmp_path)
    best = ("--eval_strategy", "steps", "--save_strategy", "steps", "--save_steps", "1", "--eval_steps", "1")
    best += ("--load_best_model_at_end", "--metric_for_best_model", "length")
    options = ("--dataset_test_split", "test", "--score", "my_scores:length", *best)
    run(checkpoint, rows_folder, tmp_path / "tuned", *options)
    answers = [json.loads(line) for line in (tmp_path / "tuned" / "answers.jsonl").read_text().splitlines()]
    metrics = json.loads((tmp_path / "tuned" / "eval_results.json").read_text())
    assert metrics["eval_length"] == sum(len(answer["reference"]) for answer in answers) / len(answers)
    state = json.loads((tmp_path / "tuned" / "trainer_state.json").read_text())
    assert state["best_metric"] == metrics["eval_length"]
    assert "| question | answers | length |" in (tmp_path / "tuned" / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("missing_module:score", "there is no module 'missing_module'"),
        ("json:score", "must name a function of answer and reference, as module:function"),
        ("length", "there is no module 'length'"),
        (":score", "must name a function"),
    ],
)
def test_scores_that_do_not_exist_are_errors(name, problem):
    with pytest.raises(ValueError, match=f"--score is '{name}', but {problem}"):
        parse("--score", name)


def test_unknown_columns_and_no_rows_are_errors_before_the_model_loads(tmp_path, rows_folder):
    (tmp_path / "rows.jsonl").write_text('{"query": "Q?", "label": "A."}\n')
    arguments = parse("--dataset_columns", "question=query")[1]
    arguments.dataset_name = str(tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match=r"are 'question' \(str\).*--dataset_columns"):
        finetune.load_training_rows(arguments, None)
    with pytest.raises(ValueError, match=r"'question'.*pairs such as question=query"):
        parse("--dataset_columns", "question")
    with pytest.raises(ValueError, match="--dataset_name"):
        finetune.load_training_rows(parse()[1], None)
    (tmp_path / "none.csv").write_text("question,answer\n")
    arguments.dataset_name, arguments.streaming = str(tmp_path / "none.csv"), True
    with pytest.raises(ValueError, match=r"none.csv has no rows"):
        finetune.load_training_rows(arguments, None)


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_bad_rows_are_skipped_and_counted(checkpoint, rows_folder, tmp_path, streaming, caplog):
    lines = (rows_folder / "train.jsonl").read_text().splitlines()
    bad = json.loads(lines[0])
    (rows_folder / "images" / "broken.png").write_bytes((rows_folder / "images" / "0-0.png").read_bytes()[:60])
    for number, images in enumerate((["images/missing.png"], ["images/broken.png"], [])):
        lines.insert(2 * number, json.dumps({**bad, "images": images}))
    file = rows_folder / f"bad-{streaming}.jsonl"
    file.write_text("\n".join(lines))
    options = ("--streaming", streaming, "--max_steps", "3", "--per_device_train_batch_size", "3")
    try:
        with pytest.raises(ValueError, match=r"Row . of the batch"):
            run(checkpoint, file, tmp_path / "refused", *options)
        run(checkpoint, file, tmp_path / "tuned", *options, "--skip_bad_rows")
    finally:
        file.unlink()
        (rows_folder / "images" / "broken.png").unlink()
    assert "| skipped rows | 3 |" in (tmp_path / "tuned" / "README.md").read_text()
    assert all(math.isfinite(tensor.sum()) for tensor in weights(tmp_path / "tuned").values())


def test_rows_are_grouped_by_length_without_decoding(checkpoint, rows_folder, tmp_path, monkeypatch):
    processor = AutoProcessor.from_pretrained(checkpoint)
    settings = {"per_device_train_batch_size": 2, "output_dir": str(tmp_path / "grouped")}
    arguments = parse("--train_sampling_strategy", "group_by_length", **settings)
    arguments[1].dataset_name = str(rows_folder)
    rows, row_format = finetune.load_training_rows(arguments[1], arguments[2])
    collator = finetune.RowCollator(processor, row_format)
    expected = [collator([row])["input_ids"].shape[1] for row in rows]
    monkeypatch.setattr("PIL.Image.Image.load", None)
    rows = finetune.add_lengths(rows, collator, arguments[2])
    assert list(rows["length"]) == expected
    model = torch.nn.Linear(1, 1)
    trainer = Trainer(model, arguments[2], collator, rows, processing_class=processor)
    assert trainer._get_train_sampler().lengths == expected
    monkeypatch.undo()
    run(checkpoint, rows_folder, tmp_path / "tuned", "--train_sampling_strategy", "group_by_length")
    assert (tmp_path / "tuned" / "model.safetensors").is_file()


def test_resumed_run_gives_the_same_weights(checkpoint, rows_folder, tmp_path):
    saving = ("--save_strategy", "steps", "--save_steps", "2", "--max_steps", "4")
    run(checkpoint, rows_folder, tmp_path / "straight", *saving)
    run(checkpoint, rows_folder, tmp_path / "resumed", *saving)
    (tmp_path / "resumed" / "checkpoint-4" / "trainer_state.json").unlink()
    run(checkpoint, rows_folder, tmp_path / "resumed", *saving, "--resume_from_checkpoint", "true")
    expected = weights(tmp_path / "straight")
    for name, tensor in weights(tmp_path / "resumed").items():
        assert torch.equal(tensor, expected[name]), name


# The command


def test_help_shows_the_options(capsys):
    with pytest.raises(SystemExit):
        finetune.main(["--help"])
    output = capsys.readouterr().out
    for option in ("--model_name_or_path", "--recipe", "--dataset_columns", "--learning_rate", "--stage", "--config"):
        assert option in output
    assert "train[:90%]" in output


def test_configuration_files_set_arguments_and_runs(tmp_path):
    file = tmp_path / "run.yaml"
    settings = {"model_name_or_path": "m", "use_cpu": True, "output_dir": str(tmp_path), "freeze": ["connector"]}
    file.write_text(yaml.safe_dump({**settings, "max_steps": 5, "learning_rate": 1e-4}))
    ((_, _, args),) = finetune.parse_arguments(["--config", str(file), "--max_steps", "7"])
    assert (args.max_steps, args.learning_rate, args.freeze) == (7, 1e-4, ["connector"])
    runs = [{"name": "first", "stage": "alignment", "max_steps": 3}, {"name": "second", "recipe": "lora"}]
    common = {"global_batch_size": 8, **settings}
    file.write_text(yaml.safe_dump({**common, "runs": runs}))
    first, second = finetune.parse_arguments(["--config", str(file), "--seed", "3"])
    assert (first[0].model_name_or_path, second[0].model_name_or_path) == ("m", str(tmp_path / "first"))
    assert (first[2].output_dir, second[2].output_dir) == (str(tmp_path / "first"), str(tmp_path / "second"))
    assert (first[2].max_steps, first[2].seed, second[2].seed, second[0].recipe) == (3, 3, 3, "lora")
    file.write_text("- 1\n")
    with pytest.raises(ValueError, match=r"run.yaml must set arguments by name"):
        finetune.parse_arguments(["--config", str(file)])
    file.write_text("model: m\n")
    with pytest.raises(SystemExit):
        finetune.parse_arguments(["--config", str(file)])


def test_answers_of_sharded_models_run_the_tower_without_images(build_model, build_processor, build_row, monkeypatch):
    """Processes whose rows have no images run the vision tower, too, for which the others wait."""
    model, processor = build_model(), build_processor()
    rows = [build_row(number, num_images=0) for number in range(3)]
    calls = []
    model.model.vision_tower.register_forward_pre_hook(lambda *_: calls.append(1))
    expected = generate_answers(model, processor, rows, 2, 4)
    assert not calls
    generate = model.generate  # which would ask the other process
    monkeypatch.setattr(model, "generate", lambda synced_gpus, **inputs: generate(**inputs))
    by_rank = [generate_answers(model, processor, rows, 1, 4, rank, 2, synced_gpus=True) for rank in range(2)]
    # The second process has one row less, and answers another one for the others' sake.
    assert len(calls) == 4
    assert [len(answers) for answers in by_rank] == [2, 1]
    assert sorted(by_rank[0] + by_rank[1], key=lambda answer: answer["row"]) == expected
