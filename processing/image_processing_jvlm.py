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

import difflib
import itertools
import os
import sys
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.nn import functional as F
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType, auto_docstring, logging

from ..configuration.config_files import check_config_files
from ..configuration.configuration_jvlm import UNSEEN, default_pooled_grid
from ..configuration.setting_kinds import IMAGE_PROCESSOR, check_settings, value_errors
from ..published_format.published_schema import read_image_processor
from .image_conversion import to_rgb, with_channel_axis
from .image_loading import load_image, naming_image
from .resizing import as_float, empty, image_size, resize
from .tiling import TileGeometry, possible_grids


logger = logging.get_logger(__name__)
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
    drop_uniform_cells (`bool`, *optional*, defaults to `False`):
        Whether cells of tiles that show a single colour get no image tokens. The thumbnail keeps all of its cells, and
        every tile at least one. The published weights were not trained with it.
    drop_uniform_patches (`bool`, *optional*, defaults to `False`):
        Whether the vision tower leaves out the patches of uniform cells without tokens. Needs `drop_uniform_cells`.
    uniform_tolerance (`float`, *optional*, defaults to 8):
        Largest difference, of 255, between the pixels of a cell in each channel with which it counts as uniform.
    max_image_tokens (`int`, *optional*):
        Maximum number of tokens of an image, markers included. An image with more gets the next smaller grid of tiles.
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
    drop_uniform_cells: bool
    drop_uniform_patches: bool
    uniform_tolerance: float | int
    max_image_tokens: int | None


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
      its image, -1 for dropped cells, and -2 for those whose patches the vision tower leaves out.
    - **image_grids** (int64, `[images, 2]`): rows and columns of tiles of each image.

    Raises:
        ValueError: if an image cannot be loaded (see [`load_image`]), is empty, exceeds `max_aspect_ratio`, does not
            have 1, 3 or 4 channels or has values that are not finite or out of range, or if arguments have a wrong
            type or value or contradict each other. The message names the argument, or the index of the image.
        TypeError: if an argument is unknown.
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
    drop_uniform_cells = False
    drop_uniform_patches = False
    uniform_tolerance = 8.0
    max_image_tokens = None

    def __init__(self, **kwargs: Unpack[JinaVLMImageProcessorKwargs]):
        _refuse_misspelt(kwargs, self.valid_kwargs)
        super().__init__(**kwargs)
        _geometry(self._checked_settings(None))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        r"""See [`~BaseImageProcessor.from_pretrained`]. Overridden to name a damaged file of the folder."""
        folder = os.path.join(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        check_config_files(folder, "preprocessor_config.json", "processor_config.json")
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs):
        """
        Also reads a dict in the published schema, so that `from_pretrained` loads the published checkpoint.

        Raises:
            ValueError: for a setting with a wrong value, and for a keyword that looks like a misspelt setting.
        """
        _refuse_misspelt(kwargs, cls.valid_kwargs)  # Transformers ignores unknown keywords here.
        return super().from_dict(read_image_processor(image_processor_dict), **kwargs)

    def fetch_images(self, image_url_or_urls: Any, timeout: float = 30.0) -> Any:
        """
        Opens encoded images, see [`load_image`], and adds a channel axis to greyscale arrays.

        Args:
            image_url_or_urls: an image of any kind, or a nested list of images.
            timeout (`float`, *optional*, defaults to 30.0): maximum time for a download, in seconds.

        Returns:
            The image or the nested list, with PIL images, arrays and tensors.

        Raises:
            ValueError: if an image cannot be loaded. The message names its index among all images.
        """
        indices = itertools.count()

        def fetch(image):
            if isinstance(image, (list, tuple)):
                return [fetch(entry) for entry in image]
            with naming_image(next(indices)):
                image = load_image(image, timeout)
                return image if isinstance(image, PIL.Image.Image) else with_channel_axis(image)

        return fetch(image_url_or_urls)

    @auto_docstring
    def preprocess(self, images: ImageInput, *args, **kwargs: Unpack[JinaVLMImageProcessorKwargs]) -> BatchFeature:
        self._checked_settings(kwargs)  # also the settings of a file, which Transformers does not check
        # As in `_settings`, None is the processor's setting.
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        with value_errors():  # of the types of the other arguments
            return super().preprocess(images, *args, **kwargs)

    def _standardize_kwargs(self, **kwargs) -> dict[str, Any]:
        """Also names `size` in errors."""
        try:
            return super()._standardize_kwargs(**kwargs)
        except (IndexError, TypeError, ValueError) as error:
            sizes = {name: kwargs[name] for name in ("size", "crop_size", "pad_size") if kwargs.get(name) is not None}
            raise ValueError(f"`size` must have the same `height` and `width`, got {sizes}.") from error

    def _prepare_image_like_inputs(self, images: ImageInput, *args, **kwargs) -> list[PIL.Image.Image | torch.Tensor]:
        """Also names the index of an image in errors."""
        images, prepared = self._prepare_images_structure(images), []
        if not images:
            raise ValueError("`images` is empty; pass at least one image.")
        for index, image in enumerate(images):
            with naming_image(index):
                prepared.append(self.process_image(image, *args, **kwargs))
        return prepared

    def process_image(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float = 1 / 255,
        **kwargs,
    ) -> PIL.Image.Image | torch.Tensor:
        """Returns an RGB PIL image or a tensor `[3, height, width]`; `resize` then reads only the pixels it needs."""
        return to_rgb(image, do_convert_rgb, input_data_format, do_rescale, rescale_factor)

    def geometry(self, images_kwargs: dict[str, Any] | None = None) -> TileGeometry:
        """The tile geometry of a call with these arguments. Missing arguments default to the processor's."""
        try:
            return _geometry(self._settings(images_kwargs))
        except TypeError:
            self._checked_settings(images_kwargs)  # takes longer, and names the argument of a wrong type
            raise

    def get_image_grids(
        self, image_sizes: Iterable[Sequence[int]], images_kwargs: dict[str, Any] | None = None
    ) -> list[tuple[int, int]]:
        """
        Rows and columns of the tiles of images, from their heights and widths in pixels. With `drop_uniform_cells`, an
        image that has more than `max_image_tokens` gets fewer tiles than these.
        """
        settings = self._checked_settings(images_kwargs)
        geometry = _geometry(settings)
        sizes = (_size_after_first_resize(height, width, settings) for height, width in image_sizes)
        return [_select_grid(geometry, height, width, settings) for height, width in sizes]

    def canvas_sizes(self, images_kwargs: dict[str, Any] | None = None) -> list[tuple[int, int]]:
        """Heights and widths in pixels of images that fit a grid of tiles exactly, one for each possible grid."""
        settings = self._checked_settings(images_kwargs)
        grids = possible_grids(settings.max_crops).tolist()
        return [_geometry(settings).canvas_size(grid) for grid in grids]

    def max_num_tokens(self, images_kwargs: dict[str, Any] | None = None) -> int:
        """Tokens of the largest grid of tiles, at most `max_image_tokens`. It may be that no image has as many."""
        settings = self._checked_settings(images_kwargs)
        geometry, limit = _geometry(settings), settings.max_image_tokens or sys.maxsize
        counts = [geometry.num_tokens(grid)[0] for grid in possible_grids(settings.max_crops).tolist()]
        return min(max(counts), limit) if settings.drop_uniform_cells else max(n for n in counts if n <= limit)

    def get_num_image_tokens(
        self, image_sizes: Iterable[Sequence[int]], images_kwargs: dict[str, Any] | None = None
    ) -> list[int]:
        """
        Numbers of tokens of images, markers included, from their heights and widths in pixels. With
        `drop_uniform_cells` these are upper bounds.
        """
        settings = self._checked_settings(images_kwargs)
        geometry, limit = _geometry(settings), settings.max_image_tokens or sys.maxsize
        return [min(geometry.num_tokens(grid)[0], limit) for grid in self.get_image_grids(image_sizes, images_kwargs)]

    def get_image_grid(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> tuple[int, int]:
        """Rows and columns of the tiles of an image of this size in pixels."""
        return self.get_image_grids([(height, width)], images_kwargs)[0]

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> int:
        """Number of tiles of an image of this size in pixels, including the thumbnail."""
        rows, cols = self.get_image_grid(height, width, images_kwargs)
        return 1 + rows * cols

    def _settings(self, images_kwargs: dict[str, Any] | None) -> SimpleNamespace:
        """All arguments of a call with `images_kwargs`. Unknown ones are ignored."""
        given = {name: value for name, value in (images_kwargs or {}).items() if value is not None}
        values = {name: given.get(name, getattr(self, name, None)) for name in self.valid_kwargs.__annotations__}
        return SimpleNamespace(**self._standardize_kwargs(**values))

    def _checked_settings(self, images_kwargs: dict[str, Any] | None) -> SimpleNamespace:
        """Like `_settings`. Raises if a type or a value cannot be right, also of the processor's own settings."""
        given = {name: value for name, value in (images_kwargs or {}).items() if value is not None}
        values = {name: getattr(self, name, None) for name in self.valid_kwargs.__annotations__} | given
        if isinstance(size := values.pop("size"), (dict, SizeDict)):  # `_standardize_kwargs` checks numbers
            values["size"] = dict(size)
        check_settings(values, IMAGE_PROCESSOR, null=False)
        settings = self._settings(images_kwargs)
        _check_values(settings)
        return settings

    def _preprocess(
        self,
        images: list[PIL.Image.Image | torch.Tensor],
        do_resize: bool,
        do_rescale: bool,
        do_normalize: bool,
        return_tensors: str | TensorType | None = None,
        **kwargs,
    ) -> BatchFeature:
        switches = {"do_resize": do_resize, "do_rescale": do_rescale, "do_normalize": do_normalize}
        settings = SimpleNamespace(**switches, **kwargs)
        geometry, sizes = _geometry(settings), []
        for index, image in enumerate(images):
            with naming_image(index):
                sizes.append(_size_after_first_resize(*image_size(image), settings))
        grids = [_select_grid(geometry, *size, settings) for size in sizes]
        pixel_values = empty(sum(1 + rows * cols for rows, cols in grids), 3, geometry.tile_size, geometry.tile_size)
        num_tiles, all_positions = 0, []
        for index, (image, size) in enumerate(zip(images, sizes, strict=True)):
            positions = None
            while positions is None:
                rows, cols = grids[index]
                tiles = pixel_values[num_tiles : num_tiles + 1 + rows * cols]
                _write_tiles(image, size, (rows, cols), tiles, geometry, settings)
                positions = _positions(geometry, (rows, cols), tiles, settings)
                if positions is None:  # too many tokens
                    grids[index] = geometry.select_grid(*size, rows * cols - 1)
            num_tiles += len(tiles)
            all_positions.append(torch.tensor(positions))
        pixel_values = pixel_values[:num_tiles]
        _warn_about_white(pixel_values, do_rescale, do_normalize)

        data = {
            "pixel_values": pixel_values,
            "image_token_positions": torch.cat(all_positions),
            "image_grids": torch.tensor(grids),
        }
        return BatchFeature(data=data, tensor_type=return_tensors)


def _select_grid(geometry: TileGeometry, height: int, width: int, settings: SimpleNamespace) -> tuple[int, int]:
    """The grid of an image by its size. With `drop_uniform_cells`, its pixels decide about `max_image_tokens`."""
    grid, limit = geometry.select_grid(height, width, settings.max_crops), settings.max_image_tokens
    return grid if settings.drop_uniform_cells else geometry.limit_grid(height, width, grid, limit)


def _normalization(settings: SimpleNamespace) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale and the shift, by channel, from pixels whose white is 1 to those of the tiles."""
    mean, std = (settings.image_mean, settings.image_std) if settings.do_normalize else (0, 1)
    mean, std = (torch.tensor(value, dtype=torch.float32).expand(3) for value in (mean, std))
    return 1 / std, -mean / std


def _write_tiles(
    image: PIL.Image.Image | torch.Tensor,
    size: tuple[int, int],
    grid: tuple[int, int],
    tiles: torch.Tensor,
    geometry: TileGeometry,
    settings: SimpleNamespace,
) -> None:
    """Writes the thumbnail and the tiles of an image, whose size after the first resize is `size`."""
    mode, antialias = _INTERPOLATION[settings.resample], settings.antialias
    scale, shift = _normalization(settings)

    def rescale(image: torch.Tensor) -> torch.Tensor:
        # x / 255 and not x · (1/255), as in the published code.
        return image.div_(1 / settings.rescale_factor) if settings.do_rescale else image

    is_rescaled = settings.do_resize or settings.resize_in_float32
    if settings.resize_in_float32:
        image = rescale(as_float(image))
    if settings.do_resize:
        # Only the first resize of an 8-bit image rounds to integers.
        image = resize(image, size, mode, antialias)
        image = image if settings.resize_in_float32 else rescale(image)
    parts: list[PIL.Image.Image | torch.Tensor] = [image]
    if isinstance(image, torch.Tensor) and is_rescaled and mode == "bilinear":
        parts = list(image.split(1))  # One float channel at a time fits into the CPU cache.
    for first, part in enumerate(parts):
        for frame, output in (((1, 1), tiles[:1]), (grid, tiles[1:])):  # the thumbnail is a grid of one tile
            canvas = resize(part, geometry.canvas_size(frame), mode, antialias)
            canvas = canvas if is_rescaled else rescale(canvas)
            windows = canvas.unfold(1, geometry.tile_size, geometry.stride)
            windows = windows.unfold(2, geometry.tile_size, geometry.stride)
            for channel, values in enumerate(windows, start=first):  # [rows, cols, size, size]
                target = output[:, channel].unflatten(0, frame)
                torch.add(shift[channel], values, alpha=scale[channel].item(), out=target)


def _positions(
    geometry: TileGeometry, grid: tuple[int, int], tiles: torch.Tensor, settings: SimpleNamespace
) -> np.ndarray | None:
    """The positions of an image's tokens; `None` if its cells that are not uniform exceed `max_image_tokens`."""
    if not settings.drop_uniform_cells:
        return geometry.token_positions(grid)
    window = min(geometry.patch_size * geometry.pooling_size, geometry.tile_size)
    # Cells that reach beyond the tile count by the pixels that they have.
    highest, negative_lowest = (F.max_pool2d(values, window, ceil_mode=True) for values in (tiles, -tiles))
    scale, _ = _normalization(settings)
    spread = ((highest + negative_lowest) / scale[:, None, None]).amax(dim=1) * 255  # [tiles, rows, cols]
    rows, cols = geometry.pooled_grid
    # Equal pixels may differ by rounding after they are resized.
    is_uniform = spread[:, :rows, :cols].flatten(1) < settings.uniform_tolerance + 0.01
    positions = geometry.drop_cells(grid, is_uniform.numpy())
    num_tokens, num_cells = geometry.num_tokens(grid)
    num_tokens += int(positions.max()) + 1 - num_cells
    if settings.drop_uniform_patches:
        positions[1:][(positions[1:] < 0) & is_uniform[1:].numpy()] = UNSEEN
    return positions if num_tokens <= (settings.max_image_tokens or sys.maxsize) else None


def _refuse_misspelt(kwargs: dict[str, Any], valid_kwargs: type):
    """Raises if a keyword looks like a misspelt setting."""
    settings = sorted(valid_kwargs.__annotations__)
    for name in kwargs.keys() - set(settings):
        if similar := difflib.get_close_matches(name, settings, n=1, cutoff=0.85):
            raise ValueError(f"`{name}` is not a setting of the image processor; did you mean `{similar[0]}`?")


def _warn_about_white(pixel_values: torch.Tensor, do_rescale: bool, do_normalize: bool):
    """Warns if normalized values are so large that white was 255 before and not 1: it becomes 509 instead of 1."""
    if do_normalize and not do_rescale and pixel_values.abs().max() > 10:
        logger.warning_once(
            "Images have values far above 1 without `do_rescale`, so that `do_normalize` makes them too bright. Leave "
            "out `do_rescale=False` if 255 is white."
        )


def _check_values(settings: SimpleNamespace):
    """Raises if an argument has a value that cannot be right, or that this image processor does not support."""
    if settings.do_resize and settings.min_pixels > settings.max_pixels:
        raise ValueError(f"`min_pixels` ({settings.min_pixels}) must be at most `max_pixels` ({settings.max_pixels}).")
    if settings.do_center_crop or settings.do_pad or settings.data_format not in (None, ChannelDimension.FIRST):
        raise ValueError("`do_center_crop`, `do_pad` and a `data_format` other than channels first are not supported.")
    if settings.drop_uniform_patches and not settings.drop_uniform_cells:
        raise ValueError(
            "`drop_uniform_patches` needs `drop_uniform_cells=True`: cells with tokens need their patches."
        )
    if (limit := settings.max_image_tokens) is not None:
        fewest = _geometry(settings).num_tokens((1, 1))[0]
        if limit < fewest:
            raise ValueError(f"`max_image_tokens` ({limit}) must be at least {fewest}, a thumbnail and a tile.")


def _geometry(settings: SimpleNamespace) -> TileGeometry:
    size, layout, patch_size = dict(settings.size or {}), settings.layout, settings.patch_size
    if size.get("height") is None or size["height"] != size.get("width"):
        raise ValueError(f"`size` must have the same `height` and `width`, got {size}.")
    pooled_grid, margins = settings.pooled_grid, settings.overlap_margins
    if pooled_grid is None:
        pooled_grid = default_pooled_grid(layout, size["height"], patch_size, settings.pooling_size)
    return TileGeometry(size["height"], patch_size, tuple(margins), settings.pooling_size, tuple(pooled_grid), layout)


def _size_after_first_resize(height: int, width: int, settings: SimpleNamespace) -> tuple[int, int]:
    """Height and width after the first resize, or unchanged without `do_resize`."""
    if min(height, width) < 1:
        raise ValueError(f"an image of {width}×{height} pixels (width × height) is empty; leave it out of the batch.")
    ratio, limit = max(height, width) / min(height, width), settings.max_aspect_ratio
    if not ratio <= limit:
        raise ValueError(
            f"the sides of an image of {width}×{height} pixels (width × height) have the ratio {ratio:.0f}, above "
            f"`max_aspect_ratio` ({limit}); crop or pad it."
        )
    if not settings.do_resize:
        return height, width
    # `smart_resize` rejects ratios above 200, whatever `max_aspect_ratio` is.
    return smart_resize(height, width, settings.patch_size, settings.min_pixels, settings.max_pixels)


__all__ = ["JinaVLMImageProcessor"]
