# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Compares time and memory of the model with those of its components and of other models:

    python -m benchmarks [--size tiny] [--dtype bfloat16] [--device cpu] [--stages vision decode ...] [--output DIR]

All weights and images are random; nothing is downloaded. A stage alternates between the model and its baseline in one
process. Its result is written to DIR/results.json when it finishes, so stages can be run separately; a repeated stage
replaces its previous result. DIR/results.md contains the table and DIR/growth.png the growth curves. `full` needs
10 GB of memory in bfloat16 and 16 GB in float32; the end-to-end stages need memory for two models. Peak memory is the
memory that a call allocates in addition to the memory allocated before. A ratio is relative to the last line of a
case: the median of those of the rounds, with the smallest and the largest. With fewer than three rounds there is none.
"""

import argparse
import json
import os
import platform
from pathlib import Path

import torch
import transformers

from . import report
from .models import SIZES, Bench
from .stages import STAGES


def machine(device: torch.device) -> dict:
    """Describes the hardware and the library versions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor()
    return {
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def select(names: list[str]) -> list[str]:
    """
    Selects stages by name or prefix: `growth` selects all growth stages. No names select all stages.

    Raises:
        ValueError: if a name matches no stage.
    """
    for name in names:
        if not any(stage.startswith(name) for stage in STAGES):
            raise ValueError(f"There is no stage {name!r}; choose from {', '.join(STAGES)}.")
    return [stage for stage in STAGES if not names or any(stage.startswith(name) for name in names)]


def run(size: str, dtype: str, device: str, stages: list[str], output: Path, max_seconds: float = 240.0) -> list[dict]:
    """
    Runs stages and writes their results.

    Args:
        size (`str`): one of `SIZES`.
        dtype (`str`): `"bfloat16"`, `"float16"` or `"float32"`.
        device (`str`): device of the models, `"cpu"` or `"cuda"`.
        stages (`list[str]`): names in `STAGES`.
        output (`Path`): folder of the results.
        max_seconds (`float`, *optional*, defaults to 240): approximate time limit of a comparison. Every comparison
            runs at least one round.

    Returns:
        `list[dict]`: all results in the folder, including those of previous runs.
    """
    output.mkdir(parents=True, exist_ok=True)
    path = output / "results.json"
    results = json.loads(path.read_text()) if path.exists() else []
    bench = Bench(size, getattr(torch, dtype), torch.device(device), max_seconds)
    for stage in stages:
        print(f"{stage}, {size}, {dtype}, {device}", flush=True)
        setting = {"stage": stage, "size": size, "dtype": dtype, "device": device}
        result = {**setting, **machine(bench.device), "records": STAGES[stage](bench)}
        print(report.table([result]), flush=True)
        results = [other for other in results if any(other[name] != value for name, value in setting.items())]
        results.append(result)
        results.sort(key=lambda entry: list(STAGES).index(entry["stage"]))
        path.write_text(json.dumps(results, indent=1) + "\n")
        (output / "results.md").write_text(report.table(results) + "\n")
    report.plot(results, output / "growth.png")
    return results


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--size", choices=SIZES, default="tiny", help="full is the model of the figure")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--device", default=default, help="cpu or cuda; default: cuda if available")
    parser.add_argument(
        "--stages",
        nargs="+",
        default=[],
        metavar="STAGE",
        help=f"names or prefixes of {', '.join(STAGES)}; default: all",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("build/benchmarks"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--seconds", type=float, default=240.0, help="approximate limit per comparison, default: %(default)s"
    )
    args = parser.parse_args(argv)
    try:
        stages = select(args.stages)
    except ValueError as error:
        parser.error(str(error))
    run(args.size, args.dtype, args.device, stages, args.output, args.seconds)


if __name__ == "__main__":
    main()
