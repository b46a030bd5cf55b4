# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The plan of a batch's images: which pooled cell of which tile becomes which image token."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers.utils import ModelOutput, torch_compilable_check


@dataclass
class ImagePlan(ModelOutput):
    r"""
    Which pooled cell of which tile becomes which image token, as index tensors. [`plan_images`] makes it.

    Args:
        tile_indices (`torch.LongTensor` of shape `(distinct_tiles,)`):
            Rows of `pixel_values` that go through the vision tower.
        cell_indices (`torch.LongTensor` of shape `(image_tokens,)`):
            Cell of every image token in sequence order: an index into the cells of the distinct tiles, row by row. One
            unused cell if there are no image tokens.
        is_last_tile (`torch.BoolTensor` of shape `(image_tokens,)`):
            Whether that cell lies in the last tile of its image.
        num_tiles (`tuple[int, ...]`, *optional*):
            Number of tiles of every image; `None` in a traced plan.
        num_tokens (`tuple[int, ...]`, *optional*):
            Number of image tokens of every image; `None` in a traced plan.
    """

    tile_indices: torch.Tensor | None = None
    cell_indices: torch.Tensor | None = None
    is_last_tile: torch.Tensor | None = None
    num_tiles: tuple[int, ...] | None = None
    num_tokens: tuple[int, ...] | None = None


def plan_images(image_token_positions: torch.Tensor) -> ImagePlan:
    r"""
    Plans on the host which pooled cell becomes which image token. The tensors of the plan are on the CPU.

    Args:
        image_token_positions (`torch.Tensor` of shape `(tiles, pooled_cells)`, integers):
            Index of every pooled cell among the image tokens of its image, -1 where the cell is dropped. The tile
            whose first cell is token 0 starts an image: a thumbnail keeps all of its cells. Tiles before the first
            image belong to none.

    Raises:
        ValueError: if the positions of an image are not a permutation of its tokens.
    """
    positions = image_token_positions.cpu().numpy()  # the one device-to-host copy of a prefill
    if positions.ndim != 2 or positions.dtype.kind not in "iu":
        raise ValueError(
            "`image_token_positions` must hold integers of shape (tiles, pooled cells), got "
            f"{image_token_positions.dtype} of shape {tuple(image_token_positions.shape)}."
        )
    is_thumbnail, is_kept = positions[:, 0] == 0, positions >= 0
    image = is_thumbnail.cumsum() - 1  # [tiles], -1 before the first image
    tile, cell = is_kept.nonzero()  # [image tokens]
    num_tiles, num_tokens = (np.bincount(indices[indices >= 0]) for indices in (image, image[tile]))
    first_token = np.append(num_tokens.cumsum() - num_tokens, -1)  # the last entry is for tiles without an image
    token = first_token[image[tile]] + positions[tile, cell]
    order = token.argsort(kind="stable")
    if (image[tile] < 0).any() or not np.array_equal(token[order], np.arange(len(token))):
        raise ValueError(
            "`image_token_positions` must hold, for every image, each of its token indices 0, 1, 2, … once, and -1 "
            f"for dropped cells; got {len(token)} kept cells with indices up to {positions.max(initial=-1)} for "
            f"{is_thumbnail.sum()} images. Pass it as the processor returned it, next to its `pixel_values`."
        )
    # The tile of a 1×1 grid has the pixels of its thumbnail, so the pair is encoded once.
    is_copy = ~is_thumbnail & (np.append(num_tiles, 0)[image] == 2)
    distinct_tile = (~is_copy).cumsum() - 1  # [tiles]
    cell_indices = distinct_tile[tile] * positions.shape[1] + cell
    is_last_tile = np.append(is_thumbnail[1:], True)[tile]
    if len(order) == 0:  # attention needs a cell to pool; no token uses it
        cell_indices, is_last_tile, order = np.zeros(1, int), np.zeros(1, bool), np.zeros(1, int)
    return ImagePlan(
        tile_indices=torch.from_numpy((~is_copy).nonzero()[0]),
        cell_indices=torch.from_numpy(cell_indices[order]),
        is_last_tile=torch.from_numpy(is_last_tile[order]),
        num_tiles=tuple(num_tiles.tolist()),
        num_tokens=tuple(num_tokens.tolist()),
    )


def trace_plan(image_token_positions: torch.Tensor, num_image_tokens: torch.Tensor) -> ImagePlan:
    """
    The plan of a traced forward, whose shapes depend on no value: dropped cells are pooled too and come last. The
    compiled code checks the number of kept cells against the number of image tokens in the prompt.
    """
    is_kept, is_thumbnail = image_token_positions >= 0, image_token_positions[:, :1] == 0
    num_kept = is_kept.sum(dim=1, keepdim=True)  # [tiles, 1]
    torch_compilable_check(num_kept.sum() == num_image_tokens, "Image features and image tokens do not match.")
    first_token = torch.where(is_thumbnail, num_kept.cumsum(0) - num_kept, 0).cummax(0).values  # [tiles, 1]
    token = torch.where(is_kept, first_token + image_token_positions, image_token_positions.numel())
    order = token.flatten().argsort(stable=True)
    is_last_tile = is_thumbnail.roll(-1, 0).expand_as(is_kept)
    tile_indices = torch.arange(image_token_positions.shape[0], device=image_token_positions.device)
    return ImagePlan(tile_indices, cell_indices=order, is_last_tile=is_last_tile.flatten()[order])


__all__ = ["ImagePlan", "plan_images", "trace_plan"]
