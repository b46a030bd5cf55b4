# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Errors: every message names the offending value and how to fix it."""

import base64
import json
import shutil
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest
import torch
from helpers import LAYOUTS, encode_image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)


@pytest.fixture(autouse=True)
def pillow_settings():
    """Asserts that Pillow's global settings do not change."""

    def settings():
        return PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES

    before = settings()
    yield
    assert settings() == before


@pytest.fixture
def processor(build_processor):
    return build_processor()


def assert_message(error, *words: str):
    for word in words:
        assert word in str(error.value), f"{word!r} is not in {error.value}"


# Prompts and images


@pytest.mark.parametrize(
    ("prompts", "counts", "words"),
    [
        ("<|image|> and <|image|>", 1, ["2 <|image|>", "1 image"]),
        ("<|image|>", 2, ["1 <|image|>", "2 images"]),
        (["<|image|>", "text"], 2, ["1 <|image|>", "2 images"]),
        (["<|image|>", "<|image|>"], 1, ["2 <|image|>", "1 image"]),
        (["text", "text"], 1, ["0 <|image|>", "1 image"]),
        (["<|image|>", "<|image|>"], [2, 0], ["Prompt 0", "1 <|image|>", "2 images"]),
        (["<|image|>", "<|image|>"], [1, 0], ["Prompt 1", "1 <|image|>", "0 images"]),
        (["<|image|>", "<|image|><|image|>"], [1, 1], ["Prompt 1", "2 <|image|>", "1 image"]),
        (["<|image|>"], [1, 1], ["2 lists of images", "1 prompts", "should be the same as the number of images"]),
        (["<|image|>", "<|image|>", "text"], [1, 1], ["2 lists of images", "3 prompts"]),
        ("<|image|>", None, ["1 <|image|>", "no images were passed"]),
        (["text", "<|image|>"], None, ["1 <|image|>", "no images were passed"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_numbers_of_placeholders_and_images_differ(build_processor, make_image, layout, prompts, counts, words):
    if isinstance(counts, list):
        images = [[make_image(40, 40)] * count for count in counts]
    else:
        images = None if counts is None else [make_image(40, 40)] * counts
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
        build_processor(layout)(text=prompts, images=images)
    assert_message(error, *words)


def test_conversation_without_images(processor):
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]}]
    with pytest.raises(ValueError, match=r"1 <\|image\|> tokens in the text but no images were passed"):
        processor.apply_chat_template(messages, tokenize=True, return_dict=True)


@pytest.mark.parametrize("token", ["<im_start>", "<im_end>", "<im_patch>", "<im_col>"])
def test_image_tokens_in_a_prompt(processor, make_image, token):
    for kwargs in ({}, {"images": [[], [make_image(40, 40)]]}):
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
            processor(text=["fine", f"<|image|> a {token} b" if kwargs else f"a {token} b"], **kwargs)
        assert_message(error, "Prompt 1", repr(token), "'<|image|>'")


def test_prompts_are_not_strings(processor):
    with pytest.raises(ValueError, match="`text` must be a string or list of strings"):
        processor(text=[["Who", "is"], ["this"]])


def test_unpaired_surrogates_in_a_prompt(processor, make_image):
    """A truncated JSON string may end in an unpaired surrogate. The errors of tokenizers do not name it."""
    for surrogate in ("\ud83d", "\udfff"):
        for kwargs in ({}, {"images": [[], [make_image(40, 40)]]}):
            with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
                processor(text=["fine 🙂", f"<|image|> {surrogate}" if kwargs else surrogate], **kwargs)
            assert_message(error, "Prompt 1", repr(surrogate), "unpaired surrogate")
        with pytest.raises(ValueError, match="Prompt 0 contains"):
            processor.apply_chat_template([{"role": "user", "content": surrogate}], tokenize=True, return_dict=True)


def test_no_inputs(processor):
    with pytest.raises(ValueError, match="`text` is an empty list"):
        processor(text=[])
    with pytest.raises(ValueError, match="at least one input"):
        processor()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_truncation_of_image_tokens(build_processor, make_image, layout, side):
    processor = build_processor(layout)
    processor.tokenizer.truncation_side = side
    prompts = ["only text", "before <|image|> after"]
    kwargs = {"text": prompts, "images": [[], [make_image(90, 130)]]}
    full = processor(**kwargs)["input_ids"][1]
    is_image = np.isin(full, processor.image_token_ids)
    first, last = is_image.argmax(), len(full) - 1 - is_image[::-1].argmax()
    fits = last + 1 if side == "right" else len(full) - first
    inputs = processor(**kwargs, truncation=True, max_length=int(fits))
    assert np.isin(inputs["input_ids"][1], processor.image_token_ids).sum() == is_image.sum()
    for max_length in (fits - 1, fits - 10, 3):
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
            processor(**kwargs, truncation=True, max_length=int(max_length))
        assert_message(error, "prompt 1", f"of their {is_image.sum()} tokens", "`max_length`", "`max_crops`")
    # Truncating all tokens of an image is an error too.
    with pytest.raises(ValueError, match="Truncation would cut the images of prompt 0: 0 of"):
        processor(
            text="before, a text longer than that <|image|>"
            if side == "right"
            else "<|image|> a text longer than that",
            images=make_image(40, 40),
            truncation=True,
            max_length=3,
        )


# Processor and model


@pytest.mark.parametrize(("model_layout", "processor_layout"), [LAYOUTS, LAYOUTS[::-1]])
def test_layouts_of_model_and_processor_differ(build_inputs, build_model, make_image, model_layout, processor_layout):
    inputs = build_inputs(processor_layout, "<|image|>", make_image(90, 130))
    model = build_model(model_layout)
    for call in (model, model.model, model.generate):
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
            call(**inputs)
        assert_message(
            error, f'layout "{model_layout}"', "`config.pooled_grid`", "model and processor from the same checkpoint"
        )


def test_numbers_of_image_tokens_and_features_differ(build_inputs, build_model, make_image):
    model, inputs = build_model(), build_inputs(text="<|image|>", images=make_image(90, 130))
    inputs["input_ids"] = inputs["input_ids"][:, :-1]
    inputs["attention_mask"] = inputs["attention_mask"][:, :-1]
    with pytest.raises(ValueError, match=r"tokens: 83, features: 84.*`image_token_id`.*model's"):
        model(**inputs)


def test_numbers_of_tiles_and_positions_differ(build_inputs, build_model, make_image):
    model, inputs = build_model(), build_inputs(text="<|image|>", images=make_image(90, 130))
    inputs["image_token_positions"] = inputs["image_token_positions"][:-1]
    with pytest.raises(ValueError, match=r"`image_token_positions` has the shape \(6, 12\), but there are 7 tiles"):
        model(**inputs)


def test_pixels_without_positions(build_inputs, build_model, make_image):
    model, inputs = build_model(), build_inputs(text="<|image|>", images=make_image(90, 130))
    del inputs["image_token_positions"]
    with pytest.raises(ValueError, match="`image_token_positions`"):
        model(**inputs)


# Images


def assert_undecodable(image_processor, images, *words: str):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
        image_processor(images)
    assert_message(error, "cannot be decoded", *words)


def png(height: int, width: int) -> bytes:
    """The bytes of a PNG file with this size in its header and no pixel data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_decompression_bomb(processor, tmp_path):
    """The limit that the user sets in Pillow applies."""
    path = tmp_path / "bomb.png"
    path.write_bytes(png(40_000, 40_000))
    assert_undecodable(processor.image_processor, str(path), "bomb.png", "PIL.Image.MAX_IMAGE_PIXELS")
    text = base64.b64encode(path.read_bytes()).decode()
    with pytest.raises(ValueError, match=r"decompression bomb|decoded"):
        processor.image_processor(text)
    messages = [{"role": "user", "content": [{"type": "image", "path": str(path)}]}]
    with pytest.raises(ValueError, match=r"bomb\.png.*PIL\.Image\.MAX_IMAGE_PIXELS"):
        processor.apply_chat_template(messages, tokenize=True, return_dict=True)


def test_decompression_bomb_warning(processor, make_image, tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    make_image(40, 60).save(path)
    with monkeypatch.context() as patch:
        patch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 2000)
        with pytest.warns(PIL.Image.DecompressionBombWarning):
            processor.image_processor(str(path))
        patch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
        assert_undecodable(processor.image_processor, str(path), "large.png", "PIL.Image.MAX_IMAGE_PIXELS")
        patch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
        processor.image_processor(str(path))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_truncated_image_file(processor, make_image, tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    data = encode_image(PIL.Image.fromarray(noise), kind)
    path = tmp_path / f"half.{kind.lower()}"
    path.write_bytes(data[: len(data) // 2])
    assert_undecodable(processor.image_processor, str(path), path.name, "check that the file is complete")
    # PIL.Image.open only reads the header.
    if kind != "WEBP":
        opened = PIL.Image.open(path)
        assert_undecodable(processor.image_processor, opened, "130×90", "check that the file is complete")
        assert_undecodable(processor.image_processor, [[make_image(40, 40), PIL.Image.open(path)]], "130×90")


INVALID_FILES = {
    "empty": b"",
    "text": b"no image at all",
    "header": b"\x89PNG\r\n\x1a\n",
    "PPM": b"P4",
    "GIF": b"GIF89a",
}


@pytest.mark.parametrize("content", INVALID_FILES.values(), ids=INVALID_FILES)
def test_invalid_image_files(processor, tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    assert_undecodable(processor.image_processor, str(path), "broken.png", "check that the file is complete")
    text = "data:image/png;base64," + base64.b64encode(content).decode()
    with pytest.raises(ValueError, match=r"base64|decoded"):
        processor.image_processor(text)


def test_missing_image_file(processor, tmp_path):
    with pytest.raises(ValueError, match=r"absent\.png"):
        processor.image_processor(str(tmp_path / "absent.png"))


def test_error_messages_do_not_repeat_base64_images(processor, make_image):
    noise = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    for content in (encode_image(PIL.Image.fromarray(noise))[:20_000], bytes(20_000)):
        text = base64.b64encode(content).decode()
        assert len(text) > 20_000
        with pytest.raises(ValueError) as error:  # noqa: PT011 - its length is checked below
            processor.image_processor(text)
        assert len(str(error.value)) < 1000


@pytest.mark.parametrize("shape", [(0, 50, 3), (50, 0, 3), (3, 0, 0), (3, 50, 0), (0, 0)], ids=str)
def test_empty_arrays(processor, shape):
    for array in (np.zeros(shape, np.uint8), torch.zeros(shape)):
        for images in (array, [array], [[array]]):
            with pytest.raises(ValueError, match=r"empty|shape"):
                processor.image_processor(images)
    with pytest.raises(ValueError, match=r"empty|0"):
        processor.image_processor(PIL.Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("shape", [(60, 50, 2), (2, 60, 50), (60, 50, 5), (7, 60, 50), (60, 50, 12)], ids=str)
def test_unsupported_numbers_of_channels(processor, shape):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
        processor.image_processor(np.zeros(shape, np.uint8))
    assert_message(error, "1, 3 or 4 channels", str(shape))


def test_channels_without_rgb_conversion(processor):
    with pytest.raises(ValueError, match=r"3 channels.*\(60, 50, 4\).*`do_convert_rgb=True`"):
        processor.image_processor(np.zeros((60, 50, 4), np.uint8), do_convert_rgb=False)
    with pytest.raises(ValueError, match=r"3 channels.*`do_convert_rgb=True`"):
        processor.image_processor(PIL.Image.new("L", (60, 50)), do_convert_rgb=False)


@pytest.mark.parametrize("array", [np.array([["a"]]), np.zeros((9, 9, 3), complex), np.zeros((9, 9, 3), object)])
def test_unsupported_array_dtypes(processor, array):
    with pytest.raises(ValueError, match=r"Image 0: a ndarray of dtype .* cannot be read"):
        processor.image_processor(array)


@pytest.mark.parametrize("value", [5, {"a": 1}, object()])
def test_unsupported_types_of_images(processor, value):
    with pytest.raises(ValueError, match=r"entries|image|type"):
        processor.image_processor(value)


@pytest.mark.parametrize("do_resize", [False, True])
def test_aspect_ratio_limit(processor, do_resize):
    image_processor = processor.image_processor
    image_processor(PIL.Image.new("RGB", (400, 2)), do_resize=do_resize)
    for size in ((402, 2), (2, 402)):
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
            image_processor(PIL.Image.new("RGB", size), do_resize=do_resize)
        assert_message(error, f"{size[0]}×{size[1]}", "201", "`max_aspect_ratio` (200)", "crop or pad")
    with pytest.raises(ValueError, match="`max_aspect_ratio`"):
        processor._get_num_multimodal_tokens(image_sizes=[[2, 402]])
    image_processor(PIL.Image.new("RGB", (402, 2)), max_aspect_ratio=300)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"size": {"height": 56, "width": 64}}, ["`size`", "56", "64"]),
        ({"size": {"height": 60, "width": 60}}, ["`size` (60)", "`patch_size` (8)"]),
        ({"patch_size": 9}, ["`size` (56)", "`patch_size` (9)"]),
        ({"patch_size": 0}, ["`patch_size`", "0"]),
        ({"layout": "mosaic"}, ["`layout`", "'mosaic'"]),
        ({"overlap_margins": [4, 4]}, ["`overlap_margins`", "[4, 4]"]),
        ({"overlap_margins": [4, 3]}, ["`overlap_margins` is [4, 3]", "7 patches"]),
        (
            {"overlap_margins": [-1, 1]},
            ["`overlap_margins` must be a list of 2", "from 0 to 4096, got [-1, 1]"],
        ),
        ({"overlap_margins": [1]}, ["`overlap_margins`", "[1]"]),
        ({"pooling_size": 0}, ["`pooling_size`", "0"]),
        ({"pooling_size": -1}, ["`pooling_size`", "-1"]),
        ({"pooling_size": 8}, ["`pooled_grid`", "[0, 1]", "`pooling_size` is 8", "7 patches"]),
        ({"pooled_grid": [3, 0]}, ["`pooled_grid`", "[3, 0]"]),
        ({"pooled_grid": [3, 4, 1]}, ["`pooled_grid`", "[3, 4, 1]"]),
        ({"max_crops": 0}, ["`max_crops`", "0"]),
        ({"resample": PIL.Image.Resampling.LANCZOS}, ["`resample`", "BILINEAR"]),
        ({"layout": "stitched", "pooled_grid": [3, 4]}, ["`pooled_grid`", "[3, 4]"]),
    ],
    ids=str,
)
def test_inconsistent_settings(processor, make_image, kwargs, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
        processor.image_processor(make_image(40, 40), **kwargs)
    assert_message(error, *words)


# Files in the published format


@pytest.fixture
def published(release, tmp_path):
    """A copy of the small published checkpoint that tests may damage."""
    return shutil.copytree(release / "checkpoint", tmp_path / "published")


def change_json(path, **settings):
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cropping_method", "resize"),
        ("normalization_method", "imagenet"),
        ("interpolation", "lanczos"),
        ("preserve_aspect_ratio", True),
        ("use_column_tokens", False),
        ("padding_mask", True),
        ("random_interpolation", True),
        ("base_input_size", [378, 392]),
        ("pooling_w", 3),
        ("token_length_h", 13),
        ("token_length_w", 15),
    ],
)
def test_unknown_values_in_a_published_preprocessor_config(published, field, value):
    change_json(published / "preprocessor_config.json", **{field: value})
    for auto_class in (AutoImageProcessor, AutoProcessor):
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
            auto_class.from_pretrained(published)
        assert_message(error, "preprocessor_config", field, str(value))


def test_unknown_value_in_a_published_processor_config(published):
    change_json(published / "processor_config.json", always_start_with_space=False)
    with pytest.raises(ValueError, match=r"`processor_config.always_start_with_space`.*False"):
        AutoProcessor.from_pretrained(published)


def test_unknown_value_in_a_published_config(published):
    settings = json.loads((published / "config.json").read_text())
    settings["vision_config"]["use_cls_token"] = True
    (published / "config.json").write_text(json.dumps(settings))
    for auto_class in (AutoConfig, AutoModelForImageTextToText, AutoModelForCausalLM, AutoModel):
        with pytest.raises(ValueError, match=r"`vision_config.use_cls_token` is True"):
            auto_class.from_pretrained(published)


# Published weights, and one of the weights that each is converted to.
PUBLISHED_WEIGHTS = {
    "vision_model.layers.3.attn.q_b": "vision_tower.encoder.layers.3.self_attn.q_proj.bias",
    "vision_model.layers.3.attn.qkv_w.weight": "vision_tower.encoder.layers.3.self_attn.q_proj.weight",
    "vision_model.pos_embed": "vision_tower.embeddings.position_embedding.weight",
    "vision_model.patch_embed.proj.weight": "vision_tower.embeddings.patch_embedding.weight",
    "vision_model.vl_connector.pad_embed": "connector.last_tile_embedding",
    "vision_model.vl_connector.pooling.kv_w.weight": "connector.pooling.k_proj.weight",
    "vision_model.vl_connector.projector.up.weight": "connector.projector.up_proj.weight",
    "vision_model.vl_connector.projector.down.weight": "connector.projector.down_proj.weight",
    "language_model.layers.1.attn.qkv_w.weight": "language_model.layers.1.self_attn.q_proj.weight",
    "language_model.layers.1.attn.out.weight": "language_model.layers.1.self_attn.o_proj.weight",
    "language_model.layers.2.ffn.up.weight": "language_model.layers.2.mlp.up_proj.weight",
    "language_model.embedding.embedding": "language_model.embed_tokens.weight",
    "language_model.embedding.new_embedding": "language_model.embed_tokens.weight",
    "language_model.ln_f.weight": "language_model.norm.weight",
}


# Changed axes for which the conversion fails.
CONVERTED = {
    "vision_model.layers.3.attn.qkv_w.weight": 0,
    "vision_model.patch_embed.proj.weight": 1,
    "vision_model.vl_connector.pad_embed": 0,
    "language_model.layers.1.attn.qkv_w.weight": 0,
    "language_model.embedding.embedding": 1,
    "language_model.embedding.new_embedding": 1,
}


def assert_conversion_error(published, *words: str) -> str:
    with pytest.raises(ValueError, match="holds weights that cannot be converted") as error:
        AutoModelForImageTextToText.from_pretrained(published)
    assert_message(error, str(published), *words)
    return str(error.value)


@pytest.mark.parametrize("name", [name for name in PUBLISHED_WEIGHTS if "1.attn.out" not in name])
@pytest.mark.parametrize("auto_class", [AutoModelForImageTextToText, AutoModel])
def test_missing_published_weights(published, auto_class, name):
    change_weights(published, lambda weights: weights.pop(f"model.{name}"))
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
        auto_class.from_pretrained(published)
    assert_message(error, str(published), PUBLISHED_WEIGHTS[name])


def test_missing_output_projection(published):
    change_weights(published, lambda weights: weights.pop("model.language_model.layers.1.attn.out.weight"))
    assert_conversion_error(published, "layers.1.self_attn.o_proj.weight", "attn.out.weight is missing")


def test_missing_published_head(published):
    change_weights(published, lambda weights: weights.pop("lm_head.weight"))
    with pytest.raises(ValueError, match=r"lacks weights: lm_head\.weight"):
        AutoModelForImageTextToText.from_pretrained(published)
    AutoModel.from_pretrained(published)  # has no head


@pytest.mark.parametrize(
    ("name", "converted_name"),
    [
        ("model.vision_model.cls_token", "vision_model.cls_token"),
        ("model.vision_model.layers.3.attn.lscale", "vision_tower.encoder.layers.3.attn.lscale"),
        ("model.vision_model.layers.11.attn.q_b", "vision_tower.encoder.layers.11.self_attn.q_proj.bias"),
        ("model.language_model.layers.3.attn_lnorm.weight", "language_model.layers.3.input_layernorm.weight"),
        ("model.vision_model.vl_connector.bias", "connector.bias"),
        ("model.something.weight", "something.weight"),
    ],
)
def test_unknown_published_weights(published, name, converted_name):
    change_weights(published, lambda weights: weights.update({name: torch.zeros(32)}))
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
        AutoModelForImageTextToText.from_pretrained(published)
    assert_message(error, str(published), "holds unknown weights", converted_name)


VECTORS = ("vision_model.layers.3.attn.q_b", "language_model.ln_f.weight")


@pytest.mark.parametrize(
    ("name", "axis"),
    [(name, axis) for name in PUBLISHED_WEIGHTS for axis in range(1 if name in VECTORS else 2)],
)
def test_misshapen_published_weights(published, name, axis):
    def change(weights):
        weight = weights[f"model.{name}"]
        # Fused weights must stay divisible by two.
        size = weight.shape[axis] - (2 if weight.shape[axis] > 2 else 1)
        weights[f"model.{name}"] = weight.narrow(axis, 0, size).clone()

    change_weights(published, change)
    ours = PUBLISHED_WEIGHTS[name]
    if CONVERTED.get(name) == axis:
        assert_conversion_error(published, ours, f"cannot convert a tensor for model.{ours}")
        return
    with pytest.raises(ValueError, match="holds weights of another shape") as error:
        AutoModelForImageTextToText.from_pretrained(published)
    assert_message(error, str(published), ours.removesuffix("q_proj.weight"), "instead of [")


@pytest.mark.parametrize("part", ["q_b", "k_b", "v_b"])
def test_non_zero_language_model_biases(published, part):
    def change(weights):
        for layer in range(3):
            bias = torch.zeros(64 if part == "q_b" else 32)
            bias[5] = 0.25 * (layer == 1)
            weights[f"model.language_model.layers.{layer}.attn.{part}"] = bias

    change_weights(published, change)
    words = ("language_model.layers.1.self_attn.o_proj.weight", part, "not zero")
    assert "layers.2." not in assert_conversion_error(published, *words)


@pytest.mark.parametrize("damage", ["missing", "unknown", "misshapen"])
def test_damaged_weights(build_model, tmp_path, damage):
    build_model("stitched").save_pretrained(tmp_path)
    name = "model.connector.pooling.q_proj.weight"

    def change(weights):
        if damage == "missing":
            del weights[name]
        elif damage == "unknown":
            weights["model.connector.pooling.q_norm.weight"] = torch.zeros(3)
        else:
            weights[name] = weights[name][:, :-1].clone()

    change_weights(tmp_path, change)
    message = {
        "missing": r"lacks weights: model\.connector\.pooling\.q_proj\.weight",
        "unknown": r"holds unknown weights: model\.connector\.pooling\.q_norm\.weight",
        "misshapen": r"model\.connector\.pooling\.q_proj\.weight.*\[16, 31\].*\[16, 32\]",
    }[damage]
    with pytest.raises(ValueError, match=message):
        AutoModelForImageTextToText.from_pretrained(tmp_path)
    if damage != "misshapen":
        # `output_loading_info` returns the differences instead.
        _, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
        assert bool(info["missing_keys"]) == (damage == "missing")
        assert bool(info["unexpected_keys"]) == (damage == "unknown")


def test_folder_without_weights(build_model, tmp_path):
    build_model().config.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForImageTextToText.from_pretrained(tmp_path)


def test_truncated_weight_file(published):
    path = published / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or truncated"):
        AutoModelForImageTextToText.from_pretrained(published)


def test_weights_of_another_shape_on_request(build_model, tmp_path):
    """`ignore_mismatched_sizes` and `output_loading_info` behave as in Transformers."""
    build_model().save_pretrained(tmp_path)
    name = "model.connector.pooling.q_proj.weight"
    change_weights(tmp_path, lambda weights: weights.update({name: torch.zeros(3, 4)}))
    with pytest.raises(ValueError, match=rf"holds weights of another shape: {name} \[3, 4\] instead of"):
        AutoModelForImageTextToText.from_pretrained(tmp_path)
    _, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert [found[0] for found in info["mismatched_keys"]] == [name]
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    assert model.model.connector.pooling.q_proj.weight.shape == (16, 32)
