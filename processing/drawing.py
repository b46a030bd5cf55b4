# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Draws the input of the model for an image, its tiles and thumbnail, and where in the image an answer comes from."""

import colorsys
from itertools import accumulate
from typing import TypeAlias

import numpy as np
import PIL.Image
import torch
from PIL import ImageDraw, ImageFont

from .processing_jvlm import JinaVLMProcessor


_Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont
_Color: TypeAlias = tuple[int, int, int]

# Sizes in pixels of a drawing. Documents show about 1000 pixels in a row, so they shrink nothing.
_WIDTH = 1032
_MARGIN = 20
_PANEL_WIDTH = 300  # width of the panel with the thumbnail and the text
_CANVAS_LIMIT = (_WIDTH - _PANEL_WIDTH - 3 * _MARGIN, 1000)  # maximum width and height of an image beside the panel
_WIDE_LIMIT = (_WIDTH - 2 * _MARGIN, 560)  # and above it
_TILE_LIMIT = 560  # maximum side of a drawn tile
_TITLE, _LARGE, _TEXT = 24, 22, 17  # font sizes
_WHITE, _DARK, _GREY, _ORANGE = (255, 255, 255), (33, 37, 41), (90, 97, 105), (255, 150, 0)
_RED, _BLUE = (214, 40, 40), (0, 90, 200)


def draw_tiles(
    image: str | PIL.Image.Image,
    processor: JinaVLMProcessor,
    answers: dict[str, str] | None = None,
    font: str | None = None,
    **images_kwargs,
) -> PIL.Image.Image:
    """
    Draws how an image is split into tiles.

    The drawing shows the canvas with every tile outlined and numbered in reading order, the overlaps shaded, the
    thumbnail, the number of image tokens, a legend, and questions with their answers. Canvas and thumbnail show the
    `pixel_values` of the model, denormalized. It is about 1000 pixels wide at most.

    Args:
        image (`str` or `PIL.Image.Image`): the image, or its path or URL. It is not modified.
        processor ([`JinaVLMProcessor`]): the processor, with either layout and any tile size.
        answers (`dict[str, str]`, *optional*): a dict from questions to answers.
        font (`str`, *optional*): path of a TrueType font for the text. Pillow's default font only has Latin letters.
        images_kwargs: arguments of the image processor, such as `max_crops`.

    Returns:
        `PIL.Image.Image`: an RGB image. Small canvases are upsampled by an integer factor, large ones downsampled.

    Raises:
        OSError: if `font` cannot be read.
        ValueError: if the image processor rejects the image or an argument.
    """
    image_processor = processor.image_processor
    image = image_processor.fetch_images(image)
    inputs = image_processor(images=image, **images_kwargs, return_tensors="pt")
    geometry = image_processor.geometry(images_kwargs)
    grid = tuple(inputs["image_grids"][0].tolist())
    windows, size = geometry.windows(grid), geometry.tile_size

    thumbnail, *tiles = map(PIL.Image.fromarray, _levels(inputs["pixel_values"], image_processor, images_kwargs))
    height, width = geometry.canvas_size(grid)
    canvas = PIL.Image.new("RGB", (width, height))
    for tile, (top, left) in zip(tiles, windows.tolist(), strict=True):
        canvas.paste(tile, (left, top))
    is_wide = width > 2 * height
    scale = _scale(min(_fitting(canvas, is_wide), _TILE_LIMIT / size))
    canvas = _outline(canvas, windows, size, scale)
    thumbnail = _resized(thumbnail, _scale(_PANEL_WIDTH / size))
    ImageDraw.Draw(thumbnail).rectangle((0, 0, thumbnail.width - 1, thumbnail.height - 1), outline=_GREY)

    rows, cols = grid
    num_tokens, num_cells = geometry.num_tokens(grid)
    num_markers = num_tokens - num_cells
    num_tokens -= int((inputs["image_token_positions"] < 0).sum()) - int((geometry.token_positions(grid) < 0).sum())
    title = f"{rows} x {cols} tiles and a thumbnail, {num_tokens} image tokens"
    if num_markers:
        title += f" ({num_markers} of them markers)"
    details = f"Image {image.width} x {image.height}, canvas {width} x {height}, tiles {size} x {size} pixels"
    legend = [(_swatch(_WHITE, _color(0, len(tiles)), "1"), "A tile. The numbers are in reading order.")]
    if len(tiles) > 1 and geometry.overlap:
        shaded = f"Overlap of {geometry.overlap} pixels"
        legend.append((_swatch(_tinted(65)), f"{shaded}: in two tiles."))
        if min(grid) > 1:
            legend.append((_swatch(_tinted(110)), f"{shaded} both ways: in four tiles."))
    text_width = _WIDE_LIMIT[0] - thumbnail.width - _MARGIN if is_wide else _PANEL_WIDTH
    caption = _text_block([("The thumbnail: the whole image in one tile", _TEXT, _GREY)], text_width, font)
    notes = [caption, _legend(legend, text_width, font), _text_block(_questions(answers), text_width, font)]
    panel = _beside(thumbnail, _stack(*notes)) if is_wide else _stack(thumbnail, *notes)
    return _sheet([(title, _TITLE, _DARK), (details, _TEXT, _GREY)], canvas, panel, is_wide, font)


