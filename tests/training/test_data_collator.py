# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The data collator: labels, formats of rows, and errors."""

import re
from itertools import groupby

import datasets
import pytest
import torch
from helpers import END_OF_TEXT, LAYOUTS, encode_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from jvlm.processing.prompt_format import CHAT_TEMPLATES
from jvlm.training import DataCollatorForJinaVLM


def label_spans(processor, labels) -> list[str]:
    """The text of every run of labels."""
    runs = groupby(labels.tolist(), key=lambda label: label != -100)
    return [processor.tokenizer.decode(list(run)) for is_label, run in runs if is_label]


def answers(row) -> list[str]:
    """The assistant turns of a row as the chat template writes them, with their end-of-sequence tokens."""
    return [
        f" {''.join(part['text'] for part in message['content'])}{END_OF_TEXT}"
        for message in row["messages"]
        if message["role"] == "assistant"
    ]


@pytest.mark.parametrize("add_bos_token", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_are_the_assistant_turns(build_processor, build_row, layout, add_bos_token):
    processor = build_processor(layout, add_bos_token=add_bos_token)
    row = build_row(num_images=2, num_turns=3)
    batch = DataCollatorForJinaVLM(processor)([row])
    assert len(answers(row)) == 3
    assert label_spans(processor, batch["labels"][0]) == answers(row)
    is_label = batch["labels"] != -100
    assert (batch["labels"] == batch["input_ids"])[is_label].all()
    assert not torch.isin(batch["labels"], torch.tensor(processor.image_token_ids)).any()


WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(
    lambda text: text.strip() and "<" not in text and "|" not in text
)


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_labels_of_random_conversations(build_processor, make_image, layout, data):
    processor = build_processor(layout)
    processor.tokenizer.padding_side = data.draw(st.sampled_from(["left", "right"]))
    rows = []
    for _ in range(data.draw(st.integers(1, 3))):
        messages, images = [], []
        if data.draw(st.booleans()):
            messages.append({"role": "system", "content": [{"type": "text", "text": data.draw(WORDS)}]})
        for _ in range(data.draw(st.integers(1, 3))):
            content = [{"type": "text", "text": data.draw(WORDS)}]
            for _ in range(data.draw(st.integers(0, 2))):
                images.append(make_image(data.draw(st.integers(20, 160)), data.draw(st.integers(20, 160))))
                content.insert(data.draw(st.integers(0, len(content))), {"type": "image"})
            messages.append({"role": "user", "content": content})
            messages.append({"role": "assistant", "content": [{"type": "text", "text": data.draw(WORDS)}]})
        rows.append({"messages": messages, "images": images})
    batch = DataCollatorForJinaVLM(processor)(rows)
    for row, labels in zip(rows, batch["labels"], strict=True):
        assert label_spans(processor, labels) == answers(row)
    assert not torch.isin(batch["labels"], torch.tensor(processor.image_token_ids)).any()
    num_images = sum(len(row["images"]) for row in rows)
    assert (batch["image_token_positions"][:, 0] == 0).sum() == num_images
    assert num_images or (batch["image_token_positions"] == -1).all()


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_padding_has_no_attention_and_no_labels(collate, build_row, padding_side):
    batch = collate([build_row(0), build_row(1, num_images=2, num_turns=2)], padding_side=padding_side)
    padding = batch["attention_mask"] == 0
    assert padding[0].any()
    assert padding[0, 0 if padding_side == "left" else -1]
    assert (batch["labels"][padding] == -100).all()


def test_formats_of_images(build_processor, build_row, tmp_path):
    row = build_row()
    (image,) = row["images"]
    image.save(tmp_path / "image.png")
    collator = DataCollatorForJinaVLM(build_processor())
    expected = collator([row])
    for form in (
        encode_image(image),
        str(tmp_path / "image.png"),
        {"bytes": encode_image(image), "path": None},
        {"bytes": None, "path": str(tmp_path / "image.png")},
    ):
        for images in ([form], form):
            batch = collator([{**row, "images": images}])
            assert torch.equal(batch["pixel_values"], expected["pixel_values"])
            assert torch.equal(batch["labels"], expected["labels"])


def test_string_contents_equal_parts(build_processor, build_row):
    row = build_row(num_images=2)
    collator = DataCollatorForJinaVLM(build_processor())
    flat = [{**message, "content": message["content"][-1]["text"]} for message in row["messages"]]
    batch, expected = collator([{**row, "messages": flat}]), collator([row])
    assert all(torch.equal(batch[name], expected[name]) for name in expected)


@pytest.mark.parametrize("images", [[], None, "missing"])
def test_batch_of_rows_with_and_without_images(build_processor, build_row, images):
    processor = build_processor()
    text = build_row(1, num_images=0)
    text = {"messages": text["messages"]} if images == "missing" else {**text, "images": images}
    rows = [text, build_row(0)]
    batch = DataCollatorForJinaVLM(processor)(rows)
    is_image = batch["input_ids"] == processor.image_token_id
    assert not is_image[0].any()
    assert is_image[1].any()
    assert [label_spans(processor, labels) for labels in batch["labels"]] == list(map(answers, rows))
    assert "pixel_values" not in DataCollatorForJinaVLM(processor, add_blank_tile=False)([text])


def test_a_batch_without_images_has_a_blank_tile(build_processor, build_model, build_row):
    """Every parameter gets a gradient, which is zero on the vision side, and the loss is that without the tile."""
    processor, model = build_processor(), build_model()
    rows = [build_row(1, num_images=0), build_row(2, num_images=0)]
    batch = DataCollatorForJinaVLM(processor)(rows)
    assert batch["pixel_values"].shape == (1, 3, 56, 56)
    loss = model(**batch).loss
    assert loss == model(**DataCollatorForJinaVLM(processor, add_blank_tile=False)(rows)).loss
    loss.backward()
    for name, parameter in model.named_parameters():
        is_vision = "vision_tower" in name or "connector" in name
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()) is not is_vision or name.endswith("k_proj.bias"), name


