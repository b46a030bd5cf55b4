# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Chats about images in the terminal. Each line is a message; an answer is printed while it is written.

    jvlm chat photo.jpg --model jinaai/jina-vlm

/image FILE   adds an image to the next message
/clear        forgets the conversation
/exit         ends the chat, as the end of the input does
"""

import argparse
import sys

from .answering import Answerer, add_model_options, print_answer, user_message


def main(argv: list[str] | None = None) -> int | None:
    parser = argparse.ArgumentParser(
        "jvlm chat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="path or URL of an image of the first message")
    add_model_options(parser)
    args = vars(parser.parse_args(argv))
    images = args.pop("images")
    try:
        answerer = Answerer(**args)
        load = answerer.processor.image_processor.fetch_images
        _chat(answerer, [load(image) for image in images])
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    return None


def _chat(answerer: Answerer, images: list) -> None:
    messages: list[dict] = []
    while (line := _read_line()) is not None:
        command, _, argument = line.partition(" ")
        if command == "/exit":
            break
        try:
            if command == "/clear":
                messages, images = [], []
            elif command == "/image":
                images.append(answerer.processor.image_processor.fetch_images(argument.strip()))
            elif line:
                turn = user_message(images, line)
                answer = print_answer(answerer.stream([*messages, turn]))
                messages, images = [*messages, turn, {"role": "assistant", "content": answer}], []
        except (OSError, ValueError) as error:  # of this line; the chat goes on
            print(f"jvlm chat: error: {error}", file=sys.stderr)


def _read_line() -> str | None:
    """The next line without spaces around it, `None` at the end of the input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
