# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Serves a model by OpenAI's chat API on port 8000 of this machine. It is `transformers serve` with JinaVLM's classes
registered, and takes its options.

    jvlm serve
    jvlm serve jinaai/jina-vlm --port 9000
"""

import argparse
from pathlib import Path

from .answering import find_checkpoint, shipped_model
from .command_line import argument_parser


def _gigabytes(text: str) -> int:
    """A number of gigabytes, in bytes."""
    try:
        size = float(text) * 1e9
    except ValueError:
        size = 0
    if not 1 <= size < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return int(size)


def main(argv: list[str] | None = None) -> int | None:
    parser = argument_parser("jvlm serve", __doc__)
    parser.usage = "jvlm serve [MODEL] [OPTION ...]"
    parser.epilog = "`transformers serve --help` lists all other options."
    parser.add_argument("model", nargs="?", metavar="MODEL", help="folder or Hub id; by default the shipped model")
    options = argparse.ArgumentParser(prog=parser.prog, usage=parser.usage, add_help=False, allow_abbrev=False)
    for each in (parser, options):  # `options` leaves the arguments of `transformers serve` alone
        each.add_argument(
            "--image-cache-gb",
            type=_gigabytes,
            metavar="GB",
            help="keep the features of images up to this size, for further questions about them",
        )
    argv = list(argv or [])
    if argv[:1] in (["-h"], ["--help"]):
        parser.parse_args(argv)
    args, argv = options.parse_known_args(argv)
    model = argv.pop(0) if argv and not argv[0].startswith("-") else str(shipped_model())
    try:
        if not Path(model).exists():
            name, _, revision = model.partition("@")
            find_checkpoint(name, revision or None)
    except OSError as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")

    from transformers.cli.transformers import app

    import jvlm  # registers the classes

    if args.image_cache_gb is not None:
        jvlm.JinaVLMModel.image_cache = jvlm.ImageFeatureCache(args.image_cache_gb)
    return app(["serve", model, *argv])
