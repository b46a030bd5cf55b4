# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Data formats: from files as they are found to the exact conversations, without training."""

import gzip
import io
import json
import pickle
import re
import tarfile

import datasets
import pytest
import torch
from helpers import encode_image, make_image

from jvlm.training import DataCollatorForJinaVLM, formats
from jvlm.training.formats import FORMATS, RowCollator, RowFormat, check_test_rows, load_rows


IMAGE, OTHER = {"type": "image"}, "b.png"
MESSAGES = [
    {"role": "user", "content": [IMAGE, {"type": "text", "text": "What is this?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A lake."}]},
]
EXPECTED = {"messages": MESSAGES, "images": ["a.png"]}
STRINGS = [{"role": "user", "content": "What is this?"}, {"role": "assistant", "content": "A lake."}]
LLAVA = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A lake."}]
ROWS = {
    "messages+images": {"messages": MESSAGES, "images": ["a.png"]},
    "messages+image": {"messages": MESSAGES, "image": "a.png"},
    "strings+images": {"messages": STRINGS, "images": ["a.png"]},
    "strings+image": {"messages": STRINGS, "image": "a.png"},
    "conversations": {"id": "1", "image": "a.png", "conversations": LLAVA},
    "texts": {"images": ["a.png"], "texts": [{"user": "What is this?", "assistant": "A lake.", "source": "x"}]},
    "prompt/completion": {"prompt": "What is this?", "completion": "A lake.", "image": "a.png"},
    "prompt/completion messages": {"prompt": STRINGS[:1], "completion": STRINGS[1:], "images": ["a.png"]},
    "question/answer": {"image": "a.png", "question": "What is this?", "answer": "A lake."},
    "question/answers": {"image": "a.png", "question": "What is this?", "answers": ["A lake.", "Water."]},
}


@pytest.fixture(scope="module")
def image_bytes():
    """Two encoded images by file name."""
    return {"a.png": encode_image(make_image(60, 90)), OTHER: encode_image(make_image(90, 60, 1))}


