# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""`jvlm batch`: answers to many rows, whatever their format, and after any interruption."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples.digits.pages import COUNT, READ, held_out_pages
from jvlm_cli import batch as command
from jvlm_cli.answering import Answerer, user_message
from jvlm_cli.batch_answers import AnswerLines
from jvlm_cli.batch_rows import LengthBatches, PromptMaker, QuestionFormat, RowReader, open_rows


OPTIONS = ["--device", "cpu", "--max-new-tokens", "16", "--workers", "0"]


@pytest.fixture(scope="module")
def answerer():
    return Answerer(device="cpu", max_new_tokens=16)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A folder with eleven pages of different grids, two of them in a subfolder."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "more").mkdir()
    for number, page in enumerate(held_out_pages(11)):
        page.image.save(folder / ("more" if number > 8 else "") / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def single_answers(answerer, pages):
    """The answer of `jvlm ask` to each page, by its name."""
    names = sorted(str(path.relative_to(pages)) for path in pages.rglob("*.png"))
    return {name: answer_of(answerer, [pages / name], READ) for name in names}


def answer_of(answerer, images, question) -> str:
    return "".join(answerer.stream([user_message(images, question)])).strip()


def lines_of(path) -> list[dict]:
    """The lines of an output in the order of the rows. Every row has one line."""
    lines = sorted(map(json.loads, path.read_text(encoding="utf-8").splitlines()), key=lambda line: line["row"])
    assert len({line["row"] for line in lines}) == len(lines)
    return lines


def write_rows(path, rows) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def test_a_folder_of_images(pages, single_answers, tmp_path, capsys, monkeypatch):
    output = tmp_path / "answers.jsonl"
    assert command.main([str(pages), str(output), "--question", READ, "--batch-size", "4", *OPTIONS]) == 0
    lines = lines_of(output)
    assert {line["id"]: line["answer"] for line in lines} == single_answers
    assert [line["id"] for line in lines] == sorted(single_answers)
    assert {line["question"] for line in lines} == {READ}
    assert {line["finish_reason"] for line in lines} == {"stop"}
    printed = capsys.readouterr()
    assert printed.out == f"11 rows: 11 answers, 0 errors. They are in {output}.\n"
    assert "11/11" in printed.err
    # Nothing is left to do, and no model is loaded. The folder may be relative.
    before = output.read_bytes()
    monkeypatch.chdir(pages.parent)
    assert command.main([pages.name, str(output), "--question", READ, *OPTIONS]) == 0
    assert output.read_bytes() == before


def test_bad_rows_keep_their_line(pages, answerer, single_answers, tmp_path, capsys):
    (tmp_path / "damaged.png").write_bytes((pages / "00.png").read_bytes()[:300])
    (tmp_path / "00.png").write_bytes((pages / "00.png").read_bytes())
    good, page = {"image": "00.png", "question": READ}, str(pages / "01.png")
    rows = [
        {**good, "id": "first", "answer": "not read"},
        "{no JSON\n",
        {"image": "missing.png", "question": READ},
        "\n",
        {"image": "damaged.png", "question": READ, "id": 7},
        {"image": page},
        {"image": page, "question": 3},
        "[1, 2]\n",
        {"images": [page, page], "question": "<image> How many digits are in <image>?"},
        {"images": [page] * 40, "question": READ},
        {"images": [page], "question": "How many digits are there? \ud800"},
        {"conversations": ["hello"], "image": page},
        {"messages": [*messages("00.png"), {"role": "assistant", "content": "5"}], "image": None},
        {"messages": [{"role": "system", "content": "Be brief."}], "images": []},
        {"question": "Ünïcode?", "image": page, "answer": None},
        {"question": "<|image|> <image>\nWhat is <im_patch>?", "image": page},
        {"question": "What is <im_patch>?", "image": page},
    ]
    output = tmp_path / "answers.jsonl"
    assert command.main([str(write_rows(tmp_path / "rows.jsonl", rows)), str(output), *OPTIONS]) == 1
    lines = lines_of(output)
    assert [line["id"] for line in lines] == ["first", 1, 2, 7, *range(4, 16)]
    assert lines[0]["answer"] == lines[11]["answer"] == single_answers["00.png"]
    content = [{"type": "image", "image": page}, {"type": "text", "text": " How many digits are in "}]
    content += [{"type": "image", "image": page}, {"type": "text", "text": "?"}]
    assert lines[7]["answer"] == "".join(answerer.stream([{"role": "user", "content": content}])).strip()
    assert lines[7]["num_image_tokens"] == 2 * lines[13]["num_image_tokens"] > 0
    errors = {
        1: "Line 2: The line is not JSON: ",
        2: f"Line 3: There is no image '{tmp_path / 'missing.png'}'; --image-folder names where relative paths begin.",
        3: "cannot be decoded",
        4: "has no question: its columns are 'image'",
        5: "`question` must be a text, got 3.",
        6: "must be an object with a question and an image, got [1, 2].",
        8: "and the model takes 1024 with the answer",
        9: "Line 11: The prompt contains '\\ud800', an unpaired surrogate",
        10: "AttributeError: ",
        12: "The row has no message of the user to answer.",
        14: "Line 16: The row has <|image|> in its text, which the model would take for one more image. Mark the "
        "place of an image with <image>.",
        15: "Line 17: The prompt contains '<im_patch>', which is reserved",
    }
    assert {line["row"] for line in lines if "error" in line} == set(errors)
    for row, error in errors.items():
        assert error in lines[row]["error"]
        assert "answer" not in lines[row]
    questions = {row: lines[row]["question"] for row in errors}
    assert {row for row, question in questions.items() if question is None} == {1, 4, 5, 6, 10, 12}
    assert questions[2] == questions[3] == questions[8] == READ
    assert questions[14] == "<|image|> What is <im_patch>?"
    assert "Ünïcode?" in output.read_text(encoding="utf-8")
    assert capsys.readouterr().out.startswith("16 rows: 4 answers, 12 errors.")
    # A row without its line is asked again.
    kept = output.read_text(encoding="utf-8").splitlines(keepends=True)
    output.write_text("".join(line for line in kept if '"id": 7,' not in line), encoding="utf-8")
    (tmp_path / "damaged.png").write_bytes((pages / "01.png").read_bytes())
    assert command.main([str(tmp_path / "rows.jsonl"), str(output), *OPTIONS]) == 1
    assert lines_of(output)[3]["answer"] == single_answers["01.png"]


def test_a_row_has_an_image(pages, answerer, tmp_path):
    """It would be answered blindly."""
    rows = [{"question": READ}, {"question": READ, "image": {"foo": 1}}]
    output = tmp_path / "answers.jsonl"
    assert command.main([str(write_rows(tmp_path / "rows.jsonl", rows)), str(output), *OPTIONS]) == 1
    errors = [line["error"] for line in lines_of(output)]
    assert errors == [
        "Line 1: The row has no image; name its column with --columns image=NAME.",
        "Line 2: An image must have `bytes` or a `path`, got {'foo': 1}.",
    ]


def test_a_relative_folder(pages, monkeypatch):
    monkeypatch.chdir(pages.parent)
    rows = open_rows(pages.name)
    reader = RowReader(rows, QuestionFormat.of(pages.name, question=READ))
    assert not reader[0].error


def messages(image) -> list[dict]:
    content = [{"type": "image", "path": image}, {"type": "text", "text": READ}]
    return [{"role": "user", "content": content}]


def test_a_parquet_file(pages, answerer, tmp_path):
    datasets = pytest.importorskip("datasets")
    content = {name: (pages / name).read_bytes() for name in ("00.png", "03.png", "05.png")}
    rows = {"page": [{"bytes": each, "path": None} for each in content.values()], "query": [READ, COUNT, READ]}
    datasets.Dataset.from_dict({**rows, "id": ["a", "b", "c"]}).to_parquet(str(tmp_path / "rows.parquet"))
    output = tmp_path / "answers.jsonl"
    columns = ["--columns", "question=query", "image=page"]
    assert command.main([str(tmp_path / "rows.parquet"), str(output), *columns, *OPTIONS]) == 0
    lines = lines_of(output)
    assert [line["id"] for line in lines] == ["a", "b", "c"]
    expected = [
        answer_of(answerer, [image], query) for image, query in zip(content.values(), rows["query"], strict=True)
    ]
    assert [line["answer"] for line in lines] == expected


def test_an_answer_that_is_cut_says_so(pages, tmp_path):
    output = tmp_path / "answers.jsonl"
    options = ["--question", READ, "--max-new-tokens", "2", "--device", "cpu", "--shard", "1/6"]
    assert command.main([str(pages), str(output), *options]) == 0  # with worker processes
    assert [line["finish_reason"] for line in lines_of(output)] == ["length", "length"]


def test_shards_add_up(pages, single_answers, tmp_path):
    outputs = [tmp_path / f"{number}.jsonl" for number in (1, 2, 3)]
    for number, output in enumerate(outputs, start=1):
        argv = [str(pages), str(output), "--question", READ, "--shard", f"{number}/3", *OPTIONS]
        assert command.main(argv) == 0
    lines = [line for output in outputs for line in lines_of(output)]
    assert sorted(line["row"] for line in lines) == list(range(11))
    assert {line["id"]: line["answer"] for line in lines} == single_answers
    assert command.main([str(pages), str(tmp_path / "12"), "--question", READ, "--shard", "12/12", *OPTIONS]) == 0
    assert (tmp_path / "12").read_bytes() == b""  # more shards than rows


def test_a_killed_run_goes_on(pages, single_answers, tmp_path):
    rows = [
        {"image": str(pages / name), "question": READ, "id": f"{name} {turn}"}
        for turn in range(5)
        for name in single_answers
    ]
    output, argv = tmp_path / "answers.jsonl", [str(write_rows(tmp_path / "rows.jsonl", rows))]
    argv += [str(output), "--batch-size", "2", "--device", "cpu", "--max-new-tokens", "16", "--workers", "1"]
    program = [sys.executable, "-m", "jvlm_cli.main", "batch", *argv]
    source = Path(command.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    with subprocess.Popen(program, env=environment, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (output.is_file() and output.stat().st_size):
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.5))
        process.kill()
    written = output.read_bytes()
    assert 0 < written.count(b"\n") < len(rows)
    output.write_bytes(written + b'{"row": 87, "id": "of a li')  # as a kill within a write leaves it
    assert command.main(argv) == 0
    assert output.read_bytes().startswith(written)
    lines = lines_of(output)
    assert [line["id"] for line in lines] == [row["id"] for row in rows]
    assert all(line["answer"] == single_answers[line["id"].split()[0]] for line in lines)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (None, "exists, and there is no answers.jsonl.settings.json beside it"),
        ("no answer\n", "Line 1 of answers.jsonl is no answer to a row of the input. Delete the line"),
        ('{"row": 5, "answer": ""}\n', "Line 1 of answers.jsonl is no answer to a row of the input."),
        ('{"row": 1}\n', "Line 1 of answers.jsonl is no answer to a row of the input."),
        ('{"row": 1, "answer": ""}\n{"row": 1, "error": ""}\n', "Line 2 of answers.jsonl repeats a row."),
    ],
)
def test_files_of_other_programs_are_not_touched(written, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, text = Path("answers.jsonl"), written or "something else"
    if written:
        with AnswerLines(path, {"model": "m"}, range(3)):
            pass
    path.write_text(text)
    with pytest.raises(ValueError, match=message), AnswerLines(path, {"model": "m"}, range(3)):
        pass
    assert path.read_text() == text


def test_other_settings_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("answers.jsonl")
    with AnswerLines(path, {"model": "m", "rows": 3}, range(3)) as lines:
        lines.append([{"row": 2, "answer": "a"}])
    with (
        pytest.raises(ValueError, match=r"was begun with other settings: model was 'm' and is 'n'\. Repeat"),
        AnswerLines(path, {"model": "n", "rows": 3}, range(3)),
    ):
        pass
    with AnswerLines(path, {"model": "m", "rows": 3}, range(3)) as lines:
        assert lines.done == {2}
    path.unlink()  # another run may begin
    with AnswerLines(path, {"model": "n", "rows": 3}, range(3)) as lines:
        assert lines.done == set()


def test_two_processes_cannot_write_one_file(tmp_path):
    pytest.importorskip("fcntl")
    program = "from jvlm_cli.batch_answers import *; AnswerLines(Path('answers.jsonl'), {}, range(3)).__enter__()"
    with AnswerLines(tmp_path / "answers.jsonl", {}, range(3)):
        environment = {"PYTHONPATH": str(Path(command.__file__).parents[1])}
        process = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True)
    assert b"ValueError: answers.jsonl is in use by another process." in process.stderr


