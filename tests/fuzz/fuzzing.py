# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""How much is fuzzed, and what: random images in memory and settings of the image processor."""

import os
from collections import Counter

import numpy as np
import PIL.Image
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st


# The long run, `make fuzz`, tries many times as many inputs, other ones every time.
IS_LONG = os.environ.get("JVLM_FUZZ") == "long"
# What has been tried, for the summary at the end.
counts = Counter()


def effort(short: int, long: int):
    """Decorator that sets how many inputs a test tries: in the ordinary suite always the same `short` ones."""
    return settings(
        max_examples=long if IS_LONG else short,
        derandomize=not IS_LONG,
        deadline=None,
        database=None,
        # Fixtures are processors, which no input may change; inputs are large by design.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


# Mostly small, sometimes as large as 5000 pixels.
SIDES = st.integers(1, 60) | st.integers(1, 60) | st.integers(1, 300) | st.integers(1, 300) | st.integers(1, 5000)
SIZES = st.tuples(SIDES, SIDES)
# Bytes of a pixel in each mode of Pillow's; "1" packs eight pixels in one.
MODES = {"1": 1, "L": 1, "LA": 2, "La": 2, "P": 1, "PA": 2, "RGB": 3, "RGBA": 4, "RGBa": 4, "RGBX": 4, "CMYK": 4}
MODES |= {"YCbCr": 3, "LAB": 3, "HSV": 3, "I": 4, "F": 4, "I;16": 2, "I;16B": 2}


def random_values(size: tuple[int, ...], seed: int) -> np.ndarray:
    """Random bytes of this shape, soon repeated in large ones, which take too long otherwise."""
    return np.resize(np.random.default_rng(seed).integers(0, 256, 65521, dtype=np.uint8), size)


@st.composite
def pil_images(draw, sizes=SIZES) -> PIL.Image.Image:
    """An image of Pillow of any mode, with or without transparency."""
    height, width = draw(sizes)
    mode = draw(st.sampled_from(list(MODES)))
    values = random_values((height, width, MODES[mode]), draw(st.integers(0, 2**32 - 1)))
    if mode == "F":
        values = values[..., 0].astype(np.float32) * draw(st.sampled_from([1 / 255, 1, 7.5])) - draw(st.integers(0, 9))
    elif mode == "I":
        values = values[..., 0].astype(np.int32) * draw(st.sampled_from([1, 256, 2**23])) - draw(st.integers(0, 9))
    image = PIL.Image.frombytes(mode, (width, height), values.tobytes())
    if mode in ("P", "PA"):
        image.putpalette(random_values((768,), draw(st.integers(0, 2**32 - 1))).tobytes())
    transparency = {"P": st.integers(0, 255) | st.binary(min_size=1, max_size=256), "L": st.just(7)}
    transparency["RGB"] = st.just((1, 2, 3))
    if mode in transparency and draw(st.booleans()):
        image.info["transparency"] = draw(transparency[mode])
    return image


@st.composite
def image_settings(draw) -> dict:
    """Arguments of the image processor that fit together."""
    patch_size, patches = draw(st.integers(1, 16)), draw(st.integers(1, 10))
    before = draw(st.integers(0, patches - 1))
    pooling_size = draw(st.integers(1, patches + 1))
    chosen = {
        "size": {"height": patch_size * patches, "width": patch_size * patches},
        "patch_size": patch_size,
        "overlap_margins": [before, draw(st.integers(0, patches - 1 - before))],
        "pooling_size": pooling_size,
        "layout": draw(st.sampled_from(["independent", "stitched"])),
        "max_crops": draw(st.integers(1, 12) | st.integers(1, 40)),
    }
    if chosen["layout"] == "independent" and (pooling_size > patches or draw(st.booleans())):
        chosen["pooled_grid"] = draw(st.tuples(*[st.integers(1, -(-patches // pooling_size))] * 2).map(list))
    if draw(st.booleans()):
        min_pixels = draw(st.integers(1, 10_000))
        max_pixels = min_pixels + draw(st.integers(0, 200_000))
        chosen |= {"do_resize": True, "min_pixels": min_pixels, "max_pixels": max_pixels}
    optional = {
        "antialias": st.booleans(),
        "resample": st.sampled_from([PIL.Image.Resampling.BILINEAR, PIL.Image.Resampling.BICUBIC]),
        "resize_in_float32": st.booleans(),
        "max_aspect_ratio": st.integers(1, 400),
    }
    return chosen | draw(st.fixed_dictionaries({}, optional=optional))
