# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Writes a data set of printed numbers on crops of pale photographs, for `jvlm.training.finetune`:

    python -m examples.printed_numbers.data --output_dir numbers [--num_train 16000] [--num_test 1000]

OUT/train and OUT/test are folders of images with a file metadata.jsonl each, with `file_name`, `question`, `answer`,
`font`, `fonts` (`"seen"` or `"held-out"`) and `photograph`. Needs scikit-image and scikit-learn, whose photographs it
crops, and matplotlib, which finds the installed fonts. The fonts of other machines give other images.

Question and answers have the form that the digit model knows: "Which digits are written here?", "4 0 7".

The first training rows are easy: dark numbers on white. The photographs appear little by little. Train in this
order. The test rows have other photographs than the training rows, and half of them other fonts.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import skimage.data
from matplotlib import font_manager
from sklearn.datasets import load_sample_images

from ..digits.pages import READ


MAX_DIGITS = 5
SEEN, HELD_OUT = "seen", "held-out"
TEST_PHOTOGRAPHS = ("china", "flower", "stereo_motorcycle")
TRAIN_PHOTOGRAPHS = ("astronaut", "brick", "camera", "chelsea", "coffee", "grass", "gravel", "rocket")
STRENGTH = 0.6  # of the photographs, which are blended with white
GROWTH = 0.6  # the photographs of the first training rows are pale: up to this part of the rows
HAIRLINE = 150  # of 255: digits that are paler than this at 24 pixels cannot be read at smaller sizes
# Families with symbols in place of digits.
NO_DIGITS = ("cmex10", "cmsy10", "Dingbats", "D050000L", "Keyboard", "Symbols", "Symbols2")


def load_photograph(name: str) -> PIL.Image.Image:
    """A photograph of scikit-image or scikit-learn by its name."""
    if name in ("china", "flower"):
        samples = load_sample_images()
        return PIL.Image.fromarray(samples.images[[Path(path).stem for path in samples.filenames].index(name)])
    image = getattr(skimage.data, name)()
    return PIL.Image.fromarray(image[0] if isinstance(image, tuple) else image).convert("RGB")


def find_fonts() -> dict[str, list[str]]:
    """
    The installed fonts with ten different digits, without hairlines: paths by the first word of the name of the
    family. Families such as "Noto Sans" and "Noto Serif" are one, because many of them share their digits.
    """
    shipped = Path(font_manager.__file__).parent / "mpl-data" / "fonts" / "ttf"
    fonts = defaultdict(list)
    for path in sorted({*font_manager.findSystemFonts(), *map(str, shipped.glob("*.ttf"))}):
        try:
            font = PIL.ImageFont.truetype(path, 24)
            glyphs = {bytes(font.getmask(character)) for character in "0123456789\uffff"}
            darkest = min(max(bytes(font.getmask(character)), default=0) for character in "0123456789")
        except (OSError, ValueError):  # not every file can be drawn
            continue
        name = font.getname()[0] or ""
        if len(glyphs) == 11 and darkest >= HAIRLINE and name.split() and not set(name.split()) & set(NO_DIGITS):
            fonts[name.split()[0]].append(path)
    return dict(fonts)