def test_a_run_that_fails_before_its_first_answer_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="no model"), AnswerLines(tmp_path / "answers.jsonl", {}, range(3)):
        raise OSError("no model")
    assert list(tmp_path.iterdir()) == []


def test_a_changed_input_is_refused(pages, tmp_path, capsys):
    rows = [{"image": str(pages / "00.png"), "question": READ}]
    argv = [str(write_rows(tmp_path / "rows.jsonl", rows)), str(tmp_path / "answers.jsonl"), *OPTIONS]
    assert command.main(argv) == 0
    write_rows(tmp_path / "rows.jsonl", rows * 2)
    with pytest.raises(SystemExit) as exit_info:
        command.main(argv)
    assert exit_info.value.code == 2
    assert "was begun with other settings: files of the input was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["PAGES", "a.jsonl"], "is a folder of images; give the --question about them."),
        (["missing.jsonl", "a.jsonl"], "missing.jsonl"),
        (["missing.parquet", "a.jsonl"], "There is no file or folder 'missing.parquet'."),
        (["empty", "a.jsonl", "--question", "Why?"], "empty has no rows."),
        (["rows.jsonl", "none/a.jsonl"], "none/a.jsonl: there is no folder"),
        (["rows.jsonl", "empty"], "empty is a folder; name a file for the answers."),
        (["rows.jsonl", "rows.jsonl"], "rows.jsonl exists, and there is no rows.jsonl.settings.json beside it"),
        (["rows.jsonl", "a.jsonl", "--columns", "question=ask"], "rows.jsonl has no column 'ask'"),
        (["rows.jsonl", "a.jsonl", "--columns", "quest=ask"], "Columns can be mapped to"),
        (["rows.jsonl", "a.jsonl", "--question", "Why?"], "has a column `question`"),
        (["rows.jsonl", "a.jsonl", "--shard", "3/2"], "'3/2' must be I/N with I from 1 to N, such as 1/4"),
        (["rows.jsonl", "a.jsonl", "--columns", "query"], "'query' must be NAME=COLUMN, such as question=query"),
        (["rows.jsonl", "a.jsonl", "--batch-size", "0"], "'0' must be a positive integer"),
        (["rows.jsonl", "a.jsonl", "--max-crops", "0"], "`max_crops`"),
        (["rows.jsonl", "a.jsonl", "--model", "empty"], "empty"),
        (["rows.jsonl", "a.jsonl", "--image_folder", "empty"], "unrecognized arguments: --image_folder empty"),
        (["rows.jsonl", "a.jsonl", "--engine", "vllm", "--device", "cpu"], "--device is not for --engine vllm"),
        (["rows.jsonl", "a.jsonl", "--vllm-args", "{}"], None),
        (["rows.jsonl", "a.jsonl", "--vllm-args", "{bad"], "'{bad' is not JSON"),
        (["rows.jsonl", "a.jsonl", "--vllm-args", '{"seed": 1}'], "--vllm-args is for --engine vllm only."),
        (["rows.jsonl", "a.jsonl", "--engine", "vllm"], "--engine vllm needs vLLM 0.32"),
    ],
)
def test_what_cannot_run_is_status_2(pages, argv, message, tmp_path, monkeypatch, capsys):
    if argv[0].endswith(".parquet"):
        pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "vllm", None)
    (tmp_path / "empty").mkdir()
    rows = write_rows(tmp_path / "rows.jsonl", [{"question": READ, "image": str(pages / "00.png")}])
    before = rows.read_bytes()
    argv = [str(pages) if part == "PAGES" else part for part in argv]
    if message is None:
        assert command.main([*argv, *OPTIONS[2:]]) == 0
        return
    with pytest.raises(SystemExit) as exit_info:
        command.main([*argv, "--workers", "0"])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "rows.jsonl"]
    assert rows.read_bytes() == before


