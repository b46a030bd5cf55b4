# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Exports a model to every runtime that is installed and compares it with PyTorch.

    python -m benchmarks.runtimes [--only onnx openvino-int8] [--pages 360]
    python -m benchmarks.runtimes --size full [--only onnx-int8]

The first form asks the shipped model, and a twin of it in the stitched layout, all questions about the held-out
pages, with grids from 1×1 to 3×4, in left-padded batches, and counts the answers whose greedy tokens are PyTorch's.
The second one measures a model with random weights: time and memory of the export and of loading it, and time to the
first token of a prompt with an image of one tile and for each further token, in turn, each in a process of its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.utils import logging

import jvlm
from examples.digits.evaluate import MODEL, conversation, rows_of
from examples.digits.pages import GRIDS, MAX_DIGITS, held_out_pages
from jvlm.conversion_scripts.export_runtime import export_runtime
from jvlm.runtimes import JinaVLMRuntimeModel
from jvlm.runtimes.sessions import PACKAGES

from .measure import anonymous_memory
from .models import SIZES, build_config, random_model


# Runtime, dtype and format of weights.
VARIANTS = {
    "onnx": ("onnx", "float32", None),
    "openvino": ("openvino", "float32", None),
    "torch": ("torch", "float32", None),
    "executorch": ("executorch", "float32", None),
    "onnx-float16": ("onnx", "float16", None),
    "onnx-int8": ("onnx", "float32", "int8"),
    "onnx-int4": ("onnx", "float32", "int4"),
    "openvino-int8": ("openvino", "float32", "int8"),
    "openvino-int4": ("openvino", "float32", "int4"),
}
QWEN3 = Path(__file__).parents[1] / "tests" / "fixtures" / "qwen3_tokenizer"
BATCH = 24
NEW_TOKENS = 8
MAX_TOKENS = 1024


def installed(names: list[str] | None) -> list[str]:
    """What to run: `names`, by default all variants whose runtime is installed."""
    found = [name for name, (runtime, *_) in VARIANTS.items() if find_spec(PACKAGES[runtime][0].partition(".")[0])]
    if missing := set(names or ()) - {*found, "compiled"}:
        raise SystemExit(f"The runtimes of {', '.join(sorted(missing))} are not installed.")
    return names or found


def stitched_twin(folder: Path) -> Path:
    """The shipped model in the stitched layout, which it was not trained for, with a random last-tile embedding."""
    settings = AutoModelForImageTextToText.from_pretrained(MODEL).config.to_dict()
    changes = {"layout": "stitched", "pooled_grid": None, "use_last_tile_embedding": True}
    config = jvlm.JinaVLMConfig(**{**settings, **changes})
    model, _ = jvlm.JinaVLMForConditionalGeneration.from_pretrained(MODEL, config=config, output_loading_info=True)
    torch.nn.init.normal_(model.model.connector.last_tile_embedding, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(MODEL)
    processor.image_processor.layout = "stitched"
    processor.image_processor.pooled_grid = None
    jvlm.JinaVLMProcessor(processor.image_processor, processor.tokenizer, add_bos_token=True).save_pretrained(folder)
    return folder


def answers(model, processor, rows: list, batch: int = BATCH) -> list[list[int]]:
    """The greedy tokens of all questions."""
    processor.tokenizer.padding_side = "left"
    found = []
    for start in logging.tqdm(range(0, len(rows), batch), desc="Questions", unit="batch"):
        inputs = processor.apply_chat_template(
            [conversation(page.image, question) for page, question in rows[start : start + batch]],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=4 + 2 * MAX_DIGITS)
        found += tokens[:, inputs["input_ids"].shape[1] :].tolist()
    stop = processor.tokenizer.eos_token_id
    return [tokens[: tokens.index(stop)] if stop in tokens else tokens for tokens in found]


def compare(names: list[str], num_pages: int, workspace: Path, layouts: list[str]) -> str:
    """A table of the answers that are equal to PyTorch's, and of those that are right."""
    rows = rows_of(held_out_pages(num_pages))
    lines = ["| layout | runtime | tokens as PyTorch's | right answers |", "|---|---|---:|---:|"]
    for layout in layouts:
        folder = MODEL if layout == "independent" else stitched_twin(workspace / "stitched")
        processor = AutoProcessor.from_pretrained(folder)
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
        expected = answers(model, processor, rows)
        for name in ["PyTorch", *names]:
            found = expected
            if name == "compiled":
                found = answers(compiled(model), processor, rows)
            elif name != "PyTorch":
                runtime, dtype, weights = VARIANTS[name]
                exported = export_runtime(folder, runtime, workspace / f"{layout}-{name}", dtype, weights)
                batch = 4 if runtime == "executorch" else BATCH  # what its programs have memory for
                found = answers(JinaVLMRuntimeModel.from_pretrained(exported), processor, rows, batch)
            same = sum(one == other for one, other in zip(found, expected, strict=True))
            texts = [processor.decode(tokens, skip_special_tokens=True).strip() for tokens in found]
            right = sum(text == page.answer(question) for text, (page, question) in zip(texts, rows, strict=True))
            cells = [layout, name, f"{same} of {len(rows)}", f"{right} of {len(rows)}"]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return "\n".join([f"{num_pages} held-out pages, {len(GRIDS)} grids.", "", *lines])


def compiled(model):
    """The model, compiled for all numbers of tokens."""
    model.forward = torch.compile(model.forward, dynamic=True)
    return model


class Peak:
    """Largest anonymous memory of this process while the block runs, in bytes, and its seconds."""

    def __enter__(self) -> "Peak":
        self.bytes, self.is_done = 0, False
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_) -> None:
        self.seconds, self.is_done = time.perf_counter() - self.start, True
        self.thread.join()

    def _watch(self) -> None:
        while not self.is_done:
            self.bytes = max(self.bytes, anonymous_memory() or 0)
            time.sleep(0.05)


