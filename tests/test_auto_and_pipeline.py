# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The Auto classes and the image-text-to-text pipeline, with new checkpoints of both layouts and the published one."""

import functools
import importlib
import io
import sys
from threading import Thread

import PIL.Image
import pytest
import torch
from helpers import chat_inputs, encode_base64, encode_image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    TextIteratorStreamer,
    dynamic_module_utils,
    pipeline,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

import jvlm
from jvlm import (
    JinaVLMConfig,
    JinaVLMForConditionalGeneration,
    JinaVLMImageProcessor,
    JinaVLMModel,
    JinaVLMProcessor,
)


GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


@pytest.fixture
def messages(monkeypatch) -> list[str]:
    """The warnings and errors that pipelines log and the questions that they ask on the terminal."""
    messages = []
    monkeypatch.setattr("builtins.input", lambda prompt="": messages.append(prompt) or "n")
    for level in ("warning", "error"):
        for name in ("base", "image_text_to_text"):
            logger = importlib.import_module(f"transformers.pipelines.{name}").logger
            monkeypatch.setattr(logger, level, lambda message, *args, **kwargs: messages.append(str(message)))
    return messages


@pytest.fixture
def pipe(messages, checkpoint):
    return pipeline("image-text-to-text", model=str(checkpoint), device="cpu")


def test_auto_classes(checkpoint):
    assert type(AutoConfig.from_pretrained(checkpoint)) is JinaVLMConfig
    assert type(AutoImageProcessor.from_pretrained(checkpoint)) is JinaVLMImageProcessor
    assert type(AutoProcessor.from_pretrained(checkpoint)) is JinaVLMProcessor
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert tokenizer.convert_tokens_to_ids("<im_patch>") == AutoConfig.from_pretrained(checkpoint).image_token_id
    for auto_class, model_class in (
        (AutoModel, JinaVLMModel),
        (AutoModelForImageTextToText, JinaVLMForConditionalGeneration),
        (AutoModelForCausalLM, JinaVLMForConditionalGeneration),
    ):
        assert type(auto_class.from_pretrained(checkpoint)) is model_class
    config = AutoConfig.for_model("jvlm")
    assert type(config) is JinaVLMConfig


def test_base_model_and_full_model_have_the_same_weights(checkpoint):
    base = AutoModel.from_pretrained(checkpoint).state_dict()
    full = AutoModelForImageTextToText.from_pretrained(checkpoint).state_dict()
    assert {f"model.{name}" for name in base} | {"lm_head.weight"} == set(full)
    for name, weight in base.items():
        assert torch.equal(weight, full[f"model.{name}"]), name


def test_auto_model_for_vision2seq(checkpoint, make_image, user, tmp_path):
    from transformers import AutoModelForVision2Seq

    assert AutoModelForVision2Seq is jvlm.AutoModelForVision2Seq
    model = AutoModelForVision2Seq.from_pretrained(checkpoint)
    assert type(model) is JinaVLMForConditionalGeneration
    assert type(AutoModelForVision2Seq.from_config(model.config)) is JinaVLMForConditionalGeneration
    processor = AutoProcessor.from_pretrained(checkpoint)
    inputs = chat_inputs(processor, [user(make_image(90, 130), "Who?")])
    output = model.generate(**inputs, **GREEDY)
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForVision2Seq.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.generate(**inputs, **GREEDY), output)


def test_register_is_idempotent():
    jvlm.registration.register()
    assert MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["jvlm"] == "JinaVLMForConditionalGeneration"
    assert AutoModelForImageTextToText._model_mapping[JinaVLMConfig] is JinaVLMForConditionalGeneration


def test_published_folder_loads_without_its_remote_code(release, monkeypatch):
    """The folder names remote code. It is not run and the user is not asked, whatever `trust_remote_code` is."""

    def fail(*args, **kwargs):
        raise AssertionError("remote code was requested")

    monkeypatch.setattr("builtins.input", fail)
    monkeypatch.setattr(dynamic_module_utils, "get_cached_module_file", fail)
    modules = set(sys.modules)
    for trust in (False, True):
        model = AutoModelForCausalLM.from_pretrained(release / "checkpoint", trust_remote_code=trust)
        processor = AutoProcessor.from_pretrained(release / "checkpoint", trust_remote_code=trust)
        assert type(model) is JinaVLMForConditionalGeneration
        assert type(processor) is JinaVLMProcessor
    assert not any(name.startswith("transformers_modules") for name in set(sys.modules) - modules)


# Pipeline


def answer(pipe, chat, **kwargs) -> str:
    """The answer of the model to a chat, without the pipeline."""
    kwargs = {**GREEDY, **kwargs}
    inputs = chat_inputs(pipe.processor, chat)
    output = pipe.model.generate(**inputs, **kwargs)[0, inputs["input_ids"].shape[1] :]
    return pipe.processor.decode(output, skip_special_tokens=True)


