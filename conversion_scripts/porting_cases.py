# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The cases of a porting kit: prompts and images that ports often get wrong."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.ExifTags
import PIL.Image


@dataclass
class Case:
    """
    A prompt with its images.

    Args:
        name (`str`): its name.
        description (`str`): what it tests.
        content (`list`): the parts of the last user message: texts, and an image for each `None`.
        images (`list[str]`): names of the image files.
        before (`list[dict]`): messages before it.
        all_values (`tuple[str]`): stages of which all values are stored and not a sample, so that a port whose own
            differ can be given them.
        known_faults (`tuple[str]`): stages of which the values with known faults are stored, to recognise them.
    """

    name: str
    description: str
    content: list[str | None]
    images: list[str] = field(default_factory=list)
    before: list[dict] = field(default_factory=list)
    all_values: tuple[str, ...] = ()
    known_faults: tuple[str, ...] = ()

    @property
    def messages(self) -> list[dict]:
        return [*self.before, {"role": "user", "content": [_part(part) for part in self.content]}]


def _part(part: str | None) -> dict[str, str]:
    return {"type": "image"} if part is None else {"type": "text", "text": part}


def _says(role: str, *parts: str | None) -> dict:
    return {"role": role, "content": [_part(part) for part in parts]}


CASES = [
    Case(
        "one_tile",
        "378×378 pixels, black or white: no resize changes it, so that pixels are right with any filter",
        [None, "What is in this image?"],
        ["one_tile.png"],
        all_values=("features", "connector", "embeddings"),
    ),
    Case(
        "stripes",
        "378×644 pixels, black or white, the same along each row: two tiles whose pixels are right with any filter",
        [None, "What is in this image?"],
        ["stripes.png"],
        all_values=("connector", "embeddings"),
        known_faults=("connector",),
    ),
    Case("no_image", "text only", ["How many people are there?"]),
    Case(
        "photo",
        "smooth colours, 480×640 pixels; upsampled to tiles",
        [None, "What is in this image?"],
        ["photo.png"],
        known_faults=("pixels", "connector", "embeddings", "logits"),
    ),
    Case(
        "black_tile",
        "378×644 pixels, two tiles; the first one is all black, so its features are 0",
        [None, "Which half is darker?"],
        ["black_tile.png"],
        known_faults=("pixels", "features"),
    ),
    Case(
        "large",
        "1500×2000 pixels, above the limit of the first resize; downsampled without an antialiasing filter",
        [None, "Read the number on the sign."],
        ["large.png"],
        known_faults=("pixels",),
    ),
    Case("tiny", "7×5 pixels, below the limit of the first resize", [None, "What is this?"], ["tiny.png"]),
    Case("wide", "a grid of 1×12 tiles", [None, "What is in this image?"], ["wide.png"]),
    Case("tall", "a grid of 12×1 tiles", [None, "What is in this image?"], ["tall.png"]),
    Case(
        "exif",
        "a greyscale JPEG that its EXIF orientation turns by a quarter; flat blocks, so that all decoders agree",
        [None, "Which way is up?"],
        ["exif.jpg"],
        known_faults=("pixels",),
    ),
    Case(
        "palette",
        "a PNG with a palette and transparent entries; the alpha channel is dropped, not composited",
        [None, "What is in this image?"],
        ["palette.png"],
        known_faults=("pixels",),
    ),
    Case(
        "two_images",
        "two images with other grids, text before, between and after",
        ["Compare", None, " with ", None, ": which of the images is darker?"],
        ["photo.png", "one_tile.png"],
    ),
    Case(
        "long_chat",
        "a system message and a chat whose image is in its first question",
        ["And how many of them wear a hat?"],
        ["tiny.png"],
        before=[
            _says("system", "Answer in one short sentence."),
            _says("user", None, "What is in this image?"),
            _says("assistant", "A small red house near the river."),
            _says("user", "How many people are there?"),
            _says("assistant", "There are three people; one of them wears a hat."),
        ],
    ),
    Case(
        "characters",
        "spaces at both ends, line breaks, a tab, composed and decomposed letters, scripts, an emoji, quotes, braces",
        ['  naïve cafe\u0301 "a\\b" {x}\n\n\t价格 是 ¥12,50? हिन्दी 👩‍👩‍👧 I\'ll  '],
    ),
]


def write_images(folder: Path) -> None:
    """Writes the image files of all cases. They only depend on Pillow's encoders."""
    rng = np.random.default_rng(0)

    def colours(rows: int, cols: int) -> PIL.Image.Image:
        return PIL.Image.fromarray(rng.integers(0, 256, (rows, cols, 3), dtype=np.uint8))

    def blocks(height: int, width: int, size: int) -> PIL.Image.Image:
        coarse = colours(-(-height // size), -(-width // size))
        large = coarse.resize((coarse.width * size, coarse.height * size), PIL.Image.Resampling.NEAREST)
        return large.crop((0, 0, width, height))

    noise = rng.integers(0, 2, (27, 27, 1), dtype=np.uint8).repeat(14, 0).repeat(14, 1).repeat(3, 2) * 255
    noise[5:200, 7:90] ^= 255
    PIL.Image.fromarray(noise).save(folder / "one_tile.png")
    stripes = rng.integers(0, 2, (54, 1, 1), dtype=np.uint8).repeat(7, 0).repeat(644, 1).repeat(3, 2) * 255
    PIL.Image.fromarray(stripes).save(folder / "stripes.png")
    colours(9, 12).resize((640, 480), PIL.Image.Resampling.BICUBIC).save(folder / "photo.png")
    half = np.asarray(blocks(378, 644, 7)).copy()
    half[:, :378] = 0
    PIL.Image.fromarray(half).save(folder / "black_tile.png")
    blocks(1500, 2000, 25).save(folder / "large.png")
    colours(7, 5).save(folder / "tiny.png")
    blocks(280, 3300, 20).save(folder / "wide.png")
    blocks(3300, 280, 20).save(folder / "tall.png")
    # Blocks of 8×8 pixels with a multiple of 8 in the cosine transform survive the quality of 100 exactly.
    grey = PIL.Image.fromarray(rng.integers(0, 256, (35, 49), dtype=np.uint8))
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = 6
    grey.resize((392, 280), PIL.Image.Resampling.NEAREST).save(folder / "exif.jpg", quality=100, exif=exif)
    palette = colours(26, 34).resize((238, 182), PIL.Image.Resampling.NEAREST).quantize(16)
    palette.save(folder / "palette.png", transparency=bytes([0, 0, 0, 0, 128, 128, 64, 200] + [255] * 8))