def random_checkpoint(size: str, folder: Path) -> None:
    """A model of a size with random weights in bfloat16, and a processor with Qwen3's tokenizer."""
    full, fields = build_config("full"), SIZES[size]
    text_config = {**fields.get("text_config", {}), "vocab_size": full.text_config.vocab_size}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        text_config[name] = getattr(full.text_config, name)
    # ExecuTorch reserves memory for that many tokens, and no other runtime reads it.
    text_config["max_position_embeddings"] = full.text_config.max_position_embeddings = MAX_TOKENS
    config = jvlm.JinaVLMConfig(**{**fields, "text_config": text_config}) if fields else full
    model = random_model(jvlm.JinaVLMForConditionalGeneration, config, torch.bfloat16, torch.device("cpu"))
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(QWEN3)
    jvlm.add_image_tokens(tokenizer, config.image_start_token_id)
    jvlm.JinaVLMProcessor(jvlm.JinaVLMImageProcessor(), tokenizer).save_pretrained(folder)


def step(what: str, folder: Path, output: Path) -> dict[str, float]:
    """One measurement, in a process of its own: `export:VARIANT`, `run:VARIANT`, `run:eager` or `run:compiled`."""
    kind, _, name = what.partition(":")
    torch.manual_seed(0)
    if kind == "export":
        runtime, dtype, weights = VARIANTS[name]
        with Peak() as peak:
            export_runtime(folder, runtime, output, dtype, weights)
        size = sum(file.stat().st_size for file in output.iterdir())
        return {"export_s": peak.seconds, "export_gb": peak.bytes / 1e9, "files_gb": size / 1e9}
    with Peak() as loading:
        if name in ("eager", "compiled"):
            model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").eval()
        else:
            model = JinaVLMRuntimeModel.from_pretrained(output, num_threads=torch.get_num_threads())
    if name == "compiled":
        model = compiled(model)
    config = model.config
    cells = config.pooled_shape[0] * config.pooled_shape[1]
    side = config.vision_config.image_size
    ids = torch.full((1, 2 * cells + 12), config.image_token_id)
    ids[0, 2 * cells :] = torch.arange(100, 112)
    tile = torch.rand(1, 3, side, side) * 2 - 1
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": tile.repeat(2, 1, 1, 1),
        "image_token_positions": torch.arange(2 * cells).view(2, cells),
    }
    times = []

    class Clock:
        def put(self, _):
            times.append(time.perf_counter())

        def end(self):
            pass

    rounds = 2 if name == "compiled" else 1  # the first one compiles
    with Peak() as running:
        for _ in range(rounds):
            times.clear()
            if name not in ("eager", "compiled"):
                model.model.vision_tower.kept.clear()
            model.generate(
                **inputs,
                do_sample=False,
                min_new_tokens=NEW_TOKENS,
                max_new_tokens=NEW_TOKENS,
                streamer=Clock(),
            )
    first, *_, last = times[1:]
    return {
        "load_s": loading.seconds,
        "first_s": first - times[0],
        "next_s": (last - first) / (NEW_TOKENS - 1),
        "run_gb": max(running.bytes, loading.bytes) / 1e9,
    }