def test_pipeline_answers_chats(pipe, messages, make_image, user, assistant, tmp_path):
    image = make_image(90, 130)
    image.save(tmp_path / "image.png")
    text = encode_base64(image)
    expected = answer(pipe, [user(image, "Who is this?")])
    for part in ({"image": image}, {"path": str(tmp_path / "image.png")}, {"base64": text}):
        chat = [{"role": "user", "content": [{"type": "image", **part}, {"type": "text", "text": "Who is this?"}]}]
        output = pipe(text=chat, generate_kwargs=GREEDY, return_full_text=False)
        assert output[0]["generated_text"] == expected
    # The full chat with the answer.
    output = pipe(text=[user(image, "Who is this?")], generate_kwargs=GREEDY)
    assert output[0]["generated_text"][-1] == {"role": "assistant", "content": expected}
    # Several turns, and no images.
    for chat in (
        [user(image, "Who is this?"), assistant("Ada."), user(make_image(40, 40), "And here?")],
        [user("Well?")],
    ):
        output = pipe(text=chat, generate_kwargs=GREEDY, return_full_text=False)
        assert output[0]["generated_text"] == answer(pipe, chat)
    assert messages == []


def test_pipeline_takes_images_and_text(pipe, messages, make_image):
    image = make_image(90, 130)
    inputs = pipe.processor(images=image, text="<|image|> Who is this?", return_tensors="pt")
    output = pipe.model.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :]
    expected = pipe.processor.decode(output, skip_special_tokens=True)
    output = pipe(images=image, text="<|image|> Who is this?", generate_kwargs=GREEDY, return_full_text=False)
    assert output[0]["generated_text"] == expected
    output = pipe(images=[image], text=" Who is this?", generate_kwargs=GREEDY, return_full_text=False)
    assert output[0]["generated_text"] == expected
    # The only message is the recommendation to use a chat template.
    assert [message for message in messages if "not formatted as a chat" not in message] == []


def test_pipeline_batches(pipe, messages, make_image, user):
    """Batches of chats of different lengths give the same answers as single chats."""
    chats = [
        [user(make_image(90, 130), "Who is this?")],
        [user(make_image(40, 40), "And here?")],
        [user(make_image(60, 200), make_image(50, 50), "Which of the two images is darker?")],
        [user(make_image(40, 40, 1), "Who?")],
        # The pipeline does not support chats with and without images in one batch.
        [user("Well?")],
        [user("Which of the two images is darker?")],
    ]
    outputs = pipe(text=chats, batch_size=2, generate_kwargs=GREEDY, return_full_text=False)
    assert [output[0]["generated_text"] for output in outputs] == [answer(pipe, chat) for chat in chats]
    assert messages == []


def test_pipeline_generate_kwargs(pipe, make_image, user):
    chat = [user(make_image(90, 130), "Who is this?")]
    output = pipe(text=chat, generate_kwargs={**GREEDY, "num_beams": 3}, return_full_text=False)
    assert output[0]["generated_text"] == answer(pipe, chat, num_beams=3)
    output = pipe(text=chat, max_new_tokens=3, generate_kwargs={"do_sample": False}, return_full_text=False)
    expected = answer(pipe, chat, max_new_tokens=3, min_new_tokens=None)
    assert output[0]["generated_text"] == expected
    with pytest.raises(ValueError, match=r"`do_sample` is not a keyword of this processor; .* as `generate_kwargs`"):
        pipe(text=chat, do_sample=False)  # the pipeline passes it to the processor


def test_pipeline_processor_kwargs(pipe, make_image, user, monkeypatch):
    chat = [user(make_image(500, 1200), "Who is this?")]
    tiles, encode = [], pipe.model.model.get_image_features

    @functools.wraps(encode)
    def count_and_encode(pixel_values, *args, **kwargs):
        tiles.append(len(pixel_values))
        return encode(pixel_values, *args, **kwargs)

    monkeypatch.setattr(pipe.model.model, "get_image_features", count_and_encode)
    for max_crops in (1, 12):
        pipe(text=chat, generate_kwargs=GREEDY, processor_kwargs={"max_crops": max_crops})
    assert tiles[0] == 2 < tiles[1]


def test_streamer(checkpoint, make_image, user):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    processor = AutoProcessor.from_pretrained(checkpoint)
    inputs = chat_inputs(processor, [user(make_image(90, 130), "Who is this?")])
    output = model.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :]
    for tokenizer in (processor, processor.tokenizer):
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        thread = Thread(target=model.generate, kwargs={**inputs, **GREEDY, "streamer": streamer})
        thread.start()
        pieces = list(streamer)
        thread.join()
        assert "".join(pieces) == processor.decode(output, skip_special_tokens=True)


def test_pipeline_takes_images_that_are_not_decoded_yet(pipe, make_image, user):
    opened = PIL.Image.open(io.BytesIO(encode_image(make_image(90, 130))))
    chat = [user(opened, "Who is this?")]
    output = pipe(text=chat, generate_kwargs=GREEDY, return_full_text=False)
    assert output[0]["generated_text"] == answer(pipe, [user(make_image(90, 130), "Who is this?")])
