# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Asks a question about one or more images and prints the answer while it is written:

    jvlm ask page.png "Which digits are written here?"
    jvlm ask left.jpg right.jpg "What is different?" --model jinaai/jina-vlm
    jvlm ask page.png "How many digits are there?" --tiles tiles.png
"""

import argparse
from pathlib import Path

from .answering import Answerer, add_model_options, print_answer, user_message


def main(argv: list[str] | None = None) -> int | None:
    parser = argparse.ArgumentParser(
        "jvlm ask", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="path or URL of an image")
    parser.add_argument("question", help="what to ask about the images")
    parser.add_argument(
        "--tiles", type=Path, metavar="FILE", help="also draw how the images are cut into tiles: FILE, FILE-2, …"
    )
    add_model_options(parser)
    args = vars(parser.parse_args(argv))
    images, question, tiles = args.pop("images"), args.pop("question"), args.pop("tiles")
    try:
        answer = ask(images, question, tiles, **args)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    return None if answer else 1


def ask(images: list[str], question: str, tiles: Path | None = None, **options) -> str:
    """
    Asks a question about images, prints the answer, and draws the tiles of each image if `tiles` is a path.

    Returns:
        `str`: the answer.

    Raises:
        OSError, ValueError: if the checkpoint or an image cannot be read, or a drawing cannot be written.
    """
    answerer = Answerer(**options)
    pixels = [answerer.processor.image_processor.fetch_images(image) for image in images]
    answer = print_answer(answerer.stream([user_message(pixels, question)]))
    if tiles is not None:
        from jvlm import draw_tiles

        for number, image in enumerate(pixels, start=1):
            path = tiles if number == 1 else tiles.with_stem(f"{tiles.stem}-{number}")
            draw_tiles(image, answerer.processor, {question: answer}, **answerer.images_kwargs).save(path)
            print(f"The tiles of {images[number - 1]}: {path}")
    return answer
