# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The processor: prompts, images and conversations to model inputs, with byte-level BPE and SentencePiece."""

import json
from itertools import groupby

import numpy as np
import pytest
import sentencepiece
import torch
from helpers import LAYOUTS, MARKERS, chat_inputs, encode_base64, run_lengths
from tokenizers.processors import TemplateProcessing
from transformers import AutoProcessor, AutoTokenizer

from jvlm import JinaVLMImageProcessor, JinaVLMProcessor, add_image_tokens
from jvlm.processing.prompt_format import CHAT_TEMPLATES


QUESTION = "What is the name of this lady?"


def text_of(processor, input_ids) -> str:
    """The decoded text, with every run of image tokens replaced by <|image|>."""
    ids, marker_ids = [], set(processor.image_token_ids)
    placeholder = processor.tokenizer.convert_tokens_to_ids("<|image|>")
    for is_image, run in groupby(np.asarray(input_ids).tolist(), key=marker_ids.__contains__):
        ids += [placeholder] if is_image else list(run)
    return processor.tokenizer.decode(ids, skip_special_tokens=False)


def num_image_tokens(processor, *images, **kwargs) -> list[int]:
    sizes = [[image.height, image.width] for image in images]
    return processor._get_num_multimodal_tokens(image_sizes=sizes, **kwargs)["num_image_tokens"]


# The default configuration


def test_numbers_of_the_figure(qwen3_vocabulary, make_image):
    tokenizer = AutoTokenizer.from_pretrained(qwen3_vocabulary)
    add_image_tokens(tokenizer, first_token_id=151936)
    processor = JinaVLMProcessor(JinaVLMImageProcessor(), tokenizer)
    assert tokenizer.convert_tokens_to_ids([*MARKERS, "<|image|>"]) == [151936, 151937, 151938, 151939, 151940]
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert prompt == f" User:<|image|> {QUESTION} Assistant:"
    inputs = processor(images=make_image(910, 1176), text=prompt, return_tensors="pt")
    assert inputs["pixel_values"].shape == (13, 3, 378, 378)
    assert inputs["image_token_positions"].shape == (13, 182)
    is_image = inputs["input_ids"] == 151938
    assert is_image.sum() == 2366 == 13 * 182
    assert (~is_image).sum() == 12
    assert len(tokenizer(" " + QUESTION)["input_ids"]) == 8
    assert text_of(processor, inputs["input_ids"][0]) == prompt
    assert num_image_tokens(processor, make_image(910, 1176)) == [2366]


def test_add_image_tokens(bare_tokenizer, qwen3_vocabulary):
    size = len(bare_tokenizer)
    assert add_image_tokens(bare_tokenizer) == 5
    assert bare_tokenizer.convert_tokens_to_ids("<im_start>") == size
    assert add_image_tokens(bare_tokenizer) == 0
    with pytest.raises(ValueError, match=r"`first_token_id` is 151000.*151669"):
        add_image_tokens(AutoTokenizer.from_pretrained(qwen3_vocabulary), first_token_id=151000)


# Prompts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_placeholder_is_replaced_by_image_tokens(build_processor, make_image, layout):
    processor = build_processor(layout)
    image = make_image(90, 130)
    inputs = processor(images=image, text="Look: <|image|> Well?", return_tensors="pt")
    tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    if layout == "independent":
        expected = ["<im_patch>"] * (7 * 12)
    else:
        # A 4×4 thumbnail, then 2×3 tiles that keep 3 rows and 3 columns of cells each.
        expected = ["<im_start>"] + (["<im_patch>"] * 4 + ["<im_col>"]) * 4 + ["<im_end>"]
        expected += ["<im_start>"] + (["<im_patch>"] * 9 + ["<im_col>"]) * 6 + ["<im_end>"]
    start = next(index for index, token in enumerate(tokens) if token in MARKERS)
    assert tokens[start : start + len(expected)] == expected
    assert not set(tokens[:start] + tokens[start + len(expected) :]) & set(MARKERS)
    assert text_of(processor, inputs["input_ids"][0]) == "Look: <|image|> Well?"
    assert num_image_tokens(processor, image) == [len(expected)]
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values", "image_token_positions"}
    assert set(inputs) <= set(processor.model_input_names)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_precede_a_prompt_without_placeholder(build_processor, make_image, layout):
    processor = build_processor(layout)
    images = [make_image(90, 130), make_image(40, 40)]
    given = processor(images=images[0], text="Well?", return_tensors="pt")
    expected = processor(images=images[0], text="<|image|>Well?", return_tensors="pt")
    assert torch.equal(given["input_ids"], expected["input_ids"])
    given = processor(images=[[images[0]], images], text=["Well?", "So?"], padding=True, return_tensors="pt")
    texts = ["<|image|>Well?", "<|image|><|image|>So?"]
    expected = processor(images=[[images[0]], images], text=texts, padding=True, return_tensors="pt")
    assert torch.equal(given["input_ids"], expected["input_ids"])