def draw_evidence(
    image: str | PIL.Image.Image,
    processor: JinaVLMProcessor,
    evidence: np.ndarray,
    measurement: str,
    answers: dict[str, str] | None = None,
    font: str | None = None,
) -> PIL.Image.Image:
    """
    Draws the evidence of an answer over its image, with the sentence that says how far to trust it.

    Args:
        image (`str` or `PIL.Image.Image`): the image, or its path or URL. It is not modified.
        processor ([`JinaVLMProcessor`]): the processor, which opens the image.
        evidence (`np.ndarray` of shape `(height, width)`): the result of [`find_evidence`].
        measurement (`str`): how often such evidence is right, `str()` of an [`EvidenceMeasurement`].
        answers (`dict[str, str]`, *optional*): a dict from the question to the answer.
        font (`str`, *optional*): path of a TrueType font for the text. Pillow's default font only has Latin letters.

    Returns:
        `PIL.Image.Image`: an RGB image. It shows the image in grey, the attention in red, and a circle around the
        strongest place.

    Raises:
        OSError: if `font` cannot be read.
        ValueError: if the image cannot be read or `evidence` has another size.
    """
    pixels: PIL.Image.Image = processor.image_processor.fetch_images(image)
    height, width = pixels.height, pixels.width
    if evidence.shape != (height, width):
        raise ValueError(f"`evidence` has the shape {evidence.shape}, but the image {(height, width)}.")
    is_wide = width > 2 * height
    scale = _scale(_fitting(pixels, is_wide))
    strength = evidence / evidence.max() if evidence.max() > 0 else evidence
    alpha = PIL.Image.fromarray((strength * 170).round().astype(np.uint8))
    overlay = PIL.Image.composite(PIL.Image.new("RGB", pixels.size, _RED), pixels.convert("L").convert("RGB"), alpha)
    overlay = _resized(overlay, scale)
    x, y = (place * scale for place in strongest_place(evidence))
    draw, radius = ImageDraw.Draw(overlay), max(14, min(overlay.size) // 16)
    draw.rectangle((0, 0, overlay.width - 1, overlay.height - 1), outline=_GREY)
    draw.circle((x, y), radius, outline=_BLUE, width=4)

    legend = [
        (_swatch(_RED), "The stronger the red, the more the answer attends to it."),
        (_swatch(_WHITE, circle=_BLUE), "The strongest place."),
    ]
    text_width = _WIDE_LIMIT[0] if is_wide else _PANEL_WIDTH
    trust = [("", 4, _GREY), (measurement, _TEXT, _DARK)]
    panel = _stack(_legend(legend, text_width, font), _text_block(trust, text_width, font))
    return _sheet(_questions(answers)[1:], overlay, panel, is_wide, font)


def strongest_place(evidence: np.ndarray) -> tuple[float, float]:
    """The centre (x, y) of the pixels with the most attention, given `(height, width)`."""
    y, x = np.nonzero(evidence >= evidence.max() * (1 - 1e-6))
    return float(x.mean() + 0.5), float(y.mean() + 0.5)


def _levels(pixel_values: torch.Tensor, image_processor, images_kwargs: dict) -> np.ndarray:
    """Denormalizes `[tiles, 3, size, size]` to uint8 `[tiles, size, size, 3]`."""
    settings = image_processor._settings(images_kwargs)
    if settings.do_normalize:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (settings.image_mean, settings.image_std))
        pixel_values = pixel_values * std + mean
    if settings.do_rescale:
        pixel_values = pixel_values / settings.rescale_factor
    return pixel_values.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _scale(limit: float) -> float:
    """The largest integer that is at most `limit`, or `limit` itself if it is less than 1."""
    return float(int(limit)) if limit >= 1 else limit


