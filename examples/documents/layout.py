# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Draws text on paper and records where each character is; then makes the paper look photographed."""

import functools
import io
from dataclasses import dataclass, field

import numpy as np
import PIL.Image
import PIL.ImageChops
import PIL.ImageDraw
import PIL.ImageFilter
import PIL.ImageFont

from .ingredients import photographs


Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

# Of a font's size: what counts as the height of a character above and below its baseline.
ASCENT, DESCENT = 0.74, 0.12


@functools.lru_cache(4096)
def load_font(path: str, size: int) -> PIL.ImageFont.FreeTypeFont:
    return PIL.ImageFont.truetype(path, size)


@dataclass
class Sheet:
    """
    A sheet of paper to write on.

    Args:
        width (`int`), height (`int`): its size in pixels.
        font (`str`): path of the font of all texts without their own.
        ink (`tuple[int, int, int]`): the colour of texts and lines.
        paper (`tuple[int, int, int]`): the colour of the paper.
    """

    width: int
    height: int
    font: str
    ink: tuple[int, int, int] = (0, 0, 0)
    paper: tuple[int, int, int] = (255, 255, 255)
    characters: str = field(default="", init=False)
    boxes: list[Box] = field(default_factory=list, init=False)  # one for each of `characters`
    lines: list[tuple[float, float, str]] = field(default_factory=list, init=False)  # baseline, left, text
    reading: list[str] | None = field(default=None, init=False)  # the text, where it is not read line by line

    def __post_init__(self):
        self.image = PIL.Image.new("RGB", (self.width, self.height), self.paper)
        self.draw = PIL.ImageDraw.Draw(self.image)

    def length(self, text: str, size: int, font: str | None = None) -> float:
        """The width of a text in pixels."""
        return load_font(font or self.font, size).getlength(text)

    def fit(self, text: str, size: int, width: float, smallest: int = 12) -> int:
        """The largest size up to `size` at which the text has at most this width, but at least `smallest`."""
        length = self.length(text, size)
        return size if length <= width else max(smallest, int(size * width / length))

    def write(self, x: float, y: float, text: str, size: int, align: str = "left", font: str | None = None) -> Box:
        """
        Writes a text whose baseline is at `y`. `x` is its left end, its middle or its right end, by `align`.

        Returns:
            `Box`: the box of the text.
        """
        face = load_font(font or self.font, size)
        length = face.getlength(text)
        left = x - {"left": 0.0, "center": length / 2, "right": length}[align]
        self.draw.text((left, y), text, fill=self.ink, font=face, anchor="ls")
        top, bottom = y - ASCENT * size, y + DESCENT * size
        ends = [left + face.getlength(text[:count]) for count in range(len(text) + 1)]
        for character, start, end in zip(text, ends, ends[1:], strict=False):
            if character != " ":
                self.characters += character
                self.boxes.append((start, top, end, bottom))
        self.lines.append((y, left, text))
        return (left, top, left + length, bottom)

    def text(self) -> list[str]:
        """The lines of text from top to bottom; texts on one baseline are joined by a space. Or `reading`."""
        if self.reading is not None:
            return self.reading
        rows: dict[int, list[tuple[float, str]]] = {}
        for y, left, text in self.lines:
            rows.setdefault(round(y), []).append((left, text))
        return [" ".join(text for _, text in sorted(rows[y])) for y in sorted(rows)]


def photograph_of(
    sheet: Sheet, rng: np.random.Generator, split: str, strength: float
) -> tuple[PIL.Image.Image, np.ndarray]:
    """
    The sheet as a camera or a scanner may see it: on a texture, turned by a little, blurred, noisy, compressed.

    Args:
        sheet ([`Sheet`]): what to show.
        rng (`np.random.Generator`): random numbers.
        split (`str`): `"train"` or `"test"`, for the photographs.
        strength (`float`): how much, from 0 (the sheet as it is) to 1.

    Returns:
        `tuple[PIL.Image.Image, np.ndarray]`: the image and a matrix `[2, 3]` from points of the sheet to its points.
    """
    image, size = sheet.image, (sheet.width, sheet.height)
    if rng.random() < 0.5 * strength:  # paper that something shows through
        names = photographs(split)
        photograph = names[rng.integers(len(names))]
        scale = rng.uniform(0.4, 1.0)
        part = int(photograph.width * scale), int(photograph.height * scale)
        left, top = (int(rng.integers(0, w - p + 1)) for w, p in zip(photograph.size, part, strict=True))
        texture = photograph.resize(size, PIL.Image.Resampling.BILINEAR, (left, top, left + part[0], top + part[1]))
        pale = PIL.Image.blend(PIL.Image.new("RGB", size, "white"), texture, float(rng.uniform(0.1, 0.35)))
        image = PIL.ImageChops.multiply(image, pale)
    angle = float(np.deg2rad(rng.normal(0, 0.7) * strength))
    if abs(angle) > 1e-3:
        image = image.rotate(float(np.rad2deg(angle)), PIL.Image.Resampling.BILINEAR, fillcolor=sheet.paper)
    else:
        angle = 0.0
    # `rotate` turns counter-clockwise around the middle; y points down.
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    middle = np.array(size) / 2
    matrix = np.column_stack([turn, middle - turn @ middle])
    if rng.random() < 0.6 * strength:
        image = image.filter(PIL.ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.8))))
    if rng.random() < 0.7 * strength:
        coarse = rng.normal(0, rng.uniform(2, 9), (sheet.height // 2 + 1, sheet.width // 2 + 1)).astype(np.float32)
        noise = coarse.repeat(2, 0).repeat(2, 1)[: sheet.height, : sheet.width, None]
        image = PIL.Image.fromarray((np.asarray(image, np.float32) + noise).clip(0, 255).astype(np.uint8))
    if rng.random() < 0.6 * strength:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(40, 95)))
        image = PIL.Image.open(file).convert("RGB")
    return image, matrix


def transform(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Moves the middles of boxes `[n, 4]` by a matrix `[2, 3]`; their sizes stay."""
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    moved = middles @ matrix[:, :2].T + matrix[:, 2]
    halves = (boxes[:, 2:] - boxes[:, :2]) / 2
    return np.concatenate([moved - halves, moved + halves], axis=1)