def test_prompts_without_images(build_processor):
    processor = build_processor()
    for images in (None, [], [[]]):
        inputs = processor(images=images, text="Well?", return_tensors="pt")
        assert set(inputs) == {"input_ids", "attention_mask"}
        assert inputs["input_ids"].tolist() == processor.tokenizer(["Well?"])["input_ids"]
    inputs = processor(text=["Well?", "So?"], images=[[], []])
    assert inputs["input_ids"] == processor.tokenizer(["Well?", "So?"])["input_ids"]


def test_images_without_prompt(build_processor, make_image):
    processor = build_processor()
    outputs = processor(images=[make_image(90, 130)], return_tensors="pt")
    assert torch.equal(outputs["pixel_values"], processor.image_processor(make_image(90, 130))["pixel_values"])


@pytest.mark.parametrize("nested", [True, False])
def test_batch_of_rows_with_and_without_images(build_processor, make_image, nested):
    processor = build_processor("stitched")
    images = [make_image(90, 130, 0), make_image(40, 40, 1), make_image(60, 200, 2)]
    prompts = ["<|image|> and <|image|>?", "Nothing to see", "This: <|image|>"]
    rows = [images[:2], [], images[2:]]
    batch = processor(images=rows if nested else images, text=prompts, padding=True, return_tensors="pt")
    for index, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        single = processor(images=row or None, text=prompt, return_tensors="pt")
        length = single["input_ids"].shape[1]
        assert batch["attention_mask"][index].sum() == length
        assert torch.equal(batch["input_ids"][index, -length:], single["input_ids"][0])
    pixels = [processor.image_processor(image)["pixel_values"] for image in images]
    assert torch.equal(batch["pixel_values"], torch.cat(pixels))


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_padding_sides(build_processor, make_image, padding_side):
    processor = build_processor()
    kwargs = {"images": [make_image(90, 130)], "padding": True, "return_tensors": "pt", "padding_side": padding_side}
    inputs = processor(text=["<|image|> Well?", "So?"], **kwargs, return_mm_token_type_ids=True)
    short = inputs["attention_mask"][1]
    length = int(short.sum())
    expected = torch.zeros_like(short)
    expected[slice(-length, None) if padding_side == "left" else slice(length)] = 1
    assert torch.equal(short, expected)
    pad = processor.tokenizer.pad_token_id
    assert (inputs["input_ids"][1][short == 0] == pad).all()
    types = inputs["mm_token_type_ids"]
    types = types if isinstance(types, torch.Tensor) else torch.tensor(types)
    assert types.shape == inputs["input_ids"].shape
    assert not types[1].any()
    assert run_lengths(types[0]) == num_image_tokens(processor, make_image(90, 130))


def test_padding_lengths(build_processor, make_image):
    processor = build_processor()
    kwargs = {"images": make_image(40, 40), "text": "<|image|>", "return_tensors": "pt"}
    inputs = processor(**kwargs, padding="max_length", max_length=50)
    assert inputs["input_ids"].shape == (1, 50)
    inputs = processor(**kwargs, padding=True, pad_to_multiple_of=16)
    assert inputs["input_ids"].shape == (1, 32)


def test_truncation_of_text(build_processor, make_image):
    processor = build_processor()
    length = num_image_tokens(processor, make_image(40, 40))[0] + 3
    kwargs = {"truncation": True, "max_length": length, "return_tensors": "pt"}
    inputs = processor(images=make_image(40, 40), text="<|image|> a longer text than that", **kwargs)
    assert inputs["input_ids"].shape == (1, length)
    full = processor(images=make_image(40, 40), text="<|image|> a longer text than that", return_tensors="pt")
    assert full["input_ids"].shape[1] > length
    assert torch.equal(inputs["input_ids"], full["input_ids"][:, :length])


