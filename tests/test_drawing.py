# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""`draw_tiles` shows the `pixel_values`, and outlines the tiles at the windows of the geometry."""

import numpy as np
import PIL.Image
import pytest
from PIL import ImageFont

from jvlm import draw_tiles
from jvlm.processing import drawing


def locate(image: np.ndarray, part: np.ndarray) -> list[tuple[int, int]]:
    """Positions (top, left) at which `part` occurs in `image`."""
    height, width = part.shape[:2]
    corner = (image[: len(image) - height + 1, : image.shape[1] - width + 1] == part[0, 0]).all(-1)
    return [
        (int(top), int(left))
        for top, left in zip(*np.nonzero(corner), strict=True)
        if (image[top : top + height, left : left + width] == part).all()
    ]


@pytest.mark.parametrize("layout", ["independent", "stitched"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (20, 30), (60, 400), (400, 60), (130, 170), (900, 700)])
def test_images_of_any_size(build_processor, make_image, layout, height, width):
    processor = build_processor(layout)
    image = make_image(height, width)
    before = image.tobytes()
    drawn = draw_tiles(image, processor, {"Which image?": "This one, " * 20})
    assert drawn.mode == "RGB"
    canvas = processor.image_processor.geometry().canvas_size(processor.image_processor.get_image_grid(height, width))
    assert drawn.height > min(canvas[0], drawing._CANVAS_LIMIT[1])
    assert drawn.width > min(canvas[1], drawing._CANVAS_LIMIT[0])
    assert drawn.width <= drawing._WIDTH
    assert image.tobytes() == before
    assert image.size == (width, height)


@pytest.mark.parametrize("scale", [1.0, 2.0, 0.5])
def test_outlines_are_at_the_windows(scale):
    canvas = PIL.Image.new("RGB", (500, 500), (40, 40, 40))
    windows = np.array([[0, 0], [0, 200], [200, 0], [200, 200]])
    outlined = np.asarray(drawing._outline(canvas, windows, 300, scale))
    assert outlined.shape == (500 * scale, 500 * scale, 3)
    colors = [drawing._color(index, len(windows)) for index in range(len(windows))]
    assert len(set(colors)) == len(windows)
    for color, (top, left) in zip(colors, windows, strict=True):
        y, x = (int((400 if edge else 150) * scale) for edge in (top, left))  # covered by this tile only
        first, last = (
            (int(edge * scale) for edge in (top, left)),
            (int((edge + 300) * scale) - 1 for edge in (top, left)),
        )
        (upper, leftmost), (lower, rightmost) = first, last
        for point in ((y, leftmost), (y, rightmost), (upper, x), (lower, x)):
            assert tuple(outlined[point]) == color
        assert tuple(outlined[y, x]) == (40, 40, 40)


def test_only_overlaps_are_shaded():
    background = (200, 210, 220)
    canvas = PIL.Image.new("RGB", (500, 500), background)
    windows = np.array([[0, 0], [0, 200], [200, 0], [200, 200]])
    outlined = np.asarray(drawing._outline(canvas, windows, 300, 1.0))
    by_one, by_two, by_four = outlined[100, 150], outlined[100, 250], outlined[250, 250]
    assert tuple(by_one) == background
    assert tuple(outlined[450, 450]) == background
    distance = [np.abs(pixel.astype(int) - background).sum() for pixel in (by_two, by_four)]
    assert 0 < distance[0] < distance[1]


def test_thumbnail_shows_the_pixel_values(build_processor, make_image):
    processor = build_processor()
    image = make_image(100, 150)
    pixels = processor.image_processor(images=image, return_tensors="pt")["pixel_values"][0]
    expected = ((pixels / 2 + 0.5) * 255).round().byte().permute(1, 2, 0).numpy()
    factor = drawing._PANEL_WIDTH // 56
    expected = expected.repeat(factor, axis=0).repeat(factor, axis=1)[1:-1, 1:-1]  # without the drawn border
    assert len(locate(np.asarray(draw_tiles(image, processor)), expected)) == 1


def test_canvas_shows_the_pixel_values_of_the_tiles(build_processor, make_image):
    processor = build_processor(overlap_margins=[0, 0])  # no shaded overlaps
    image = make_image(100, 100)
    inputs = processor.image_processor(images=image, return_tensors="pt")
    assert inputs["image_grids"].tolist() == [[2, 2]]
    geometry = processor.image_processor.geometry()
    drawn = np.asarray(draw_tiles(image, processor))
    factor = min(drawing._CANVAS_LIMIT) // 112
    positions = []
    for pixels in inputs["pixel_values"][1:]:
        tile = ((pixels / 2 + 0.5) * 255).round().byte().permute(1, 2, 0).numpy()[20:36, 20:36]
        positions += locate(drawn, tile.repeat(factor, axis=0).repeat(factor, axis=1))
    windows = geometry.windows((2, 2)) * factor
    assert (np.array(positions) - positions[0]).tolist() == windows.tolist()


@pytest.mark.parametrize("settings", [{"do_normalize": False}, {"do_rescale": False, "do_normalize": False}])
def test_normalization_settings_do_not_change_the_drawing(build_processor, make_image, settings):
    image = make_image(90, 90)
    normal = np.asarray(draw_tiles(image, build_processor()), int)
    other = np.asarray(draw_tiles(image, build_processor(), **settings), int)
    assert np.abs(normal - other).max() <= 1


def test_arguments_of_the_image_processor(build_processor, make_image):
    processor, image = build_processor(), make_image(300, 300)
    assert draw_tiles(image, processor, max_crops=1).size != draw_tiles(image, processor, max_crops=12).size
    with pytest.raises(ValueError, match="max_crops"):
        draw_tiles(image, processor, max_crops=0)


def test_path_and_image_give_the_same_drawing(build_processor, make_image, tmp_path):
    processor, image = build_processor(), make_image(70, 90)
    image.save(tmp_path / "image.png")
    assert draw_tiles(str(tmp_path / "image.png"), processor).tobytes() == draw_tiles(image, processor).tobytes()


def test_published_layout(released_processor, make_image):
    drawn = draw_tiles(make_image(910, 1176), released_processor, {"What is it?": "An image."})
    assert drawn.width == drawing._WIDTH


def test_answers_only_change_the_text(build_processor, make_image):
    processor, image = build_processor(), make_image(100, 150)
    without_text = np.asarray(draw_tiles(image, processor))
    with_text = np.asarray(draw_tiles(image, processor, {"What is it?": "An image."}))
    height = min(len(without_text), len(with_text))
    differs = (without_text[:height] != with_text[:height]).any(axis=(1, 2))
    assert len(with_text) > len(without_text) or differs.any()
    assert not differs[: height // 2].any()


def test_text_is_wrapped():
    font = ImageFont.load_default(18)
    text = "several words and one thatisfartoolongtofitintotheline and\nanother line"
    lines = drawing._wrap(text, font, 120)
    assert all(font.getlength(line) <= 120 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "").replace("\n", "")
    assert lines[-1] == "another line"


def test_missing_font_is_an_error(build_processor, make_image):
    with pytest.raises(OSError, match="resource"):
        draw_tiles(make_image(50, 50), build_processor(), font="no-such-font.ttf")
