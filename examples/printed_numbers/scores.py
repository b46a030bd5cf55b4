# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Counts the exact answers that a fine-tuned model gave to the test rows, by fonts and by the number of digits:

    python -m examples.printed_numbers.scores --data numbers/test --answers reader/answers.jsonl
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path


def count(data: Path, answers: Path) -> dict[str, tuple[int, int]]:
    """
    Counts the answers of `jvlm.training.finetune`.

    Args:
        data (`Path`): folder of the test rows.
        answers (`Path`): the file answers.jsonl.

    Returns:
        `dict[str, tuple[int, int]]`: numbers of right and of all answers for `"seen fonts"`, `"held-out fonts"`,
        `"1 digit"` and so on, and `"all"`.

    Raises:
        ValueError: if the answers are not those to the test rows.
    """
    rows = [json.loads(line) for line in (data / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    counts: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for line in answers.read_text(encoding="utf-8").splitlines():
        answer = json.loads(line)
        row = rows[answer["row"]] if answer["row"] < len(rows) else None
        if row is None or row["answer"] != answer["reference"]:
            raise ValueError(f"{answers} has another answer in row {answer['row']} than {data}.")
        length = len(row["answer"].split())
        for part in (f"{row['fonts']} fonts", f"{length} digit{'s' * (length > 1)}", "all"):
            right, total = counts[part]
            counts[part] = right + int(answer["score"]), total + 1
    return dict(counts)


def markdown(counts: dict[str, tuple[int, int]]) -> str:
    """The counts as a table."""
    order = sorted(counts, key=lambda part: (part == "all", "digit" in part, part))
    lines = ["| test rows | exact answers | rate |", "|---|---:|---:|"]
    for part in order:
        right, total = counts[part]
        lines.append(f"| {part} | {right} of {total} | {right / total:.1%} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Counts exact answers by fonts and number of digits.")
    parser.add_argument("--data", required=True, type=Path, help="folder of the test rows")
    parser.add_argument("--answers", required=True, type=Path, help="answers.jsonl of the fine-tuned model")
    args = parser.parse_args(argv)
    print(markdown(count(args.data, args.answers)))


if __name__ == "__main__":
    main()
