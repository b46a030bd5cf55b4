# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Data sets of documents: tiles with the character at every half patch, and conversations about pages."""

import numpy as np
import PIL.Image
from torch.utils.data import Dataset

from .ingredients import CHARACTERS, TEST, TRAIN
from .layout import Box
from .pages import GRIDS, KINDS, NOTE, OVERLAP, PATCH_SIZE, READ, STRIDE, TILE_SIZE, Page, draw_page


NUM_PATCHES = TILE_SIZE // PATCH_SIZE  # along each side
PARTS = 2  # places side by side in a patch, each with a character of its own
BACKGROUND = len(CHARACTERS)  # label of a place without a character
LONGEST_TEXT = 160  # characters of the answer to `READ`
_LABELS = {character: label for label, character in enumerate(CHARACTERS)}


def character_labels(characters: str, boxes: np.ndarray, window: Box) -> np.ndarray:
    """
    The character at every half patch of a tile.

    Args:
        characters (`str`): the characters on the page.
        boxes (`np.ndarray`): their boxes in pixels of the canvas, `[characters, 4]`.
        window (`Box`): the box of the tile on the canvas.

    Returns:
        `np.ndarray`: labels `[729, 2]`, indices into `CHARACTERS` or `BACKGROUND`.
    """
    labels = np.full((NUM_PATCHES, NUM_PATCHES * PARTS), BACKGROUND)
    steps = np.array([PATCH_SIZE / PARTS, PATCH_SIZE] * 2)
    # A place belongs to a character if its middle is inside of the character's box.
    ends = np.ceil((boxes - np.array([*window[:2], *window[:2]])) / steps - 0.5).astype(int)
    for character, (left, top, right, bottom) in zip(characters, ends.clip(0), strict=True):
        labels[top:bottom, left:right] = _LABELS.get(character, BACKGROUND)
    return labels.reshape(-1, PARTS)


class DocumentTiles(Dataset):
    """
    Tiles `{"pixel_values": [3, 378, 378] in [-1, 1], "labels": [729, 2]}` for training the vision tower: random tiles
    of pages, half of them pages full of text. The seed and the index determine a row.
    """

    def __init__(self, num_rows: int, seed: int = 0, split: str = TRAIN, note_share: float = 0.5):
        self.num_rows, self.seed, self.split, self.note_share = num_rows, seed, split, note_share

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> dict:
        rng = np.random.default_rng([self.seed, index, 0])
        grid = GRIDS[0] if rng.random() < 0.75 else GRIDS[rng.integers(1, 4)]
        kind = NOTE if rng.random() < self.note_share else None
        page = draw_page([self.seed, index, 1], self.split, kind, grid)
        height, width = (count * STRIDE + OVERLAP for count in grid)
        scale = np.array([width / page.image.width, height / page.image.height] * 2)
        canvas = page.image.resize((width, height), PIL.Image.Resampling.BILINEAR)
        top, left = (int(rng.integers(count)) * STRIDE for count in grid)
        window = (left, top, left + TILE_SIZE, top + TILE_SIZE)
        pixels = np.asarray(canvas.crop(window), np.float32) / 127.5 - 1
        labels = character_labels(page.characters, page.boxes * scale, window)
        return {"pixel_values": pixels.transpose(2, 0, 1), "labels": labels}


class DocumentPages(Dataset):
    """
    Training pages as rows `{"messages": [...], "images": [image]}`, drawn on access. The seed and the index determine
    a row. All rows of a batch have the same grid, which keeps padding small.

    Args:
        num_rows (`int`): number of pages.
        batch_size (`int`): number of rows per batch.
        num_questions (`int`): the largest number of questions about a page.
        read_share (`float`, *optional*, defaults to 0.0): fraction of pages on which `READ` is asked first.
        note_share (`float`, *optional*, defaults to 0.0): fraction of pages that are full of text.
        text_only_share (`float`, *optional*, defaults to 0.0): fraction of rows without an image. The first question
            then contains the page as text.
        grid_shares (`tuple[float, ...]`, *optional*): the probability of a page of one tile, of two, of three or
            four, and of more.
        seed (`int`, *optional*, defaults to 0): random seed.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        num_questions: int = 5,
        read_share: float = 0.0,
        note_share: float = 0.0,
        text_only_share: float = 0.0,
        grid_shares: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0),
        seed: int = 0,
    ):
        self.num_rows, self.batch_size, self.num_questions = num_rows, batch_size, num_questions
        self.read_share, self.note_share, self.text_only_share = read_share, note_share, text_only_share
        self.grid_shares, self.seed = np.cumsum(grid_shares), seed

    def __len__(self) -> int:
        return self.num_rows

    def draw(self, index: int) -> tuple[Page, list[tuple[str, str]], bool]:
        """The page of a row, its questions with their answers, and whether the row shows it as an image."""
        batch_rng = np.random.default_rng([self.seed, 2**32 + index // self.batch_size])
        classes = (GRIDS[:1], GRIDS[1:3], GRIDS[3:6], GRIDS[6:])
        grids = classes[int(np.searchsorted(self.grid_shares, batch_rng.random()).clip(0, 3))]
        grid = grids[batch_rng.integers(len(grids))]
        is_text = bool(batch_rng.random() < self.text_only_share)
        rng = np.random.default_rng([self.seed, index, 0])
        kind = NOTE if rng.random() < self.note_share else None
        page = draw_page([self.seed, index, 1], TRAIN, kind, grid)
        # A question about ticks cannot be answered from the text.
        known = [q for q in page.questions if not (is_text and q.answer in ("yes", "no"))]
        asked = [(known[i].text, known[i].answer) for i in rng.permutation(len(known))[: self.num_questions]]
        if rng.random() < self.read_share:
            asked.insert(0, (READ, " / ".join(page.text)[:LONGEST_TEXT]))
        return page, asked, not is_text

    def __getitem__(self, index: int) -> dict:
        page, asked, has_image = self.draw(index)
        return conversation(page, asked, has_image)


def conversation(page: Page, asked: list[tuple[str, str]], has_image: bool = True) -> dict:
    """A row for training with one turn for each question and its answer."""
    beginning = [{"type": "image"} if has_image else {"type": "text", "text": " / ".join(page.text) + " // "}]
    messages = []
    for turn, (question, answer) in enumerate(asked):
        content = [*beginning[turn:], {"type": "text", "text": question}]
        messages += [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
    return {"messages": messages, "images": [page.image] if has_image else []}


def held_out_pages(num_pages: int = 252, seed: int = 1) -> list[Page]:
    """
    Pages of held-out fonts, words, names, tables and photographs. They cycle through all kinds, and through the grids
    so that every kind has every grid.
    """
    kinds = list(KINDS)
    return [
        draw_page([seed, index, 2], TEST, kinds[index % len(kinds)], GRIDS[index // len(kinds) % len(GRIDS)])
        for index in range(num_pages)
    ]