def split_fonts(fonts: dict[str, list[str]], seed: int = 0) -> dict[str, list[list[str]]]:
    """A quarter of the families, at random, is held out. Returns lists of the paths of each family."""
    names = np.random.default_rng(seed).permutation(sorted(fonts)).tolist()
    num_held_out = max(1, len(names) // 4)
    return {HELD_OUT: [fonts[n] for n in names[:num_held_out]], SEEN: [fonts[n] for n in names[num_held_out:]]}


def draw_number(
    photograph: PIL.Image.Image, font_path: str, rng: np.random.Generator, strength: float = 1.0
) -> tuple[PIL.Image.Image, str]:
    """
    A number of 1 to `MAX_DIGITS` digits on a crop of a photograph, somewhat rotated, in a colour that differs in
    brightness from what is behind it. The crop has 72 to 136 × 40 to 56 pixels. `strength` is that of the photograph:
    with 0 the number is dark on white.
    """
    number = "".join(map(str, rng.integers(0, 10, rng.integers(1, MAX_DIGITS + 1))))
    width, height = int(rng.integers(72, 137)), int(rng.integers(40, 57))
    scale = rng.uniform(1, 3)  # of the photograph's pixels to those of the crop
    size = min(int(width * scale), photograph.width), min(int(height * scale), photograph.height)
    left, top = (int(rng.integers(0, whole - part + 1)) for whole, part in zip(photograph.size, size, strict=True))
    box = (left, top, left + size[0], top + size[1])
    crop = photograph.resize((width, height), PIL.Image.Resampling.BICUBIC, box)
    crop = PIL.Image.blend(PIL.Image.new("RGB", crop.size, "white"), crop, strength)

    angle = rng.uniform(-6, 6)
    for font_size in range(int(rng.integers(16, 29)), 7, -1):  # the largest size that fits
        font = PIL.ImageFont.truetype(font_path, font_size)
        bounds = font.getbbox(number, anchor="ls")
        text = PIL.Image.new("L", (bounds[2] - bounds[0] + 4, bounds[3] - bounds[1] + 4))
        PIL.ImageDraw.Draw(text).text((2 - bounds[0], 2 - bounds[1]), number, fill=255, font=font, anchor="ls")
        text = text.rotate(angle, PIL.Image.Resampling.BICUBIC, expand=True)
        if text.width <= width and text.height <= height:
            break
    x, y = int(rng.integers(0, width - text.width + 1)), int(rng.integers(0, height - text.height + 1))
    behind = np.asarray(crop.convert("L").crop((x, y, x + text.width, y + text.height))).mean()
    colour = rng.integers(0, 256, 3)
    contrast = min(190 - 100 * strength, 0.7 * max(behind, 255 - behind))
    while abs(colour @ (0.299, 0.587, 0.114) - behind) < contrast:
        colour = rng.integers(0, 256, 3)
    crop.paste(tuple(map(int, colour)), (x, y), text)
    return crop, number


def draw_rows(
    split: str, count: int, fonts: dict[str, list[list[str]]], seed: int
) -> Iterator[tuple[PIL.Image.Image, dict]]:
    """Images and their lines of metadata.jsonl, without `file_name`. Families are drawn first, then their fonts."""
    names = TRAIN_PHOTOGRAPHS if split == "train" else TEST_PHOTOGRAPHS
    photographs = {name: load_photograph(name) for name in names}
    for index in range(count):
        rng = np.random.default_rng([seed, split == "test", index])
        kind = HELD_OUT if split == "test" and index % 2 else SEEN
        families = fonts[kind]
        family = families[rng.integers(len(families))]
        path = family[rng.integers(len(family))]
        name = names[rng.integers(len(names))]
        strength = STRENGTH if split == "test" else STRENGTH * min(1.0, index / (GROWTH * count))
        image, number = draw_number(photographs[name], path, rng, strength)
        yield (
            image,
            {
                "question": READ,
                "answer": " ".join(number),
                "font": Path(path).name,
                "fonts": kind,
                "photograph": name,
            },
        )


def write(output_dir: Path, num_train: int = 16000, num_test: int = 1000, seed: int = 0) -> None:
    """Writes both splits; see the module docstring."""
    families = find_fonts()
    fonts = split_fonts(families, seed)
    for split, count in (("train", num_train), ("test", num_test)):
        folder = output_dir / split
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for index, (image, row) in enumerate(draw_rows(split, count, fonts, seed)):
            name = f"{index:05}.png"
            image.save(folder / name)
            lines.append(json.dumps({"file_name": name, **row}) + "\n")
        (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    counts = {kind: f"{sum(map(len, fonts[kind]))} fonts of {len(fonts[kind])} families {kind}" for kind in fonts}
    print(f"{output_dir}: {num_train} training and {num_test} test rows, {counts[SEEN]}, {counts[HELD_OUT]}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Writes a data set of printed numbers on crops of photographs.")
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--num_train", default=16000, type=int)
    parser.add_argument("--num_test", default=1000, type=int)
    parser.add_argument("--seed", default=0, type=int)
    args = parser.parse_args(argv)
    write(args.output_dir, args.num_train, args.num_test, args.seed)


if __name__ == "__main__":
    main()