def _fitting(image: PIL.Image.Image, is_wide: bool) -> float:
    """The largest scale at which an image fits above the panel if it is wide, else beside it."""
    limit = _WIDE_LIMIT if is_wide else _CANVAS_LIMIT
    return min(limit[0] / image.width, limit[1] / image.height)


def _resized(image: PIL.Image.Image, scale: float) -> PIL.Image.Image:
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, PIL.Image.Resampling.NEAREST if scale >= 1 else PIL.Image.Resampling.LANCZOS)


def _color(index: int, count: int) -> _Color:
    """A saturated color of one of `count` tiles. Its hue differs clearly from the previous and the next tile's."""
    hue = (0.58 + index * 0.382) % 1.0 if count > 1 else 0.58
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, 0.42, 0.85))
    return red, green, blue


def _outline(canvas: PIL.Image.Image, windows: np.ndarray, size: int, scale: float) -> PIL.Image.Image:
    """Scales the canvas, outlines the tiles at `windows` (`[tiles, 2]`: top, left) and shades their overlaps."""
    covered = np.zeros((canvas.height, canvas.width), int)
    for top, left in windows:
        covered[top : top + size, left : left + size] += 1
    shade = np.select([covered > 2, covered > 1], [110, 65]).astype(np.uint8)  # up to four tiles overlap
    canvas = PIL.Image.composite(PIL.Image.new("RGB", canvas.size, _ORANGE), canvas, PIL.Image.fromarray(shade))
    canvas = _resized(canvas, scale)
    draw = ImageDraw.Draw(canvas)
    font = _font(max(14, min(20, round(size * scale / 8))))
    for index, (top, left) in enumerate(windows.tolist()):
        color = _color(index, len(windows))
        box = [round(side * scale) for side in (left, top, left + size, top + size)]
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=color, width=3)
        # A number with a border, and not in a box, which would hide more of the image.
        draw.text((box[0] + 7, box[1] + 4), str(index + 1), fill=color, font=font, stroke_width=2, stroke_fill=_WHITE)
    return canvas


def _wrap(text: str, font: _Font, width: float) -> list[str]:
    """Splits text into lines of at most `width` pixels, at spaces, or within words that are longer than a line."""
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            if line and font.getlength(f"{line} {word}") > width:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}" if line else word
            while font.getlength(line) > width and len(line) > 1:
                fitting = next(
                    end for end in range(len(line) - 1, 0, -1) if end == 1 or font.getlength(line[:end]) <= width
                )
                lines.append(line[:fitting])
                line = line[fitting:]
        lines.append(line)
    return lines


def _font(size: int, path: str | None = None) -> _Font:
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)


