# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Memory and time of the vision side by the number of images in a prompt, in groups of tiles and with all tiles at once:

    python -m benchmarks.many_images [--size medium] [--dtype float32] [--images 1 4 100] [--groups 4 13]

An image has a thumbnail and 12 tiles, all of them different, or --tiles in all. The vision side is vision tower and
connector, as `generate` runs them. Peak memory is what a call allocates besides the image features, which the prompt
needs anyway; the allocator returns freed memory at once. All tiles at once are measured for up to four images.
--blocks shortens the tower, which saves time: its memory does not depend on the number of blocks.
"""

import argparse
import ctypes
import sys

import torch
from transformers.utils import logging

from jvlm import plan_images

from .measure import Measurement, measure
from .models import SIZES, Bench
from .stages import NUM_TILES


MAX_IMAGES_AT_ONCE = 4
_MMAP_THRESHOLD = -3  # of mallopt: larger allocations are returned to the system when they are freed


def vision_side(
    bench: Bench, num_images: int, group_size: int | None, num_tiles: int = NUM_TILES
) -> tuple[Measurement, int]:
    """
    Measures the vision side of a prompt.

    Args:
        bench (`Bench`): the model.
        num_images (`int`): number of images.
        group_size (`int`, *optional*): number of tiles in a group; `None` is all tiles at once.
        num_tiles (`int`, *optional*, defaults to 13): number of tiles of an image, with its thumbnail.

    Returns:
        `tuple[Measurement, int]`: time and peak memory without the image features, and the bytes of these.
    """
    model, tiles = bench.model.model, bench.tiles(num_tiles, num_images)
    model.tiles_per_group = group_size or len(tiles["pixel_values"])
    plan = plan_images(tiles["image_token_positions"])
    plan.keep_tile_features = False  # as in `generate`
    num_bytes = sum(plan.num_tokens or ()) * bench.config.text_config.hidden_size * bench.dtype.itemsize
    run = {"": lambda: model.get_image_features(tiles["pixel_values"], image_plan=plan).pooler_output}
    measured = measure(run, bench.device, max_rounds=1, max_seconds=float("inf"))[""]
    if measured.peak_memory is not None:
        measured.peak_memory -= num_bytes
    return measured, num_bytes


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny", help="default: %(default)s")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 4, 100], help="default: 1, 4 and 100")
    parser.add_argument("--tiles", type=int, default=NUM_TILES, help="tiles of an image, default: %(default)s")
    parser.add_argument("--blocks", type=int, help="blocks of the vision tower; by default those of the size")
    parser.add_argument("--groups", type=int, nargs="+", default=[NUM_TILES], help="tiles in a group, default: 13")
    args = parser.parse_args(argv)
    bench = Bench(args.size, getattr(torch, args.dtype), torch.device(args.device))
    if args.blocks is not None:
        bench.config.vision_feature_layer = [min(each, args.blocks - 1) for each in bench.config.vision_feature_layer]
    vision_side(bench, 1, None, args.tiles)  # memory that is allocated once
    cases = [(size, count) for size in args.groups for count in args.images]
    cases += [(None, count) for count in args.images if count <= MAX_IMAGES_AT_ONCE]
    print(f"| {args.size}, {args.dtype} | images | seconds an image | peak memory | image features |")
    print("|---|---:|---:|---:|---:|")
    for group_size, count in logging.tqdm(cases, desc="Many images"):
        measured, num_bytes = vision_side(bench, count, group_size, args.tiles)
        name = f"groups of {group_size}" if group_size else "all tiles at once"
        peak = "" if measured.peak_memory is None else f"{measured.peak_memory / 1e6:,.0f} MB"
        cells = (name, str(count), f"{measured.median / count:.2f}", peak, f"{num_bytes / 1e6:,.0f} MB")
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 2**20)  # or freed memory that cannot be reused would count
    main()
