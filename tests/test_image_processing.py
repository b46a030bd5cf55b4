# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The image processor: input types, settings, and tiles compared with a reference implementation."""

import copy
import io
import itertools
import logging
import re
import subprocess
import sys
import warnings

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from helpers import LAYOUTS, encode_base64, encode_image
from reference import expected_tiles
from transformers import AutoImageProcessor, AutoProcessor, BatchFeature

from jvlm import JinaVLMImageProcessor
from jvlm.processing import image_conversion, image_processing_jvlm


@pytest.fixture
def image_processor() -> JinaVLMImageProcessor:
    """Tiles of 56 pixels with 7×7 patches of 8 pixels and a stride of 40 pixels."""
    return JinaVLMImageProcessor(size={"height": 56, "width": 56}, patch_size=8, overlap_margins=[1, 1])


def process(image_processor, images, **kwargs) -> BatchFeature:
    return image_processor(images, return_tensors="pt", **kwargs)


def assert_equal(outputs: BatchFeature, expected: BatchFeature):
    assert set(outputs) == set(expected)
    for name in expected:
        assert torch.equal(outputs[name], expected[name]), name


def as_array(image: PIL.Image.Image) -> np.ndarray:
    return np.array(image)


def test_output_shapes_and_dtypes(image_processor, make_image):
    outputs = process(image_processor, [make_image(90, 130), make_image(40, 40)])
    assert outputs["pixel_values"].shape == (1 + 2 * 3 + 1 + 1, 3, 56, 56)
    assert outputs["pixel_values"].dtype == torch.float32
    assert outputs["image_token_positions"].shape == (9, 12)
    assert outputs["image_token_positions"].dtype == torch.int64
    assert outputs["image_grids"].tolist() == [[2, 3], [1, 1]]
    assert outputs["pixel_values"].is_contiguous()


@pytest.mark.parametrize("return_tensors", [None, "np", "pt"])
def test_return_tensors(image_processor, make_image, return_tensors):
    outputs = image_processor(make_image(90, 130), return_tensors=return_tensors)
    expected = process(image_processor, make_image(90, 130))
    kind = np.ndarray if return_tensors == "np" else torch.Tensor
    for name in expected:
        assert isinstance(outputs[name], kind)
        assert np.array_equal(np.asarray(outputs[name]), expected[name].numpy())


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"]


@pytest.mark.parametrize("mode", MODES)
def test_pil_modes(image_processor, make_image, mode):
    """Images are converted to RGB by Pillow, as `load_image` does."""
    image = make_image(90, 130).convert(mode)
    assert image.mode == mode
    expected = process(image_processor, image.convert("RGB"))
    assert_equal(process(image_processor, image), expected)
    assert_equal(process(image_processor, as_array(image.convert("RGB"))), expected)


@pytest.fixture
def messages(monkeypatch) -> list[str]:
    """The warnings about images, without the filter that shows each only once."""
    warned: list[str] = []
    for module in (image_conversion, image_processing_jvlm):
        monkeypatch.setattr(module.logger, "warning_once", warned.append)
    return warned


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_of_more_bits_are_arrays(image_processor, make_image, messages, mode):
    image = make_image(90, 130).convert("L").convert(mode)
    assert_equal(process(image_processor, image), process(image_processor, as_array(image)))
    tiles = process(image_processor, image.convert("RGB"))["pixel_values"]
    # Only the rounding to 8 bits differs.
    torch.testing.assert_close(process(image_processor, image)["pixel_values"], tiles, rtol=0, atol=1.01 / 255)
    assert not messages


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_images_are_scaled_to_8_bits(image_processor, make_image, messages, dtype, kind):
    """White is 65535, as in Pillow's conversion of 16-bit colour files, and not clipped to 255."""
    grey = make_image(90, 130).convert("L")
    expected = process(image_processor, grey)
    values = as_array(grey).astype(np.uint16) * 256 + 200
    image = PIL.Image.fromarray(values.astype(dtype))
    assert image.mode in ("I;16", "I;16B")
    assert_equal(process(image_processor, image), expected)
    assert_equal(process(image_processor, encode_image(image, kind)), expected)
    assert not messages


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I", "F", "I;16"])
def test_modes_without_conversion_are_an_error(image_processor, make_image, mode):
    image = make_image(90, 130).convert("L") if mode in ("I", "F", "I;16") else make_image(90, 130)
    image = image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode)
    with pytest.raises(ValueError, match=r"Image 0: the model reads 3 channels.*`do_convert_rgb=True`"):
        process(image_processor, image, do_convert_rgb=False)


