# Copyright 2026 The jvlm authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Image processor of JinaVLM: images of any size to overlapping tiles and a thumbnail."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    infer_channel_dimension_format,
    is_torch_tensor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType, auto_docstring

from ..configuration.config_files import check_config_files
from ..configuration.configuration_jvlm import default_pooled_grid
from ..published_format.published_schema import read_image_processor
from .resizing import as_float, empty, image_size, resize
from .tiling import TileGeometry


# Pillow raises these for files that are damaged, too large or in no image format.
_PILLOW_ERRORS = (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError)
_INTERPOLATION = {PILImageResampling.BILINEAR: "bilinear", PILImageResampling.BICUBIC: "bicubic"}


class JinaVLMImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    layout (`"independent"` or `"stitched"`, *optional*, defaults to `"independent"`):
        Order of the image tokens, see [`JinaVLMConfig`]. It must equal the layout of the model.
    max_crops (`int`, *optional*, defaults to 12):
        Maximum number of tiles per image, without the thumbnail.
    overlap_margins (`list[int]`, *optional*, defaults to `[4, 4]`):
        Patches at the left (top) and right (bottom) edge of a tile that overlap the neighbouring tiles.
    patch_size (`int`, *optional*, defaults to 14):
        Side of a patch of the vision tower, in pixels.
    pooling_size (`int`, *optional*, defaults to 2):
        Side of the window that the connector pools, in patches.
    pooled_grid (`list[int]`, *optional*):
        Rows and columns of pooled cells in a tile, see [`JinaVLMConfig`].
    min_pixels (`int`, *optional*, defaults to 3136):
        Minimum number of pixels of an image after the first resize (`do_resize`).
    max_pixels (`int`, *optional*, defaults to 1003520):
        Maximum number of pixels of an image after the first resize (`do_resize`).
    max_aspect_ratio (`float`, *optional*, defaults to 200):
        Maximum ratio of the longer to the shorter side of an image.
    antialias (`bool`, *optional*, defaults to `False`):
        Whether to apply an anti-aliasing filter when an image is downsampled.
    resize_in_float32 (`bool`, *optional*, defaults to `False`):
        Whether to resize 8-bit images in float32. By default, resized 8-bit images are rounded to integers.
    """

    layout: str
    max_crops: int
    overlap_margins: list[int] | tuple[int, ...]
    patch_size: int
    pooling_size: int
    pooled_grid: list[int] | tuple[int, ...] | None
    min_pixels: int
    max_pixels: int
    max_aspect_ratio: float | int
    antialias: bool
    resize_in_float32: bool


@auto_docstring
class JinaVLMImageProcessor(PilBackend):
    r"""
    Splits images of any size into at most `max_crops` overlapping square tiles and a thumbnail of the whole image.

    Pillow decodes and converts images, PyTorch resizes them; torchvision is not needed. With `do_resize`, a first
    resize makes both sides multiples of `patch_size` and keeps the number of pixels between `min_pixels` and
    `max_pixels`, as the published checkpoint does. Then the image is resized to the canvas of the grid of tiles that
    changes its scale least (appendix, algorithm 1 of arXiv 2512.04032), without keeping the aspect ratio. The tiles
    are windows of that canvas. Every argument can also be passed to a call, which does not change the processor.

    Returns a `BatchFeature` with

    - **pixel_values** (float32, `[tiles, 3, size, size]`): the tiles of all images. Each image has its thumbnail
      first, then its tiles in row-major order.
    - **image_token_positions** (int64, `[tiles, pooled cells]`): index of each pooled cell among the image tokens of
      its image, -1 for dropped cells.
    - **image_grids** (int64, `[images, 2]`): rows and columns of tiles of each image.

    Raises:
        ValueError: if an image cannot be decoded, is empty, exceeds `max_aspect_ratio` or does not have 1, 3 or 4
            channels, or if arguments are inconsistent. The message names the image or the argument.
    """

    valid_kwargs = JinaVLMImageProcessorKwargs
    model_input_names = ["pixel_values", "image_token_positions"]

    size = {"height": 378, "width": 378}
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    do_convert_rgb = True
    do_resize = False
    do_rescale = True
    do_normalize = True
    layout = "independent"
    max_crops = 12
    overlap_margins = [4, 4]
    patch_size = 14
    pooling_size = 2
    min_pixels = 56 * 56
    max_pixels = 1280 * 28 * 28
    max_aspect_ratio = 200
    antialias = False
    resize_in_float32 = False

    def __init__(self, **kwargs: Unpack[JinaVLMImageProcessorKwargs]):
        super().__init__(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        r"""See [`~BaseImageProcessor.from_pretrained`]. Overridden to name a damaged file of the folder."""
        folder = os.path.join(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        check_config_files(folder, "preprocessor_config.json", "processor_config.json")
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs):
        """Also reads a dict in the published schema, so that `from_pretrained` loads the published checkpoint."""
        return super().from_dict(read_image_processor(image_processor_dict), **kwargs)

    def fetch_images(self, image_url_or_urls: str | list[str] | list[list[str]]):
        """Also names the file that cannot be decoded, and adds a channel axis to greyscale arrays."""
        if isinstance(image_url_or_urls, str):
            with _decoding(f"Image {image_url_or_urls[:200]!r}"):
                return super().fetch_images(image_url_or_urls)
        images = super().fetch_images(image_url_or_urls)  # calls this method for every element of a list
        return images[None] if getattr(images, "ndim", 3) == 2 else images

    def process_image(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs,
    ) -> PIL.Image.Image | torch.Tensor:
        """
        Returns an RGB PIL image or a tensor `[3, height, width]`, so that `resize` reads only the pixels it needs.

        Pillow converts to RGB as `load_image` does: an alpha channel is dropped.
        """
        if isinstance(image, PIL.Image.Image):
            with _decoding(f"The {image.mode} image of {image.width}×{image.height} pixels"):
                image.load()
                image = image.convert("RGB") if do_convert_rgb and image.mode != "RGB" else image
            if image.mode == "RGB" and image.width * image.height:
                return image
            image, input_data_format = np.atleast_3d(np.array(image)), ChannelDimension.LAST
        image = image.detach().cpu() if is_torch_tensor(image) else _from_numpy(np.asarray(image))
        shape = tuple(image.shape)
        if image.numel() == 0:
            raise ValueError(f"An image of shape {shape} is empty; leave it out of the batch.")
        if image.ndim != 3 or not {shape[0], shape[2]} & {1, 3, 4}:
            raise ValueError(f"An image array must have 1, 3 or 4 channels, first or last; got shape {shape}.")
        if (input_data_format or infer_channel_dimension_format(image, (1, 3, 4))) == ChannelDimension.LAST:
            image = image.permute(2, 0, 1)
        if do_convert_rgb:
            image = image.expand(3, -1, -1) if image.shape[0] == 1 else image[:3]
        if image.shape[0] != 3:
            raise ValueError(f"The model reads 3 channels, got an image of shape {shape}; set `do_convert_rgb=True`.")
        return image

    def geometry(self, images_kwargs: dict[str, Any] | None = None) -> TileGeometry:
        """The tile geometry of a call with these arguments. Missing arguments default to the processor's."""
        setting = self._settings(images_kwargs)
        size = dict(setting("size"))
        if size.get("height") is None or size["height"] != size.get("width"):
            raise ValueError(f"`size` must have the same `height` and `width`, got {size}.")
        layout, tile_size, patch_size = setting("layout"), size["height"], setting("patch_size")
        pooling_size, pooled_grid = setting("pooling_size"), setting("pooled_grid")
        if pooled_grid is None:
            pooled_grid = default_pooled_grid(layout, tile_size, patch_size, pooling_size)
        margins = tuple(setting("overlap_margins"))
        return TileGeometry(tile_size, patch_size, margins, pooling_size, tuple(pooled_grid), layout)

    def get_image_grid(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> tuple[int, int]:
        """Rows and columns of the tiles of an image of this size in pixels."""
        size = self._size_after_first_resize(height, width, images_kwargs)
        return self.geometry(images_kwargs).select_grid(*size, self._settings(images_kwargs)("max_crops"))

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> int:
        """Number of tiles of an image of this size in pixels, including the thumbnail."""
        rows, cols = self.get_image_grid(height, width, images_kwargs)
        return 1 + rows * cols

    def _settings(self, images_kwargs: dict[str, Any] | None) -> Callable[[str], Any]:
        """A function from the name of an argument to its value in a call with `images_kwargs`."""
        given = {name: value for name, value in (images_kwargs or {}).items() if value is not None}
        return lambda name: given[name] if name in given else getattr(self, name)

    def _size_after_first_resize(
        self, height: int, width: int, images_kwargs: dict[str, Any] | None
    ) -> tuple[int, int]:
        """Height and width after the first resize, or unchanged without `do_resize`."""
        setting = self._settings(images_kwargs)
        ratio, limit = max(height, width) / min(height, width), setting("max_aspect_ratio")
        if ratio > limit:
            raise ValueError(
                f"The sides of an image of {width}×{height} pixels (width × height) have the ratio {ratio:.0f}, above "
                f"`max_aspect_ratio` ({limit}); crop or pad it."
            )
        if not setting("do_resize"):
            return height, width
        # `smart_resize` rejects ratios above 200, whatever `max_aspect_ratio` is.
        return smart_resize(height, width, *map(setting, ("patch_size", "min_pixels", "max_pixels")))

    def _preprocess(
        self,
        images: list[PIL.Image.Image | torch.Tensor],
        do_resize: bool,
        do_rescale: bool,
        do_normalize: bool,
        return_tensors: str | TensorType | None = None,
        **kwargs,
    ) -> BatchFeature:
        call, settings = SimpleNamespace(**kwargs), {**kwargs, "do_resize": do_resize}
        if call.resample not in _INTERPOLATION:
            raise ValueError(f"`resample` must be BILINEAR or BICUBIC, got {call.resample!r}.")
        geometry, mode = self.geometry(kwargs), _INTERPOLATION[call.resample]
        tile_size, stride = geometry.tile_size, geometry.stride
        mean_and_std = (call.image_mean, call.image_std) if do_normalize else (0.0, 1.0)
        mean, std = (torch.tensor(values).expand(3) for values in mean_and_std)
        scale, shift = (1 / std).tolist(), -mean / std

        def rescale(image: torch.Tensor) -> torch.Tensor:
            # x / 255 and not x · (1/255), as in the published code.
            return image.div_(1 / call.rescale_factor) if do_rescale else image

        sizes = [self._size_after_first_resize(*image_size(image), settings) for image in images]
        grids = [geometry.select_grid(*size, call.max_crops) for size in sizes]
        num_tiles = [1 + rows * cols for rows, cols in grids]
        pixel_values = empty(sum(num_tiles), 3, tile_size, tile_size)
        is_rescaled = do_resize or call.resize_in_float32
        for image, size, grid, tiles in zip(images, sizes, grids, pixel_values.split(num_tiles), strict=True):
            if call.resize_in_float32:
                image = rescale(as_float(image))
            if do_resize:
                # Only the first resize of an 8-bit image rounds to integers.
                image = resize(image, size, mode, call.antialias)
                image = image if call.resize_in_float32 else rescale(image)
            parts: list[PIL.Image.Image | torch.Tensor] = [image]
            if isinstance(image, torch.Tensor) and is_rescaled and mode == "bilinear":
                parts = list(image.split(1))  # One float channel at a time fits into the CPU cache.
            for first, part in enumerate(parts):
                for frame, output in (((1, 1), tiles[:1]), (grid, tiles[1:])):  # the thumbnail is a grid of one tile
                    canvas = resize(part, geometry.canvas_size(frame), mode, call.antialias)
                    canvas = canvas if is_rescaled else rescale(canvas)
                    windows = canvas.unfold(1, tile_size, stride).unfold(2, tile_size, stride)
                    for channel, values in enumerate(windows, start=first):  # [rows, cols, size, size]
                        target = output[:, channel].unflatten(0, frame)
                        torch.add(shift[channel], values, alpha=scale[channel], out=target)

        data = {
            "pixel_values": pixel_values,
            "image_token_positions": torch.cat([torch.tensor(geometry.token_positions(grid)) for grid in grids]),
            "image_grids": torch.tensor(grids),
        }
        return BatchFeature(data=data, tensor_type=return_tensors)


def _from_numpy(array: np.ndarray) -> torch.Tensor:
    """Converts an array to a tensor, without a copy unless its byte order or strides require one."""
    if array.dtype.kind not in "biuf":
        raise ValueError(f"An image array must have a numeric dtype, got {array.dtype}.")
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    # PyTorch warns about read-only arrays and rejects the negative strides that an axis of size 1 may keep. This view
    # has neither. It is never written to.
    view = {**array.__array_interface__, "data": (array.ctypes.data, False)}
    return torch.from_numpy(np.asarray(SimpleNamespace(__array_interface__=view, owner=array)))


@contextmanager
def _decoding(description: str) -> Iterator[None]:
    """Turns errors of Pillow into a `ValueError` that names the image and a fix."""
    try:
        yield
    except _PILLOW_ERRORS as error:
        fix = "check that the file is complete and an image"
        if isinstance(error, PIL.Image.DecompressionBombError):
            fix = "raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        reason = str(error) if len(str(error)) <= 300 else f"{str(error)[:300]}…"  # may quote a whole base64 string
        raise ValueError(f"{description} cannot be decoded ({reason}); {fix}.") from error


__all__ = ["JinaVLMImageProcessor"]