def _text_block(parts: list[tuple[str, int, _Color]], width: int, path: str | None) -> PIL.Image.Image:
    """Draws texts, each with its size and color, one below the other on a white image of this width."""
    lines = []
    for text, size, color in parts:
        font = _font(size, path)
        lines += [(line, font, size, color) for line in _wrap(text, font, width)]
    block = PIL.Image.new("RGB", (width, sum(round(size * 1.35) for _, _, size, _ in lines) + 4), _WHITE)
    draw, top = ImageDraw.Draw(block), 0
    for line, font, size, color in lines:
        draw.text((0, top), line, font=font, fill=color)
        top += round(size * 1.35)
    return block


def _questions(answers: dict[str, str] | None) -> list[tuple[str, int, _Color]]:
    """The parts of a text block for questions and their answers."""
    parts: list[tuple[str, int, _Color]] = []
    for question, answer in (answers or {}).items():
        parts += [("", 8, _DARK), (question, _TEXT, _GREY), (answer, _LARGE, _DARK)]
    return parts


def _tinted(alpha: int) -> _Color:
    """White under the shade of overlaps."""
    red, green, blue = (round(255 + (part - 255) * alpha / 255) for part in _ORANGE)
    return red, green, blue


def _swatch(fill: _Color, outline: _Color = _GREY, label: str = "", circle: _Color | None = None) -> PIL.Image.Image:
    """A sample of what the legend explains: a box, a tile with its number, or a circle."""
    swatch = PIL.Image.new("RGB", (30, 22), fill)
    draw = ImageDraw.Draw(swatch)
    if circle:
        draw.circle((15, 11), 10, outline=circle, width=3)
    else:
        draw.rectangle((0, 0, 29, 21), outline=outline, width=3 if label else 1)
    draw.text((7, 2), label, font=_font(14), fill=outline)
    return swatch


def _legend(entries: list[tuple[PIL.Image.Image, str]], width: int, font: str | None) -> PIL.Image.Image:
    """Swatches with their explanations, one below the other."""
    return _stack(
        *(
            _beside(swatch, _text_block([(text, _TEXT, _GREY)], width - swatch.width - 10, font), gap=10)
            for swatch, text in entries
        )
    )


def _paste(parts: list[tuple[PIL.Image.Image, tuple[int, int]]]) -> PIL.Image.Image:
    """Images at their places (left, top) on a white background that just holds them."""
    width = max(left + image.width for image, (left, _) in parts)
    height = max(top + image.height for image, (_, top) in parts)
    paper = PIL.Image.new("RGB", (width, height), _WHITE)
    for image, place in parts:
        paper.paste(image, place)
    return paper


def _beside(left: PIL.Image.Image, right: PIL.Image.Image, gap: int = _MARGIN) -> PIL.Image.Image:
    return _paste([(left, (0, 0)), (right, (left.width + gap, 0))])


def _stack(*images: PIL.Image.Image, gap: int = 8) -> PIL.Image.Image:
    tops = [0, *accumulate(image.height + gap for image in images)]
    return _paste([(image, (0, top)) for image, top in zip(images, tops, strict=False)])


def _sheet(
    title: list[tuple[str, int, _Color]],
    image: PIL.Image.Image,
    panel: PIL.Image.Image,
    is_wide: bool,
    font: str | None,
) -> PIL.Image.Image:
    """A title, and an image with a panel to its right, or below it if the image is wide."""
    body = _stack(image, panel, gap=_MARGIN) if is_wide else _beside(image, panel)
    body = _stack(_text_block(title, max(body.width, 2 * _PANEL_WIDTH), font), body, gap=12)
    sheet = PIL.Image.new("RGB", (body.width + 2 * _MARGIN, body.height + 2 * _MARGIN), _WHITE)
    sheet.paste(body, (_MARGIN, _MARGIN))
    return sheet


__all__ = ["draw_evidence", "draw_tiles", "strongest_place"]