def test_max_length_truncates_text(build_processor, build_row):
    processor = build_processor()
    row = build_row(num_turns=3)
    full = DataCollatorForJinaVLM(processor)([row])
    length = full["input_ids"].shape[1] - 4
    batch = DataCollatorForJinaVLM(processor, max_length=length)([row])
    for name in ("input_ids", "labels"):
        assert torch.equal(batch[name], full[name][:, :length])


def test_max_length_that_would_truncate_an_image_is_an_error(build_processor, build_row):
    collator = DataCollatorForJinaVLM(build_processor(), max_length=45)
    with pytest.raises(ValueError, match="Row 1 of the batch, which begins with 'Which image is darker 7 0") as error:
        collator([build_row(0, num_images=0), build_row(7, num_images=3)])
    assert "Truncation would cut the images" in str(error.value)
    assert "max_length" in str(error.value)


def test_pad_to_multiple_of(build_processor, build_row):
    batch = DataCollatorForJinaVLM(build_processor(), pad_to_multiple_of=64)([build_row()])
    assert batch["input_ids"].shape[1] % 64 == 0
    assert batch["labels"].shape == batch["attention_mask"].shape == batch["input_ids"].shape


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda row: row["images"].clear(), "1 .* parts for 0 images"),
        (lambda row: row["images"].append(row["images"][0]), "1 .* parts for 2 images"),
        (lambda row: row["messages"].pop(), "no assistant message"),
        (lambda row: row.update(images=[b"no image"]), "cannot identify image file"),
        (lambda row: row.update(images=["missing.png"]), "missing.png"),
        (lambda row: row.update(images=[None]), "an image of type NoneType is not supported"),
        (
            lambda row: row.update(images=[{"bytes": None, "path": None}]),
            "NoneType is not supported; .* a dict with .bytes. or .path.",
        ),
        (lambda row: row["messages"][0]["content"].append({"type": "text", "text": "<im_patch>"}), "<im_patch>"),
        (lambda row: row["messages"][0]["content"].append({"type": "text", "text": None}), "`messages.0.`.*'text'"),
        (lambda row: row["messages"][0]["content"].append("a string"), "`messages.0.`.*'a string'"),
        (lambda row: row["messages"][1].pop("role"), "`messages.1.` must be a dict with a `role`.*keys content"),
        (lambda row: row["messages"][1].update(role=None), "`messages.1.` must be a dict with a `role`"),
        (lambda row: row["messages"][1].pop("content"), "`messages.1.` has no `content`"),
        (lambda row: row["messages"][1].update(content=None), "`messages.1.` has no `content`"),
        (lambda row: row["messages"][1].update(content=7), "`messages.1.`: `content` must be a string.*7"),
        (lambda row: row["messages"][1].update(content=None, tool_calls=[{"type": "function"}]), "`tool_calls`"),
    ],
)
def test_errors_name_the_row(build_processor, build_row, change, problem):
    rows = [build_row(0), build_row(1), build_row(2)]
    change(rows[2])
    with pytest.raises(ValueError, match=problem) as error:
        DataCollatorForJinaVLM(build_processor())(rows)
    assert str(error.value).startswith("Row 2 of the batch, which begins with 'Which image is darker 2 0?")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"texts": [], "pixels": 1}, "`messages` must be a list .* its columns are texts, pixels"),
        ({"messages": "Who?"}, "`messages` must be a list"),
        ({"messages": ["Who?"]}, r"`messages\[0\]` must be a dict .* got 'Who\?'"),
        ({}, "`messages` must be a list .* its columns are none"),
        (["Who?"], "a row must be a dict with `messages`, got list"),
    ],
)
def test_rows_of_another_format_are_named(build_processor, build_row, row, problem):
    with pytest.raises(ValueError, match=f"Row 1 of the batch, which begins with '.*': {problem}"):
        DataCollatorForJinaVLM(build_processor())([build_row(0), row])


