# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Converts PIL images, arrays and tensors to RGB, and rejects values that cannot be right."""

import math
from types import SimpleNamespace

import numpy as np
import PIL.ExifTags
import PIL.Image
import torch
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format
from transformers.utils import logging

from .image_loading import decoding


logger = logging.get_logger(__name__)


def with_channel_axis(image: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
    """
    Adds a channel axis to a greyscale array `[height, width]`; returns an image or a batch of images as it is.

    Raises:
        ValueError: if the number of dimensions is wrong, or a tensor is not dense or has no data.
    """
    if isinstance(image, torch.Tensor) and (image.is_nested or image.is_meta or image.layout != torch.strided):
        kind = "nested" if image.is_nested else f"on {image.device}, with the layout {image.layout}"
        raise ValueError(f"a Tensor of dtype {image.dtype} cannot be read (it is {kind}); pass a dense tensor.")
    if image.ndim not in (2, 3, 4):
        raise ValueError(
            f"an array must have 2 or 3 dimensions, or 4 for a batch; got a {type(image).__name__} of {image.ndim} "
            "dimensions."
        )
    return image[None] if image.ndim == 2 else image


def to_rgb(
    image: PIL.Image.Image | np.ndarray | torch.Tensor,
    do_convert_rgb: bool | None = None,
    input_data_format: str | ChannelDimension | None = None,
    do_rescale: bool | None = None,
    rescale_factor: float = 1 / 255,
) -> PIL.Image.Image | torch.Tensor:
    """
    Converts an image to RGB. The docs of the image processor list the rules for modes, dtypes and transparency.

    Args:
        image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): the image; arrays have the shape
            `[height, width, channels]` or `[channels, height, width]`.
        do_convert_rgb (`bool`, *optional*): whether to convert images that do not have three channels.
        input_data_format (`str` or `ChannelDimension`, *optional*): position of the channels of an array.
        do_rescale (`bool`, *optional*): whether the values will be multiplied by `rescale_factor`.
        rescale_factor (`float`, *optional*, defaults to 1/255): factor that makes white 1.

    Returns:
        `PIL.Image.Image` of mode RGB or `torch.Tensor` of shape `[3, height, width]`.

    Raises:
        ValueError: if the image cannot be decoded, is empty, has a wrong number of channels, or has values that are
            not finite or out of range.
    """
    if isinstance(image, PIL.Image.Image):
        image = _convert_pillow(image, do_convert_rgb)
        if isinstance(image, PIL.Image.Image):
            return image
        input_data_format = ChannelDimension.LAST
    try:
        tensor = _from_torch(image) if isinstance(image, torch.Tensor) else _from_numpy(np.asarray(image))
        if tensor.dtype == torch.bool and do_rescale:
            tensor = tensor.to(torch.uint8) * 255
        white = 255.0 if tensor.dtype == torch.uint8 else 1 / rescale_factor if do_rescale else 1.0
        tensor = _three_channels(tensor, do_convert_rgb, input_data_format, white)
        if tensor.dtype != torch.uint8:
            lowest, highest = map(float, tensor.float().aminmax())
            _check_range(lowest, highest, white if do_rescale else None)
    except (RuntimeError, TypeError) as error:  # of PyTorch, for dtypes and kinds of tensors that lack an operation
        raise ValueError(f"a {type(image).__name__} of dtype {image.dtype} cannot be read ({error}).") from error
    return tensor


def _convert_pillow(image: PIL.Image.Image, do_convert_rgb: bool | None) -> PIL.Image.Image | np.ndarray:
    """An RGB image or, of modes with more bits or unwanted channels, an array `[height, width, channels]`."""
    if not image.width * image.height:
        raise ValueError(f"the image of {image.width}×{image.height} pixels is empty; leave it out of the batch.")
    with decoding(f"the {image.mode} image of {image.width}×{image.height} pixels"):
        image.load()
        if _has_orientation(image):
            logger.warning_once(
                "An opened PIL image has an EXIF orientation, which is not applied, as in Transformers' image "
                "processors. Pass its path, or apply it with `PIL.ImageOps.exif_transpose(image)`."
            )
        if image.mode.startswith("I;16"):
            values = np.asarray(image)
            if 0 < values.max() <= 255:
                logger.warning_once(
                    "A 16-bit image has no value above 255 and is nearly black, since 65535 is white. If its values "
                    "are those of 8 bits, pass `np.asarray(image).astype(np.uint8)`."
                )
            image = PIL.Image.fromarray((values >> 8).astype(np.uint8))
        elif image.mode in ("I", "F") or (image.mode != "RGB" and not do_convert_rgb):
            return np.atleast_3d(np.array(image))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            _warn_about_alpha(np.asarray(image.getchannel("A")).min(), 255)
        return image.convert("RGB") if image.mode != "RGB" else image


def _has_orientation(image: PIL.Image.Image) -> bool:
    try:
        return image.getexif().get(PIL.ExifTags.Base.Orientation, 1) != 1
    except Exception:
        return False  # damaged metadata do not matter for the pixels of an opened image


def _warn_about_alpha(lowest: float, opaque: float):
    if lowest < opaque:
        logger.warning_once(
            "An image is transparent. Its alpha channel is dropped, which may show black on black. For a white "
            'background, pass `PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), '
            'image.convert("RGBA"))`.'
        )


def _from_torch(image: torch.Tensor) -> torch.Tensor:
    if image.is_complex():
        raise TypeError("pass real numbers")
    return image.detach().cpu()


def _from_numpy(array: np.ndarray) -> torch.Tensor:
    """Converts an array to a tensor, without a copy unless its byte order or strides require one."""
    if array.dtype.kind not in "biuf":
        raise TypeError("pass numbers")
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    # PyTorch warns about read-only arrays and rejects the negative strides that an axis of size 1 may keep. This view
    # has neither. It is never written to.
    view = {**array.__array_interface__, "data": (array.ctypes.data, False)}
    return torch.from_numpy(np.asarray(SimpleNamespace(__array_interface__=view, owner=array)))


def _three_channels(
    image: torch.Tensor,
    do_convert_rgb: bool | None,
    input_data_format: str | ChannelDimension | None,
    opaque: float,
) -> torch.Tensor:
    """An image of three channels, `[3, height, width]`. `opaque` is the maximum of an alpha channel."""
    shape = tuple(image.shape)
    if image.numel() == 0:
        raise ValueError(f"an image of shape {shape} is empty; leave it out of the batch.")
    if image.ndim != 3 or not {shape[0], shape[2]} & {1, 3, 4}:
        raise ValueError(f"an image array must have 1, 3 or 4 channels, first or last; got shape {shape}.")
    data_format = input_data_format or infer_channel_dimension_format(image, (1, 3, 4))
    if ChannelDimension(data_format) == ChannelDimension.LAST:
        image = image.permute(2, 0, 1)
    if do_convert_rgb and image.shape[0] == 4:
        _warn_about_alpha(float(image[3].float().min()), opaque)
        image = image[:3]
    elif do_convert_rgb and image.shape[0] == 1:
        image = image.expand(3, -1, -1)
    if image.shape[0] != 3:
        raise ValueError(f"the model reads 3 channels, got an image of shape {shape}; set `do_convert_rgb=True`.")
    return image


def _check_range(lowest: float, highest: float, white: float | None):
    """Raises if values cannot be pixels from 0 to `white`, where they are known, and warns if they look rescaled."""
    if not math.isfinite(lowest) or not math.isfinite(highest):
        raise ValueError("an image has values that are not finite (NaN or infinity); replace them.")
    if white is None:
        return
    tolerance = white / 510  # half a level of 8 bits, for images that were resized in floating point
    if lowest < -tolerance or highest > white + tolerance:
        raise ValueError(
            f"an image has values from {lowest:g} to {highest:g}, but they must lie between 0 and {white:g}, which is "
            "1 / `rescale_factor`. Scale or clip them, pass `rescale_factor=1 / 65535` for 16-bit values, or "
            "`do_rescale=False` for values that are rescaled already."
        )
    if 0 < highest <= 1 < white:
        logger.warning_once(
            "An image has values from 0 to 1, which `do_rescale` makes nearly black. Pass `do_rescale=False` if 1 is "
            "white."
        )


__all__ = ["to_rgb", "with_channel_axis"]
