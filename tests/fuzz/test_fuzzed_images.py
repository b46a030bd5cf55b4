# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Random images, arrays and files with random settings: tiles against a reference, tokens against predictions."""

import base64
import copy
import io
import random
import re
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import PIL.ImageFile
import PIL.ImageOps
import pytest
import torch
from fuzzing import IS_LONG, SIZES, counts, effort, image_settings, pil_images, random_values
from helpers import run_lengths
from hypothesis import event, given
from hypothesis import strategies as st
from image_files import UNDECODABLE, image_files, mutate
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


# Exactly these errors are documented for an image that cannot be used.
DOCUMENTED = re.compile(
    r"Image 0: (.* cannot be decoded \(\w+: .*\); check .*"
    r"|.* and not an image in base64( \(\w+: .*\))?; check .*|.* raise PIL\.Image\.MAX_IMAGE_PIXELS .*"
    r"|.*`max_aspect_ratio`.*|.* is empty; .*|.* values that are not finite .*|.* values from .* to .*)",
    re.DOTALL,
)


def assert_rejected(processor, images, settings: dict, *words: str):
    """Asserts an error with one of `words`, or a documented one without `words`."""
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
        processor(images=images, text="<|image|>" * len(images), **settings)
    message = str(error.value)
    assert any(word in message for word in words) if words else DOCUMENTED.fullmatch(message), message
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