def test_dark_16_bit_images_give_a_warning(image_processor, make_image, messages):
    """They may be 8-bit values in 16 bits."""
    image = PIL.Image.fromarray(as_array(make_image(90, 130).convert("L")).astype(np.uint16))
    process(image_processor, image)
    assert len(messages) == 1
    assert "65535 is white" in messages[0]
    assert "astype" in messages[0]
    messages.clear()
    process(image_processor, PIL.Image.fromarray(np.zeros((60, 60), np.uint16)))
    assert not messages, "black is black"


def test_transparent_images_give_a_warning(image_processor, make_image, messages):
    """Black ink on a transparent background is black on black without alpha."""
    ink = make_image(90, 130).convert("L").point(lambda value: 255 if value < 100 else 0)
    image = PIL.Image.new("RGBA", ink.size)
    image.putalpha(ink)
    palette = PIL.Image.open(io.BytesIO(encode_image(make_image(90, 130).quantize(16), transparency=3)))
    grey = PIL.Image.merge("LA", [ink, ink])
    colour = make_image(90, 130)
    colour.info["transparency"] = colour.getpixel((3, 4))
    array = as_array(image)
    for given in (image, grey, palette, colour, encode_image(image), array, array.transpose(2, 0, 1)):
        messages.clear()
        process(image_processor, given)
        assert len(messages) == 1
    assert "alpha channel is dropped" in messages[0]
    fix = re.search("pass `(.*)`", messages[0])[1]
    fixed = eval(fix, {"PIL": PIL, "image": image})
    messages.clear()
    white = process(image_processor, fixed)
    assert not messages, "the fix that the warning names works"
    expected = PIL.Image.new("RGB", image.size, "white")
    expected.paste("black", mask=ink)
    assert_equal(white, process(image_processor, expected))


def test_opaque_images_give_no_warning(image_processor, make_image, messages):
    image = make_image(90, 130)
    opaque = image.convert("RGBA")
    unused = image.quantize(16)
    unused.info["transparency"] = 200
    floats = as_array(opaque).astype(np.float32)
    for given in (opaque, opaque.convert("LA"), unused, as_array(opaque), floats, torch.from_numpy(floats)):
        process(image_processor, given)
    process(image_processor, floats / 255, do_rescale=False)
    assert not messages


def test_dropping_alpha_keeps_the_pixels_of_the_published_code(image_processor, make_image, messages):
    """The published code converts with Pillow."""
    image = make_image(90, 130)
    image.putalpha(make_image(90, 130, 1).convert("L"))
    assert_equal(process(image_processor, image), process(image_processor, image.convert("RGB")))
    assert_equal(process(image_processor, as_array(image)), process(image_processor, image.convert("RGB")))


def test_warnings_appear_once(image_processor, make_image, caplog):
    image = make_image(90, 130).convert("RGBA")
    image.putalpha(7)
    logging.Logger.warning_once.cache_clear()
    for _ in range(3):
        process(image_processor, [image, image])
    assert sum("alpha channel" in message for message in caplog.messages) == 1


def test_palette_with_transparency(image_processor, make_image):
    image = make_image(90, 130).quantize(16)
    data = encode_image(image, transparency=3)
    image = PIL.Image.open(io.BytesIO(data))
    assert image.mode == "P"
    assert "transparency" in image.info
    expected = process(image_processor, image.convert("RGB"))
    assert_equal(process(image_processor, PIL.Image.open(io.BytesIO(data))), expected)


def test_arrays_equal_pil_images(image_processor, make_image):
    image = make_image(90, 130)
    array = as_array(image)
    expected = process(image_processor, image)
    first = np.ascontiguousarray(array.transpose(2, 0, 1))
    for given in (
        array,
        first,
        torch.from_numpy(array),
        torch.from_numpy(first),
        np.asfortranarray(array),
        array[:, ::-1][:, ::-1],  # negative strides
        array.astype(">u2").astype(np.uint8),
        np.concatenate([array, np.full_like(array[..., :1], 7)], axis=-1),  # an alpha channel, dropped
        torch.from_numpy(first).requires_grad_(False),
    ):
        assert_equal(process(image_processor, given), expected)


