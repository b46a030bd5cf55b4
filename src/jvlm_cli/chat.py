# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Chats about images in the terminal. Each line is a message; an answer is printed while it is written.

    jvlm chat photo.jpg --model jinaai/jina-vlm

/image FILE   adds an image to the next message
/clear        forgets the conversation
/help         prints these lines
/exit         ends the chat, as the end of the input does
"""

import sys

from .answering import Answerer, add_model_options, note_cut_answer, print_answer, user_message
from .command_line import argument_parser, run


_COMMANDS = str(__doc__)[str(__doc__).index("/image") :].rstrip()


def main(argv: list[str] | None = None) -> int | None:
    parser = argument_parser("jvlm chat", __doc__)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="path or URL of an image of the first message")
    add_model_options(parser)
    return run(parser, chat, argv)


def chat(images: list[str], **options) -> None:
    """
    Reads messages from the standard input and prints the answers. The first message is about `images`, which the model
    reads once for all messages, as long as there are no later ones.

    Raises:
        OSError, ValueError: if the checkpoint or one of these images cannot be read.
    """
    answerer = Answerer(**options)
    load = answerer.processor.image_processor.fetch_images
    images = load(images)
    messages: list[dict] = []
    pages = None  # the images of the first message, if no other message has images
    while (line := _read_line()) is not None:
        command, _, argument = line.partition(" ")
        if command == "/exit":
            break
        try:
            if command == "/help":
                print(_COMMANDS)
            elif command == "/clear":
                messages, images, pages = [], [], None
            elif command == "/image":
                images.append(load(argument.strip()))
            elif line:
                turn = user_message(images, line)
                if images:
                    pages = None if messages else answerer.read(images)
                if pages is None:
                    pieces = answerer.stream([*messages, turn])
                else:
                    pieces = answerer.stream_about(pages, [*map(_without_images, messages), user_message([], line)])
                answer = print_answer(pieces)
                note_cut_answer(answerer, "jvlm chat")
                messages, images = [*messages, turn, {"role": "assistant", "content": answer}], []
        except (OSError, ValueError) as error:  # of this line; the chat goes on
            print(f"jvlm chat: error: {error}", file=sys.stderr)


def _without_images(message: dict) -> dict:
    content = message["content"]
    return message if isinstance(content, str) else {**message, "content": content[-1:]}  # the text comes last


def _read_line() -> str | None:
    """The next line without spaces around it, `None` at the end of the input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