def expected_rgb(image: PIL.Image.Image) -> torch.Tensor | None:
    """The image that the model must see, `[3, height, width]`, or `None` if it must be rejected."""
    if image.mode.startswith("I;16"):
        image = PIL.Image.fromarray((np.array(image) // 256).astype(np.uint8))
    if image.mode in ("I", "F"):
        values = torch.from_numpy(np.array(image)).double()
        is_right = values.isfinite().all() and values.min() >= -0.5 and values.max() <= 255.5
        return values.float().expand(3, -1, -1) if is_right else None
    for modes in (["RGB"], ["RGBA", "RGB"]):  # Pillow converts premultiplied colours only by way of RGBA
        try:
            converted = image
            for mode in modes:
                converted = converted.convert(mode)
            return torch.from_numpy(np.array(converted)).permute(2, 0, 1)
        except ValueError:
            continue
    return None


@effort(short=70, long=9000)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_images(processor, data):
    image, settings = data.draw(pil_images()), data.draw(image_settings())
    expected = expected_rgb(image)
    event(f"{image.mode}, {'rejected' if expected is None else 'converted'}")
    if expected is None:
        return assert_rejected(processor, [image], settings)
    if data.draw(st.booleans()):
        processor = copy.copy(processor)
        processor.image_processor = JinaVLMImageProcessor(**settings)
        assert processor.image_processor.geometry() == processor.image_processor.geometry(settings)
    assert_tiles(processor, [image], [expected], settings)


NUMPY_DTYPES = ["bool", "uint8", "int16", "uint16", ">u2", "int32", "uint32", "int64", "uint64"]
NUMPY_DTYPES += ["float16", "float32", ">f4", "float64"]
TORCH_DTYPES = [torch.bool, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64]
TORCH_DTYPES += [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@effort(short=70, long=6000)
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
    image = image.to(torch.uint8) * 255 if image.dtype == torch.bool else image
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


WAYS = {
    "bytes": lambda content, path: content,
    "path": lambda content, path: str(path),
    "column": lambda content, path: {"bytes": None, "path": path},
    "base64": lambda content, path: base64.b64encode(content).decode(),
    "data URL": lambda content, path: "data:image/png;base64," + base64.b64encode(content).decode(),
}
# Some formats have a reader of their own for the same pixels, such as memory-mapped TIFF files.
OPENED = {
    "opened": lambda content, path: PIL.Image.open(path),
    "opened from bytes": lambda content, path: PIL.Image.open(io.BytesIO(content)),
    "closed": lambda content, path: close(PIL.Image.open(path)),
    "second frame": lambda content, path: second_frame(PIL.Image.open(path)),
}
LARGEST = 1_000_000  # pixels; damaged headers can claim sizes that take too long to decode


def close(image: PIL.Image.Image) -> PIL.Image.Image:
    image.close()
    return image


def second_frame(image: PIL.Image.Image) -> PIL.Image.Image:
    image.seek(1)
    return image


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", LARGEST // 2)


@pytest.fixture(scope="module")
def small_tiles() -> JinaVLMImageProcessor:
    """An image processor that is quick, since only decoding matters."""
    return JinaVLMImageProcessor(size={"height": 16, "width": 16}, patch_size=8, overlap_margins=[0, 0], max_crops=2)


@pytest.mark.filterwarnings("ignore")
def test_intact_files_of_every_format(small_tiles, tmp_path):
    """Every way to pass a file gives the same pixels, or a documented error if Pillow cannot decode the format."""
    kinds = set()
    for kind, description, content in image_files():
        path = tmp_path / "image"
        path.write_bytes(content)
        kinds.add(kind)
        counts["images"] += len(WAYS)
        if kind in UNDECODABLE:
            for way in WAYS.values():
                with pytest.raises(ValueError, match=DOCUMENTED):
                    small_tiles(way(content, path))
            continue
        results = [small_tiles(way(content, path), return_tensors="pt")["pixel_values"] for way in WAYS.values()]
        assert all(torch.equal(result, results[0]) for result in results), (kind, description)
    assert kinds >= set(PIL.Image.OPEN), "a new version of Pillow opens more formats"


NUM_MUTANTS = 100_000 if IS_LONG else 600


@pytest.mark.filterwarnings("ignore")
def test_mutated_files_of_every_format(small_tiles, small_limit, tmp_path):
    """Damaged files are decoded or give a documented error, by class and text, however they are passed."""
    seed = random.randrange(2**32) if IS_LONG else 0
    rng, files, path, undocumented = random.Random(seed), image_files(), tmp_path / "image", []
    for number in range(NUM_MUTANTS):
        kind, description, intact = files[number % len(files)]
        content = mutate(intact, rng)
        path.write_bytes(content)
        way, give = rng.choice([*WAYS.items(), *OPENED.items()])
        try:
            image = give(content, path)
        except Exception:  # Pillow fails before the processor is called
            continue
        counts["mutated files"] += 1
        try:
            small_tiles(image)
            counts["mutated files decoded"] += 1
        except ValueError as error:
            counts["mutated files rejected"] += 1
            if not DOCUMENTED.fullmatch(str(error)):
                undocumented.append(f"{number} of seed {seed}, {kind} {description} as {way}: {error}")
        except Exception as error:
            undocumented.append(f"{number} of seed {seed}, {kind} {description} as {way}: {error!r}")
    assert not undocumented, "\n".join([f"{len(undocumented)} undocumented errors", *undocumented[:20]])


@effort(short=40, long=3000)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_files(processor, tmp_path_factory, data):
    """Intact and damaged files give the tiles of the image that Pillow decodes."""
    kind, _, content = data.draw(st.sampled_from(image_files()))
    is_damaged = data.draw(st.booleans())
    if is_damaged:
        content = mutate(content, data.draw(st.randoms(use_true_random=False)))
    settings, (way, give) = data.draw(image_settings()), data.draw(st.sampled_from([*WAYS.items(), *OPENED.items()]))
    path = tmp_path_factory.getbasetemp() / "image"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", data.draw(st.sampled_from([LARGEST // 2] * 4 + [1000, 50])))
        try:
            image, again = give(content, path), give(content, path)
        except Exception:  # Pillow fails before the processor is called
            return
        expected = decoded(again if way in OPENED else io.BytesIO(content), is_upright=way not in OPENED)
        event(f"{kind} {way}, {'rejected' if expected is None else 'decoded'}")
        if expected is None:
            assert_rejected(processor, [image], settings)
        elif not (is_damaged and kind == "TIFF"):  # libtiff leaves pixels that it cannot decode uninitialised
            assert_tiles(processor, [image], [expected], settings)


def decoded(file, is_upright: bool) -> torch.Tensor | None:
    """The RGB image in a file or an opened image, or `None` if Pillow or the range of its values rejects it."""
    try:
        image = file if isinstance(file, PIL.Image.Image) else PIL.Image.open(file)
        image = PIL.ImageOps.exif_transpose(image) if is_upright else image
        image.load()
        return expected_rgb(image)
    except Exception:
        return None


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
            if image.mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr")
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


# Values that no setting has, of wrong types or so large that memory would run out.
WILD = [
    None,
    "3",
    2.5,
    True,
    [],
    {},
    [1, 2, 3],
    ["a", "b"],
    10**6,
    -(10**6),
    10**18,
    float("nan"),
    float("inf"),
    -1.0,
    0,
]


def check_setting_is_named(error: ValueError):
    """Our messages and those of Transformers and huggingface_hub name a setting in one of these ways."""
    assert re.search(r"`\w+`|[Ff]ield '\w+'|size\b|aspect ratio|is not a valid \w+", str(error)), error


@effort(short=100, long=1500)
@given(data=st.data())
def test_wild_settings_work_or_are_an_error(data):
    """Also of a file or an attribute. Nothing is allocated for an absurd size."""
    image_processor = JinaVLMImageProcessor(size={"height": 56, "width": 56}, patch_size=8, overlap_margins=[1, 1])
    names = list(image_processor.valid_kwargs.__annotations__)
    chosen = data.draw(st.dictionaries(st.sampled_from(names), st.sampled_from(WILD), min_size=1, max_size=3))
    image = PIL.Image.new("RGB", (100, 90), "red")
    counts["wild settings"] += 1
    for way in ("call", "file", "sizes"):
        try:
            if way == "call":
                image_processor(image, **chosen)
            elif way == "file":
                JinaVLMImageProcessor.from_dict({**image_processor.to_dict(), **chosen})(image)
            else:
                image_processor.geometry(chosen)
                image_processor.get_number_of_image_patches(90, 100, chosen)
        except ValueError as error:
            check_setting_is_named(error)
            counts["wild settings rejected"] += 1


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
    except ValueError as error:
        check_setting_is_named(error)
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