def test_read_only_arrays_give_no_warning(image_processor, make_image, monkeypatch):
    """There is no warning, and the warning filters, which all threads share, are not changed to suppress one."""
    array = as_array(make_image(90, 130))
    expected = process(image_processor, array.copy())
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(warnings, "catch_warnings", None)
        assert_equal(process(image_processor, array), expected)
        monkeypatch.undo()


@pytest.mark.parametrize("size", [(1, 5), (5, 1), (1, 1)], ids=str)
def test_arrays_of_one_row_with_negative_strides(image_processor, make_image, size):
    """NumPy reports them as contiguous, but PyTorch does not support negative strides."""
    array = as_array(make_image(*size))
    expected = process(image_processor, array[::-1, ::-1].copy())
    assert_equal(process(image_processor, array[::-1, ::-1]), expected)


def test_grey_arrays(image_processor, make_image):
    image = make_image(90, 130).convert("L")
    expected = process(image_processor, image)
    grey = as_array(image)
    for given in (grey, torch.from_numpy(grey), grey[..., None], grey[None]):
        for images in (given, [given], [[given]]):
            assert_equal(process(image_processor, images), expected)


def test_input_data_format(image_processor):
    """If the channel axis is ambiguous, `input_data_format` decides."""
    array = np.random.default_rng(0).integers(0, 256, (3, 60, 3), dtype=np.uint8)
    last = process(image_processor, array, input_data_format="channels_last")
    expected = process(image_processor, PIL.Image.fromarray(array))
    assert_equal(last, expected)
    first = process(image_processor, array, input_data_format="channels_first")
    assert not torch.equal(first["pixel_values"], last["pixel_values"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_floats_without_rescaling(image_processor, dtype):
    # Black and white are exact in every dtype. `resize_in_float32` also avoids rounding of the 8-bit image.
    array = np.random.default_rng(0).integers(0, 2, (96, 136, 3), dtype=np.uint8)
    expected = process(image_processor, array * 255, resize_in_float32=True)
    outputs = process(image_processor, array.astype(dtype), do_rescale=False)
    torch.testing.assert_close(outputs["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-6)
    outputs = process(image_processor, torch.from_numpy(array.astype(dtype)), do_rescale=False)
    torch.testing.assert_close(outputs["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("resample", [PIL.Image.Resampling.BILINEAR, PIL.Image.Resampling.BICUBIC])
@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.int64, torch.bfloat16], ids=str)
def test_dtypes_that_pytorch_hardly_supports(image_processor, dtype, resample):
    array = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (96, 136, 3), dtype=np.uint8)).to(dtype)
    outputs = process(image_processor, array, resample=resample)
    assert_equal(outputs, process(image_processor, array.float(), resample=resample))


def test_boolean_arrays_are_black_and_white(image_processor, make_image):
    """True is white, as in Pillow's mode 1, with and without rescaling."""
    image = make_image(90, 130).convert("1")
    array = as_array(image)
    assert array.dtype == bool
    expected = process(image_processor, image)
    assert_equal(process(image_processor, array), expected)
    assert_equal(process(image_processor, torch.from_numpy(array)), expected)
    outputs = process(image_processor, array, do_rescale=False)
    expected = process(image_processor, array.astype(np.float32), do_rescale=False)
    assert_equal(outputs, expected)
    assert outputs["pixel_values"].max() == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_values_from_0_to_1_give_a_warning(image_processor, make_image, messages, dtype):
    """With `do_rescale`, they are nearly black."""
    values = (as_array(make_image(90, 130)) > 127).astype(dtype)
    for given in (values, torch.from_numpy(values)):
        messages.clear()
        process(image_processor, given)
        assert len(messages) == 1
        assert "`do_rescale=False`" in messages[0]
    messages.clear()
    process(image_processor, values, do_rescale=False)
    process(image_processor, values, rescale_factor=1.0)
    process(image_processor, values * 0)  # black
    process(image_processor, values * 255)
    assert not messages


def test_8_bit_values_without_rescaling_give_a_warning(image_processor, make_image, messages):
    image = make_image(90, 130)
    for given in (image, as_array(image), as_array(image).astype(np.float32)):
        messages.clear()
        process(image_processor, given, do_rescale=False)
        assert len(messages) == 1
        assert "`do_rescale=False`" in messages[0]
    messages.clear()
    process(image_processor, image, do_rescale=False, image_mean=127.5, image_std=127.5)
    process(image_processor, image, do_rescale=False, do_normalize=False)
    process(image_processor, as_array(image) / 255, do_rescale=False)
    assert not messages


def test_pillow_floats_from_0_to_1(image_processor, make_image, messages):
    image = make_image(90, 130).convert("L")
    floats = PIL.Image.fromarray(as_array(image).astype(np.float32) / 255)
    process(image_processor, floats)
    assert "`do_rescale=False`" in messages.pop()
    expected = process(image_processor, image, resize_in_float32=True)["pixel_values"]
    outputs = process(image_processor, floats, do_rescale=False)["pixel_values"]
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-6)
    assert not messages


def test_values_out_of_range(image_processor, make_image):
    """16-bit values, normalized values and other values that are no pixels are errors with the image's index."""
    image = as_array(make_image(90, 130))
    as_16_bits = image.astype(np.uint16) * 257
    for wrong, low, high in (
        (as_16_bits, as_16_bits.min(), as_16_bits.max()),
        (torch.from_numpy(as_16_bits), as_16_bits.min(), as_16_bits.max()),
        (PIL.Image.fromarray(as_16_bits[..., 0].astype(np.int32)), as_16_bits[..., 0].min(), as_16_bits[..., 0].max()),
        (image.astype(np.float32) / 127.5 - 1, None, None),
        (image.astype(np.int16) - 300, None, None),
        (PIL.Image.fromarray(image[..., 0].astype(np.float32) * 2), None, None),
    ):
        with pytest.raises(ValueError, match=r"Image 1: an image has values from .* to .*`do_rescale=False`") as error:
            process(image_processor, [image, wrong])
        if low is not None:
            assert f"from {low:g} to {high:g}" in str(error.value)
    # The fix that the error names gives the right tiles.
    outputs = process(image_processor, as_16_bits, rescale_factor=1 / 65535)["pixel_values"]
    expected = process(image_processor, image, resize_in_float32=True)["pixel_values"]
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-6)
    # Images that were resized in floating point may leave the range by less than half a level.
    process(image_processor, image.astype(np.float32).clip(0.4, 254.6) + 0.3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("do_rescale", [True, False])
def test_values_that_are_not_finite(image_processor, make_image, value, do_rescale):
    wrong = as_array(make_image(90, 130)).astype(np.float32) / 255
    wrong[3, 4, 1] = value
    good = np.full((60, 60, 3), 0.5, np.float32)
    for given in (wrong, torch.from_numpy(wrong).half(), PIL.Image.fromarray(wrong[..., 1])):
        with pytest.raises(ValueError, match=r"Image 2: an image has values that are not finite"):
            process(image_processor, [good, good, given], do_rescale=do_rescale)


def test_floats_with_rescaling(image_processor, make_image):
    array = as_array(make_image(96, 136))
    expected = process(image_processor, array, resize_in_float32=True)
    outputs = process(image_processor, array.astype(np.float32))
    torch.testing.assert_close(outputs["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-6)


def test_four_dimensional_arrays_are_batches(image_processor, make_image):
    images = [make_image(90, 130, seed) for seed in range(3)]
    expected = process(image_processor, images)
    stacked = np.stack([as_array(image) for image in images])
    assert_equal(process(image_processor, stacked), expected)
    assert_equal(process(image_processor, torch.from_numpy(stacked)), expected)
    assert_equal(process(image_processor, torch.from_numpy(stacked).permute(0, 3, 1, 2)), expected)


def test_nested_lists(image_processor, make_image):
    images = [make_image(90, 130, 0), make_image(40, 50, 1), make_image(60, 200, 2)]
    expected = process(image_processor, images)
    assert_equal(process(image_processor, [[images[0]], [images[1], images[2]]]), expected)
    assert_equal(process(image_processor, tuple(images)), expected)


def test_paths_and_base64(image_processor, make_image, tmp_path, monkeypatch):
    image = make_image(90, 130)
    data = encode_image(image)
    (tmp_path / "image.png").write_bytes(data)
    text = encode_base64(image)
    expected = process(image_processor, image)
    monkeypatch.chdir(tmp_path)
    for given in (str(tmp_path / "image.png"), "image.png", text, f"data:image/png;base64,{text}"):
        for images in (given, [given], [[given]]):
            assert_equal(process(image_processor, images), expected)


def test_orientation_tag(image_processor, make_image, tmp_path, messages):
    """Files are rotated by their orientation tag, as `load_image` does. PIL images are not, with a warning."""
    image = make_image(60, 200)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # a rotation by 90 degrees
    path = tmp_path / "rotated.png"
    image.save(path, exif=exif)
    upright = image.transpose(PIL.Image.Transpose.ROTATE_270)
    assert_equal(process(image_processor, str(path)), process(image_processor, upright))
    assert not messages
    opened = PIL.Image.open(path)
    assert opened.getexif()[0x0112] == 6
    assert_equal(process(image_processor, opened), process(image_processor, image))
    assert len(messages) == 1
    assert "`PIL.ImageOps.exif_transpose(image)`" in messages[0]
    messages.clear()
    assert_equal(process(image_processor, PIL.ImageOps.exif_transpose(opened)), process(image_processor, upright))
    assert not messages


def reference_tiles(array: np.ndarray, image_processor, **kwargs) -> torch.Tensor:
    return expected_tiles(torch.from_numpy(array).permute(2, 0, 1), image_processor.geometry(), **kwargs)


@pytest.mark.parametrize("size", [(90, 130), (56, 56), (96, 136), (30, 20), (17, 900), (16, 16)], ids=str)
@pytest.mark.parametrize("antialias", [False, True])
def test_tiles_are_windows_of_the_resized_image(image_processor, make_image, size, antialias):
    array = as_array(make_image(*size))
    outputs = process(image_processor, array, antialias=antialias)
    expected = reference_tiles(array, image_processor, antialias=antialias)
    assert outputs["pixel_values"].shape == expected.shape
    torch.testing.assert_close(outputs["pixel_values"], expected, rtol=0, atol=1e-5)


def test_tiles_after_the_first_resize(image_processor, make_image):
    array = as_array(make_image(91, 133))
    outputs = process(image_processor, array, do_resize=True)
    # Sides are rounded to multiples of 8.
    expected = reference_tiles(array, image_processor, first_size=(88, 136))
    torch.testing.assert_close(outputs["pixel_values"], expected, rtol=0, atol=1e-5)


def test_bicubic_tiles(image_processor, make_image):
    array = as_array(make_image(90, 130))
    outputs = process(image_processor, array, resample=PIL.Image.Resampling.BICUBIC)
    torch.testing.assert_close(
        outputs["pixel_values"], reference_tiles(array, image_processor, mode="bicubic"), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("size", "max_pixels", "expected"),
    [
        ((91, 133), 10**6, (88, 136)),
        ((92, 132), 10**6, (96, 128)),  # 11.5 and 16.5 patches are rounded to even
        ((200, 300), 20_000, (112, 168)),  # divided by sqrt(3), rounded down to patches
        ((10, 20), 10**6, (40, 80)),  # multiplied by sqrt(3136 / 200), rounded up to patches
    ],
)
def test_size_of_the_first_resize(image_processor, make_image, size, max_pixels, expected):
    """The tiles and the grid are those of an image of the expected size."""
    outputs = process(image_processor, make_image(*size), do_resize=True, max_pixels=max_pixels)
    grid = image_processor.geometry().select_grid(*expected, image_processor.max_crops)
    assert outputs["image_grids"].tolist() == [list(grid)]
    array = as_array(make_image(*size))
    tiles = reference_tiles(array, image_processor, first_size=expected)
    torch.testing.assert_close(outputs["pixel_values"], tiles, rtol=0, atol=1e-5)


def test_number_of_threads_does_not_change_pixels(image_processor, make_image):
    """Data loader workers run with one thread and must return the same pixels as the main process."""
    images, before = [make_image(91, 133), make_image(64, 64, 1)], torch.get_num_threads()
    outputs = {}
    try:
        for num_threads in (1, 2, 4):
            torch.set_num_threads(num_threads)
            outputs[num_threads] = process(image_processor, images, do_resize=True)
    finally:
        torch.set_num_threads(before)
    assert_equal(outputs[1], outputs[2])
    assert_equal(outputs[4], outputs[2])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("do_resize", [False, True])
def test_batch_equals_single_images(image_processor, make_image, layout, do_resize):
    sizes = [(90, 130), (40, 40), (90, 130), (300, 60), (40, 40), (90, 130)]
    images = [make_image(*size, seed) for seed, size in enumerate(sizes)]
    kwargs = {"layout": layout, "do_resize": do_resize}
    batch = process(image_processor, images, **kwargs)
    single = [process(image_processor, image, **kwargs) for image in images]
    for name in batch:
        assert torch.equal(batch[name], torch.cat([outputs[name] for outputs in single])), name


def test_batch_of_mixed_kinds(image_processor, make_image):
    image = make_image(90, 130)
    array = as_array(image)
    outputs = process(image_processor, [array, np.ascontiguousarray(array.transpose(2, 0, 1)), array])
    single = process(image_processor, image)
    assert torch.equal(outputs["pixel_values"], torch.cat([single["pixel_values"]] * 3))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"max_crops": 2},
        {"do_resize": True},
        {"do_resize": True, "min_pixels": 200 * 200},
        {"do_resize": True, "max_pixels": 64 * 64},
        {"antialias": True},
        {"layout": "stitched"},
        {"size": {"height": 64, "width": 64}},
        {"overlap_margins": [0, 0]},
        {"pooling_size": 3},
        {"patch_size": 4},
        {"resample": PIL.Image.Resampling.BICUBIC},
        {"image_mean": [0.1, 0.2, 0.3]},
        {"image_std": [0.1, 0.2, 0.3]},
        {"do_normalize": False},
        {"do_rescale": False},
    ],
    ids=str,
)
def test_call_arguments_equal_processor_settings(image_processor, make_image, kwargs):
    image = make_image(90, 131)
    before = copy.deepcopy(image_processor.to_dict())
    ordinary = process(image_processor, image)
    outputs = process(image_processor, image, **kwargs)
    assert image_processor.to_dict() == before
    assert_equal(process(image_processor, image), ordinary)
    changed = any(
        outputs[name].shape != ordinary[name].shape or not torch.equal(outputs[name], ordinary[name])
        for name in outputs
    )
    assert changed, "the argument has no effect"
    settings = {**{name: before[name] for name in ("size", "patch_size", "overlap_margins")}, **kwargs}
    assert_equal(process(JinaVLMImageProcessor(**settings), image), outputs)


