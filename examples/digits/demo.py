# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Asks the shipped model about held-out pages of handwriting, and draws how each page is split into tiles:

    python -m examples.digits.demo [--output demo.png]
    python -m examples.digits.demo --image page.png --question "How many digits are there?"
"""

import argparse
from pathlib import Path

import PIL.Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from jvlm import draw_tiles

from .evaluate import MODEL, conversation, model_folder
from .pages import MAX_DIGITS, QUESTIONS, READ, held_out_pages


GRIDS = [(1, 1), (1, 3), (2, 2), (3, 4)]


def load(folder: str | Path):
    """Loads the model, in float32, and the processor of a folder."""
    return AutoModelForImageTextToText.from_pretrained(folder, dtype="float32"), AutoProcessor.from_pretrained(folder)


def ask(
    model, processor, image: str | PIL.Image.Image, question: str, max_new_tokens: int = 4 + 2 * MAX_DIGITS
) -> tuple[str, dict]:
    """
    Asks one question about an image, given as PIL image, path or URL.

    Returns:
        `tuple[str, dict]`: the answer, and the numbers of `image_tokens`, including markers, and `text_tokens` in the
        prompt.
    """
    inputs = processor.apply_chat_template(
        conversation(image, question),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"return_mm_token_type_ids": True},
    )
    num_image_tokens = int(inputs.pop("mm_token_type_ids").sum())
    length = inputs["input_ids"].shape[1]
    output = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    answer = processor.decode(output[0, length:], skip_special_tokens=True).strip()
    return answer, {"image_tokens": num_image_tokens, "text_tokens": length - num_image_tokens}


def sheet(images: list[PIL.Image.Image], cols: int = 2) -> PIL.Image.Image:
    """Arranges images in rows of `cols` on a white background."""
    lines = [images[start : start + cols] for start in range(0, len(images), cols)]
    lefts = [0]
    for column in range(cols):
        lefts.append(lefts[-1] + max(line[column].width for line in lines if column < len(line)))
    paper = PIL.Image.new("RGB", (lefts[-1], sum(max(image.height for image in line) for line in lines)), "white")
    top = 0
    for line in lines:
        for image, left in zip(line, lefts):  # noqa: B905 - the last line may be shorter
            paper.paste(image, (left, top))
        top += max(image.height for image in line)
    return paper


def demo(folder: str | Path = MODEL, output: str | Path = "demo.png") -> tuple[int, int]:
    """
    Asks every question about one held-out page for each of `GRIDS`, prints the answers and draws the pages.

    Returns:
        `tuple[int, int]`: the number of correct answers and of all answers.
    """
    model, processor = load(folder)
    pages = {page.grid: page for page in reversed(held_out_pages())}
    drawings, right = [], 0
    for grid in GRIDS:
        page, answers = pages[grid], {}
        for number, question in enumerate(QUESTIONS):
            answer, counts = ask(model, processor, page.image, question)
            if number == 0:
                print(describe(processor, page.image, counts))
            is_right = answer == page.answer(question)
            right += is_right
            verdict = "right" if is_right else f"wrong, it is {page.answer(question)}"
            print(f"  {question:<37}{answer:<13}{verdict}")
            answers[question] = f"{answer}   ({verdict})"
        drawings.append(draw_tiles(page.image, processor, answers))
    total = len(GRIDS) * len(QUESTIONS)
    print(f"\n{right} of {total} answers are right.")
    save(sheet(drawings), output)
    return right, total


def describe(processor, image: PIL.Image.Image, counts: dict) -> str:
    rows, cols = processor.image_processor.get_image_grid(image.height, image.width)
    return (
        f"\nA page of {image.width} × {image.height} pixels: {rows} × {cols} tiles and a thumbnail, "
        f"{counts['image_tokens']} image tokens + {counts['text_tokens']} text tokens"
    )


def save(drawing: PIL.Image.Image, output: str | Path) -> None:
    drawing.save(output)
    print(f"What the model saw: {Path(output).resolve()}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Asks the shipped model about handwritten pages.")
    parser.add_argument("--model", default=str(MODEL), type=model_folder, help="folder with model and processor")
    parser.add_argument("--output", default="demo.png", type=Path, help="the image to write")
    parser.add_argument("--image", help="path or URL of an image to ask about, instead of held-out pages")
    parser.add_argument("--question", default=READ, help="what to ask about --image")
    args = parser.parse_args(argv)
    if args.image is None:
        demo(args.model, args.output)
        return
    model, processor = load(args.model)
    image = processor.image_processor.fetch_images(args.image)
    answer, counts = ask(model, processor, image, args.question)
    print(describe(processor, image, counts))
    print(f"  {args.question}  {answer}")
    save(draw_tiles(image, processor, {args.question: answer}), args.output)


if __name__ == "__main__":
    main()
