# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Answers questions about many images. The output is a JSONL file with one line for each row of the input:

    jvlm batch scans answers.jsonl --question "What is the total?"
    jvlm batch rows.jsonl answers.jsonl --batch-size 16
    jvlm batch pages.parquet answers.jsonl --columns question=query image=page

The input is a folder of images, a JSONL file with columns `question` and `image` or `images`, or any data set that
`jvlm finetune` reads. A row that cannot be answered keeps its line, with the error. An interrupted run goes on when
the same command is repeated. Several processes or machines share the rows with --shard 1/4, --shard 2/4 and so on,
each with an output of its own. The exit status is 0 if every row has an answer, 1 if some have errors, and 2 if the
command cannot run.
"""

import argparse
import functools
import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from .answering import Answerer, add_model_options, choose_device, choose_dtype, find_checkpoint
from .batch_answers import AnswerLines
from .command_line import argument_parser, run


ENGINES = ("transformers", "vllm")


def main(argv: list[str] | None = None) -> int | None:
    parser = argument_parser("jvlm batch", __doc__)
    parser.add_argument("input", metavar="INPUT", help="a folder of images, a JSONL file or a data set")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="JSONL file of the answers")
    parser.add_argument("--question", help="one question about all images")
    parser.add_argument(
        "--columns",
        nargs="+",
        type=_column,
        default=[],
        metavar="NAME=COLUMN",
        help="columns of other names, for example question=query image=page",
    )
    parser.add_argument(
        "--image-folder",
        metavar="DIR",
        help="where relative paths of images begin; by default the folder of the input",
    )
    parser.add_argument(
        "--image-marker",
        default="<image>",
        metavar="TEXT",
        help="what marks the place of an image in a question, by default %(default)s; '' for nothing",
    )
    parser.add_argument("--split", default="train", help="split of a data set, by default %(default)s")
    parser.add_argument(
        "--shard", type=_shard, default=(1, 1), metavar="I/N", help="only every N-th row, from the I-th on"
    )
    parser.add_argument(
        "--batch-size", type=_positive, metavar="N", help="rows of a batch, by default 8, or 64 with vLLM"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=min(8, max(1, (os.cpu_count() or 1) // 2)),
        metavar="N",
        help="processes that read and cut images ahead, by default half the cores, at most 8; 0 for none",
    )
    parser.add_argument(
        "--engine", choices=ENGINES, default=ENGINES[0], help="what runs the model, by default %(default)s"
    )
    parser.add_argument(
        "--vllm-args",
        type=_json,
        default={},
        metavar="JSON",
        help="arguments of vllm.LLM, for example '{\"tensor_parallel_size\": 2}'",
    )
    add_model_options(parser)
    try:
        return run(parser, batch, argv, status=2)
    except KeyboardInterrupt:
        print("\njvlm batch: interrupted. The same command goes on from here.", file=sys.stderr)
        return 130


def _column(text: str) -> tuple[str, str]:
    name, sign, column = text.partition("=")
    if not (name and sign and column):
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=COLUMN, such as question=query")
    return name, column


def _json(text: str) -> dict:
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from error


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} must be I/N with I from 1 to N, such as 1/4")
    return int(match[1]), int(match[2])


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a positive integer")
    return int(text)


def batch(
    input: str,
    output: Path,
    question: str | None = None,
    columns: list[tuple[str, str]] | None = None,
    image_folder: str | None = None,
    image_marker: str = "<image>",
    split: str = "train",
    shard: tuple[int, int] = (1, 1),
    batch_size: int | None = None,
    workers: int = 0,
    engine: str = "transformers",
    vllm_args: dict[str, Any] | None = None,
    model: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    max_crops: int | None = None,
    max_new_tokens: int = 512,
) -> int:
    """
    Answers the rows of `input` that have no line in `output` yet. The arguments are those of the command.

    Returns:
        `int`: 0 if every row of the shard has an answer, 1 if some have an error.

    Raises:
        OSError, ValueError: if the input or the checkpoint cannot be read, or `output` cannot be continued.
    """
    from transformers import AutoConfig, AutoProcessor
    from transformers.utils import logging

    import jvlm  # noqa: F401 - registers the classes
    from jvlm.evaluation.fingerprint import files_of

    from .batch_rows import (
        ImageFiles,
        LengthBatches,
        PromptMaker,
        QuestionFormat,
        RowReader,
        collate_conversations,
        collate_inputs,
        load_batches,
        open_rows,
    )

    is_vllm = engine == "vllm"
    if is_vllm and device is not None:
        raise ValueError("--device is not for --engine vllm, which chooses the device itself.")
    if vllm_args and not is_vllm:
        raise ValueError("--vllm-args is for --engine vllm only.")
    rows = open_rows(input, split)
    if isinstance(rows, ImageFiles) and question is None:
        raise ValueError(f"{input} is a folder of images; give the --question about them.")
    row_format = QuestionFormat.of(
        input, image_folder, columns=dict(columns or []), question=question, image_marker=image_marker
    )
    row_format.check_columns(rows)
    checkpoint = find_checkpoint(model)
    config, processor = AutoConfig.from_pretrained(checkpoint), AutoProcessor.from_pretrained(checkpoint)
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    settings = {
        "input": str(Path(input).resolve()) if Path(input).exists() else input,
        "files of the input": _hash(_input_files(files_of(input), input, rows, output)),
        "rows": len(rows),
        **{"split": split, "question": question, "columns": dict(columns or []), "image_folder": image_folder},
        **{"image_marker": image_marker, "shard": f"{shard[0]}/{shard[1]}", "model": checkpoint},
        "files of the model": _hash(files_of(checkpoint) or getattr(config, "_commit_hash", None)),
        **{"dtype": dtype, "max_crops": max_crops, "max_new_tokens": max_new_tokens},
        **{"engine": engine, "vllm_args": vllm_args or {}},
    }
    numbers = range(shard[0] - 1, len(rows), shard[1])
    images_kwargs = {} if max_crops is None else {"max_crops": max_crops}
    maker = PromptMaker(processor, images_kwargs, config.text_config.max_position_embeddings)
    collate = functools.partial(collate_conversations if is_vllm else collate_inputs, maker=maker)
    with AnswerLines(output, settings, numbers) as lines:
        left = [number for number in numbers if number not in lines.done]
        sorter = None if is_vllm else maker  # vLLM puts its batches together itself
        batches = LengthBatches(left, batch_size or (64 if is_vllm else 8), RowReader(rows, row_format), sorter)
        # The workers start before the model is there, so that they neither wait for it nor share its memory.
        loaded: Any = iter(load_batches(batches, collate, workers)) if left else ()
        answer: Any = None
        with logging.tqdm(total=len(numbers), initial=len(lines.done), desc="Rows", unit="row") as progress:
            for each in loaded:
                results = [(row, {"error": row.error}) for row in each.bad_rows]
                if each.rows:
                    if answer is None:
                        answer = _start_engine(checkpoint, processor, settings, device, images_kwargs)
                    results += zip(each.rows, answer(each), strict=True)
                lines.append(row.line(result) for row, result in results)
                progress.update(len(results))
        num_answers = len(lines.done) - lines.num_errors
        print(f"{len(numbers)} rows: {num_answers} answers, {lines.num_errors} errors. They are in {output}.")
        return 1 if lines.num_errors else 0


def _start_engine(checkpoint: str, processor: Any, settings: dict, device: str, images_kwargs: dict) -> Any:
    from .batch_engines import TransformersEngine, VllmEngine

    dtype, max_new_tokens = settings["dtype"], settings["max_new_tokens"]
    if settings["engine"] == "vllm":
        vllm_args = {"mm_processor_kwargs": images_kwargs, "dtype": dtype, **settings["vllm_args"]}
        return VllmEngine(checkpoint, processor, max_new_tokens, vllm_args)
    return TransformersEngine(Answerer(checkpoint, dtype, device, max_new_tokens=max_new_tokens))


def _input_files(files: list, input: str, rows: Any, output: Path) -> list:
    """Those of the files of a folder that are read, without the output, which may be among them; or of one file."""
    path = Path(input).resolve()
    if path.is_file():
        return [path.stat().st_size, path.stat().st_mtime_ns]
    outputs = {output.resolve(), output.with_name(f"{output.name}.settings.json").resolve()}
    names = set(getattr(rows, "names", [name for name, *_ in files]))
    return [file for file in files if file[0] in names and path / file[0] not in outputs]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