def test_image_processor_arguments_of_a_call(build_processor, make_image):
    processor = build_processor("stitched")
    before = processor.to_dict()
    image = make_image(90, 300)
    for kwargs in ({"max_crops": 2}, {"images_kwargs": {"max_crops": 2}}):
        inputs = processor(images=image, text="<|image|>", return_tensors="pt", **kwargs)
        assert len(inputs["pixel_values"]) == 3
        assert inputs["input_ids"].shape[1] == num_image_tokens(processor, image, **kwargs)[0]
    inputs = processor(images=image, text="<|image|>", return_tensors="pt", layout="independent")
    assert (inputs["input_ids"] == processor.image_token_id).all()
    assert inputs["image_token_positions"].shape[1] == 12
    assert processor.to_dict() == before


# Token counts and offsets


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kwargs", [{}, {"do_resize": True}, {"max_crops": 4}], ids=str)
def test_predicted_token_counts(build_processor, make_image, layout, kwargs):
    processor = build_processor(layout)
    rng = np.random.default_rng(0)
    sizes = [[1, 1], [16, 16], [16, 300], *rng.integers(4, 300, (20, 2)).tolist()]
    predicted = processor._get_num_multimodal_tokens(image_sizes=sizes, **kwargs)
    inputs = processor(
        images=[[make_image(*size)] for size in sizes],
        text=["a <|image|> b"] * len(sizes),
        return_mm_token_type_ids=True,
        **kwargs,
    )
    assert [run_lengths(types) for types in inputs["mm_token_type_ids"]] == [
        [n] for n in predicted["num_image_tokens"]
    ]
    tiles = [
        1 + rows * cols
        for rows, cols in processor.image_processor([make_image(*size) for size in sizes], **kwargs)[
            "image_grids"
        ].tolist()
    ]
    assert predicted["num_image_patches"] == tiles
    assert len(inputs["pixel_values"]) == sum(tiles)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("add_bos_token", [False, True])
def test_token_types_and_offsets(build_processor, make_image, layout, add_bos_token):
    processor = build_processor(layout, add_bos_token=add_bos_token)
    images = [make_image(90, 130), make_image(40, 40)]
    inputs = processor(
        images=images,
        text="<|image|> first, <|image|> second",
        return_mm_token_type_ids=True,
        return_text_replacement_offsets=True,
    )
    types = np.asarray(inputs["mm_token_type_ids"][0])
    assert run_lengths(types) == num_image_tokens(processor, *images)
    input_ids = np.asarray(inputs["input_ids"][0])
    assert np.array_equal(types == 1, np.isin(input_ids, processor.image_token_ids))
    # The offsets are positions in the expanded text.
    text = processor.tokenizer.decode(input_ids)
    offsets = inputs["text_replacement_offsets"][0]
    assert [entry["type"] for entry in offsets if entry["type"] == "image"] == ["image", "image"]
    for entry in offsets:
        start, end = entry["new_span"]
        assert text[start:end] == entry["replacement"]


# BOS


def test_bos_token_is_added_once(build_processor, make_image):
    processor = build_processor("stitched", add_bos_token=True)
    end_of_text = processor.tokenizer.eos_token_id
    for kwargs in ({"text": "Well?"}, {"text": "<|image|> Well?", "images": make_image(40, 40)}):
        ids = processor(**kwargs)["input_ids"][0]
        plain = build_processor("stitched")(**kwargs)["input_ids"][0]
        assert ids == [end_of_text, *plain]
        given = processor(**{**kwargs, "text": processor.tokenizer.eos_token + kwargs["text"]})["input_ids"][0]
        assert given == ids


def test_bos_token_is_not_added_again_by_the_tokenizer(build_processor, bare_tokenizer):
    bos_token, bos_token_id = bare_tokenizer.eos_token, bare_tokenizer.eos_token_id
    bare_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos_token} $A", special_tokens=[(bos_token, bos_token_id)]
    )
    ids = build_processor(tokenizer=bare_tokenizer, add_bos_token=True)(text="Well?")["input_ids"][0]
    assert ids[0] == bos_token_id
    assert ids.count(bos_token_id) == 1


# Conversations


