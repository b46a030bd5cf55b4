# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Counts the code lines of Python files, without blank lines, comments and docstrings:

    python tools/code_lines.py modeling/modeling_jvlm.py processing/*.py
"""

import ast
import io
import sys
import tokenize
from pathlib import Path


IGNORED = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def docstring_lines(tree: ast.AST) -> set[int]:
    """The lines of all docstrings."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if ast.get_docstring(node) is not None:
            first = node.body[0]
            lines.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return lines


def code_lines(source: str) -> int:
    """The number of lines with code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in IGNORED:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstring_lines(ast.parse(source)))


def main(files: list[str]) -> None:
    total = 0
    for file in files:
        count = code_lines(Path(file).read_text(encoding="utf-8"))
        total += count
        print(f"{count:6} {file}")
    print(f"{total:6} total")


if __name__ == "__main__":
    main(sys.argv[1:])