def test_tool_calls_without_content_need_a_template_that_writes_them(build_processor, build_row):
    processor = build_processor()
    row = build_row(num_images=0)
    row["messages"][1] = {"role": "assistant", "content": None, "tool_calls": [{"name": "zoom"}]}
    processor.chat_template = processor.chat_template.replace(
        "{{- eos_token -}}{%- endgeneration -%}",
        "{%- for call in message['tool_calls'] or [] -%}{{- call['name'] -}}{%- endfor -%}"
        "{{- eos_token -}}{%- endgeneration -%}",
    )
    (labels,) = DataCollatorForJinaVLM(processor)([row])["labels"]
    assert label_spans(processor, labels) == [f" zoom{END_OF_TEXT}"]


def test_a_template_without_marks_is_an_error(build_processor):
    processor = build_processor()
    processor.chat_template = re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", processor.chat_template)
    with pytest.raises(ValueError, match=r"no `{% generation %}` block.*CHAT_TEMPLATES"):
        DataCollatorForJinaVLM(processor)
    processor.chat_template = CHAT_TEMPLATES[processor.image_processor.layout]  # what the message says
    DataCollatorForJinaVLM(processor)


def test_a_row_without_labels_is_an_error(build_processor, build_row):
    """A row that trains nothing is never a silent loss of zero."""
    processor = build_processor()
    rows = [build_row(0, num_images=0), build_row(1, num_images=0)]
    rows[1]["messages"][0]["content"][0]["text"] = "long " * 40
    with pytest.raises(ValueError, match=r"Row 1 .*'long long.* `max_length` \(60\) cuts the answers"):
        DataCollatorForJinaVLM(processor, max_length=60)(rows)
    processor.chat_template = processor.chat_template.replace("'assistant' -%}", "'never' -%}")
    with pytest.raises(ValueError, match=r"Row 0 .*no token is a label, because the chat template"):
        DataCollatorForJinaVLM(processor)(rows)


def test_bad_rows_can_be_skipped_and_are_counted(build_processor, build_row, build_model, caplog):
    rows = [build_row(number) for number in range(6)]
    rows[1]["images"] = [b"no image"]
    rows[4]["messages"].pop()
    rows[5]["messages"][0]["content"].append({"type": "text", "text": "long " * 100})
    collator = DataCollatorForJinaVLM(build_processor(), max_length=200, skip_bad_rows=True)
    with caplog.at_level("WARNING", logger="jvlm"):
        batch = collator(rows)
    expected = collator([rows[0], rows[2], rows[3]])
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
    assert collator.num_skipped_rows == 3
    for problem in ("Row 1 .*cannot identify", "Row 4 .*no assistant message", "Row 5 .*`max_length`"):
        assert re.search(f"Skipped: {problem}", caplog.text), problem
    # In plain `Trainer`, the loss of a batch without labels would be NaN.
    with pytest.raises(ValueError, match=r"None of the 2 rows of the batch can be used.*`JinaVLMTrainer`"):
        collator([rows[1], rows[4]])
    assert collator.num_skipped_rows == 5
    # Workers count too, and a batch without good rows has no label.
    collator.allow_empty_batches = True
    batches = list(DataLoader(rows, batch_size=1, num_workers=2, collate_fn=collator))
    assert collator.num_skipped_rows == 8
    assert [bool((batch["labels"] != -100).any()) for batch in batches] == [True, False, True, True, False, False]
    assert build_model()(**batches[1]).logits.shape[:2] == (1, 2)
    collator.packing = True
    packed = collator(rows[1:2])
    assert (packed["labels"] == -100).all()
    assert build_model()(**packed).logits.shape[:2] == (1, 2)


@pytest.mark.parametrize("content", ["parts", "strings"])
def test_a_column_with_one_image_is_read(build_processor, build_row, content):
    row = build_row()
    collator = DataCollatorForJinaVLM(build_processor())
    expected = collator([row])
    messages = row["messages"]
    if content == "strings":
        messages = [{**message, "content": message["content"][-1]["text"]} for message in messages]
    batch = collator([{"messages": messages, "image": row["images"][0]}])
    assert all(torch.equal(batch[name], expected[name]) for name in expected)


@pytest.mark.parametrize("streaming", [False, True])
def test_data_loader_workers_give_the_same_batches(build_processor, build_row, row_features, streaming):
    rows = [build_row(number, num_images=number % 3) for number in range(6)]
    dataset = datasets.Dataset.from_list(rows, features=row_features)
    dataset = dataset.to_iterable_dataset() if streaming else dataset
    collator = DataCollatorForJinaVLM(build_processor())
    batches = list(DataLoader(dataset, batch_size=3, num_workers=1, collate_fn=collator))
    expected = [collator(rows[:3]), collator(rows[3:])]
    for batch, plain in zip(batches, expected, strict=True):
        assert batch.keys() == plain.keys()
        assert all(torch.equal(batch[name], plain[name]) for name in plain)
