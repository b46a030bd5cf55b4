# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Random images, arrays and files with random settings: tiles against a reference, tokens against predictions."""

import base64
import copy
import io
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import PIL.ImageFile
import PIL.ImageOps
import pytest
import torch
from fuzzing import SIDES, SIZES, counts, effort, image_settings, pil_images, random_values
from helpers import run_lengths
from hypothesis import event, given
from hypothesis import strategies as st
from reference import expected_tiles, reference_grid, reference_positions
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from jvlm import JinaVLMImageProcessor
from jvlm.processing.tiling import TileGeometry


@pytest.fixture
def processor(build_processor):
    return build_processor()


def state(processor) -> dict:
    """Everything that a call must not change."""
    image_processor = processor.image_processor
    return {
        "settings": copy.deepcopy(image_processor.to_dict()),
        "attributes": {name: copy.deepcopy(value) for name, value in vars(image_processor).items()},
        "own": {name: value for name, value in vars(processor).items() if isinstance(value, (str, int, list))},
        "tokens": len(processor.tokenizer),
        "pillow": (PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES),
        "warnings": list(warnings.filters),
    }


def is_too_long(size: tuple[int, int], settings: dict) -> bool:
    """Whether the aspect ratio of an image is too large. The first resize has its own limit."""
    ratio = max(size) / min(size)
    return ratio > settings.get("max_aspect_ratio", 200) or (bool(settings.get("do_resize")) and ratio > 200)


def reference_tiles(image: torch.Tensor, geometry: TileGeometry, settings: dict, scale: float = 255) -> torch.Tensor:
    first_size = None
    if settings.get("do_resize"):
        limits = settings["min_pixels"], settings["max_pixels"]
        first_size = smart_resize(*image.shape[1:], settings["patch_size"], *limits)
    return expected_tiles(
        image,
        geometry,
        max_crops=settings.get("max_crops", 12),
        first_size=first_size,
        mode="bicubic" if settings.get("resample") == PIL.Image.Resampling.BICUBIC else "bilinear",
        antialias=settings.get("antialias", False),
        scale=scale,
        in_float32=settings.get("resize_in_float32", False),
    )


def assert_rejected(processor, images, settings: dict, *words: str):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
        processor(images=images, text="<|image|>" * len(images), **settings)
    assert any(word in str(error.value) for word in words), error.value
    counts["images"] += len(images)
    counts["images rejected"] += 1


def assert_tiles(processor, given_images: list, images: list[torch.Tensor], settings: dict, scale: float = 255):
    """Asserts that `given_images` give the tiles of `images` (each `[3, height, width]`) and the predicted tokens."""
    before = state(processor)
    sizes = [tuple(image.shape[1:]) for image in images]
    hints = {name: value for name, value in settings.items() if name != "input_data_format"}
    if any(is_too_long(size, settings) for size in sizes):
        assert_rejected(processor, given_images, settings, "max_aspect_ratio", "aspect ratio")
        with pytest.raises(ValueError, match=r"aspect.ratio"):
            processor._get_num_multimodal_tokens(image_sizes=sizes, **hints)
        return
    text = "a <|image|>" * len(images)
    inputs = processor(images=given_images, text=text, return_tensors="pt", return_mm_token_type_ids=True, **settings)
    counts["images"] += len(images)

    predicted = processor._get_num_multimodal_tokens(image_sizes=sizes, **hints)
    input_ids = inputs["input_ids"][0]
    assert run_lengths(inputs["mm_token_type_ids"][0]) == predicted["num_image_tokens"]
    assert np.isin(input_ids, processor.image_token_ids).sum() == sum(predicted["num_image_tokens"])
    assert len(inputs["pixel_values"]) == len(inputs["image_token_positions"]) == sum(predicted["num_image_patches"])

    geometry, num_cells = processor.image_processor.geometry(settings), 0
    parts = (inputs[name].split(predicted["num_image_patches"]) for name in ("pixel_values", "image_token_positions"))
    for image, tiles, positions in zip(images, *parts, strict=True):
        kept = positions[positions >= 0].sort().values
        assert torch.equal(kept, torch.arange(len(kept))), "every kept cell has exactly one position"
        assert torch.equal(positions[0], torch.arange(positions.shape[1])), "a thumbnail keeps all of its cells"
        num_cells += len(kept)
        expected = reference_tiles(image, geometry, settings, scale)
        assert tiles.shape == expected.shape
        assert tiles.dtype == torch.float32
        torch.testing.assert_close(tiles, expected, rtol=0, atol=1e-5)
    assert (input_ids == processor.image_token_id).sum() == num_cells
    assert state(processor) == before


