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
    SizeDict,
    infer_channel_dimension_format,
    is_torch_tensor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import auto_docstring

from ..configuration.configuration_jvlm import default_pooled_grid
from ..published_format.published_schema import read_image_processor
from .resizing import as_float, empty, image_size, resize
from .tiling import TileGeometry


# What Pillow raises for files that are damaged, no images or too large.
_PILLOW_ERRORS = (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError)
_INTERPOLATION = {PILImageResampling.BILINEAR: "bilinear", PILImageResampling.BICUBIC: "bicubic"}


class JinaVLMImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    layout (`"independent"` or `"stitched"`, *optional*, defaults to `"independent"`):
        How the tiles' pooled cells become image tokens, see [`JinaVLMConfig`]. It must be the model's.
    max_crops (`int`, *optional*, defaults to 12):
        Largest number of tiles, the thumbnail not counted.
    overlap_margins (`list[int]`, *optional*, defaults to `[4, 4]`):
        Patches at the left (top) and right (bottom) of a tile that overlap its neighbours.
    patch_size (`int`, *optional*, defaults to 14):
        Side of a patch of the vision tower, in pixels.
    pooling_size (`int`, *optional*, defaults to 2):
        Side of the window that the connector pools, in patches.
    pooled_grid (`list[int]`, *optional*):
        Rows and columns of pooled cells in a tile, see [`JinaVLMConfig`].
    min_pixels (`int`, *optional*, defaults to 3136):
        Smallest area of an image after the first resize (`do_resize`).
    max_pixels (`int`, *optional*, defaults to 1003520):
        Largest area of an image after the first resize (`do_resize`).
    max_aspect_ratio (`float`, *optional*, defaults to 200):
        Largest ratio of an image's longer to its shorter side.
    antialias (`bool`, *optional*, defaults to `False`):
        Whether resizing smooths what it shrinks.
    resize_in_float32 (`bool`, *optional*, defaults to `False`):
        Whether the first resize of 8-bit images keeps fractions of a level; by default it rounds to levels.
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
    Cuts images of any size into at most `max_crops` overlapping square tiles and a thumbnail of the whole.

    Pillow decodes and converts, PyTorch resizes; torchvision is not needed. With `do_resize`, an image is first
    brought to whole patches and an area between `min_pixels` and `max_pixels`, as the published checkpoint does.
    Then it is resized, aspect ratio not kept, to the canvas of the grid that changes its scale least, and the canvas
    is cut. Any argument can be given to a single call, which never changes the processor.

    Returns a `BatchFeature` with

    - **pixel_values** (float32, `[tiles, 3, size, size]`): all tiles of all images one after the other; each
      image's thumbnail comes first, then its tiles row by row.
    - **image_token_positions** (int64, `[tiles, pooled cells]`): for every pooled cell its place among the image
      tokens of its image, -1 where the cell is dropped.
    - **image_grids** (int64, `[images, 2]`): rows and columns of tiles of every image.

    Raises:
        ValueError: for an image that cannot be decoded, is empty, is too long for `max_aspect_ratio`, or has another
            number of channels than 1, 3 or 4; and for arguments that do not fit together. The message names it.
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
    pooled_grid = None
    min_pixels = 56 * 56
    max_pixels = 1280 * 28 * 28
    max_aspect_ratio = 200
    antialias = False
    resize_in_float32 = False

    def __init__(self, **kwargs: Unpack[JinaVLMImageProcessorKwargs]):
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs):
        """Builds the processor from a saved dict, ours or one of the published schema."""
        return super().from_dict(read_image_processor(image_processor_dict), **kwargs)

    def fetch_images(self, image_url_or_urls: str | list[str] | list[list[str]]):
        """Loads paths, URLs and base64 strings, nested as given; see `transformers.image_utils.load_image`."""
        if not isinstance(image_url_or_urls, str):
            images = super().fetch_images(image_url_or_urls)  # comes back here for every element of a list
            # Transformers' lists of images know no array without a channel axis.
            return images[None] if getattr(images, "ndim", 3) == 2 else images
        try:
            return super().fetch_images(image_url_or_urls)
        except _PILLOW_ERRORS as error:
            raise _undecodable(f"Image {image_url_or_urls[:200]!r}", error) from error

    def process_image(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs,
    ) -> PIL.Image.Image | torch.Tensor:
        """
        Decodes one image to an RGB image of Pillow or a tensor `[3, height, width]` of its own dtype.

        Images become RGB as Pillow converts them, which is also what `load_image` does: transparency is dropped.
        """
        if isinstance(image, PIL.Image.Image):
            image = _decode(image, do_convert_rgb)
            if image.mode == "RGB" and image.width * image.height:
                return image
            image, input_data_format = np.array(image), ChannelDimension.LAST
        image = image.detach().cpu() if is_torch_tensor(image) else _from_numpy(np.asarray(image))
        shape = tuple(image.shape)
        if image.numel() == 0:
            raise ValueError(f"An image of shape {shape} is empty; leave it out of the batch.")
        if image.ndim == 2:  # a grey image that `do_convert_rgb=False` leaves grey
            image, input_data_format = image[None], ChannelDimension.FIRST
        if input_data_format is None:
            try:
                input_data_format = infer_channel_dimension_format(image, num_channels=(1, 3, 4))
            except ValueError as error:
                raise ValueError(
                    f"An image array must have 1, 3 or 4 channels, first or last; got shape {shape}."
                ) from error
        if input_data_format == ChannelDimension.LAST:
            image = image.permute(2, 0, 1)
        if do_convert_rgb:
            image = image.expand(3, -1, -1) if image.shape[0] == 1 else image[:3]
        if image.shape[0] != 3:
            raise ValueError(f"The model reads 3 channels, got an image of shape {shape}; set `do_convert_rgb=True`.")
        return image

    def geometry(self, images_kwargs: dict[str, Any] | None = None) -> TileGeometry:
        """The tile geometry of a call with these arguments; what is not given is the processor's own."""
        setting = self._settings(images_kwargs)
        size = setting("size")
        height, width = (size["height"], size["width"]) if isinstance(size, dict) else (size.height, size.width)
        if height is None or height != width:
            raise ValueError(f"`size` must have the same `height` and `width`, got {dict(size)}.")
        layout, patch_size, pooling_size = setting("layout"), setting("patch_size"), setting("pooling_size")
        pooled_grid = setting("pooled_grid")
        if pooled_grid is None:
            pooled_grid = default_pooled_grid(layout, height, patch_size, pooling_size)
        return TileGeometry(
            tile_size=height,
            patch_size=patch_size,
            overlap_margins=tuple(setting("overlap_margins")),
            pooling_size=pooling_size,
            pooled_grid=tuple(pooled_grid),
            layout=layout,
        )

    def get_image_grid(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> tuple[int, int]:
        """Rows and columns of tiles that an image of this size, in pixels, is cut into."""
        setting = self._settings(images_kwargs)
        height, width = self._first_size(height, width, images_kwargs)
        return self.geometry(images_kwargs).select_grid(height, width, setting("max_crops"))

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> int:
        """Tiles, the thumbnail included, of an image of this size in pixels."""
        rows, cols = self.get_image_grid(height, width, images_kwargs)
        return 1 + rows * cols

    def _settings(self, images_kwargs: dict[str, Any] | None):
        """A function from the name of an argument to its value in a call with `images_kwargs`."""
        images_kwargs = images_kwargs or {}
        return lambda name: images_kwargs[name] if images_kwargs.get(name) is not None else getattr(self, name)

    def _first_size(self, height: int, width: int, images_kwargs: dict[str, Any] | None) -> tuple[int, int]:
        """Size of an image after the first resize, which `do_resize` asks for."""
        setting = self._settings(images_kwargs)
        ratio = max(height, width) / min(height, width)
        if ratio > setting("max_aspect_ratio"):
            raise ValueError(
                f"The sides of an image of {width}×{height} pixels (width × height) have the ratio {ratio:.0f}, above "
                f"`max_aspect_ratio` ({setting('max_aspect_ratio')}); crop or pad it."
            )
        if not setting("do_resize"):
            return height, width
        # Its own check of the ratio is the same limit; ours speaks first unless `max_aspect_ratio` was raised.
        return smart_resize(
            height,
            width,
            factor=setting("patch_size"),
            min_pixels=setting("min_pixels"),
            max_pixels=setting("max_pixels"),
        )

    def _preprocess(
        self,
        images: list[PIL.Image.Image | torch.Tensor],
        size: SizeDict,
        resample: "PILImageResampling | int",
        do_resize: bool,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | list[float],
        image_std: float | list[float],
        antialias: bool,
        resize_in_float32: bool,
        max_crops: int,
        return_tensors: str | None,
        **kwargs,
    ) -> BatchFeature:
        if resample not in _INTERPOLATION:
            raise ValueError(f"`resample` must be BILINEAR or BICUBIC, got {resample!r}.")
        images_kwargs = {"size": size, "do_resize": do_resize, "max_crops": max_crops, **kwargs}
        geometry, mode = self.geometry(images_kwargs), _INTERPOLATION[resample]
        tile_size, stride = geometry.tile_size, geometry.stride
        mean, std = (
            torch.tensor(values).expand(3) for values in ((image_mean, image_std) if do_normalize else (0.0, 1.0))
        )
        scale, shift = (1 / std).tolist(), -mean / std

        def rescale(image: torch.Tensor) -> torch.Tensor:
            # x / 255, not x · (1/255): it is what the published code computes.
            return image.div_(1 / rescale_factor) if do_rescale else image

        sizes = [self._first_size(*image_size(image), images_kwargs) for image in images]
        grids = [geometry.select_grid(*size, max_crops) for size in sizes]
        num_tiles = [1 + rows * cols for rows, cols in grids]
        pixel_values = empty(sum(num_tiles), 3, tile_size, tile_size)
        is_rescaled = do_resize or resize_in_float32
        for image, size, grid, tiles in zip(images, sizes, grids, pixel_values.split(num_tiles), strict=True):
            if resize_in_float32:
                image = rescale(as_float(image))
            if do_resize:
                # Only the first resize of an 8-bit image is rounded to its levels.
                image = resize(image, size, mode, antialias)
                image = image if resize_in_float32 else rescale(image)
            # One channel of floats after the other stays in the processor's cache; bicubic ones are clipped together.
            step = 1 if is_rescaled and mode == "bilinear" else 3
            for first in range(0, 3, step):
                part = image if step == 3 else image[first, None]
                for frame, output in (((1, 1), tiles[:1]), (grid, tiles[1:])):  # the thumbnail is a frame of one tile
                    canvas = resize(part, geometry.canvas_size(frame), mode, antialias)
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
    """The array as a tensor, without a copy unless its byte order or its strides make one necessary."""
    if array.dtype.kind not in "biuf":
        raise ValueError(f"An image array must hold numbers, got dtype {array.dtype}.")
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    if any(stride < 0 for stride in array.strides):  # an axis of one row counts as contiguous with any stride
        array = array.copy()
    if not array.flags.writeable:
        # Nothing writes to it, so PyTorch need not warn; filters of warnings are shared by all threads.
        interface = {**array.__array_interface__, "data": (array.ctypes.data, False)}
        array = np.asarray(SimpleNamespace(__array_interface__=interface, owner=array))
    return torch.from_numpy(array)


def _decode(image: PIL.Image.Image, do_convert_rgb: bool | None) -> PIL.Image.Image:
    description = f"The {image.mode} image of {image.width}×{image.height} pixels"
    try:
        image.load()
        return image.convert("RGB") if do_convert_rgb and image.mode != "RGB" else image
    except _PILLOW_ERRORS as error:
        raise _undecodable(description, error) from error


def _undecodable(description: str, error: Exception) -> ValueError:
    mend = (
        "raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        if isinstance(error, PIL.Image.DecompressionBombError)
        else "check that the file is complete and an image"
    )
    reason = str(error) if len(str(error)) <= 300 else f"{str(error)[:300]}…"  # may quote a whole image in base64
    return ValueError(f"{description} cannot be decoded ({reason}); {mend}.")


__all__ = ["JinaVLMImageProcessor"]