def test_default_settings():
    image_processor = JinaVLMImageProcessor()
    assert (image_processor.layout, image_processor.max_crops) == ("independent", 12)
    assert dict(image_processor.size) == {"height": 378, "width": 378}
    assert image_processor.geometry().pooled_grid == (13, 14)
    assert image_processor.get_number_of_image_patches(910, 1176) == 13
    assert image_processor.do_resize is False


def test_published_settings(release):
    image_processor = AutoImageProcessor.from_pretrained(release / "checkpoint")
    assert type(image_processor) is JinaVLMImageProcessor
    assert (image_processor.layout, image_processor.max_crops) == ("stitched", 12)
    assert dict(image_processor.size) == {"height": 378, "width": 378}
    assert image_processor.geometry().pooled_grid == (14, 14)
    assert image_processor.overlap_margins == [4, 4]
    # x / 255 · 2 - 1. The published code ignores the mean and standard deviation in the file.
    assert (*image_processor.image_mean, *image_processor.image_std) == (0.5,) * 6
    assert (image_processor.min_pixels, image_processor.max_pixels) == (3136, 1003520)
    assert image_processor.do_resize is True
    assert image_processor.antialias is False
    assert image_processor.resample == PIL.Image.Resampling.BILINEAR
    assert image_processor.resize_in_float32 is False