def as_tensor(image: PIL.Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@effort(short=150, long=9000)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_images(processor, data):
    image, settings = data.draw(pil_images()), data.draw(image_settings())
    try:
        expected = image.convert("RGB")
    except ValueError:  # Pillow cannot convert some modes to RGB
        return assert_rejected(processor, [image], settings, "cannot be decoded")
    event(image.mode)
    if data.draw(st.booleans()):
        processor = copy.copy(processor)
        processor.image_processor = JinaVLMImageProcessor(**settings)
        assert processor.image_processor.geometry() == processor.image_processor.geometry(settings)
    assert_tiles(processor, [image], [as_tensor(expected)], settings)


NUMPY_DTYPES = ["bool", "uint8", "int16", "uint16", ">u2", "int32", "uint32", "int64", "uint64"]
NUMPY_DTYPES += ["float16", "float32", ">f4", "float64"]
TORCH_DTYPES = [torch.bool, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64]
TORCH_DTYPES += [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@effort(short=150, long=6000)
@given(data=st.data())
def test_arrays(processor, data):
    settings = data.draw(image_settings())
    (height, width), channels = data.draw(SIZES), data.draw(st.sampled_from([0, 1, 3, 4]))
    values = random_values((height, width, channels or 1), data.draw(st.integers(0, 2**32 - 1)))
    dtype = data.draw(st.sampled_from(NUMPY_DTYPES + TORCH_DTYPES))
    is_float = "f" in str(dtype) and dtype != torch.bool
    if data.draw(st.booleans()) and is_float:
        # Multiples of 1/256 are exact in every dtype.
        settings["do_rescale"], scale, values = False, 1, values / 256
    else:
        scale = 255
    values = values > 127 if dtype in ("bool", torch.bool) else values
    array = torch.from_numpy(values).to(dtype) if isinstance(dtype, torch.dtype) else values.astype(dtype)
    image = torch.as_tensor(array if isinstance(array, torch.Tensor) else array.astype(array.dtype.newbyteorder("=")))
    image = image.permute(2, 0, 1)[:3].expand(3, -1, -1)

    is_first = data.draw(st.booleans())
    if channels == 0:
        array = array[..., 0]
    elif is_first:
        array = array.permute(2, 0, 1) if isinstance(array, torch.Tensor) else array.transpose(2, 0, 1)
    is_ambiguous = channels and {array.shape[0], array.shape[-1]} <= {1, 3, 4}
    if channels and (is_ambiguous or data.draw(st.booleans())):
        settings["input_data_format"] = "channels_first" if is_first else "channels_last"
    if isinstance(array, np.ndarray):
        form = data.draw(st.sampled_from(["as it is", "contiguous", "Fortran", "reversed twice", "read-only"]))
        array = {
            "contiguous": np.ascontiguousarray,
            "Fortran": np.asfortranarray,
            "reversed twice": lambda array: array[::-1].copy()[::-1],
        }.get(form, lambda array: array)(array)
        array.flags.writeable = form != "read-only"
    assert_tiles(processor, [array], [image], settings, scale)


FORMATS = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "JPEG": ["L", "RGB", "CMYK"],
    "GIF": ["L", "P", "RGB", "RGBA"],
    "WEBP": ["RGB", "RGBA"],
    "BMP": ["1", "L", "P", "RGB"],
    "TIFF": ["1", "L", "LA", "RGB", "RGBA", "CMYK", "I;16", "F"],
    "PPM": ["1", "L", "RGB"],
}
ANIMATED = ("GIF", "WEBP", "TIFF", "PNG")


@st.composite
def files(draw) -> bytes:
    """The bytes of an image file with or without orientation, of one or several frames, or damaged or empty."""
    kind = draw(st.sampled_from(list(FORMATS)))
    mode = draw(st.sampled_from(FORMATS[kind]))
    small = st.integers(1, 40) | st.integers(1, 200)
    height, width = draw(st.tuples(small, small) if kind == "WEBP" else st.tuples(small | SIDES, small))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_frames = draw(st.integers(1, 4)) if kind in ANIMATED else 1
    frames = []
    for _ in range(num_frames):
        coarse = PIL.Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((width, height))
        frames.append(coarse.convert("I").convert(mode) if mode == "I;16" else coarse.convert(mode))
    options = {}
    orientation = draw(st.integers(0, 8))
    if orientation and kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    if num_frames > 1:
        options |= {"save_all": True, "append_images": frames[1:]}
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, **options)
    content = bytearray(buffer.getvalue())
    damage = draw(st.sampled_from(["none"] * 6 + ["truncate", "flip", "empty", "no image"]))
    if damage == "truncate":
        del content[draw(st.integers(0, len(content))) :]
    elif damage == "flip":
        for offset in draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
            content[offset] ^= draw(st.integers(1, 255))
    elif damage == "empty":
        content.clear()
    elif damage == "no image":
        content[:] = draw(st.binary(max_size=50) | st.just(b"%PDF-1.4 ") | st.just(b"\x89PNG\r\n\x1a\n"))
    return bytes(content)


def decoded(file, is_rotated: bool) -> torch.Tensor | None:
    """The image in a file, rotated by its orientation tag if `is_rotated`. `None` if Pillow cannot decode it."""
    try:
        image = PIL.Image.open(file)
        if is_rotated:
            image = PIL.ImageOps.exif_transpose(image)
        image.load()
        return as_tensor(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError):
        return None


WAYS = ["path", "opened", "bytes", "base64", "data"]
LARGEST = 6_000_000  # pixels; damaged headers can claim sizes that take too long to decode


