# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Draws the input of the model for an image: its tiles, their overlaps and the thumbnail."""

import colorsys
from typing import TypeAlias

import numpy as np
import PIL.Image
import torch
from PIL import ImageDraw, ImageFont

from .processing_jvlm import JinaVLMProcessor


_Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont
_Color: TypeAlias = tuple[int, int, int]

# Sizes in pixels of the drawing.
_CANVAS_LIMIT = (1120, 960)  # maximum width and height of the drawn canvas
_TILE_LIMIT = 560  # maximum side of a drawn tile
_PANEL_WIDTH = 380  # width of the panel with the thumbnail and the text
_MARGIN = 24
_WHITE, _DARK, _GREY, _ORANGE = (255, 255, 255), (33, 37, 41), (110, 117, 125), (255, 150, 0)


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
    thumbnail, the number of image tokens, and questions with their answers. Canvas and thumbnail show the
    `pixel_values` of the model, denormalized.

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
    scale = _scale(min(_CANVAS_LIMIT[0] / width, _CANVAS_LIMIT[1] / height, _TILE_LIMIT / size))
    canvas = _outline(canvas, windows, size, scale)
    thumbnail = _resized(thumbnail, _scale(_PANEL_WIDTH / size))
    ImageDraw.Draw(thumbnail).rectangle((0, 0, thumbnail.width - 1, thumbnail.height - 1), outline=_GREY)

    rows, cols = grid
    num_tokens, num_cells = geometry.num_tokens(grid)
    title = f"{rows} x {cols} tiles and a thumbnail, {num_tokens} image tokens"
    if num_tokens > num_cells:
        title += f" ({num_tokens - num_cells} of them markers)"
    details = f"Image {image.width} x {image.height}, canvas {width} x {height}, tiles {size} x {size}"
    if len(tiles) > 1 and geometry.overlap:
        details += f", overlap {geometry.overlap} pixels (shaded)"
    text = [("Thumbnail, the whole image", 15, _GREY)]
    for question, answer in (answers or {}).items():
        text += [("", 8, _DARK), (question, 18, _GREY), (answer, 24, _DARK)]
    return _compose(canvas, thumbnail, [(title, 26, _DARK), (details, 15, _GREY)], text, font)


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
    font = _font(max(11, min(18, round(size * scale / 9))))
    for index, (top, left) in enumerate(windows.tolist()):
        color = _color(index, len(windows))
        box = [round(side * scale) for side in (left, top, left + size, top + size)]
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=color, width=3)
        label = str(index + 1)
        right, bottom = draw.textbbox((box[0] + 8, box[1] + 5), label, font=font)[2:]
        draw.rectangle((box[0], box[1], right + 5, bottom + 5), fill=color)
        draw.text((box[0] + 8, box[1] + 5), label, font=font, fill=_WHITE)
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


def _compose(
    canvas: PIL.Image.Image,
    thumbnail: PIL.Image.Image,
    caption_parts: list[tuple[str, int, _Color]],
    text_parts: list[tuple[str, int, _Color]],
    font: str | None,
) -> PIL.Image.Image:
    """Pastes the canvas below the caption, and thumbnail and text to its right, or below it if the canvas is wide."""
    below = canvas.width > 2 * canvas.height
    text_left = thumbnail.width + _MARGIN if below else 0
    width = max(canvas.width, 2 * _PANEL_WIDTH) if below else canvas.width + _MARGIN + _PANEL_WIDTH
    caption = _text_block(caption_parts, width, font)
    text = _text_block(text_parts, width - text_left if below else _PANEL_WIDTH, font)
    text_top = 0 if below else thumbnail.height + 8
    panel_height = max(thumbnail.height, text_top + text.height)
    top = _MARGIN + caption.height + 12
    left, panel_top = (0, canvas.height + _MARGIN) if below else (canvas.width + _MARGIN, 0)
    height = max(canvas.height, panel_top + panel_height)
    image = PIL.Image.new("RGB", (width + 2 * _MARGIN, top + height + _MARGIN), _WHITE)
    image.paste(caption, (_MARGIN, _MARGIN))
    image.paste(canvas, (_MARGIN, top))
    image.paste(thumbnail, (_MARGIN + left, top + panel_top))
    image.paste(text, (_MARGIN + left + text_left, top + panel_top + text_top))
    return image


__all__ = ["draw_tiles"]
