# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The plan of a batch's images: which pooled cell of which tile becomes which image token."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers.utils import ModelOutput, torch_compilable_check

from ..configuration.configuration_jvlm import UNSEEN, JinaVLMConfig


@dataclass
class ImagePlan(ModelOutput):
    r"""
    Which pooled cell of which tile becomes which image token, as index tensors. [`plan_images`] makes it. It is a
    `ModelOutput`, so that `torch.compile` and `torch.export` take it as an input.

    Args:
        tile_indices (`torch.LongTensor` of shape `(distinct_tiles,)`):
            Rows of `pixel_values` that go through the vision tower.
        cell_indices (`torch.LongTensor` of shape `(cells,)`):
            Cells that the connector pools: indices into the cells of the distinct tiles, row by row. The first ones
            are those of the image tokens, in sequence order.
        is_last_tile (`torch.BoolTensor` of shape `(cells,)`):
            Whether the cell lies in the last tile of its image.
        num_tiles (`tuple[int, ...]`, *optional*):
            Number of tiles of every image; `None` in a traced plan.
        num_tokens (`tuple[int, ...]`, *optional*):
            Number of image tokens of every image; `None` in a traced plan.
        positions_shape (`tuple[int, int]`, *optional*):
            Shape of the positions that the plan was made from; `None` in a traced plan.
        keep_tile_features (`bool`, *optional*):
            `False` if `get_image_features` returns no `last_hidden_state`, whose memory grows with the number of
            tiles. `generate` sets it.
        encoded_cells (`torch.BoolTensor` of shape `(distinct_tiles, pooled_cells)`, *optional*):
            Cells whose patches the vision tower sees; `None` if it sees all of them.
    """

    tile_indices: torch.Tensor | None = None
    cell_indices: torch.Tensor | None = None
    is_last_tile: torch.Tensor | None = None
    num_tiles: tuple[int, ...] | None = None
    num_tokens: tuple[int, ...] | None = None
    positions_shape: tuple[int, int] | None = None
    keep_tile_features: bool | None = None
    encoded_cells: torch.Tensor | None = None

    def split(self, image_features: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """The features `(image_tokens, hidden_size)` of every image; of all images together in a traced plan."""
        if self.num_tokens is None:
            return image_features
        return image_features[: sum(self.num_tokens)].split(self.num_tokens) if self.num_tokens else ()

    @property
    def is_on_host(self) -> bool:
        """Whether [`plan_images`] made the plan, so that its values may be read outside of a trace."""
        return self.num_tokens is not None and self.positions_shape is not None and self.cell_indices.is_cpu

    def select(self, images: Sequence[int]) -> "ImagePlan":
        """The plan of some images of a plan on the host, in the given order."""
        tile_indices, *tensors, num_tiles, num_tokens, (_, columns) = self.to_tuple()[:6]
        cells, is_last_tile = (torch.cat([self.split(tensor)[image] for image in images]) for tensor in tensors)
        tiles, tile = (cells // columns).unique(return_inverse=True)
        num_tiles, num_tokens = (tuple(counts[image] for image in images) for counts in (num_tiles, num_tokens))
        cells = tile * columns + cells % columns
        encoded_cells = None if self.encoded_cells is None else self.encoded_cells[tiles]
        shape = (sum(num_tiles), columns)
        return ImagePlan(
            tile_indices[tiles], cells, is_last_tile, num_tiles, num_tokens, shape, encoded_cells=encoded_cells
        )

    def groups(self, size: int) -> Iterator[tuple[torch.Tensor, "ImagePlan"]]:
        """Divides a plan on the host into plans of at most `size` distinct tiles, each after the rows of its cells."""
        tile_indices, cell_indices, is_last_tile, _, _, (_, columns) = self.to_tuple()[:6]
        for number, group in enumerate(tile_indices.split(size)):
            cells = cell_indices - number * size * columns
            rows = ((cells >= 0) & (cells < len(group) * columns)).nonzero()[:, 0]
            if len(rows):
                part = slice(number * size, number * size + len(group))
                encoded_cells = None if self.encoded_cells is None else self.encoded_cells[part]
                yield rows, ImagePlan(group, cells[rows], is_last_tile[rows], encoded_cells=encoded_cells)


def check_positions(image_token_positions: Any) -> torch.Tensor:
    """`image_token_positions`, if it is a tensor of integers with two axes; else a `ValueError`."""
    dtype, shape = getattr(image_token_positions, "dtype", None), tuple(getattr(image_token_positions, "shape", ()))
    is_integer = isinstance(dtype, torch.dtype) and not dtype.is_floating_point and dtype != torch.bool
    if not is_integer or len(shape) != 2:
        raise ValueError(
            "`image_token_positions` must be a tensor of integers of shape (tiles, pooled cells), got "
            f"{dtype or type(image_token_positions)} of shape {shape}."
        )
    return image_token_positions


def check_tiles(config: JinaVLMConfig, pixel_values: torch.Tensor, positions_shape: tuple[int, ...] | None) -> None:
    """Raises a `ValueError` unless there is a row of positions for every tile and a column for every pooled cell."""
    if positions_shape is None:
        raise ValueError("`pixel_values` needs `image_token_positions`; pass both as the processor returned them.")
    rows, cols = config.pooled_shape
    # Not `len`, which `torch.export` takes for a constant.
    if tuple(positions_shape) != (pixel_values.shape[0], rows * cols):
        raise ValueError(
            f"`image_token_positions` has the shape {tuple(positions_shape)}, but there are {len(pixel_values)} tiles "
            f"in `pixel_values`, and `config.pooled_grid` is {rows} × {cols} = {rows * cols} pooled cells (layout "
            f'"{config.layout}"). Pass both as the processor returned them, and load model and processor from the '
            "same checkpoint."
        )


def pick_tiles(
    config: JinaVLMConfig,
    vision_tower: nn.Module,
    pixel_values: torch.Tensor | None,
    vision_features: torch.Tensor | None,
    mm_encoder_outputs: dict | None,
) -> torch.Tensor | None:
    r"""
    The tiles of a forward pass: `pixel_values` or `vision_features`; `None` without images.

    Raises:
        ValueError: if more than one of the inputs is given, or `vision_features` have a wrong shape or replace the
            output of a vision tower in training.
    """
    if sum(given is not None for given in (pixel_values, vision_features, mm_encoder_outputs or None)) > 1:
        raise ValueError("You must specify at most one of pixel_values, vision_features and mm_encoder_outputs")
    if vision_features is None:
        return pixel_values
    expected = (config.patches_per_side**2, config.feature_size)
    if vision_features.ndim != 3 or tuple(vision_features.shape[1:]) != expected:
        raise ValueError(
            f"`vision_features` has the shape {tuple(vision_features.shape)}, but must have (tiles, patches, features)"
            f" = (tiles, {expected[0]}, {expected[1]}), as `get_vision_features` returns them."
        )
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in vision_tower.parameters()):
        raise ValueError(
            "`vision_features` replace the output of the vision tower, so it would not be trained, but it has "
            "trainable parameters. Freeze it, adapters included, or pass `pixel_values`."
        )
    return vision_features


def digest(*tensors: torch.Tensor, text: str = "") -> str:
    """A hash of the values of tensors, and of a text. Tensors of another device are copied to the host."""
    result = hashlib.blake2b(text.encode(), digest_size=16)
    for tensor in tensors:
        result.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return result.hexdigest()


def comparable(pixel_values: torch.Tensor | None) -> torch.Tensor | None:
    """
    The tiles, if the model compares them: those on the CPU. Tiles with gradients would get those of their copies.
    """
    if pixel_values is None or pixel_values.device.type != "cpu" or pixel_values.requires_grad:
        return None
    return pixel_values


def plan_images(image_token_positions: torch.Tensor, pixel_values: torch.Tensor | None = None) -> ImagePlan:
    r"""
    Plans on the host which pooled cell becomes which image token. The tensors of the plan are on the CPU.

    The plan encodes the tile of a 1×1 grid and its thumbnail once, and with `pixel_values` all tiles that have equal
    pixels, such as blank paper or an image that appears twice. The features are those of all tiles.

    Args:
        image_token_positions (`torch.Tensor` of shape `(tiles, pooled_cells)`, integers):
            Index of every pooled cell among the image tokens of its image, -1 where the cell is dropped, and -2 where
            the vision tower does not see its patches either. The tile whose first cell is token 0 starts an image: a
            thumbnail keeps all of its cells. Tiles before the first image belong to none and have no tokens. If there
            are no image tokens at all, one cell is pooled that no token uses, because attention needs one.
        pixel_values (`torch.Tensor` of shape `(tiles, channels, height, width)`, *optional*):
            The tiles. The model passes them if they are on the CPU; those of another device are copied to the host.

    Raises:
        ValueError: if the positions are no integers, or those of an image are not a permutation of its tokens, or the
            numbers of tiles differ.
    """
    positions = check_positions(image_token_positions).cpu().numpy()
    is_thumbnail, is_kept = positions[:, 0] == 0, positions >= 0
    image = is_thumbnail.cumsum() - 1  # [tiles], -1 before the first image
    tile, cell = is_kept.nonzero()  # [image tokens]
    num_tiles, num_tokens = (np.bincount(indices[indices >= 0]) for indices in (image, image[tile]))
    first_token = np.append(num_tokens.cumsum() - num_tokens, -1)  # the last entry is for tiles without an image
    token = first_token[image[tile]] + positions[tile, cell]
    order = token.argsort(kind="stable")
    is_permutation = np.array_equal(token[order], np.arange(len(token)))
    if not is_permutation or not np.array_equal(is_kept.any(axis=1), image >= 0):
        raise ValueError(
            "`image_token_positions` must hold, for every image, each of its token indices 0, 1, 2, … once, and -1 "
            f"for dropped cells; got {len(token)} kept cells with indices up to {positions.max(initial=-1)} for "
            f"{is_thumbnail.sum()} images. Pass it as the processor returned it, next to its `pixel_values`."
        )
    # The tile of a 1×1 grid has the pixels of its thumbnail, so the pair is encoded once.
    index, is_seen = np.arange(len(positions)), positions != UNSEEN
    has_copy = ~is_thumbnail & (np.append(num_tiles, 0)[image] == 2) & is_seen.all(axis=1)
    source = index - has_copy  # [tiles], the tile that is encoded
    if pixel_values is not None:
        if len(pixel_values) != len(positions):
            raise ValueError(f"There are {len(pixel_values)} tiles and positions of {len(positions)} tiles.")
        first: dict[tuple[str, bytes], int] = {}
        keys = [(digest(pixel_values[tile]), is_seen[tile].tobytes()) for tile in source]
        source = np.array([first.setdefault(key, tile) for key, tile in zip(keys, source, strict=True)], dtype=int)
    is_encoded = source == index
    distinct_tile = (is_encoded.cumsum() - 1)[source]  # [tiles]
    cell_indices = distinct_tile[tile] * positions.shape[1] + cell
    is_last_tile = np.append(is_thumbnail[1:], True)[tile]
    if len(order) == 0:
        cell_indices, is_last_tile, order = np.zeros(1, int), np.zeros(1, bool), np.zeros(1, int)
    return ImagePlan(
        tile_indices=torch.from_numpy(is_encoded.nonzero()[0]),
        cell_indices=torch.from_numpy(cell_indices[order]),
        is_last_tile=torch.from_numpy(is_last_tile[order]),
        num_tiles=tuple(num_tiles.tolist()),
        num_tokens=tuple(num_tokens.tolist()),
        positions_shape=positions.shape,
        encoded_cells=None if is_seen.all() else torch.from_numpy(is_seen[is_encoded]),
    )


def pack_patches(is_seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Fills rows with the seen patches of several tiles, so that a row has no more patches than a tile.

    Args:
        is_seen (`torch.BoolTensor` of shape `(tiles, patches)`): the patches to put into rows, on the CPU.

    Returns:
        `tuple[torch.LongTensor, torch.LongTensor]`, both of shape `(rows, length)`: each patch as an index into those
        of all tiles, and the tile that it belongs to, -1 where a row is not full.
    """
    num_patches = is_seen.shape[1]
    seen = [is_seen[tile].nonzero()[:, 0] + tile * num_patches for tile in range(len(is_seen))]
    rows: list[list[torch.Tensor]] = []
    free: list[int] = []  # places of each row
    for patches in sorted(seen, key=len, reverse=True):
        row = next((row for row, places in enumerate(free) if places >= len(patches)), len(rows))
        if row == len(rows):
            rows.append([])
            free.append(num_patches)
        rows[row].append(patches)
        free[row] -= len(patches)
    filled = [torch.cat(row) for row in rows]
    tiles = pad_sequence([row // num_patches for row in filled], batch_first=True, padding_value=-1)
    return pad_sequence(filled, batch_first=True), tiles


def trace_plan(image_token_positions: torch.Tensor, num_image_tokens: torch.Tensor) -> ImagePlan:
    """
    The plan of a traced forward, whose shapes depend on no value: all tiles are encoded, and dropped cells are pooled
    too and come last. The checks of `plan_images` and that of the number of image tokens are assertions of the
    compiled code.
    """
    positions = check_positions(image_token_positions)
    is_kept, is_thumbnail = positions >= 0, positions[:, :1] == 0
    num_kept = is_kept.sum(dim=1, keepdim=True)  # [tiles, 1]
    first_token = torch.where(is_thumbnail, num_kept.cumsum(0) - num_kept, 0).cummax(0)[0]
    token = torch.where(is_kept, first_token + positions, positions.numel()).flatten()
    order = token.argsort(stable=True)
    index = torch.arange(positions.numel(), device=positions.device)
    is_permutation = (token[order] == torch.where(index < num_kept.sum(), index, positions.numel())).all()
    is_complete = ((num_kept > 0) == (is_thumbnail.cumsum(0) > 0)).all()
    torch_compilable_check(is_permutation & is_complete, "`image_token_positions` is no permutation of image tokens.")
    torch_compilable_check(num_kept.sum() == num_image_tokens, "Image features and image tokens do not match.")
    torch_compilable_check((positions != UNSEEN).all(), "`drop_uniform_patches` is not available in compiled code.")
    is_last_tile = torch.cat([is_thumbnail[1:], torch.ones_like(is_thumbnail[:1])]).expand_as(is_kept)
    tile_indices = torch.arange(positions.shape[0], device=positions.device)
    return ImagePlan(tile_indices, cell_indices=order, is_last_tile=is_last_tile.flatten()[order])


def check_prompt(plan: ImagePlan, image_tokens: Sequence[int], num_start_tokens: int | None, layout: str) -> None:
    r"""
    Checks a plan against the prompts.

    Args:
        plan (`ImagePlan`): a plan of [`plan_images`].
        image_tokens (`Sequence[int]`): number of image tokens of every prompt of the batch.
        num_start_tokens (`int`, *optional*): number of `<im_start>` markers in all prompts, `None` if not known.
        layout (`str`): layout of the model.

    Raises:
        ValueError: if the images do not fill the image tokens of every prompt, or the markers are of another layout.
    """
    num_tokens = plan.num_tokens or ()
    if not set(accumulate(image_tokens)) <= {0, *accumulate(num_tokens)} or sum(image_tokens) != sum(num_tokens):
        raise ValueError(
            f"Image features and image tokens do not match, tokens: {sum(image_tokens)}, features: {sum(num_tokens)}. "
            f"The prompts have {list(image_tokens)} image tokens, the images {list(num_tokens)}. Prepare prompts and "
            "images in one call of the processor, and check that its `image_token_id` is the model's."
        )
    expected = 2 * len(num_tokens) if layout == "stitched" else 0
    if num_start_tokens not in (None, expected):
        raise ValueError(
            f"The prompt has {num_start_tokens} <im_start> markers for {len(num_tokens)} images, but the model's "
            f'layout "{layout}" has {expected}. Load model and processor from the same checkpoint, or set '
            f'`image_processor.layout = "{layout}"`.'
        )


__all__ = [
    "ImagePlan",
    "check_positions",
    "check_prompt",
    "check_tiles",
    "comparable",
    "digest",
    "pack_patches",
    "pick_tiles",
    "plan_images",
    "trace_plan",
]