@pytest.fixture
def folder(tmp_path, image_bytes, monkeypatch):
    """A folder with two images. 🤗 Datasets has its cache beside it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    for name, content in image_bytes.items():
        (tmp_path / "data" / name).write_bytes(content)
    return tmp_path / "data"


def read(name, split="train", streaming=False, **options) -> list[dict]:
    """The standard rows of a data set, with the file names of their images."""
    row_format = RowFormat(image_folder=str(name if name.is_dir() else name.parent), **options)
    return [with_names(row_format(row)) for row in load_rows(str(name), split, streaming=streaming)]


def with_names(row: dict) -> dict:
    images = [image["path"] if isinstance(image, dict) else image for image in row["images"]]
    return {**row, "images": [str(image).rsplit("/")[-1] for image in images]}


def write_lines(path, rows) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


def write_tar(path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


# Columns


@pytest.mark.parametrize("name", list(ROWS))
@pytest.mark.parametrize("streaming", [False, True])
def test_columns(folder, name, streaming):
    write_lines(folder / "rows.jsonl", [ROWS[name]])
    assert read(folder / "rows.jsonl", streaming=streaming) == [EXPECTED]


def test_every_format_is_tested():
    assert set(FORMATS) <= {*ROWS, "messages"}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<image>\nRead it.", [IMAGE, "Read it."]),
        ("Read it.\n<image>", ["Read it.", IMAGE]),
        ("Is <image> darker?", ["Is ", IMAGE, " darker?"]),
        ("<image><image>Well?", [IMAGE, IMAGE, "Well?"]),
        ("A: <image>\nB: <image>\n\nWell?", ["A: ", IMAGE, "B: ", IMAGE, "\nWell?"]),
    ],
)
@pytest.mark.parametrize("as_part", [False, True])
def test_markers_become_image_parts_at_their_place(text, parts, as_part):
    content = [{"type": "text", "text": text}] if as_part else text
    images = [make_image(9, 9)] * parts.count(IMAGE)
    row = RowFormat()({"messages": [{"role": "user", "content": content}, *STRINGS[1:]], "images": images})
    expected = [part if part == IMAGE else {"type": "text", "text": part} for part in parts]
    assert row["messages"][0]["content"] == expected
    assert row["images"] == images


def test_markers_in_later_turns_and_other_markers():
    turns = [*STRINGS, {"role": "user", "content": "And <img>?"}, STRINGS[1]]
    row = RowFormat(image_marker="<img>")({"messages": turns, "image": make_image(9, 9)})
    assert [len(message["content"]) for message in row["messages"]] == [1, 1, 3, 1]
    assert row["messages"][2]["content"][1] == IMAGE


@pytest.mark.parametrize("text", ["What does <image> mean?", "<image>\n<image>\nWhat?"])
def test_markers_that_do_not_fit_the_images_are_an_error(text):
    images = ["a.png"] if text.count("<image>") == 2 else []
    row = {"messages": [{"role": "user", "content": text}, *STRINGS[1:]], "images": images}
    with pytest.raises(ValueError, match=rf"{text.count('<image>')} '<image>' for {len(images)} images.*image_marker"):
        RowFormat(image_folder=None)({**row, "images": [make_image(9, 9)] * len(images)})
    as_text = RowFormat(image_marker="")({**row, "images": []})
    assert as_text["messages"][0]["content"] == [{"type": "text", "text": text}]


def test_markers_beside_image_parts_are_an_error():
    content = [IMAGE, {"type": "text", "text": "<image>\nWhat?"}]
    row = {"messages": [{"role": "user", "content": content}, *STRINGS[1:]], "image": make_image(9, 9)}
    with pytest.raises(ValueError, match=r"1 '<image>' beside 1 \{\"type\": \"image\"\} parts"):
        RowFormat()(row)


@pytest.mark.parametrize("num_images", [0, 2])
def test_image_parts_that_do_not_fit_the_images_are_an_error(num_images):
    with pytest.raises(ValueError, match=f"1 .*parts for {num_images} images"):
        RowFormat()({"messages": MESSAGES, "images": [make_image(9, 9)] * num_images})


def test_columns_can_be_mapped(folder):
    write_lines(folder / "rows.jsonl", [{"query": "What is this?", "label": "A lake.", "page": "a.png", "text": "x"}])
    columns = {"question": "query", "answer": "label", "image": "page"}
    assert read(folder / "rows.jsonl", columns=columns) == [EXPECTED]
    with pytest.raises(
        ValueError, match=r"(?s)'query' \(str\), 'label' \(str\).*question \+ answer.*--dataset_columns"
    ):
        read(folder / "rows.jsonl")
    with pytest.raises(ValueError, match=r"no column 'labels'; its columns are query, label, page, text"):
        read(folder / "rows.jsonl", columns={**columns, "answer": "labels"})
    with pytest.raises(ValueError, match=r"mapped to messages, .*, not to 'reply'"):
        RowFormat(columns={"reply": "label"})


def test_mapped_columns_win_over_known_ones():
    row = {"messages": STRINGS, "image": "x", "question": "Q?", "answer": "A.", "page": make_image(9, 9)}
    columns = {"question": "question", "answer": "answer", "image": "page"}
    found = RowFormat(columns=columns)(row)
    assert found["messages"][1]["content"] == [{"type": "text", "text": "A."}]
    assert found["images"] == [row["page"]]


def test_captions_take_one_question_for_all(folder):
    write_lines(folder / "rows.jsonl", [{"image": "a.png", "caption": "A lake."}])
    options = {"columns": {"answer": "caption"}, "question": "What is this?"}
    assert read(folder / "rows.jsonl", **options) == [EXPECTED]
    with pytest.raises(ValueError, match="takes no question for all rows"):
        RowFormat(question="What?")({"question": "Q?", "answer": "A."})


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": "no JSON"}, "`messages` is a string, but not of JSON"),
        ({"messages": []}, "`messages` must be a list of messages"),
        ({"messages": ["hello"]}, "dicts with `role` and `content`"),
        ({"messages": [{"role": "user", "content": 5}]}, "string or a list of parts .*, got 5"),
        ({"conversations": [{"text": "hi"}]}, "`from` and `value`"),
        ({"texts": [{"question": "hi"}]}, "`user` and `assistant`"),
        ({"question": "Q?", "answer": None}, "`answer` must be a text, got None"),
        ({"question": "Q?", "answer": " "}, "`answer` must be a text"),
        ({"question": "Q?", "answer": True}, "`answer` must be a text, got True"),
        ({"question": "Q?", "answers": []}, "`answers` must be a text"),
        ({"question": "Q?", "answer": "A.", "image": "missing.png"}, "no image 'missing.png'; --image_folder"),
        ({"question": "Q?", "answer": "A.", "image": "x", "images": ["y"]}, "`image` and `images`"),
    ],
)
def test_bad_rows_say_what_is_wrong(row, problem):
    with pytest.raises(ValueError, match=problem):
        RowFormat()(row)


def test_numbers_are_answers_and_empty_images_are_none():
    row = RowFormat()({"question": "How many?", "answer": 7, "image": ""})
    assert row["messages"][1]["content"][0]["text"] == "7"
    assert row["images"] == []


def test_rows_are_the_same_the_second_time():
    once = RowFormat()({**ROWS["conversations"], "image": make_image(9, 9)})
    assert RowFormat()(once) == once


def test_messages_of_one_data_set_may_differ_in_kind(folder):
    """Strings beside lists of parts, which an Arrow table cannot hold, and no image beside one."""
    write_lines(folder / "rows.jsonl", [{"messages": STRINGS, "images": []}, ROWS["messages+images"]])
    rows = read(folder / "rows.jsonl")
    assert rows[1] == EXPECTED
    assert rows[0] == {"messages": [{**MESSAGES[0], "content": MESSAGES[0]["content"][1:]}, MESSAGES[1]], "images": []}


def test_tool_calls_keep_their_messages():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "crop"}]}
    row = RowFormat()({"messages": [STRINGS[0], call, {"role": "tool", "content": "ok", "name": None}, STRINGS[1]]})
    assert row["messages"][1] == call
    assert row["messages"][2] == {"role": "tool", "content": [{"type": "text", "text": "ok"}]}


# Files


def question_row(name: str) -> dict:
    return {"image": name, "question": "What is this?", "answer": "A lake."}


TAR_FILES = {
    "tar json": {"a.json": json.dumps({"conversations": LLAVA, "image": "old/7.png"}).encode()},
    "tar txt": {"a.txt": b"A lake."},
}


def write_table(kind: str, path, image: dict) -> None:
    """Writes a data set of 🤗 Datasets with one encoded image, and its messages as JSON."""
    column = "images" if kind == "parquet" else "image"
    rows = {column: [[image] if kind == "parquet" else image], "messages": [json.dumps(STRINGS)]}
    feature = datasets.List(datasets.Image()) if kind == "parquet" else datasets.Image()
    table = datasets.Dataset.from_dict(rows).cast_column(column, feature)
    if kind == "parquet":
        table.to_parquet(path)
    else:
        (table if kind == "saved" else datasets.DatasetDict(train=table)).save_to_disk(path)


def write(kind: str, folder, image_bytes) -> tuple:
    """Writes a data set of one row; returns its name and the options that it needs."""
    path = folder / f"rows.{kind}"
    if kind in ("jsonl", "jsonl.gz"):
        write_lines(path, [ROWS["conversations"]])
    elif kind == "json":
        path.write_text(json.dumps([ROWS["conversations"]]))
    elif kind == "csv":
        path.write_text("image,question,answer\na.png,What is this?,A lake.\n")
    elif kind == "tsv":
        path.write_text("image\tquestion\tanswer\na.png\tWhat is this?\tA lake.\n")
    elif kind == "csv.gz":
        path.write_bytes(gzip.compress(b"image,question,answer\na.png,What is this?,A lake.\n"))
    elif kind in ("parquet", "saved", "saved dict"):
        write_table(kind, path, {"bytes": image_bytes["a.png"], "path": "a.png"})
    elif kind == "imagefolder":
        row = {"file_name": "a.png", "question": "What is this?", "answer": "A lake."}
        write_lines(folder / "metadata.jsonl", [row])
        (folder / OTHER).unlink()
        path = folder
    else:
        path = folder / "rows.tar"
        write_tar(path, {"a.png": image_bytes["a.png"], **TAR_FILES[kind]})
    options = {"columns": {"answer": "text"}, "question": "What is this?"}
    return path, options if kind == "tar txt" else {}


KINDS = ["jsonl", "jsonl.gz", "json", "csv", "tsv", "csv.gz", "parquet", "saved", "saved dict"]
KINDS += ["tar json", "tar txt", "imagefolder"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("streaming", [False, True])
def test_files(folder, image_bytes, build_processor, kind, streaming):
    name, options = write(kind, folder, image_bytes)
    assert read(name, streaming=streaming, **options) == [EXPECTED]
    # The pixels are those of the image.
    collator = RowCollator(build_processor(), RowFormat(image_folder=str(folder), **options))
    batch = collator(list(load_rows(str(name), streaming=streaming)))
    expected = RowCollator(build_processor(), RowFormat())([{"messages": MESSAGES, "image": make_image(60, 90)}])
    assert all(torch.equal(batch[key], expected[key]) for key in expected)


def test_csv_is_text(folder):
    """Pandas would read numbers and missing values."""
    (folder / "rows.csv").write_text("question,answer\nWhich number?,007\nIs there any?,None\nShare?,1.50\n")
    answers = [row["messages"][1]["content"][0]["text"] for row in read(folder / "rows.csv")]
    assert answers == ["007", "None", "1.50"]


@pytest.mark.parametrize("names", [("train-1.png", "train-2.png"), ("test-1.png", "train-2.png")])
@pytest.mark.parametrize("kind", ["metadata.jsonl", "rows.jsonl", "metadata.csv"])
def test_names_of_images_are_no_splits(folder, image_bytes, names, kind):
    """`load_dataset` would read images called train-*.png as the split, and no rows."""
    (folder / "a.png").rename(folder / names[0])
    (folder / OTHER).rename(folder / names[1])
    column = "file_name" if kind.startswith("metadata") else "image"
    if kind.endswith("csv"):
        lines = [f"{column},question,answer", *(f"{name},What is this?,A lake." for name in names)]
        (folder / kind).write_text("\n".join(lines))
    else:
        write_lines(folder / kind, [{column: name, **question_row(name), "image": name} for name in names])
        if column == "file_name":
            rows = [{"file_name": name, "question": "What is this?", "answer": "A lake."} for name in names]
            write_lines(folder / kind, rows)
    assert [row["images"] for row in read(folder)] == [[names[0]], [names[1]]]


def test_splits_of_folders(folder):
    for split, name in (("train", "a.png"), ("test", OTHER)):
        write_lines(folder / f"{split}.jsonl", [question_row(name)])
    assert [row["images"] for row in read(folder)] == [["a.png"]]
    assert [row["images"] for row in read(folder, "test")] == [[OTHER]]
    with pytest.raises(ValueError, match="no split 'dev', but 'test', 'train'"):
        read(folder, "dev")


def test_splits_of_image_folders(folder):
    for split, name in (("train", "a.png"), ("test", OTHER)):
        (folder / split).mkdir()
        (folder / name).rename(folder / split / name)
        row = question_row(name) | {"file_name": name}
        row.pop("image")
        write_lines(folder / split / "metadata.jsonl", [row])
    assert [row["images"] for row in read(folder)] == [["a.png"]]
    assert [row["images"] for row in read(folder, "test")] == [[OTHER]]


@pytest.mark.parametrize("kind", ["jsonl", "tar json", "saved", "saved dict", "imagefolder"])
def test_a_split_that_does_not_exist_is_an_error(folder, image_bytes, kind):
    """A single file was read as any split, so that the evaluation was on the training rows."""
    name, _ = write(kind, folder, image_bytes)
    with pytest.raises(ValueError, match=r"no split 'test', but 'train'.*train\[90%:\]"):
        load_rows(str(name), "test")


def test_slices_globs_and_missing_files(folder):
    for part in ("x", "y"):
        write_lines(folder / f"{part}.jsonl", [question_row("a.png"), question_row(OTHER)])
    pattern = folder / "*.jsonl"
    assert len(list(load_rows(str(pattern)))) == 4
    assert [row["image"] for row in load_rows(str(pattern), "train[:25%]")] == ["a.png"]
    for name in (folder / "z.jsonl", folder / "z", "z.jsonl"):
        with pytest.raises(FileNotFoundError, match=f"no file or folder '{name}'"):
            load_rows(str(name))
    (folder / "rows.csv").write_text("question,answer\n")
    with pytest.raises(ValueError, match=r"several or of unknown types: rows.csv.*folder/\*.jsonl"):
        load_rows(str(folder))
    (folder / "rows.xlsx").write_text("")
    with pytest.raises(ValueError, match=r"unknown types: rows.xlsx"):
        load_rows(str(folder / "rows.xlsx"))
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="no data files"):
        load_rows(str(folder / "empty"))


@pytest.mark.parametrize("kind", ["jsonl", "saved", "saved dict"])
def test_slices_of_a_split_are_its_rows(tmp_path, kind):
    """The rows of a saved data set were all of its rows, whatever the slice."""
    rows = datasets.Dataset.from_list([{"number": number} for number in range(10)])
    if kind == "jsonl":
        write_lines(tmp_path / "rows", list(rows))
        (tmp_path / "rows").rename(tmp_path / "rows.jsonl")
        tmp_path = tmp_path / "rows.jsonl"
    else:
        (rows if kind == "saved" else datasets.DatasetDict(train=rows)).save_to_disk(tmp_path)
    for split, expected in (("train[:70%]", range(7)), ("train[-2:]+train[:1]", [8, 9, 0]), ("train", range(10))):
        assert load_rows(str(tmp_path), split)["number"] == list(expected)


@pytest.mark.parametrize(
    ("trained", "held_out", "is_error"),
    [
        ("train[:90%]", "train[50%:]", True),
        ("train[:90%]", "train[90%:]", False),
        ("train[:5]", "train[40%:]", True),
        ("train[:4]", "train[40%:]", False),
        ("train[-3:]", "train[:8]", True),
        ("train[:20%]+train[80%:]", "train[20%:80%]", False),
        ("train[:20%]+train[80%:]", "train[10%:80%]", True),
        ("train[:20%]+dev", "train[20%:]", False),
        ("train[:20%]", "train", True),
        ("train+dev", "dev[:1]", True),
    ],
)
def test_slices_with_rows_in_common_are_found(tmp_path, trained, held_out, is_error):
    for split in ("train", "dev"):
        write_lines(tmp_path / f"{split}.jsonl", [question_row("a.png")] * 10)
    names = (str(tmp_path), trained, str(tmp_path), held_out)
    if not is_error:
        check_test_rows(*names)
        check_test_rows(str(tmp_path / "other"), trained, str(tmp_path), held_out)
        return
    with pytest.raises(
        ValueError, match=re.escape(f"{held_out!r} of {tmp_path} to evaluate on has rows of the")
    ) as error:
        check_test_rows(*names)
    assert f"the split {trained!r} to train on" in str(error.value)


@pytest.mark.parametrize(
    ("trained", "held_out", "is_error"),
    [
        ("train.jsonl", "tra*.jsonl", True),
        ("*.jsonl", "train.jsonl", True),
        (".", "train.jsonl", True),
        (".", "dev.jsonl", False),
        ("train.jsonl", "dev.jsonl", False),
    ],
)
def test_files_in_common_are_found(tmp_path, trained, held_out, is_error):
    for split in ("train", "dev"):
        write_lines(tmp_path / f"{split}.jsonl", [question_row("a.png")] * 10)
    names = (str(tmp_path / trained), "train", str(tmp_path / held_out), "train")
    if is_error:
        with pytest.raises(
            ValueError, match=r"train.jsonl is among the files of .* to train on and of .*; name other"
        ):
            check_test_rows(*names)
    else:
        check_test_rows(*names)


@pytest.mark.parametrize("column", ["img", "image_path", "Photo"])
def test_columns_that_may_hold_the_image_are_not_left_out(column):
    """The model would be trained without it."""
    row = {"question": "Q?", "answer": "A."}
    match = f"no images, but a column '{column}', which is not read.*--dataset_columns image={column}"
    for read in (RowFormat(), RowFormat(columns={"question": "question", "answer": "answer"})):
        with pytest.raises(ValueError, match=match):
            read({**row, column: "a.png"})
        assert read({**row, column: None, "image_id": 7})["images"] == []
    assert RowFormat(columns={"image": column})({**row, column: "QUJD"})["images"] == ["QUJD"]
    assert RowFormat(text_only=True)({**row, column: "a.png"})["images"] == []


def test_contents_of_two_kinds_are_warned_about(folder, monkeypatch):
    """Datasets reads the strings of such a column as JSON, which cannot be told from texts afterwards."""
    warnings: list[str] = []
    monkeypatch.setattr(formats.logger, "warning_once", warnings.append)
    answer = {"role": "assistant", "content": "007"}
    for messages, is_mixed in ((MESSAGES, False), ([MESSAGES[0], answer], True)):
        write_lines(folder / "rows.jsonl", [{"messages": messages, "images": ["a.png"]}])
        try:
            rows = load_rows(str(folder / "rows.jsonl"))
        except datasets.exceptions.DatasetGenerationError:  # of older versions
            assert is_mixed
            continue
        assert len(warnings) == is_mixed
        assert ("'content': Json(" in str(rows.features)) == is_mixed
    assert all("`messages` of" in warning and "lists of parts" in warning for warning in warnings)


# Images


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_from_bytes_as_from_paths(folder, build_processor, orientation):
    photo = make_image(40, 90)
    exif = photo.getexif()
    exif[0x0112] = orientation
    encoded = encode_image(photo, "JPEG", exif=exif)
    (folder / "a.jpg").write_bytes(encoded)
    collator = RowCollator(build_processor(), RowFormat(image_folder=str(folder)))
    rows = [{"messages": STRINGS, "image": image} for image in (encoded, {"bytes": encoded, "path": "x"}, "a.jpg")]
    pixels = [collator([row])["pixel_values"] for row in rows]
    assert torch.equal(pixels[0], pixels[2])
    assert torch.equal(pixels[1], pixels[2])


def test_the_plain_collator_warns_of_markers(build_processor, monkeypatch):
    """It takes texts as they are. Rows of other formats are for [`RowCollator`], which warns of nothing."""
    warnings = []
    monkeypatch.setattr("jvlm.training.data_collator.logger.warning_once", warnings.append)
    row = {"messages": [{"role": "user", "content": "<image>\nWhat?"}, STRINGS[1]], "images": [make_image(9, 9)]}
    marked = RowCollator(build_processor(), RowFormat())([row])
    assert not warnings
    plain = DataCollatorForJinaVLM(build_processor())([row])
    assert "'<image>', which stays text. `jvlm.training.formats.RowCollator`" in warnings[0]
    assert marked["input_ids"].shape[1] < plain["input_ids"].shape[1]


# Lengths


@pytest.mark.parametrize(("layout", "kind"), [("independent", "PNG"), ("stitched", "JPEG"), ("stitched", "PNG")])
def test_lengths_are_those_of_the_batch_without_decoding(build_processor, build_row, layout, kind):
    turned = make_image(60, 300)
    exif = turned.getexif()
    exif[0x0112] = 6
    as_file = {"bytes": encode_image(turned, kind, exif=exif), "path": None}
    rows = [build_row(number, num_images=number % 3, num_turns=2) for number in range(4)]
    rows.append({"messages": MESSAGES, "images": [as_file]})
    processor = build_processor(layout, add_bos_token=layout == "stitched", max_crops=4)
    if kind == "JPEG":  # a template without EOS tokens, as that of the published checkpoint
        processor.chat_template = processor.chat_template.replace("{{- eos_token -}}", "")
    collator = RowCollator(processor, RowFormat())
    expected = [collator([row])["input_ids"].shape[1] for row in rows]
    assert len(set(expected)) > 3
    rows[4]["images"][0]["bytes"] = as_file["bytes"][: len(as_file["bytes"]) // 2]  # the head of the file is enough
    assert [collator.length(row) for row in rows] == expected
    collator.max_length = max(expected) - 1
    assert max(collator.length(row) for row in rows) == max(expected) - 1
    assert collator.length({"messages": MESSAGES, "images": []}) == 0


def test_collator_pickles_and_reads_rows_of_several_formats(build_processor):
    formats = {"a": RowFormat(), "b": RowFormat(columns={"question": "q", "answer": "a"})}
    collator = pickle.loads(pickle.dumps(RowCollator(build_processor(), formats)))
    rows = [{"messages": STRINGS, "__data_set__": "a"}, {"q": "What is this?", "a": "A lake.", "__data_set__": "b"}]
    batch = collator(rows)
    assert torch.equal(batch["input_ids"][0], batch["input_ids"][1])
    with pytest.raises(ValueError, match=r"Row 1 of the batch.*no column 'a'"):
        collator([rows[0], {"q": "x", "__data_set__": "b"}])