@pytest.mark.parametrize("layout", LAYOUTS)
def test_chat_template_text(build_processor, layout):
    processor = build_processor(layout)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}, {"type": "image"}]},
        {"role": "assistant", "content": "Ada."},
        {"role": "user", "content": "And now?"},
    ]
    expected = {
        "independent": " System: Be brief. User:<|image|> Who?<|image|> Assistant: Ada.<|endoftext|> User: And now?",
        "stitched": " System: Be brief. User: <|image|>Who?<|image|> Assistant: Ada.<|endoftext|> User: And now?",
    }[layout]
    assert processor.apply_chat_template(messages) == expected
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == expected + " Assistant:"
    messages[2]["content"] = [{"type": "text", "text": "Ada."}]
    assert processor.apply_chat_template(messages) == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_formats_of_images_in_a_chat(build_processor, make_image, tmp_path, layout):
    processor = build_processor(layout)
    image = make_image(90, 130)
    image.save(tmp_path / "image.png")
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}],
        add_generation_prompt=True,
    )
    expected = processor(images=image, text=prompt, return_tensors="pt")
    for part in (
        {"image": image},
        {"path": str(tmp_path / "image.png")},
        {"url": str(tmp_path / "image.png")},
        {"base64": encode_base64(image)},
        {"image": np.asarray(image)},
    ):
        messages = [{"role": "user", "content": [{"type": "image", **part}, {"type": "text", "text": QUESTION}]}]
        inputs = chat_inputs(processor, messages)
        assert set(inputs) == set(expected), part
        for name in expected:
            assert torch.equal(inputs[name], expected[name]), (part, name)


def test_chat_without_images(build_processor, user):
    processor = build_processor()
    inputs = chat_inputs(processor, [user("Well?")])
    assert "pixel_values" not in inputs
    assert text_of(processor, inputs["input_ids"][0]) == " User: Well? Assistant:"


def test_batch_of_chats_equals_single_chats(build_processor, make_image, user, assistant):
    processor = build_processor()
    images = [make_image(90, 130), make_image(40, 40), make_image(60, 200)]
    chats = [
        [user(images[0], "Who?"), assistant("Ada."), user(images[1], "And here?")],
        [user("Well?")],
        [user(images[2])],
    ]
    batch = chat_inputs(processor, chats, processor_kwargs={"padding": True})
    assert len(batch["input_ids"]) == 3
    for index, chat in enumerate(chats):
        single = chat_inputs(processor, chat)["input_ids"][0]
        assert torch.equal(batch["input_ids"][index, -len(single) :], single)
        assert batch["attention_mask"][index].sum() == len(single)


def masked_texts(processor, input_ids, mask) -> list[str]:
    """The decoded text of every run of ones in a mask."""
    texts = []
    for flag, run in groupby(zip(input_ids, mask, strict=True), key=lambda pair: int(pair[1])):
        if flag:
            texts.append(processor.tokenizer.decode([token for token, _ in run]))
    return texts


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("add_bos_token", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_assistant_mask_of_a_batch(build_processor, make_image, user, assistant, layout, add_bos_token, padding_side):
    processor = build_processor(layout, add_bos_token=add_bos_token)
    chats = [
        [
            user(make_image(90, 130), "Who is this?"),
            assistant("Her name is Ada."),
            user(make_image(40, 40), "Is it darker?"),
            assistant("The second one is."),
        ],
        [user("Well?"), assistant("So.")],
        [user(make_image(60, 200)), assistant("A lady.")],
    ]
    inputs = processor.apply_chat_template(
        chats,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": padding_side},
    )
    masks = torch.as_tensor(inputs["assistant_masks"])
    assert masks.shape == inputs["input_ids"].shape
    expected = [
        [" Her name is Ada.<|endoftext|>", " The second one is.<|endoftext|>"],
        [" So.<|endoftext|>"],
        [" A lady.<|endoftext|>"],
    ]
    found = [
        masked_texts(processor, input_ids, mask)
        for input_ids, mask in zip(inputs["input_ids"].tolist(), masks.tolist(), strict=True)
    ]
    assert found == expected


def test_assistant_mask_of_a_single_chat(build_processor, make_image, user, assistant):
    processor = build_processor("stitched")
    chat = [user(make_image(90, 130), "Who is this?"), assistant("Ada.")]
    inputs = processor.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
    )
    mask = torch.as_tensor(inputs["assistant_masks"])[0]
    assert masked_texts(processor, inputs["input_ids"][0].tolist(), mask.tolist()) == [" Ada.<|endoftext|>"]


def test_assistant_mask_with_the_published_tokenizer(released_processor, make_image, user, assistant):
    """The default template ends answers with the EOS token, the published one does not. The BOS token is no answer."""
    chat = [user(make_image(300, 400), "describe the image."), assistant("a red circle")]
    for template, end in ((None, ""), (CHAT_TEMPLATES["stitched"], "<|endoftext|>")):
        inputs = chat_inputs(
            released_processor,
            chat,
            chat_template=template,
            add_generation_prompt=False,
            return_assistant_tokens_mask=True,
        )
        assert inputs["input_ids"][0, 0] == 392
        mask = torch.as_tensor(inputs["assistant_masks"])[0]
        answers = masked_texts(released_processor, inputs["input_ids"][0].tolist(), mask.tolist())
        assert answers == [f" a red circle{end}"]


