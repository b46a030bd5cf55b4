# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Bilinear and bicubic resizing, bitwise equal to `torch.nn.functional.interpolate`, with less time and memory.

The result does not depend on the number of threads. An image is a PIL image of mode RGB or a tensor
`[3, height, width]`. PIL images and uint8 tensors are 8-bit images.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import PIL.Image
import torch
from torch.nn import functional as F


# Number of output rows per step. The intermediate values of a step fit into the CPU cache.
_BAND = 64
# Offsets from a sample position to the pixels before and after it.
_BEFORE, _AFTER = -0.5, 0.5


def empty(*shape: int) -> torch.Tensor:
    """An uninitialized float32 tensor. NumPy requests huge pages, which are faster to allocate than `torch.empty`."""
    return torch.from_numpy(np.empty(shape, np.float32))


def image_size(image: PIL.Image.Image | torch.Tensor) -> tuple[int, int]:
    """Height and width of an image, in pixels."""
    return (image.shape[-2], image.shape[-1]) if isinstance(image, torch.Tensor) else (image.height, image.width)


def as_float(image: PIL.Image.Image | torch.Tensor) -> torch.Tensor:
    """A copy of an image, or of some of its channels, in float32: `[channels, height, width]`."""
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
    Resizes an image without keeping its aspect ratio.

    Args:
        image (`PIL.Image.Image` or `torch.Tensor` of shape `[3, height, width]`): the image. A floating-point tensor
            may have any number of channels.
        size (`tuple[int, int]`): new height and width, in pixels.
        mode (`"bilinear"` or `"bicubic"`, *optional*, defaults to `"bilinear"`): the interpolation.
        antialias (`bool`, *optional*, defaults to `False`): whether to apply an anti-aliasing filter.

    Returns:
        `torch.Tensor` of shape `[channels, *size]`: a new float32 tensor. 8-bit images are rounded to integers.
    """
    height, width = image_size(image)
    if (height, width) == size:
        return as_float(image)

    def interpolate(channels: torch.Tensor) -> torch.Tensor:
        # The last bits of PyTorch's results depend on the number of threads, unless channels form a batch.
        channels = channels.float().unsqueeze(1)
        return F.interpolate(channels, size=size, mode=mode, align_corners=False, antialias=antialias).squeeze(1)

    if isinstance(image, torch.Tensor) and image.dtype != torch.uint8:
        resized = interpolate(image)
        return resized.clamp_(*image.float().aminmax()) if mode == "bicubic" else resized
    shrinks = height * width > 2 * size[0] * size[1]
    # For smaller results, PyTorch uses another order of operations, which rounds differently.
    if mode == "bilinear" and not antialias and shrinks and sum(size) > 128:
        return _resize_sampled(image, size)
    resized = empty(3, *size)
    for index in range(3):  # One channel at a time avoids a float copy of the whole image.
        torch.round(interpolate(_channel(image, index)[None]), out=resized[index, None])
    return resized.clamp_(0, 255) if mode == "bicubic" else resized


def _resize_sampled(image: PIL.Image.Image | torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """
    Bilinear `resize` of an 8-bit image that reads and converts only the pixels it samples.

    `addcmul` is a fused multiply-add, as is the arithmetic of PyTorch's resize, so the results are bitwise equal.
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
    The four pixels around every sample position of a bilinear resize of an 8-bit image.

    Returns:
        `np.ndarray` of shape `[2, 2, rows, columns * 3]`, uint8: pixels above and below, to the left and right.
    """
    sizes = list(zip(image_size(image), size, strict=True))
    rows, columns = (_samples(*axis)[:2] for axis in sizes)
    corners = np.empty((2, 2, size[0], 3 * size[1]), np.uint8)
    if isinstance(image, PIL.Image.Image) and all(_picks_samples(*axis) for axis in sizes):
        # Pillow exports a large image several times slower than it picks the few pixels that are needed.
        offsets = (_BEFORE, _AFTER)

        def read(row: int) -> None:
            for column in range(2):
                picked = _pick(image, size, offsets[row], offsets[column])
                corners[row, column] = np.asarray(picked).reshape(size[0], -1)
    else:
        pixels = image.permute(1, 2, 0).numpy() if isinstance(image, torch.Tensor) else np.asarray(image)

        def read(row: int) -> None:
            lines = pixels[rows[row]].reshape(size[0], -1)
            for column in range(2):
                channels = (3 * columns[column][:, None] + np.arange(3)).ravel()
                lines.take(channels, axis=1, out=corners[row, column], mode="clip")  # "raise" would buffer the output

    # Pillow and NumPy release the GIL here. A global pool would not work after a fork.
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(read, range(2)))
    return corners


def _scale(size: int, new_size: int) -> float:
    """Ratio of the old to the new size, rounded to float32 as in PyTorch."""
    return float(np.float32(size) / np.float32(new_size))


@lru_cache
def _samples(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    """Indices of the pixels before and after each sample position along an axis, and the weight of the latter."""
    # PyTorch's fused multiply-add rounds to float32 only once.
    positions = (_scale(size, new_size) * (np.arange(new_size) + 0.5) - 0.5).astype(np.float32).clip(min=0)
    before = positions.astype(np.int64)
    return before, np.minimum(before + 1, size - 1), torch.from_numpy(positions - before.astype(np.float32))


def _pick(image: PIL.Image.Image, size: tuple[int, int], row_offset: float, column_offset: float) -> PIL.Image.Image:
    """The pixels of an image at the positions `scale * (index + 0.5) + offset` along each axis, rounded down."""
    row_scale, column_scale = map(_scale, image_size(image), size)
    data = (column_scale, 0, column_offset, 0, row_scale, row_offset)
    return image.transform(size[::-1], PIL.Image.Transform.AFFINE, data, PIL.Image.Resampling.NEAREST)


@lru_cache
def _picks_samples(size: int, new_size: int) -> bool:
    """Whether `_pick` returns the pixels of `_samples` along an axis. For a few sizes, Pillow rounds differently."""
    ramp = PIL.Image.fromarray(np.arange(1, size + 1, dtype=np.int32)[None])  # Pillow fills with 0 outside the image.
    picked = [np.asarray(_pick(ramp, (1, new_size), 0.0, offset))[0] - 1 for offset in (_BEFORE, _AFTER)]
    return np.array_equal(picked, _samples(size, new_size)[:2])
