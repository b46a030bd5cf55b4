# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Resizing with the results of `torch.nn.functional.interpolate` in less time and memory, on any number of threads.

An image is one of Pillow in mode RGB or a tensor `[3, height, width]`. Those of Pillow and uint8 tensors are 8-bit.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import PIL.Image
import torch
from torch.nn import functional as F


# Rows of the result that are computed at a time, so that all intermediate values stay in the processor's cache.
_BAND = 64
# The pixels before and after a place are those half a pixel to either side.
_BEFORE, _AFTER = -0.5, 0.5


def empty(*shape: int) -> torch.Tensor:
    """A float32 tensor that is not initialised, in huge pages if the system has any: they are handed out faster."""
    return torch.from_numpy(np.empty(shape, np.float32))  # NumPy asks for them, PyTorch does not


def image_size(image: PIL.Image.Image | torch.Tensor) -> tuple[int, int]:
    """Height and width of an image, in pixels."""
    return tuple(image.shape[-2:]) if isinstance(image, torch.Tensor) else (image.height, image.width)


def as_float(image: PIL.Image.Image | torch.Tensor) -> torch.Tensor:
    """A copy of an image, or of some of its channels, as float32 `[channels, height, width]`."""
    copy = empty(len(image) if isinstance(image, torch.Tensor) else 3, *image_size(image))
    for index, channel in enumerate(copy):
        channel.copy_(_channel(image, index))
    return copy


def _channel(image: PIL.Image.Image | torch.Tensor, index: int) -> torch.Tensor:
    return image[index] if isinstance(image, torch.Tensor) else torch.from_numpy(np.array(image.getchannel(index)))


def resize(
    image: PIL.Image.Image | torch.Tensor, size: tuple[int, int], mode: str = "bilinear", antialias: bool = False
) -> torch.Tensor:
    """
    Resizes an image, aspect ratio not kept.

    Args:
        image (`PIL.Image.Image` or `torch.Tensor` of shape `[3, height, width]`): the image. Of one in floats, any
            of its channels.
        size (`tuple[int, int]`): new height and width.
        mode (`"bilinear"` or `"bicubic"`, *optional*, defaults to `"bilinear"`): the interpolation.
        antialias (`bool`, *optional*, defaults to `False`): whether to smooth what shrinks.

    Returns:
        `torch.Tensor` of shape `[channels, *size]`: float32, a new tensor; 8-bit images are rounded to their 256
        levels.
    """
    height, width = image_size(image)
    if (height, width) == size:
        return as_float(image)
    is_8bit = not isinstance(image, torch.Tensor) or image.dtype == torch.uint8
    shrinks = height * width > 2 * size[0] * size[1]
    # PyTorch computes results that small in another order.
    if is_8bit and mode == "bilinear" and not antialias and shrinks and sum(size) > 128:
        return _resize_sampled(image, size)

    def interpolate(channels: torch.Tensor) -> torch.Tensor:
        # Channels as images of their own: together, PyTorch's last bits depend on its number of threads.
        channels = channels.float().unsqueeze(1)
        return F.interpolate(channels, size=size, mode=mode, align_corners=False, antialias=antialias).squeeze(1)

    if not is_8bit:
        resized = interpolate(image)
        return resized.clamp_(*image.float().aminmax()) if mode == "bicubic" else resized
    resized = empty(3, *size)
    for index in range(3):  # one after the other, so that there is never a float copy of the whole image
        torch.round(interpolate(_channel(image, index)[None]), out=resized[index, None])
    return resized.clamp_(0, 255) if mode == "bicubic" else resized


