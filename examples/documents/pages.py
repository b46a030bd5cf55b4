# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Printed documents with questions, answers and the boxes of the answers: receipts, invoices, tables, bar charts, line
charts, forms and signs. Everything on them is drawn from a seed and from `ingredients`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import PIL.Image

from . import ingredients
from .ingredients import TRAIN, choice, choose_font, names, price_writer, sample, words
from .layout import ASCENT, Box, Sheet, photograph_of, transform


TILE_SIZE, STRIDE, OVERLAP, PATCH_SIZE = 378, 266, 112, 14  # pixels, as in the figure
GRIDS = [(1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (2, 3), (3, 2), (3, 3), (2, 4), (4, 2), (3, 4)]
NOTE = "note"
READ = "Read this page."
NO_BOX = (0.0, 0.0, 0.0, 0.0)


@dataclass
class Question:
    """A question about a page, its answer, and the box of the answer in pixels of the image, if it stands there."""

    text: str
    answer: str
    box: Box | None = None


@dataclass
class Page:
    """
    A page: its kind, its image, the grid of tiles that the image selects, its text, its questions, and the
    characters on it with their boxes in pixels, `[characters, 4]`.
    """

    kind: str
    image: PIL.Image.Image
    grid: tuple[int, int]
    text: list[str]
    questions: list[Question]
    characters: str
    boxes: np.ndarray


def draw_page(
    seed: list[int],
    split: str = TRAIN,
    kind: str | None = None,
    grid: tuple[int, int] = (1, 1),
    strength: float = 1.0,
    whole: bool = False,
) -> Page:
    """
    Draws a page.

    Args:
        seed (`list[int]`): the seed of everything on the page.
        split (`str`, *optional*): `"train"` or `"test"`: which ingredients.
        kind (`str`, *optional*): one of `KINDS`, or `NOTE`; by default one of `KINDS`.
        grid (`tuple[int, int]`, *optional*): rows and columns of the tiles that the image selects.
        strength (`float`, *optional*): of the degradation, see [`photograph_of`].
        whole (`bool`, *optional*): whether the page has exactly the size of its canvas; by default it is up to 40
            pixels smaller.
    """
    rng = np.random.default_rng(seed)
    height, width = (count * STRIDE + OVERLAP - (0 if whole else int(rng.integers(0, 40))) for count in grid)
    kind = kind or choice(rng, list(KINDS))
    dark = int(rng.integers(0, 70))
    paper = tuple(int(255 - rng.integers(0, 25)) for _ in range(3))
    ink = tuple(int(dark + rng.integers(0, 40)) for _ in range(3))
    if kind == "sign" and rng.random() < 0.5:  # light on dark
        paper, ink = ink, paper
    sheet = Sheet(width, height, choose_font(rng, split), ink, paper)
    questions = {**KINDS, NOTE: draw_note}[kind](sheet, rng, split)
    image, matrix = photograph_of(sheet, rng, split, strength)
    for question in questions:
        if question.box is not None:
            question.box = tuple(transform(np.array([question.box]), matrix)[0].tolist())
    boxes = transform(np.array(sheet.boxes or [NO_BOX]), matrix)
    return Page(kind, image, grid, sheet.text(), questions, sheet.characters, boxes)


def _text_size(sheet: Sheet, rng: np.random.Generator) -> int:
    """The size of running text: 22 to 32 pixels, on narrow pages no more than fits 15 to 24 characters a line."""
    return int(min(rng.integers(22, 33), sheet.width / rng.uniform(7.5, 12)))


def _amount(rng: np.random.Generator) -> float:
    return round(float(10 ** rng.uniform(-0.3, 3)), 2)


def _things(rng: np.random.Generator, split: str, count: int) -> list[str]:
    return [word.capitalize() for word in sample(rng, words(split), count)]


def _company(rng: np.random.Generator, split: str) -> str:
    if rng.random() < 0.5:
        return choice(rng, names(split, "company"))
    return f"{choice(rng, words(split)).capitalize()} {choice(rng, ['Shop', 'Cafe', 'Market', 'Store', 'Bar', 'Ltd'])}"


def _rule(sheet: Sheet, rng: np.random.Generator, y: float) -> None:
    """A horizontal line over the page, plain or dashed."""
    margin = 8
    if rng.random() < 0.5:
        sheet.draw.line((margin, y, sheet.width - margin, y), fill=sheet.ink, width=int(rng.integers(1, 3)))
    else:
        for x in range(margin, sheet.width - margin, 14):
            sheet.draw.line((x, y, x + 7, y), fill=sheet.ink, width=2)


def _rows(
    sheet: Sheet, top: float, step: float, size: int, pairs: list[tuple[str, str]], right: float | None = None
) -> list[tuple[Box, Box]]:
    """Writes pairs of a left- and a right-aligned text, one pair a line. Returns their boxes."""
    margin, right = 10, right or sheet.width - 10
    boxes = []
    for row, (name, value) in enumerate(pairs):
        y = top + row * step
        fitted = sheet.fit(f"{name}  {value}", size, right - margin)
        boxes.append((sheet.write(margin, y, name, fitted), sheet.write(right, y, value, fitted, "right")))
    return boxes


def draw_receipt(sheet: Sheet, rng: np.random.Generator, split: str) -> list[Question]:
    """A receipt: merchant, date, items with prices, total."""
    size = _text_size(sheet, rng)
    step = size * rng.uniform(1.2, 1.45)
    write = price_writer(rng)
    num_items = int(np.clip((sheet.height - 20) // step - 4, 1, rng.integers(2, 9)))
    items = _things(rng, split, num_items)
    prices = [_amount(rng) for _ in items]
    merchant, date = _company(rng, split), ingredients.date(rng)
    y = step
    box_of_merchant = sheet.write(
        sheet.width / 2, y, merchant, sheet.fit(merchant, int(size * 1.2), sheet.width - 20), "center"
    )
    box_of_date = sheet.write(10 if rng.random() < 0.5 else sheet.width / 4, y + step, date, size)
    _rule(sheet, rng, y + 1.4 * step)
    pairs = [(item, write(price)) for item, price in zip(items, prices, strict=True)]
    boxes = _rows(sheet, y + 2.4 * step, step, size, pairs)
    total = write(sum(prices))
    bottom = y + (2.4 + len(items)) * step
    _rule(sheet, rng, bottom - 0.8 * size)
    label = choice(rng, ["Total", "TOTAL", "Sum", "Amount due"])
    [(_, box_of_total)] = _rows(sheet, bottom + 0.3 * size, step, size, [(label, total)])
    index = int(rng.integers(len(items)))
    dear, cheap = int(np.argmax(prices)), int(np.argmin(prices))
    return [
        Question("What is the total?", total, box_of_total),
        Question("What is the date?", date, box_of_date),
        Question("Who is the merchant?", merchant, box_of_merchant),
        Question("How many items are there?", str(len(items))),
        Question(f"What is the price of {items[index]}?", pairs[index][1], boxes[index][1]),
        Question("Which item costs most?", items[dear], boxes[dear][0]),
        Question("Which item costs least?", items[cheap], boxes[cheap][0]),
    ]


def draw_invoice(sheet: Sheet, rng: np.random.Generator, split: str) -> list[Question]:
    """An invoice: number, date, customer, items with prices, total."""
    size = _text_size(sheet, rng)
    step = size * rng.uniform(1.2, 1.45)
    write = price_writer(rng)
    number = f"{choice(rng, ['', 'INV-', 'RE', 'No. '])}{rng.integers(100, 100000)}"
    customer = f"{choice(rng, names(split, 'first_name'))} {choice(rng, names(split, 'last_name'))}"
    fields = [
        ("Invoice", number),
        (choice(rng, ["Date", "Dated"]), ingredients.date(rng)),
        (choice(rng, ["Customer", "Bill to", "To"]), customer),
    ]
    boxes_of_fields = _rows(sheet, 1.3 * step, step, size, fields)
    _rule(sheet, rng, 3.8 * step)
    num_items = int(np.clip((sheet.height - 20) // step - 5, 1, rng.integers(1, 7)))
    items = _things(rng, split, num_items)
    prices = [_amount(rng) for _ in items]
    pairs = [(item, write(price)) for item, price in zip(items, prices, strict=True)]
    boxes = _rows(sheet, 4.8 * step, step, size, pairs)
    total = write(sum(prices))
    _rule(sheet, rng, (4.1 + len(items)) * step)
    [(_, box_of_total)] = _rows(sheet, (5.0 + len(items)) * step, step, size, [("Total", total)])
    index = int(rng.integers(len(items)))
    return [
        Question("What is the invoice number?", number, boxes_of_fields[0][1]),
        Question("What is the date?", fields[1][1], boxes_of_fields[1][1]),
        Question("Who is the customer?", customer, boxes_of_fields[2][1]),
        Question("What is the total?", total, box_of_total),
        Question("How many items are there?", str(len(items))),
        Question(f"What is the price of {items[index]}?", pairs[index][1], boxes[index][1]),
    ]


def _random_table(rng: np.random.Generator, split: str) -> tuple[list[str], list[list[str]]]:
    """Words and numbers, as many columns as rows of real tables have."""
    head = _things(rng, split, int(rng.integers(2, 5)))
    rows = []
    for name in _things(rng, split, 12):
        digits = int(rng.integers(1, 5))
        rows.append([name, *(f"{rng.integers(0, 10**digits)}" for _ in head[1:])])
    return head, rows


def draw_table(sheet: Sheet, rng: np.random.Generator, split: str) -> list[Question]:
    """A table: a name and one to three numbers a row."""
    if split == TRAIN and rng.random() < 0.6:
        head, rows = _random_table(rng, split)
    else:
        tables = ingredients.tables(split)
        table = tables[rng.integers(len(tables))]
        columns = sorted(rng.choice(np.arange(1, table.shape[1]), min(table.shape[1] - 1, 3), replace=False).tolist())
        head = [table.columns[0], *(table.columns[column] for column in columns)]
        chosen = rng.choice(len(table), min(len(table), 12), replace=False)
        rows = [[table.iat[index, 0], *(table.iat[index, column] for column in columns)] for index in chosen]
    size = _text_size(sheet, rng)
    step = size * rng.uniform(1.3, 1.6)
    num_cols = int(min(len(head), 1 + max(1, (sheet.width - 6.5 * size) // (4.5 * size))))
    num_rows = int(np.clip((sheet.height - 10) // step - 1, 1, min(len(rows), rng.integers(2, 9))))
    head, rows = head[:num_cols], [row[:num_cols] for row in rows[:num_rows]]
    first = min(0.5 * sheet.width, max(sheet.length(row[0], size) for row in [head, *rows]) + 1.2 * size)
    width = (sheet.width - 12 - first) / (num_cols - 1)
    lined = rng.random() < 0.5
    boxes = []
    for row, cells in enumerate([head, *rows]):
        y = (row + 1) * step
        line = [sheet.write(10, y, cells[0], sheet.fit(cells[0], size, first - 8))]
        for col, cell in enumerate(cells[1:], start=1):
            fitted = sheet.fit(cell, size, width - 8)
            line.append(sheet.write(first + col * width - 2, y, cell, fitted, "right"))
        boxes.append(line)
        if lined or row == 0:
            below = y + 0.35 * size
            sheet.draw.line((6, below, sheet.width - 6, below), fill=sheet.ink, width=1 + (row == 0))
    row, col = int(rng.integers(num_rows)), int(rng.integers(1, num_cols))
    other = int(rng.integers(num_rows))
    return [
        Question(f"What is {head[col]} of {rows[row][0]}?", rows[row][col], boxes[row + 1][col]),
        Question(f"What is {head[1]} of {rows[other][0]}?", rows[other][1], boxes[other + 1][1]),
        Question("How many rows are there?", str(num_rows)),
        Question("What is in the last row of the first column?", rows[-1][0], boxes[-1][0]),
        Question("What is the name of the last column?", head[-1], boxes[0][-1]),
    ]


def _series(sheet: Sheet, rng: np.random.Generator, least: float) -> np.ndarray:
    """As many values as fit when each takes at least this width; all of them differ clearly."""
    count = int(np.clip((sheet.width - 40) // least, 2, rng.integers(3, 8)))
    order = rng.permutation(count)
    highest = float(choice(rng, ["10", "20", "50", "100", "100", "500", "1000"]))
    return np.round(highest * (order + rng.uniform(0.35, 0.9, count)) / count, 1 if highest < 50 else 0)


def _frame(sheet: Sheet, rng: np.random.Generator, split: str, size: int) -> tuple[str, Box, float, float]:
    """Writes the title of a chart and draws its axis. Returns the title, its box, and top and bottom of the plot."""
    title = " ".join(_things(rng, split, int(rng.integers(1, 3))))
    box = sheet.write(
        sheet.width / 2, 1.3 * size, title, sheet.fit(title, int(1.15 * size), sheet.width - 20), "center"
    )
    top, bottom = 3.2 * size, sheet.height - 1.9 * size
    sheet.draw.line((12, bottom, sheet.width - 12, bottom), fill=sheet.ink, width=2)
    return title, box, top, bottom


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    return tuple(int(value) for value in rng.integers(60, 210, 3))


def _write_mark(
    sheet: Sheet, x: float, y: float, axis: float, width: float, size: int, name: str, value: float
) -> tuple[Box, Box]:
    """Writes the value of a bar or point at `y` and its name below the axis. Returns the boxes of name and value."""
    text = f"{value:g}"
    box = sheet.write(x, y, text, sheet.fit(text, size, width - 4), "center")
    return sheet.write(x, axis + 1.2 * size, name, sheet.fit(name, size, width - 6), "center"), box


def draw_bars(sheet: Sheet, rng: np.random.Generator, split: str) -> list[Question]:
    """A bar chart with a title, a name below each bar and its value above it."""
    size = min(_text_size(sheet, rng), 28)
    values = _series(sheet, rng, 4.2 * size)
    labels = [word.capitalize() for word in sample(rng, words(split, longest=6), len(values))]
    title, box_of_title, top, bottom = _frame(sheet, rng, split, size)
    width, colour = (sheet.width - 24) / len(values), _colour(rng)
    boxes = []
    for index, (label, value) in enumerate(zip(labels, values, strict=True)):
        middle = 12 + (index + 0.5) * width
        high = bottom - (bottom - top) * value / values.max()
        sheet.draw.rectangle((middle - 0.3 * width, high, middle + 0.3 * width, bottom), fill=colour)
        boxes.append(_write_mark(sheet, middle, high - 5, bottom, width, size, label, value))
    sheet.reading = [title, *(f"{label} {value:g}" for label, value in zip(labels, values, strict=True))]
    index, largest, least = int(rng.integers(len(values))), int(values.argmax()), int(values.argmin())
    return [
        Question(f"What is the value of {labels[index]}?", f"{values[index]:g}", boxes[index][1]),
        Question("Which bar is the largest?", labels[largest], boxes[largest][0]),
        Question("Which bar is the smallest?", labels[least], boxes[least][0]),
        Question("What is the largest value?", f"{values[largest]:g}", boxes[largest][1]),
        Question("How many bars are there?", str(len(values))),
        Question("What is the title?", title, box_of_title),
    ]


def draw_lines(sheet: Sheet, rng: np.random.Generator, split: str) -> list[Question]:
    """A line chart over years with a title and a value beside each point."""
    size = min(_text_size(sheet, rng), 28)
    values = _series(sheet, rng, 3.6 * size)
    first, step = int(rng.integers(1950, 2020)), int(choice(rng, ["1", "2", "5"]))
    years = [str(first + step * index) for index in range(len(values))]
    title, box_of_title, top, bottom = _frame(sheet, rng, split, size)
    width, colour = (sheet.width - 24) / len(values), _colour(rng)
    points = [
        (12 + (index + 0.5) * width, bottom - 8 - (bottom - 8 - top) * value / values.max())
        for index, value in enumerate(values)
    ]
    sheet.draw.line(points, fill=colour, width=3)
    boxes = []
    for (x, y), year, value in zip(points, years, values, strict=True):
        sheet.draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
        boxes.append(_write_mark(sheet, x, y - 8, bottom, width, size, year, value))
    sheet.reading = [title, *(f"{year} {value:g}" for year, value in zip(years, values, strict=True))]
    index, largest, least = int(rng.integers(len(values))), int(values.argmax()), int(values.argmin())
    return [
        Question(f"What is the value in {years[index]}?", f"{values[index]:g}", boxes[index][1]),
        Question("When is the value largest?", years[largest], boxes[largest][0]),
        Question("When is the value smallest?", years[least], boxes[least][0]),
        Question("What is the largest value?", f"{values[largest]:g}", boxes[largest][1]),
        Question("What is the title?", title, box_of_title),
    ]


def draw_form(sheet: Sheet, rng: np.random.Generator, split: str) -> list[Question]:
    """A form: labels with values, and boxes to tick."""
    size = _text_size(sheet, rng)
    step = size * rng.uniform(1.4, 1.8)
    values = {
        "Name": choice(rng, names(split, "last_name")),
        "First name": choice(rng, names(split, "first_name")),
        "City": choice(rng, names(split, "city")),
        "Date": ingredients.date(rng),
        "Phone": f"{rng.integers(0, 1000):03} {rng.integers(0, 10000):04}",
        "Code": "".join(choice(rng, list("ABCDEFGHJKLMNPRSTUVWXYZ23456789")) for _ in range(5)),
        "Age": str(rng.integers(18, 100)),
    }
    num_lines = int(max(3, (sheet.height - 10) // step))
    num_ticks = int(rng.integers(1, 3)) if num_lines > 4 else 1
    labels = sample(rng, list(values), int(np.clip(num_lines - num_ticks, 2, rng.integers(3, 7))))
    separator = choice(rng, [":", "", "."])
    beside = rng.random() < 0.5  # values in a column of their own
    column = max(sheet.length(label + separator, size) for label in labels) + size
    questions = []
    for row, label in enumerate(labels):
        y, value = (row + 1) * step, values[label]
        left = 10 + (column if beside else sheet.length(label + separator, size) + 0.5 * size)
        fitted = sheet.fit(value, size, sheet.width - left - 6)
        sheet.write(10, y, label + separator, size)
        questions.append(Question(f"What is the {label.lower()}?", value, sheet.write(left, y, value, fitted)))
    for row, word in enumerate(_things(rng, split, num_ticks), start=len(labels)):
        y, side, is_ticked = (row + 1) * step, 0.7 * size, bool(rng.random() < 0.5)
        sheet.draw.rectangle((12, y - side, 12 + side, y), outline=sheet.ink, width=2)
        if is_ticked:
            sheet.draw.line((14, y - side + 2, 10 + side, y - 2), fill=sheet.ink, width=3)
            sheet.draw.line((14, y - 2, 10 + side, y - side + 2), fill=sheet.ink, width=3)
        sheet.write(20 + side, y, word, sheet.fit(word, size, sheet.width - side - 26))
        box = (12.0, y - side, 12 + side, y)
        questions.append(Question(f"Is {word} ticked?", "yes" if is_ticked else "no", box))
    return questions


def draw_sign(sheet: Sheet, rng: np.random.Generator, split: str) -> list[Question]:
    """A sign: one to four large words in Latin, Greek or Cyrillic letters, perhaps framed."""
    script = choice(rng, ["Latin", "Latin", "Greek", "Cyrillic"])
    lines = sample(rng, words(split, script), int(rng.integers(1, 4)))
    lines = [line.capitalize() if rng.random() < 0.4 else line for line in lines]
    sheet.font = choose_font(rng, split, "".join(lines))
    size = min(sheet.fit(line, int(rng.integers(28, 48)), sheet.width - 50) for line in lines)
    step = size * rng.uniform(1.25, 1.7)
    top = (sheet.height - step * (len(lines) - 1) + ASCENT * size) / 2
    boxes = [sheet.write(sheet.width / 2, top + row * step, line, size, "center") for row, line in enumerate(lines)]
    if rng.random() < 0.5:
        sheet.draw.rectangle((6, 6, sheet.width - 7, sheet.height - 7), outline=sheet.ink, width=4)
    whole = (
        min(box[0] for box in boxes),
        min(box[1] for box in boxes),
        max(box[2] for box in boxes),
        max(box[3] for box in boxes),
    )
    return [
        Question("What does the sign say?", " ".join(lines), whole),
        Question("What is the last word?", lines[-1], boxes[-1]),
        Question("Which script is it?", script),
    ]


def draw_note(sheet: Sheet, rng: np.random.Generator, split: str) -> list[Question]:
    """A page full of words, numbers, prices, dates and codes, to learn reading from; not part of the evaluation."""
    size = _text_size(sheet, rng)
    step = size * rng.uniform(1.15, 1.6)
    write = price_writer(rng)
    lines = []
    for row in range(int((sheet.height - 10) // step)):
        x, parts = 8.0, []
        sheet.font = choose_font(rng, split) if rng.random() < 0.3 else sheet.font
        while True:
            kind = rng.random()
            if kind < 0.5:
                part = choice(rng, words(split))
                part = part.upper() if rng.random() < 0.15 else part.capitalize() if rng.random() < 0.4 else part
            elif kind < 0.8:
                part = str(rng.integers(0, 10 ** int(rng.integers(1, 6)))) if kind < 0.65 else write(_amount(rng))
            elif kind < 0.9:
                part = ingredients.date(rng)
            else:
                part = "".join(sample(rng, list(ingredients.ASCII), int(rng.integers(2, 7))))
            if x + sheet.length(part, size) > sheet.width - 8:
                break
            sheet.write(x, (row + 1) * step, part, size)
            x += sheet.length(part + " ", size)
            parts.append(part)
        lines.append(" ".join(parts))
    filled = [line for line in lines if line] or [""]
    index = int(rng.integers(len(filled)))
    return [
        Question("What is the first line?", filled[0]),
        Question("What is the last line?", filled[-1]),
        Question(f"What is line {index + 1}?", filled[index]),
        Question("How many lines are there?", str(len(filled))),
    ]


KINDS: dict[str, Callable[[Sheet, np.random.Generator, str], list[Question]]] = {
    "receipt": draw_receipt,
    "invoice": draw_invoice,
    "table": draw_table,
    "bar chart": draw_bars,
    "line chart": draw_lines,
    "form": draw_form,
    "sign": draw_sign,
}