def test_misspelt_settings_of_a_new_image_processor():
    with pytest.raises(ValueError, match=r"`max_crop` is not a setting.*did you mean `max_crops`"):
        JinaVLMImageProcessor(max_crop=3)


@pytest.mark.parametrize("load", [AutoImageProcessor, AutoProcessor])
def test_misspelt_settings_of_from_pretrained(release, load):
    """Transformers ignores keywords that it does not know."""
    with pytest.raises(ValueError, match=r"`max_crop` is not a setting.*did you mean `max_crops`"):
        load.from_pretrained(release / "checkpoint", max_crop=3)
    others = {"padding_side": "left", "revision": "main", "backend": "pil", "model_max_length": 9}
    assert load.from_pretrained(release / "checkpoint", **others)


def test_published_settings_can_be_overridden(release, make_image):
    image_processor = AutoImageProcessor.from_pretrained(release / "checkpoint", do_resize=False, max_crops=1)
    assert (image_processor.do_resize, image_processor.max_crops) == (False, 1)
    outputs = process(image_processor, make_image(500, 900))
    assert outputs["image_grids"].tolist() == [[1, 1]]


@pytest.mark.parametrize("kind", ["small", "published"])
def test_save_and_load(image_processor, release, make_image, tmp_path, kind):
    if kind == "published":
        image_processor = AutoImageProcessor.from_pretrained(release / "checkpoint")
    image_processor.max_crops = 3
    image_processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is JinaVLMImageProcessor
    assert loaded.to_dict() == image_processor.to_dict()
    assert_equal(process(loaded, make_image(90, 300)), process(image_processor, make_image(90, 300)))