def _resize_sampled(image: PIL.Image.Image | torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """
    `resize` of an 8-bit image, bilinear, that reads and converts only the pixels it samples.

    `addcmul` is a fused multiply-add where PyTorch's own resize is compiled to one: the results are the same bits.
    """
    height, width = image_size(image)
    corners = torch.from_numpy(_read_corners(image, size))
    row_weight = _samples(height, size[0])[2][:, None]
    column_weight = _samples(width, size[1])[2].repeat_interleave(3)
    resized = empty(3, *size)
    for start in range(0, size[0], _BAND):
        band = slice(start, start + _BAND)
        values = corners[:, :, band].float()
        above, below = values[:, 1].mul_(column_weight).addcmul_(values[:, 0], 1 - column_weight)
        values = below.mul_(row_weight[band]).addcmul_(above, 1 - row_weight[band])
        torch.round(values.view(-1, size[1], 3).permute(2, 0, 1), out=resized[:, band])
    return resized


def _read_corners(image: PIL.Image.Image | torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """
    The four pixels around every place that a bilinear resize of an 8-bit image samples.

    Returns:
        `np.ndarray` of shape `[2, 2, rows, columns * 3]`: above and below, left and right.
    """
    sizes = list(zip(image_size(image), size, strict=True))
    rows, columns = (_samples(*axis)[:2] for axis in sizes)
    corners = np.empty((2, 2, size[0], 3 * size[1]), np.uint8)
    if isinstance(image, PIL.Image.Image) and all(_picks_samples(*axis) for axis in sizes):
        # All pixels of a large image take several times as long to get out of Pillow as the few that are needed.
        scales, offsets = [_scale(*axis) for axis in sizes], (_BEFORE, _AFTER)

        def read(row: int) -> None:
            for column in range(2):
                picked = _pick(image, size, scales, (offsets[row], offsets[column]))
                corners[row, column] = np.asarray(picked).reshape(size[0], -1)
    else:
        pixels = image.permute(1, 2, 0).numpy() if isinstance(image, torch.Tensor) else np.asarray(image)

        def read(row: int) -> None:
            lines = pixels[rows[row]].reshape(size[0], -1)
            for column in range(2):
                channels = (3 * columns[column][:, None] + np.arange(3)).ravel()
                lines.take(channels, axis=1, out=corners[row, column], mode="clip")  # "raise" would buffer the output

    # Pillow and NumPy let go of the interpreter meanwhile. A pool that is kept would not outlive a fork.
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(read, range(2)))
    return corners


def _scale(size: int, new_size: int) -> float:
    """Old pixels for each new one, in PyTorch's precision."""
    return float(np.float32(size) / np.float32(new_size))


@lru_cache
def _samples(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    """The pixels before and after each place that a bilinear resize samples along an axis, and the latter's weight."""
    # Rounded to float32 once, as in PyTorch's fused multiply-add.
    places = (_scale(size, new_size) * (np.arange(new_size) + 0.5) - 0.5).astype(np.float32).clip(min=0)
    before = places.astype(np.int64)
    return before, np.minimum(before + 1, size - 1), torch.from_numpy(places - before.astype(np.float32))


def _pick(
    image: PIL.Image.Image, size: tuple[int, int], scales: tuple[float, float], offsets: tuple[float, float]
) -> PIL.Image.Image:
    """The pixels of an image at the places `scale * (index + 0.5) + offset` along either axis, rounded down."""
    (row_scale, column_scale), (row_offset, column_offset) = scales, offsets
    data = (column_scale, 0, column_offset, 0, row_scale, row_offset)
    return image.transform(size[::-1], PIL.Image.Transform.AFFINE, data, PIL.Image.Resampling.NEAREST)


@lru_cache
def _picks_samples(size: int, new_size: int) -> bool:
    """Whether `_pick` gets the pixels of `_samples` along an axis: Pillow rounds differently, which rarely matters."""
    ramp = PIL.Image.fromarray(np.arange(1, size + 1, dtype=np.int32)[None])  # from 1, as 0 is what lies outside
    picked = [
        np.asarray(_pick(ramp, (1, new_size), (1.0, _scale(size, new_size)), (0.0, offset)))[0] - 1
        for offset in (_BEFORE, _AFTER)
    ]
    return np.array_equal(picked, _samples(size, new_size)[:2])
