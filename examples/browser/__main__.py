# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Builds a folder with a web page that answers about images in the browser; its server only serves files.

    python -m examples.browser --output page
    python -m http.server --directory page      # then open http://localhost:8000

    python -m examples.browser --model my-jina-vlm-onnx --output page

It needs `npm` once, to download two packages into `build/npm`.
"""

from jvlm_cli.command_line import argument_parser, run

from .build import PACKAGES_FOLDER, build_page


def main(argv: list[str] | None = None) -> None:
    parser = argument_parser("python -m examples.browser", __doc__)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to create")
    parser.add_argument("--model", metavar="DIR", help="an export for ONNX Runtime, by default of the shipped model")
    parser.add_argument(
        "--packages", default=PACKAGES_FOLDER, metavar="DIR", help="where the npm packages (.tgz) are or will be"
    )
    print(f"Saved: {run(parser, build_page, argv)}. Serve it: python -m http.server --directory DIR")


if __name__ == "__main__":
    main()
