# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Asks a question about one or more images and prints the answer while it is written:

    jvlm ask page.png "Which digits are written here?"
    jvlm ask left.jpg right.jpg "What is different?" --model jinaai/jina-vlm
    jvlm ask page.png "How many digits are there?" --tiles tiles.png
    jvlm ask page.png "Which digit is at the top left?" --evidence evidence.png
    jvlm ask page.png "Which digits are written here?" --json-schema schema.json
"""

import json
from pathlib import Path

from .answering import Answerer, add_model_options, note_cut_answer, print_answer, user_message
from .command_line import argument_parser, run


def main(argv: list[str] | None = None) -> int | None:
    parser = argument_parser("jvlm ask", __doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="path or URL of an image")
    parser.add_argument("question", help="what to ask about the images")
    parser.add_argument(
        "--tiles", type=Path, metavar="FILE", help="also draw how the images are cut into tiles: FILE, FILE-2, …"
    )
    parser.add_argument(
        "--evidence",
        type=Path,
        metavar="FILE",
        help="also draw where in the image the answer comes from; only for a checkpoint for which it was measured how "
        "often that is right",
    )
    parser.add_argument(
        "--json-schema", type=Path, metavar="FILE", help="answer in JSON that follows the JSON Schema in this file"
    )
    add_model_options(parser)
    return None if run(parser, ask, argv) else 1


def ask(
    images: list[str],
    question: str,
    tiles: Path | None = None,
    evidence: Path | None = None,
    json_schema: Path | None = None,
    **options,
) -> str:
    """
    Asks a question about images and prints the answer. Draws the tiles of each image if `tiles` is a path, and where
    the answer comes from if `evidence` is one. With `json_schema`, the answer is JSON, which is printed once it is
    complete.

    Returns:
        `str`: the answer.

    Raises:
        OSError, ValueError: if the checkpoint, an image or the schema cannot be read, if `max_new_tokens` cuts a JSON
            answer, if a drawing cannot be written, and if `evidence` is given with several images or for a checkpoint
            without a measurement of it.
    """
    if evidence is not None and len(images) != 1:
        raise ValueError(f"--evidence needs exactly one image, got {len(images)}.")
    _check_drawings({"--tiles": tiles, "--evidence": evidence}, images)
    schema = None if json_schema is None else _read_schema(json_schema)
    answerer = Answerer(**options)
    if evidence is not None:
        from jvlm import EvidenceMeasurement

        measurement = EvidenceMeasurement.from_pretrained(answerer.id)
    pixels = [answerer.processor.image_processor.fetch_images(image) for image in images]
    messages = [user_message(pixels, question)]
    if schema is None:
        answer = print_answer(answerer.stream(messages))
        note_cut_answer(answerer, "jvlm ask")
    else:
        answer = _json_answer(answerer, messages, schema)
        print(answer)
    if tiles is not None:
        from jvlm import draw_tiles

        for number, image in enumerate(pixels, start=1):
            path = tiles if number == 1 else tiles.with_stem(f"{tiles.stem}-{number}")
            draw_tiles(image, answerer.processor, {question: answer}, **answerer.images_kwargs).save(path)
            print(f"The tiles of {images[number - 1]}: {path}")
    if evidence is not None:
        from jvlm import draw_evidence, find_evidence

        context = (answerer.model, answerer.processor, pixels[0], question, answer)
        found = find_evidence(*context, layer=measurement.layer, **answerer.images_kwargs)
        draw_evidence(pixels[0], answerer.processor, found, str(measurement), {question: answer}).save(evidence)
        print(f"Where the answer comes from: {evidence}. {measurement}")
    return answer


def _check_drawings(paths: dict[str, Path | None], images: list[str]) -> None:
    """Raises a `ValueError` if a drawing cannot be written, or would replace another one or an image."""
    import PIL.Image

    taken = {Path(image).resolve(): f"the image {image}" for image in images if "://" not in image}
    extensions = {extension for extension, name in PIL.Image.registered_extensions().items() if name in PIL.Image.SAVE}
    for option, path in paths.items():
        if path is None:
            continue
        if path.suffix.lower() not in extensions:
            raise ValueError(f"{option} {path} must end in .png or the ending of another format of images.")
        if not path.absolute().parent.is_dir():
            raise ValueError(f"{option} {path}: there is no folder {path.absolute().parent}.")
        if path.resolve() in taken:
            raise ValueError(f"{option} {path} would replace {taken[path.resolve()]}.")
        taken[path.resolve()] = f"the drawing of {option}"


def _read_schema(path: Path) -> dict | bool:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--json-schema {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error


def _json_answer(answerer: Answerer, messages: list[dict], schema: dict | bool) -> str:
    try:
        from jvlm.structured import AnswerFormats
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from error
    json_format = AnswerFormats(answerer.model, answerer.processor).json(schema)
    text = "".join(answerer.stream(messages, logits_processor=[json_format]))
    json_format.parse(text)
    return text.strip()
