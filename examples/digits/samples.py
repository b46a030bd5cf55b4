# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Writes the sample images beside the shipped model: held-out pages, a question about each and the model's answer.

    python -m examples.digits.samples
"""

import json
from pathlib import Path

import PIL.Image

from .demo import ask, load
from .evaluate import MODEL
from .pages import COUNT, LARGEST, READ, held_out_pages


# Grid of the page and the question about it.
SAMPLES = [((1, 1), READ), ((1, 3), COUNT), ((2, 2), READ), ((3, 4), LARGEST)]


def write_samples(folder: Path, rows: list[tuple[str, PIL.Image.Image, str, str]], **settings) -> None:
    """
    Writes `samples` into the folder of a model: images, and samples.json with a question about each and the model's
    answer.

    Args:
        folder (`Path`): folder with model and processor.
        rows (`list[tuple[str, PIL.Image.Image, str, str]]`): file name, image, question and right answer.
        settings: settings of [`ask`].
    """
    model, processor = load(folder)
    output = Path(folder) / "samples"
    output.mkdir(exist_ok=True)
    samples = []
    for name, image, question, right in rows:
        image.save(output / name)
        with PIL.Image.open(output / name) as saved:
            answer, _ = ask(model, processor, saved, question, **settings)
        samples.append({"image": name, "question": question, "answer": answer})
        print(f"{name}  {question}  {answer}  ({'right' if answer == right else f'wrong, it is {right}'})")
    (output / "samples.json").write_text(json.dumps(samples, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(folder: Path = MODEL) -> None:
    rows = []
    for grid, question in SAMPLES:
        page = next(page for page in held_out_pages() if page.grid == grid)
        rows.append((f"page-{grid[0]}x{grid[1]}.png", page.image, question, page.answer(question)))
    write_samples(folder, rows)


if __name__ == "__main__":
    main()