@effort(short=150, long=6000)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_files(processor, tmp_path_factory, data):
    content, settings = data.draw(files()), data.draw(image_settings())
    limit = data.draw(st.sampled_from([89_478_485] * 4 + [1000, 50]))
    way = data.draw(st.sampled_from(WAYS))
    path = tmp_path_factory.getbasetemp() / "image"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", min(limit, LARGEST // 2))
        try:
            image = {
                "path": lambda: str(path),
                "opened": lambda: PIL.Image.open(path),
                "bytes": lambda: PIL.Image.open(io.BytesIO(content)),
                "base64": lambda: base64.b64encode(content).decode(),
                "data": lambda: "data:image/png;base64," + base64.b64encode(content).decode(),
            }[way]()
        except Exception:  # Pillow fails before the processor is called
            return
        # Open the file in the same way: Pillow rotates some TIFF files differently if it memory-maps them.
        file = path if way in ("path", "opened") else io.BytesIO(content)
        expected = decoded(file, is_rotated=way in ("path", "base64", "data"))
        if expected is None:
            event(f"{way}, rejected")
            assert_rejected(processor, [image], settings, "cannot be decoded", "base64", "image")
        else:
            event(f"{way}, decoded")
            assert_tiles(processor, [image], [expected], settings)


@effort(short=6, long=150)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_processor_is_thread_safe(processor, data):
    small = st.integers(5, 150)  # larger than any number of channels
    calls = []
    for _ in range(data.draw(st.integers(8, 16))):
        settings = data.draw(image_settings()) | {"max_aspect_ratio": 200}
        images = [
            np.asarray(image) if image.mode == "RGB" else image
            for image in data.draw(st.lists(pil_images(st.tuples(small, small)), min_size=1, max_size=3))
            if image.mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F")
        ]
        calls.append({"images": images, "text": "a <|image|>" * len(images), "return_tensors": "pt", **settings})
    before, expected = state(processor), [processor(**call) for call in calls]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda call: processor(**call), calls * 2))
    counts["images"] += 3 * sum(len(call["images"]) for call in calls)
    for result, wanted in zip(results, expected * 2, strict=True):
        assert set(result) == set(wanted)
        for name in wanted:
            assert torch.equal(torch.as_tensor(result[name]), torch.as_tensor(wanted[name])), name
    assert state(processor) == before


ANY_SETTING = {
    "size": st.fixed_dictionaries({"height": st.integers(-3, 60), "width": st.integers(-3, 60)}),
    "patch_size": st.integers(-3, 60),
    "overlap_margins": st.lists(st.integers(-3, 9), max_size=3),
    "pooling_size": st.integers(-3, 60),
    "pooled_grid": st.none() | st.lists(st.integers(-3, 9), max_size=3),
    "layout": st.sampled_from(["independent", "stitched", "Stitched", ""]),
    "max_crops": st.integers(-3, 20),
    "min_pixels": st.integers(-3, 10_000),
    "max_pixels": st.integers(-3, 10_000),
    "max_aspect_ratio": st.integers(-3, 300),
    "do_resize": st.booleans(),
    "resample": st.integers(0, 6),
    "do_convert_rgb": st.booleans(),
}


@effort(short=100, long=3000)
@given(data=st.data())
def test_random_settings_work_or_are_an_error(processor, data):
    """Inconsistent settings raise a `ValueError`. Consistent ones give the predicted number of tokens."""
    settings = data.draw(st.fixed_dictionaries({}, optional=ANY_SETTING))
    if "size" in settings and data.draw(st.booleans()):
        settings["size"]["width"] = settings["size"]["height"]
    height, width = data.draw(st.tuples(st.integers(1, 200), st.integers(1, 200)))
    image, before = PIL.Image.new("RGB", (width, height), "red"), state(processor)
    counts["images"] += 1
    try:
        inputs = processor(images=image, text="<|image|>", return_mm_token_type_ids=True, **settings)
    except ValueError:
        counts["images rejected"] += 1
    else:
        predicted = processor._get_num_multimodal_tokens(image_sizes=[[height, width]], **settings)
        assert run_lengths(inputs["mm_token_type_ids"][0]) == predicted["num_image_tokens"] != [0]
        assert [len(inputs["pixel_values"])] == predicted["num_image_patches"]
        tile_size = settings.get("size", {"height": 56})["height"]
        assert inputs["pixel_values"].shape[1:] == (3, tile_size, tile_size)
    assert state(processor) == before


@effort(short=100, long=5000)
@given(data=st.data())
def test_geometry(data):
    """Grids and token positions of random geometries against simple loops."""
    settings = data.draw(image_settings())
    geometry, max_crops = JinaVLMImageProcessor(**settings).geometry(), settings["max_crops"]
    counts["geometries"] += 1
    height, width = data.draw(SIZES)
    grid = geometry.select_grid(height, width, max_crops)
    assert grid == reference_grid(geometry, height, width, max_crops)
    assert grid[0] * grid[1] <= max_crops
    if geometry.layout == "stitched":
        assert geometry.token_positions(grid).tolist() == reference_positions(geometry, grid)