def test_black_is_minus_one_and_white_is_one(image_processor):
    black = process(image_processor, PIL.Image.new("RGB", (130, 90)))["pixel_values"]
    assert torch.equal(black, torch.full_like(black, -1))
    white = process(image_processor, PIL.Image.new("RGB", (130, 90), "white"))["pixel_values"]
    assert torch.equal(white, torch.ones_like(white))


@pytest.mark.parametrize("do_resize", [False, True])
def test_predicted_number_of_tiles(image_processor, make_image, do_resize):
    rng = np.random.default_rng(0)
    sizes = [*itertools.product((1, 15, 16, 17, 40), repeat=2), *rng.integers(1, 400, (25, 2)).tolist()]
    for height, width in sizes:
        outputs = process(image_processor, make_image(height, width), do_resize=do_resize)
        count = image_processor.get_number_of_image_patches(height, width, {"do_resize": do_resize})
        assert count == len(outputs["pixel_values"]), (height, width)
        grid = image_processor.get_image_grid(height, width, {"do_resize": do_resize})
        assert outputs["image_grids"].tolist() == [list(grid)]


def test_inputs_are_not_modified(image_processor, make_image):
    array = as_array(make_image(56, 56))
    before = array.copy()
    floats = torch.rand(3, 56, 56)
    floats_before = floats.clone()
    process(image_processor, array)
    process(image_processor, floats, do_rescale=False)
    assert np.array_equal(array, before)
    assert torch.equal(floats, floats_before)


def test_works_without_torchvision(release, tmp_path):
    """Neither the package nor a call imports torchvision, and Pillow's limits do not change."""
    program = f"""
import sys
sys.modules["torchvision"] = None  # makes its import fail
import PIL.Image, PIL.ImageFile
PIL.Image.MAX_IMAGE_PIXELS = 12_345_678
import numpy, jvlm
from transformers import AutoImageProcessor, AutoProcessor
AutoImageProcessor.from_pretrained({str(release / "checkpoint")!r})
processor = AutoProcessor.from_pretrained({str(release / "checkpoint")!r})
outputs = processor(images=PIL.Image.new("RGB", (400, 300)), text="<|image|> a", return_tensors="pt")
assert outputs["pixel_values"].shape[1:] == (3, 378, 378), outputs["pixel_values"].shape
assert PIL.Image.MAX_IMAGE_PIXELS == 12_345_678
assert PIL.ImageFile.LOAD_TRUNCATED_IMAGES is False
assert sys.modules["torchvision"] is None
print("done")
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert result.stdout.strip().endswith("done"), result.stderr
