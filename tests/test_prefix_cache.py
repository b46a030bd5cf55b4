# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""`PrefixCache`: questions about images that are read once have the tokens of a new `generate`."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import LAYOUTS, assistant, chat_inputs, make_image, user
from transformers import AutoModelForImageTextToText, AutoProcessor

from jvlm import PrefixCache


DIGITS = Path(__file__).parents[1] / "examples" / "digits" / "model"
QUESTIONS = ["Which of the two images is darker?", "What?", " What is the name of this lady? " * 3]
ways = pytest.mark.parametrize(
    "way",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 2.0, "num_return_sequences": 3},
        {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_beams": 2},
    ],
    ids=["greedy", "sampling", "beams", "sampled beams"],
)


@pytest.fixture
def images():
    return [make_image(90, 130), make_image(60, 50, seed=1)]


def generate(model, inputs, **kwargs) -> torch.Tensor:
    torch.manual_seed(0)
    return model.generate(**inputs, max_new_tokens=12, eos_token_id=-1, pad_token_id=0, **kwargs)


def ask(pages, question, **kwargs) -> torch.Tensor:
    torch.manual_seed(0)
    return pages.generate(question, max_new_tokens=12, eos_token_id=-1, pad_token_id=0, **kwargs)


@pytest.mark.parametrize("layout", LAYOUTS)
@ways
def test_tokens_are_those_of_a_new_generate(build_model, build_processor, images, layout, way):
    model, processor = build_model(layout), build_processor(layout, add_bos_token=layout == "stitched")
    pages = PrefixCache(model, processor, images)
    for question in QUESTIONS:
        expected = generate(model, chat_inputs(processor, [user(*images, question)]), **way)
        assert torch.equal(ask(pages, question, **way), expected)
    assert pages.new_cache().get_seq_length() == pages.input_ids.shape[1]  # questions have left it as it was


def test_the_images_are_encoded_once(build_model, build_processor, images, monkeypatch):
    model, processor = build_model(), build_processor()
    pages = PrefixCache(model, processor, images)
    monkeypatch.setattr(model.model.vision_tower, "forward", None)
    monkeypatch.setattr(processor.image_processor, "fetch_images", None)
    assert ask(pages, QUESTIONS[0]).shape[1] == pages._input_ids(QUESTIONS[0]).shape[1] + 12


def test_conversations_system_messages_and_arguments(build_model, build_processor, images):
    model, processor = build_model(), build_processor()
    pages = PrefixCache(model, processor, images, system="Be brief.", max_crops=2)
    system = {"role": "system", "content": "Be brief."}
    first, answer, last = user("What is it?"), assistant("Ada."), {"role": "user", "content": "Which one?"}
    whole = [system, user(*images, "What is it?"), answer, last]
    inputs = chat_inputs(processor, whole, processor_kwargs={"max_crops": 2})
    assert torch.equal(ask(pages, [first, answer, last], do_sample=False), generate(model, inputs, do_sample=False))
    output = ask(pages, "What is it?", return_dict_in_generate=True, output_scores=True)
    assert output.scores[0].shape == (1, model.config.text_config.vocab_size)


def test_the_text_of_an_answer(tmp_path):
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(DIGITS, dtype="float32"),
        AutoProcessor.from_pretrained(DIGITS),
    )
    pages = PrefixCache(model, processor, str(DIGITS / "samples" / "page-2x2.png"))
    pages.save_pretrained(tmp_path / "pages")
    loaded = PrefixCache.from_pretrained(tmp_path / "pages", model, processor)
    for each in (pages, loaded):
        assert each.answer("Which digits are written here?", max_new_tokens=16) == "1 6 4 6 6"
        assert each.answer("How many digits are there?", max_new_tokens=16) == "5"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_and_loaded(build_model, build_processor, images, layout, tmp_path):
    model, processor = build_model(layout), build_processor(layout)
    pages = PrefixCache(model, processor, images, system="Be brief.")
    pages.save_pretrained(tmp_path / "pages")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["cache.json", "cache.safetensors", "pages"]
    loaded = PrefixCache.from_pretrained(tmp_path / "pages", build_model(layout), build_processor(layout))
    assert torch.equal(ask(loaded, QUESTIONS[0]), ask(pages, QUESTIONS[0]))
    with pytest.raises(FileExistsError, match="exists already"):
        pages.save_pretrained(tmp_path / "pages")