def test_control_c_says_how_to_go_on(monkeypatch, capsys):
    monkeypatch.setattr(command, "batch", lambda **arguments: next(interrupted()))
    assert command.main(["rows.jsonl", "answers.jsonl"]) == 130
    assert "jvlm batch: interrupted. The same command goes on from here." in capsys.readouterr().err


def interrupted():
    raise KeyboardInterrupt
    yield


def test_batches_have_similar_lengths(pages, answerer):
    rows = open_rows(str(pages))
    reader = RowReader(rows, QuestionFormat.of(str(pages), question=READ))
    maker = PromptMaker(answerer.processor, {}, 1024)
    numbers = [0, 1, 2, 3, 4, 5, 6, 7, 8, 10]
    batches = list(LengthBatches(numbers, 2, reader, maker))
    assert sorted(number for batch in batches for number in batch) == numbers
    lengths = [maker.inputs([reader[number]])["input_ids"].shape[1] for batch in batches for number in batch]
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 4
    assert next(iter(LengthBatches(numbers, 4, reader, None))) == numbers[:4]


def test_vllm_gives_the_same_answers(pages, single_answers, tmp_path):
    pytest.importorskip("vllm", reason="`make vllm` runs it")
    rows = [{"image": str(pages / name), "question": READ, "id": name} for name in single_answers]
    rows += [{"image": "missing.png", "question": READ}, {"question": "What is \ud800?"}]
    outputs, argv = [], ["--max-new-tokens", "16", "--workers", "1"]
    for engine in (["--engine", "vllm", "--vllm-args", '{"enforce_eager": true}'], []):
        outputs.append(tmp_path / f"{len(engine)}.jsonl")
        arguments = [str(write_rows(tmp_path / "rows.jsonl", rows)), str(outputs[-1]), *argv, *engine]
        program = [sys.executable, "-m", "jvlm_cli.main", "batch", *arguments]
        settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        assert subprocess.run(program, env={**os.environ, **settings}).returncode == 1
    assert lines_of(outputs[0]) == lines_of(outputs[1])
    assert {line["id"]: line["answer"] for line in lines_of(outputs[0]) if "answer" in line} == single_answers


def test_an_engine_that_refuses_one_row_answers_the_others():
    from jvlm_cli.batch_engines import VllmEngine
    from jvlm_cli.batch_rows import Row, RowBatch

    class Engine(VllmEngine):
        def __init__(self):
            pass

        def _answer(self, rows):
            if any(row.number == 1 for row in rows):
                raise ValueError("too\nlong")
            return [{"answer": str(row.number)} for row in rows]

    batch = RowBatch([Row(number, number) for number in range(3)], [])
    assert Engine()(batch) == [{"answer": "0"}, {"error": "too long"}, {"answer": "2"}]
