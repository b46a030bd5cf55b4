# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Pages of handwritten digits from scikit-learn's `load_digits`, with questions and answers."""

from dataclasses import dataclass, field

import numpy as np
import PIL.Image
from sklearn.datasets import load_digits
from torch.utils.data import Dataset


TILE_SIZE, STRIDE, OVERLAP, PATCH_SIZE = 56, 40, 16, 8  # pixels
BACKGROUND = 10  # label of a patch without a digit
GRIDS = [(rows, cols) for rows in (1, 2, 3) for cols in (1, 2, 3, 4)]
NUM_HELD_OUT = 360  # the last samples of `load_digits`, mostly by writers who wrote none of the others
MAX_DIGITS = 6

READ = "Which digits are written here?"
COUNT = "How many digits are there?"
CORNERS = {
    "Which digit is at the top left?": 0,
    "Which digit is at the bottom right?": -1,
}
LARGEST = "Which digit is the largest number?"
ONE_DIGIT = [*CORNERS, LARGEST]  # the answer is one digit, in a known place
QUESTIONS = [READ, COUNT, *ONE_DIGIT]
DESCRIBE = "Describe this page."


@dataclass
class Page:
    """
    A page: the digits of every line in reading order, its image if it has one, the tile grid of the image, and the
    boxes of the digits in it: left, top, right and bottom in pixels.
    """

    lines: list[list[int]]
    image: PIL.Image.Image | None = None
    grid: tuple[int, int] | None = None
    boxes: list[tuple[int, int, int, int]] = field(default_factory=list)

    @property
    def digits(self) -> list[int]:
        return [digit for line in self.lines for digit in line]

    @property
    def caption(self) -> str:
        """The answer to `DESCRIBE`, such as "3 digits, line 1: 4 2, line 2: 7"."""
        lines = [f"line {number}: {' '.join(map(str, line))}" for number, line in enumerate(self.lines, start=1)]
        return ", ".join([f"{len(self.digits)} digits", *lines])

    def answer(self, question: str) -> str:
        """The correct answer to one of `QUESTIONS` or to `DESCRIBE`."""
        if question == DESCRIBE:
            return self.caption
        if question == READ:
            return " ".join(map(str, self.digits))
        if question == COUNT:
            return str(len(self.digits))
        if question == LARGEST:
            return str(max(self.digits))
        return str(self.digits[CORNERS[question]])

    def answer_boxes(self, question: str) -> list[tuple[int, int, int, int]]:
        """The boxes of the digits that one of `ONE_DIGIT` asks for: one, or all that are the largest."""
        if question == LARGEST:
            return [box for box, digit in zip(self.boxes, self.digits, strict=True) if digit == max(self.digits)]
        return [self.boxes[CORNERS[question]]]


def load_samples(split: str) -> tuple[list[PIL.Image.Image], np.ndarray]:
    """The samples of a split, `"train"` or `"test"`: 8×8 8-bit grey images, bright on black, and their digits."""
    data = load_digits()
    part = slice(None, -NUM_HELD_OUT) if split == "train" else slice(-NUM_HELD_OUT, None)
    ink = (data.images[part] * (255 / 16)).round().astype(np.uint8)
    return [PIL.Image.fromarray(sample) for sample in ink], data.target[part]


