# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Strategies for random images and image processor settings, and the number of examples per test."""

import os
from collections import Counter

import numpy as np
import PIL.Image
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st


# `make fuzz` sets the long mode: many more inputs, different ones in every run.
IS_LONG = os.environ.get("JVLM_FUZZ") == "long"
# Numbers of tried inputs, for the summary at the end.
counts = Counter()


def effort(short: int, long: int):
    """Sets the number of examples of a test: `short` fixed ones by default, `long` random ones in the long mode."""
    return settings(
        max_examples=long if IS_LONG else short,
        derandomize=not IS_LONG,
        deadline=None,
        database=None,
        # The tests check that the processor fixtures do not change. Large inputs are intended.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


# Mostly small, sometimes up to 5000 pixels.
SIDES = st.integers(1, 60) | st.integers(1, 60) | st.integers(1, 300) | st.integers(1, 300) | st.integers(1, 5000)
SIZES = st.tuples(SIDES, SIDES)
if not IS_LONG:  # long sides, but no large areas, which take most of the time
    SIZES = SIZES.filter(lambda size: size[0] * size[1] <= 200_000)
# Bytes per pixel of Pillow's modes. Mode "1" packs eight pixels per byte, so it uses only a part of them.
MODES = {"1": 1, "L": 1, "LA": 2, "La": 2, "P": 1, "PA": 2, "RGB": 3, "RGBA": 4, "RGBa": 4, "RGBX": 4, "CMYK": 4}
MODES |= {"YCbCr": 3, "LAB": 3, "HSV": 3, "I": 4, "F": 4, "I;16": 2, "I;16B": 2}


def random_values(size: tuple[int, ...], seed: int) -> np.ndarray:
    """Random bytes of this shape. For speed, the values repeat in large arrays."""
    return np.resize(np.random.default_rng(seed).integers(0, 256, 65521, dtype=np.uint8), size)


@st.composite
def pil_images(draw, sizes=SIZES) -> PIL.Image.Image:
    """A PIL image of any mode, with or without transparency."""
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
    """Consistent arguments of the image processor."""
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
