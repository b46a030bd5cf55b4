# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Opens a local web page: choose an image, see its tiles as the model gets them, and ask questions about it.

    jvlm demo
    jvlm demo --model jinaai/jina-vlm --port 7861
"""

from .answering import Answerer, add_model_options
from .command_line import argument_parser, run


def main(argv: list[str] | None = None) -> int | None:
    parser = argument_parser("jvlm demo", __doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; by default this machine only")
    parser.add_argument("--port", type=int, help="port to listen on; by default the first free one from 7860")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page in a browser")
    add_model_options(parser)
    return run(parser, demo, argv)


def demo(host: str = "127.0.0.1", port: int | None = None, no_browser: bool = False, **options) -> None:
    """
    Serves the web page until the program is stopped.

    Raises:
        OSError, ValueError: if Gradio is not installed, the checkpoint cannot be read, or the port is in use.
    """
    try:
        from .web_page import web_page
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError("the page needs Gradio; install it with `pip install 'jvlm[page]'`.") from error
    web_page(Answerer(**options)).launch(server_name=host, server_port=port, inbrowser=not no_browser)
