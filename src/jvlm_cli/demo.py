# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Opens a local web page: choose an image, see its tiles as the model gets them, and ask questions about it.

    jvlm demo
    jvlm demo --model jinaai/jina-vlm --port 7861
"""

import argparse

from .answering import Answerer, add_model_options


def main(argv: list[str] | None = None) -> int | None:
    parser = argparse.ArgumentParser(
        "jvlm demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; by default this machine only")
    parser.add_argument("--port", type=int, help="port to listen on; by default the first free one from 7860")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page in a browser")
    add_model_options(parser)
    args = vars(parser.parse_args(argv))
    host, port, no_browser = args.pop("host"), args.pop("port"), args.pop("no_browser")
    try:
        from .web_page import web_page
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        parser.exit(1, f"{parser.prog}: error: the page needs Gradio; install it with `pip install 'jvlm[page]'`.\n")
    try:
        web_page(Answerer(**args)).launch(server_name=host, server_port=port, inbrowser=not no_browser)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    return None