def run_step(what: str, *folders: Path) -> dict[str, float] | None:
    """What [`step`] measures, in a process of its own; `None` if that failed."""
    command = [sys.executable, "-m", "benchmarks.runtimes", "--step", what, *map(str, folders)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(f"{what} failed with {done.returncode}", flush=True)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def measure(size: str, names: list[str], workspace: Path, num_rounds: int = 3) -> str:
    """
    A table of the measurements at a size. What the workspace has from an earlier call is not exported again. All
    variants are run in turn, round by round.
    """
    checkpoint = workspace / "checkpoint"
    if not checkpoint.is_dir():
        random_checkpoint(size, checkpoint)
    exports: dict[str, dict | None] = {name: {} for name in ("eager", "compiled") if name in ("eager", *names)}
    for name in names:
        path = workspace / f"{name}.json"
        if name not in exports and not path.exists():
            exports[name] = run_step(f"export:{name}", checkpoint, workspace / name)
            if exports[name] is not None:
                path.write_text(json.dumps(exports[name]) + "\n")
        elif name not in exports:
            exports[name] = json.loads(path.read_text())
    found = {name: values for name, values in exports.items() if values is not None}
    runs: dict[str, list[dict]] = {name: [] for name in found}
    for _ in range(num_rounds):
        for name in found:
            runs[name].append(run_step(f"run:{name}", checkpoint, workspace / name) or {})
    return table(found, runs)


def table(exports: dict[str, dict], runs: dict[str, list[dict]]) -> str:
    """
    Markdown of medians, with the ratios to `eager` of the rounds: their median, the smallest and the largest.

    Args:
        exports (`dict`): `export_s`, `export_gb` and `files_gb` of every variant, empty without an export.
        runs (`dict`): `load_s`, `first_s`, `next_s` and `run_gb` of every variant, round by round.
    """
    lines = [
        "| runtime | export (s) | its memory (GB) | files (GB) | load (s) | first token (s) | to eager "
        "| further token (s) | to eager | memory (GB) |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, each in exports.items():
        rounds = [(run, eager) for run, eager in zip(runs[name], runs["eager"], strict=True) if run and eager]
        cells = [name, *(f"{each[column]:.3g}" if each else "–" for column in ("export_s", "export_gb", "files_gb"))]
        for column in ("load_s", "first_s", "next_s", "run_gb") if rounds else ():
            cells.append(f"{statistics.median(run[column] for run, _ in rounds):.3g}")
            if column in ("first_s", "next_s"):
                ratios = sorted(run[column] / eager[column] for run, eager in rounds)
                interval = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"
                cells.append("" if name == "eager" else interval)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*VARIANTS, "compiled"], help="what to export")
    parser.add_argument("--layouts", nargs="+", default=["independent", "stitched"])
    parser.add_argument("--pages", type=int, default=360, help="number of held-out pages")
    parser.add_argument("--size", choices=["medium", "full"], help="measure a model of this size")
    parser.add_argument("--workspace", type=Path, help="folder for the exports, by default a temporary one")
    parser.add_argument("--rounds", type=int, default=3, help="of the measurement, default: %(default)s")
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.step:
        what, folder, output = args.step
        print(json.dumps(step(what, Path(folder), Path(output))))
        return
    names = installed(args.only)
    with tempfile.TemporaryDirectory() as temporary:
        workspace = args.workspace or Path(temporary)
        if args.size:
            print("\n" + measure(args.size, names, workspace, args.rounds))
        else:
            print("\n" + compare(names, args.pages, workspace, args.layouts))


if __name__ == "__main__":
    main()
