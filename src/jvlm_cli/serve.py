# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Serves a model by OpenAI's chat API on port 8000 of this machine. It is `transformers serve` with JinaVLM's classes
registered, and takes its options.

    jvlm serve
    jvlm serve jinaai/jina-vlm --port 9000
"""

import argparse

from .answering import shipped_model


def main(argv: list[str] | None = None) -> int | None:
    parser = argparse.ArgumentParser(
        "jvlm serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="jvlm serve [MODEL] [OPTION ...]",
        epilog="`transformers serve --help` lists all other options.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="folder or Hub id; by default the shipped model")
    argv = list(argv or [])
    if argv[:1] in (["-h"], ["--help"]):
        parser.parse_args(argv)
    model = argv.pop(0) if argv and not argv[0].startswith("-") else str(shipped_model())

    from transformers.cli.transformers import app

    import jvlm  # noqa: F401 - registers the classes

    return app(["serve", model, *argv])
