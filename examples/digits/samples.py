# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Writes the sample images beside the shipped model: held-out pages, a question about each and the model's answer.

    python -m examples.digits.samples
"""

import json
from pathlib import Path

from .demo import ask, load
from .evaluate import MODEL
from .pages import COUNT, LARGEST, READ, held_out_pages


# Grid of the page and the question about it.
SAMPLES = [((1, 1), READ), ((1, 3), COUNT), ((2, 2), READ), ((3, 4), LARGEST)]


def main(folder: Path = MODEL) -> None:
    model, processor = load(folder)
    output = Path(folder) / "samples"
    output.mkdir(exist_ok=True)
    samples = []
    for grid, question in SAMPLES:
        page = next(page for page in held_out_pages() if page.grid == grid)
        name = f"page-{grid[0]}x{grid[1]}.png"
        page.image.save(output / name)
        answer, _ = ask(model, processor, page.image, question)
        samples.append({"image": name, "question": question, "answer": answer})
        verdict = "right" if answer == page.answer(question) else f"wrong, it is {page.answer(question)}"
        print(f"{name}  {question}  {answer}  ({verdict})")
    (output / "samples.json").write_text(json.dumps(samples, indent=2) + "\n")


if __name__ == "__main__":
    main()