def change_weight(model, processor):
    model.model.connector.projector.down_proj.weight.data[0, 0] += 1e-3


def change_dtype(model, processor):
    model.to(torch.bfloat16)


def change_settings(model, processor):
    model.config.text_config.rope_parameters["rope_theta"] += 1


def change_image_processor(model, processor):
    processor.image_processor.max_crops = 3


def change_template(model, processor):
    processor.chat_template = "{{ 'Hello' }}" + processor.chat_template


def change_vocabulary(model, processor):
    processor.tokenizer.add_tokens(["<new>"])


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (change_weight, ["model weights"]),
        (change_dtype, ["dtype", "model weights"]),
        (change_settings, ["configuration"]),
        (change_image_processor, ["image processor"]),
        (change_template, ["chat template or vocabulary", "prompt prefix"]),
        (change_vocabulary, ["chat template or vocabulary"]),
    ],
)
def test_another_model_or_processor_is_refused(build_model, build_processor, images, change, names, tmp_path):
    model, processor = build_model(), build_processor()
    PrefixCache(model, processor, images).save_pretrained(tmp_path / "pages")
    change(model, processor)
    with pytest.raises(ValueError, match=f"it differs in {', '.join(names)}. Make it again"):
        PrefixCache.from_pretrained(tmp_path / "pages", model, processor)


def test_damaged_files_are_refused(build_model, build_processor, images, tmp_path):
    model, processor = build_model(), build_processor()
    PrefixCache(model, processor, images).save_pretrained(tmp_path / "pages")
    tensors = tmp_path / "pages" / "cache.safetensors"
    for file, content in (("cache.safetensors", tensors.read_bytes()[:-1]), ("cache.json", b'{"num_images": 2}')):
        folder = shutil.copytree(tmp_path / "pages", tmp_path / file)
        (folder / file).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{file} is damaged \(.*\); make it again\."):
            PrefixCache.from_pretrained(folder, model, processor)
    with pytest.raises(OSError, match="missing"):
        PrefixCache.from_pretrained(tmp_path / "missing", model, processor)
    assert "text" in json.loads((tmp_path / "pages" / "cache.json").read_text())


@pytest.mark.parametrize("question", [[], [assistant("Ada.")], [user(make_image(20, 20), "What?")]])
def test_questions_that_do_not_follow_the_images(build_model, build_processor, images, question):
    pages = PrefixCache(build_model(), build_processor(), images)
    with pytest.raises(ValueError, match=r"begins with the user and has no images: .* make another `PrefixCache`"):
        pages.generate(question)
    for other in (5, ["How many?"], [{"role": "user"}]):
        with pytest.raises(ValueError, match="A question is a text or a list of messages, got "):
            pages.generate(other)
    for text in ("<|image|>", "<im_patch>"):
        with pytest.raises(ValueError, match=r"<\|image\|>"):
            pages.generate(text)


def test_what_has_no_prefix(build_model, build_processor, images):
    processor = build_processor()
    with pytest.raises(ValueError, match="`images` is empty"):
        PrefixCache(build_model(), processor, [])
    with pytest.raises(ValueError, match=r"Image 0: 'missing\.png' is not a file"):
        PrefixCache(build_model(), processor, ["missing.png"])
    sliding = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    with pytest.raises(ValueError, match="layers whose attention does not reach all earlier tokens"):
        PrefixCache(build_model(text_config=sliding), processor, images)