def draw_page(
    samples: tuple[list[PIL.Image.Image], np.ndarray],
    rng: np.random.Generator,
    grid: tuple[int, int],
    num_digits: int,
    augment: bool,
) -> Page:
    """
    Draws a page whose size selects `grid` (rows and columns of tiles), with `num_digits` digits at random positions,
    or as many as fit.

    `augment` slightly rotates, shears and scales the samples.
    """
    images, labels = samples
    # The page is at most as large as the canvas of its grid, and larger than the canvas of the next smaller grid.
    height, width = (int(count * STRIDE + OVERLAP - rng.integers(0, STRIDE // 5)) for count in grid)
    paper = np.full((height, width), 255.0)
    # A digit is no larger than the overlap of the tiles, so at least one tile contains it completely.
    size = int(rng.integers(12, OVERLAP + 1))
    line_height = size + 5
    num_lines = int(rng.integers(1, max(1, min(num_digits, (height - 4) // line_height)) + 1))
    per_line = max(1, (width - 4) // (size + 2))
    num_digits = min(num_digits, num_lines * per_line)
    counts = np.ones(num_lines, int)
    while counts.sum() < num_digits:
        counts[rng.choice(np.flatnonzero(counts < per_line))] += 1
    slack = height - num_lines * line_height
    tops = np.arange(num_lines) * line_height + np.sort(rng.integers(0, max(1, slack + 1), num_lines))
    lines: list[list[int]] = []
    boxes = []
    for top, count in zip(tops, counts, strict=True):
        cell = size + 2
        lefts = np.arange(count) * cell + np.sort(rng.integers(0, max(1, width - count * cell + 1), count))
        lines.append([])
        for left in lefts:
            index = int(rng.integers(len(images)))
            side = int(size * rng.uniform(0.85, 1.0))
            digit = _transform(images[index], side, rng) if augment else images[index].resize((side, side), 3)
            ink = np.asarray(digit, float) * rng.uniform(0.7, 1.0)
            y = min(int(top + rng.integers(0, line_height - side + 1)), height - side)
            x = min(int(left + rng.integers(0, cell - side + 1)), width - side)
            region = paper[y : y + side, x : x + side]
            np.minimum(region, 255 - ink[: region.shape[0], : region.shape[1]], out=region)
            lines[-1].append(int(labels[index]))
            boxes.append((x, y, x + side, y + side))
    image = PIL.Image.fromarray(paper.round().astype(np.uint8)).convert("RGB")
    return Page(lines, image, grid, boxes)


def _transform(image: PIL.Image.Image, side: int, rng: np.random.Generator) -> PIL.Image.Image:
    """Rotates a sample by up to 12 degrees, shears and scales it by up to 15 %, and resizes it to `side` pixels."""
    angle, slant = np.deg2rad(rng.uniform(-12, 12)), rng.uniform(-0.15, 0.15)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, slant], [0, 1]]) @ np.diag(rng.uniform(0.9, 1.15, 2)) * (8 / side)
    offset = 4 - matrix @ np.full(2, side / 2) + rng.uniform(-0.4, 0.4, 2)
    coefficients = [*matrix[0], offset[0], *matrix[1], offset[1]]
    return image.transform((side, side), PIL.Image.Transform.AFFINE, coefficients, resample=3)


class DigitTiles(Dataset):
    """
    Tiles `{"pixel_values": [3, 56, 56] in [-1, 1], "labels": [49]}` for training the vision tower. The label of a
    patch is the digit at its centre, or `BACKGROUND`. The seed and the index determine a row.
    """

    def __init__(self, num_rows: int, seed: int = 0):
        self.samples, self.num_rows, self.seed = load_samples("train"), num_rows, seed

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> dict:
        rng = np.random.default_rng([self.seed, index])
        images, digits = self.samples
        border = OVERLAP // 2
        paper = np.full((TILE_SIZE + 2 * border,) * 2, 255.0)
        labels = np.full(paper.shape, BACKGROUND)
        for _ in range(rng.integers(1, 25)):  # attempts; a position that overlaps a digit is skipped
            side, sample = int(rng.integers(10, OVERLAP + 1)), int(rng.integers(len(images)))
            y, x = rng.integers(0, len(paper) - side + 1, 2)
            region = slice(y, y + side), slice(x, x + side)
            if (labels[region] == BACKGROUND).all():
                ink = np.asarray(_transform(images[sample], side, rng), float) * rng.uniform(0.7, 1.0)
                paper[region], labels[region] = 255 - ink, digits[sample]
        inside = slice(border, border + TILE_SIZE)
        pixels = (paper[inside, inside] / 127.5 - 1).astype(np.float32)
        centres = slice(border + PATCH_SIZE // 2, border + TILE_SIZE, PATCH_SIZE)
        return {
            "pixel_values": np.broadcast_to(pixels, (3, *pixels.shape)),
            "labels": labels[centres, centres].ravel(),
        }


class DigitPages(Dataset):
    """
    Training pages as rows `{"messages": [...], "images": [image]}`, drawn on access. The seed and the index determine
    a row. All rows of a batch have the same grid, which keeps padding small.

    Args:
        num_rows (`int`): number of pages.
        questions (`list[str]`): questions about every page, asked in random order.
        batch_size (`int`): number of rows per batch.
        text_only_share (`float`, *optional*, defaults to 0.0): fraction of rows without an image. The first question
            then contains the digits as text.
        growth (`float`, *optional*, defaults to 0.0): fraction of the rows over which pages grow from one digit on one
            tile to `MAX_DIGITS` on twelve tiles.
        seed (`int`, *optional*, defaults to 0): random seed.
    """

    def __init__(
        self,
        num_rows: int,
        questions: list[str],
        batch_size: int,
        text_only_share: float = 0.0,
        growth: float = 0.0,
        seed: int = 0,
    ):
        self.samples = load_samples("train")
        self.num_rows, self.questions, self.batch_size = num_rows, questions, batch_size
        self.text_only_share, self.growth, self.seed = text_only_share, growth, seed

    def __len__(self) -> int:
        return self.num_rows

    def draw(self, index: int) -> tuple[Page, list[str]]:
        """The page of a row, without an image if the row has none, and its questions in order."""
        progress = min(1.0, index / (self.num_rows * self.growth)) if self.growth else 1.0
        rng = np.random.default_rng([self.seed, index])
        batch_rng = np.random.default_rng([self.seed, 2**32 + index // self.batch_size])
        allowed = [grid for grid in GRIDS if grid[0] * grid[1] <= 1 + 11 * progress]
        grid = allowed[batch_rng.integers(len(allowed))]
        num_digits = int(rng.integers(1, 2 + int((MAX_DIGITS - 1) * progress)))
        if rng.random() < self.text_only_share:
            page = text_page(rng, num_digits)
        else:
            page = draw_page(self.samples, rng, grid, num_digits, augment=True)
        return page, rng.permutation(self.questions).tolist()

    def __getitem__(self, index: int) -> dict:
        page, questions = self.draw(index)
        beginning = [{"type": "image"}]
        if page.image is None:
            beginning = [{"type": "text", "text": " / ".join(" ".join(map(str, line)) for line in page.lines)}]
        messages = []
        for turn, question in enumerate(questions):
            content = [*beginning[turn:], {"type": "text", "text": question}]
            answer = [{"type": "text", "text": page.answer(question)}]
            messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        return {"messages": messages, "images": [] if page.image is None else [page.image]}


def text_page(rng: np.random.Generator, num_digits: int) -> Page:
    """A page without an image: `num_digits` random digits with random line breaks."""
    breaks = np.flatnonzero(rng.random(num_digits - 1) < 0.4) + 1
    return Page([line.tolist() for line in np.split(rng.integers(0, 10, num_digits), breaks)])


def held_out_pages(num_pages: int = 360, seed: int = 1) -> list[Page]:
    """Pages of 1 to `MAX_DIGITS` digits from samples that are not in the training pages, cycling through all grids."""
    samples = load_samples("test")
    pages = []
    for index in range(num_pages):
        rng = np.random.default_rng([seed, index])
        num_digits = int(rng.integers(1, MAX_DIGITS + 1))
        pages.append(draw_page(samples, rng, GRIDS[index % len(GRIDS)], num_digits, augment=False))
    return pages
