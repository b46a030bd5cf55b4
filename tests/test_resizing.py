# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Resizing is bitwise equal to PyTorch, for every type of image and any number of threads."""

import numpy as np
import PIL.Image
import pytest
import torch
from torch.nn import functional as F

from jvlm.processing import resizing


# Old and new size. The last two are downsampled along one axis only.
DOWNSAMPLED = [((600, 800), (213, 287)), ((300, 420), (100, 140)), ((1024, 700), (329, 400)), ((900, 60), (90, 84))]
DOWNSAMPLED += [((60, 900), (77, 100))]


def as_pillow(image: torch.Tensor) -> PIL.Image.Image:
    return PIL.Image.fromarray(image.permute(1, 2, 0).numpy())


KINDS = {
    "Pillow": as_pillow,
    "channels first": lambda image: image,
    "channels last": lambda image: image.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "four channels": lambda image: torch.cat([image, image[:1]]).permute(1, 2, 0).contiguous().permute(2, 0, 1)[:3],
}


def random_image(size: tuple[int, int]) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8))


def interpolated(image: torch.Tensor, size: tuple[int, int], **kwargs) -> torch.Tensor:
    """Resizes each channel separately with PyTorch."""
    kwargs = {"mode": "bilinear", "align_corners": False, **kwargs}
    return F.interpolate(image.float()[:, None], size=size, **kwargs)[:, 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "new_size"), DOWNSAMPLED)
def test_downsampling_equals_pytorch(size, new_size, kind):
    image = random_image(size)
    expected = interpolated(image, new_size).round()
    assert torch.equal(resizing.resize(KINDS[kind](image), new_size), expected)
    assert torch.equal(resizing._resize_sampled(KINDS[kind](image), new_size), expected)


def test_pillow_is_used_only_if_it_samples_the_same_pixels():
    agreements = {size: resizing._picks_samples(size, 329) for size in range(1000, 1040)}
    assert set(agreements.values()) == {False, True}
    for size in (next(size for size, agrees in agreements.items() if agrees is wanted) for wanted in (False, True)):
        image = random_image((size, 700))
        resized = resizing.resize(as_pillow(image), (329, 400))
        assert torch.equal(resized, interpolated(image, (329, 400)).round())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("new_size", [(100, 90), (60, 40), (300, 40), (50, 80)])
@pytest.mark.parametrize("kwargs", [{}, {"antialias": True}, {"mode": "bicubic"}], ids=str)
def test_resize_equals_pytorch(kind, new_size, kwargs):
    image = random_image((60, 80))
    resized = resizing.resize(KINDS[kind](image), new_size, **kwargs)
    assert torch.equal(resized, interpolated(image, new_size, **kwargs).round().clamp(0, 255))
    assert resized.dtype == torch.float32


def test_floats_are_not_rounded():
    image = torch.rand(3, 200, 300)
    resized = resizing.resize(image, (90, 100))
    assert torch.equal(resized, interpolated(image, (90, 100)))
    assert not torch.equal(resized, resized.round())


@pytest.mark.parametrize("kind", KINDS)
def test_same_size_returns_a_copy(kind):
    image = random_image((20, 30))
    resized = resizing.resize(KINDS[kind](image), (20, 30))
    assert torch.equal(resized, image.float())
    floats = image.float()
    resizing.resize(floats, (20, 30)).zero_()
    assert torch.equal(floats, image.float())


@pytest.mark.parametrize("kind", ["Pillow", "channels last"])
def test_number_of_threads_does_not_change_pixels(kind):
    image, before, resized = KINDS[kind](random_image((600, 800))), torch.get_num_threads(), []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            resized.append(resizing.resize(image, (213, 287)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(resized[0], resized[1])
    assert torch.equal(resized[0], resized[2])