# SentencePiece, saving


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory):
    """A function (model type, tokenizer class) that trains a small SentencePiece model and returns its folder."""
    sentences = [
        "What is the name of this lady?",
        "User: Which of the two images is darker? Assistant: The first one is darker.",
        "Her name is Ada, and she is in the second image.",
    ]

    def train(model_type: str, tokenizer_class: str):
        folder = tmp_path_factory.mktemp("sentencepiece")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences * 20),
            # The file name that the tokenizer class expects.
            model_prefix=str(folder / {"GPTSw3Tokenizer": "spiece"}.get(tokenizer_class, "tokenizer")),
            model_type=model_type,
            vocab_size=90,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        settings = {
            "tokenizer_class": tokenizer_class,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "</s>",
            "padding_side": "left",
            "model_max_length": 4096,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return folder

    return train


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("model_type", "tokenizer_class", "is_fast"),
    [("bpe", "LlamaTokenizer", True), ("unigram", "LlamaTokenizer", True), ("bpe", "GPTSw3Tokenizer", False)],
)
def test_sentencepiece_tokenizers(
    build_processor,
    sentencepiece_folder,
    make_image,
    user,
    assistant,
    tmp_path,
    layout,
    model_type,
    tokenizer_class,
    is_fast,
):
    tokenizer = AutoTokenizer.from_pretrained(sentencepiece_folder(model_type, tokenizer_class))
    assert (type(tokenizer).__name__, tokenizer.is_fast) == (tokenizer_class, is_fast)
    processor = build_processor(layout, tokenizer=tokenizer)
    images = [make_image(90, 130), make_image(40, 40)]
    prompts = ["<|image|> What is the name?", "<|image|> Which is darker?"]
    call = {"images": [[images[0]], [images[1]]], "text": prompts, "padding": True, "return_tensors": "pt"}
    inputs = processor(**call, return_mm_token_type_ids=True)
    types = torch.as_tensor(inputs.pop("mm_token_type_ids"))
    for index, image in enumerate(images):
        assert run_lengths(types[index]) == num_image_tokens(processor, image)
        input_ids = inputs["input_ids"][index][inputs["attention_mask"][index].bool()]
        assert tokenizer.unk_token_id not in input_ids
        text = processor.decode(input_ids, skip_special_tokens=True)
        assert text.split() == prompts[index].removeprefix("<|image|>").split()

    chat = [user(images[0], QUESTION), assistant("Her name is Ada.")]
    kwargs = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    outputs = processor.apply_chat_template(chat, return_assistant_tokens_mask=is_fast, **kwargs)
    assert outputs["pixel_values"].shape == (7, 3, 56, 56)
    full = text_of(processor, outputs["input_ids"][0])
    assert full.split("<|image|>")[1].split() == [*QUESTION.split(), "Assistant:", "Her", "name", "is", "Ada.</s>"]
    if is_fast:  # slow tokenizers have no character offsets
        mask = torch.as_tensor(outputs["assistant_masks"])[0]
        answer = processor.decode(outputs["input_ids"][0][mask.bool()])
        assert answer.strip() == "Her name is Ada.</s>"

    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)(**call)
    assert set(again) == set(inputs)
    for name in inputs:
        assert torch.equal(again[name], inputs[name]), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_save_and_load(build_processor, make_image, tmp_path, layout):
    processor = build_processor(layout, add_bos_token=layout == "stitched", max_crops=5)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is JinaVLMProcessor
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.chat_template == processor.chat_template
    assert loaded.add_bos_token == processor.add_bos_token
    kwargs = {"images": make_image(90, 400), "text": "Well <|image|>?", "return_tensors": "pt"}
    before, after = processor(**kwargs), loaded(**kwargs)
    for name in before:
        assert torch.equal(before[name], after[name]), name


def test_published_processor_can_be_saved_and_loaded(released_processor, make_image, tmp_path):
    assert released_processor.add_bos_token is True
    released_processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == released_processor.to_dict()
    assert loaded.add_bos_token is True
    assert loaded.chat_template == released_processor.chat_template
    kwargs = {
        "images": make_image(300, 600),
        "text": " User: <|image|>a red circle Assistant:",
        "return_tensors": "pt",
    }
    before, after = released_processor(**kwargs), loaded(**kwargs)
    for name in before:
        assert torch.equal(before[name], after[name]), name
