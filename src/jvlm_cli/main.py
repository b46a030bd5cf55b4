# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The command `jvlm`: finds the program of a subcommand and runs it. `python -m jvlm` is the same."""

import argparse
import sys
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec

from .command_line import argument_parser


# Subcommand: its module, which has `main(argv) -> int | None`, and its line in the help.
COMMANDS = {
    "ask": ("jvlm_cli.ask", "ask a question about images"),
    "batch": ("jvlm_cli.batch", "answer questions about thousands of images"),
    "chat": ("jvlm_cli.chat", "chat about images in the terminal"),
    "demo": ("jvlm_cli.demo", "open a web page to ask about images and see their tiles"),
    "serve": ("jvlm_cli.serve", "answer requests of OpenAI's chat API"),
    "compose": ("jvlm.conversion_scripts.compose_from_pretrained", "build a model from SigLIP2 and Qwen3 checkpoints"),
    "convert": ("jvlm.conversion_scripts.convert_release", "convert the published format, or back to it"),
    "export": ("jvlm.conversion_scripts.export_to_hub", "write a folder that loads without this package; push it"),
    "export-runtime": ("jvlm.conversion_scripts.export_runtime", "write graphs for ONNX Runtime, OpenVINO and others"),
    "evaluate": ("jvlm.evaluation.evaluate", "run the benchmarks of the paper with lmms-eval and lm-eval"),
    "finetune": ("jvlm.training.finetune", "fine-tune a model on your own images and conversations"),
    "verify": ("jvlm.conversion_scripts.verify", "compare two checkpoints stage by stage"),
}


# Subcommands that need an extra: the packages by which it is recognised, and its name.
EXTRAS = {
    "finetune": (("datasets", "peft"), "train"),
    "serve": (("fastapi", "uvicorn", "openai"), "serve"),
}


def missing_extra(command: str) -> str | None:
    """What to install before a subcommand can run, if anything is missing."""
    packages, extra = EXTRAS.get(command, ((), ""))
    missing = [package for package in packages if find_spec(package) is None]
    return f"it needs {', '.join(missing)}; install with `pip install 'jvlm[{extra}]'`." if missing else None


def main(argv: list[str] | None = None) -> int | None:
    """
    Runs a subcommand.

    Args:
        argv (`list[str]`, *optional*): arguments, by default those of the process.

    Returns:
        `int` or `None`: the exit status of the subcommand, `None` for success.
    """
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    parser = argument_parser("jvlm", "JinaVLM: asks, serves, converts and trains vision-language models.")
    parser.epilog = "\n".join(["commands:", *lines, "", "`jvlm COMMAND --help` shows the options of a command."])
    parser.add_argument("--version", action="version", version=f"jvlm {version('jvlm')}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="arguments of the command")
    args = parser.parse_args(argv)
    if (reason := missing_extra(args.command)) is not None:
        parser.exit(1, f"jvlm {args.command}: error: {reason}\n")
    return import_module(COMMANDS[args.command][0]).main(args.arguments)


if __name__ == "__main__":
    sys.exit(main())
