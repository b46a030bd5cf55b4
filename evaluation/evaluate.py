# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Runs the benchmarks of the paper with lmms-eval and lm-eval, and prints this model's numbers beside the published ones.

    jvlm evaluate --model jinaai/jina-vlm --output_dir evaluated --batch_size 8
    jvlm evaluate --model my-model --suite docvqa chartqa --limit 100

Every benchmark runs in a process of its own. A finished one is not run again with the same settings. An interrupted
one goes on after its last answer. docs/evaluation.md lists the benchmarks.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from jvlm_cli.command_line import argument_parser, run

from .benchmarks import BENCHMARKS, Benchmark
from .fingerprint import files_of


PACKAGES = {"lmms-eval": "lmms_eval", "lm-eval": "lm_eval"}
RESULTS = re.compile(r"\d{8}_\d{6}_results\.json|results_[\dT.-]+\.json")  # of lmms-eval, of lm-eval


@dataclass
class Outcome:
    """The score of a benchmark on the paper's scale, or the reason why there is none."""

    benchmark: Benchmark
    score: float | None = None
    reason: str = ""
    has_failed: bool = False


@dataclass(frozen=True)
class Settings:
    """What changes a score, apart from the benchmark. The arguments of [`evaluate`] of the same names."""

    model: str
    limit: int | None = None
    max_crops: int | None = None
    dtype: str | None = None
    device: str | None = None
    batch_size: int = 1
    include_path: str | None = None
    data_dir: str | None = None


def choose(names: list[str]) -> list[Benchmark]:
    """
    The benchmarks of these names, in the order of the paper.

    Args:
        names (`list[str]`): names as `Benchmark.slug` writes them, or `"paper"` for all.

    Raises:
        ValueError: if there is no benchmark of that name.
    """
    known = {benchmark.slug: benchmark for benchmark in BENCHMARKS}
    wanted = {name.lower() for name in names}
    if unknown := sorted(wanted - {*known, "paper"}):
        raise ValueError(f"There is no benchmark {unknown[0]!r}. Choose paper or some of {', '.join(known)}.")
    return [benchmark for slug, benchmark in known.items() if slug in wanted or "paper" in wanted]


def command(benchmark: Benchmark, settings: Settings, folder: Path) -> list[str]:
    """
    The command that measures a benchmark.

    Args:
        benchmark ([`Benchmark`]): one with a task.
        settings ([`Settings`]): with absolute paths.
        folder (`Path`): gets answers; in `task/` the task file for local data; in `harness/` what the harness writes.

    Raises:
        ValueError: if a value cannot be written in the syntax of the harness.
    """
    is_chat = benchmark.harness == "lmms-eval"
    dtype = settings.dtype or (None if is_chat else "auto")
    model_args = {"pretrained": settings.model, "dtype": dtype, "max_crops": settings.max_crops}
    if is_chat:
        model_args["answers"] = str(folder / "answers.jsonl")
    for name, value in model_args.items():
        if any(sign in str(value) for sign in ",="):
            raise ValueError(f"The harnesses cannot read `{name}` with a comma or an equals sign: {value}")
    joined = ",".join(f"{name}={value}" for name, value in model_args.items() if value is not None)
    task, include_path = benchmark.task, settings.include_path
    if settings.data_dir:
        task, include_path = f"{benchmark.task}_local", str(folder / "task")
    start = ["lmms_eval", "--model", "jvlm", "--verbosity", "WARNING"]
    if not is_chat:
        start = ["jvlm.evaluation.lm_eval", "run", "--model", "jvlm", "--apply_chat_template"]
    optional = {"--limit": settings.limit, "--device": settings.device, "--include_path": include_path}
    return [
        sys.executable,
        "-m",
        *start,
        *("--model_args", joined, "--tasks", str(task), "--batch_size", str(settings.batch_size)),
        *("--output_path", str(folder / "harness"), "--log_samples"),
        *(str(part) for pair in optional.items() if pair[1] is not None for part in pair),
    ]


def reason_not_to_run(benchmark: Benchmark, settings: Settings) -> str:
    """Why a benchmark cannot run here, empty if it can."""
    if benchmark.task is None:
        return benchmark.unknown
    if settings.data_dir and benchmark.harness == "lm-eval":
        return "lm-eval does not read local data; name a folder of task files with `include_path`"
    if settings.data_dir and not (Path(settings.data_dir) / benchmark.task).is_dir():
        return "no local data"
    if benchmark.judge and "OPENAI_API_KEY" not in os.environ:
        return "a language model scores the answers; set OPENAI_API_KEY"
    try:
        version(PACKAGES[benchmark.harness])
    except ModuleNotFoundError:
        return f"{benchmark.harness} is not installed; pip install 'jvlm[evaluate]'"
    return ""


def write_local_task(benchmark: Benchmark, data: str, folder: Path) -> None:
    """
    Writes a task file: the task of lmms-eval on the data in a folder. It has a name of its own, because the harness
    prefers its tasks to others of the same name.

    Raises:
        ValueError: if no task file of the harness has this task.
    """
    [package] = find_spec("lmms_eval").submodule_search_locations or [""]  # type: ignore[union-attr]
    pattern = re.compile(rf"^task:\s*[\"']?{benchmark.task}[\"']?\s*$", re.MULTILINE)
    files = [file for file in Path(package, "tasks").rglob("*.yaml") if pattern.search(file.read_text("utf-8"))]
    if len(files) != 1:
        raise ValueError(f"{len(files)} task files of lmms-eval have the task {benchmark.task}, expected one.")
    task = {"include": str(files[0]), "task": f"{benchmark.task}_local", "dataset_path": data}
    folder.mkdir(exist_ok=True)
    text = json.dumps({**task, "dataset_name": None, "dataset_kwargs": {"load_from_disk": True}})  # JSON is YAML
    (folder / f"{benchmark.task}_local.yaml").write_text(text)


def problem_of_local_data(benchmark: Benchmark, data: str) -> str:
    """Why the data in a folder is none of a benchmark, empty if it may be. The error of lmms-eval would not tell."""
    file = Path(data, "dataset_dict.json")
    splits = json.loads(file.read_text())["splits"] if file.is_file() else []
    if benchmark.split in splits:
        return ""
    return (
        f"{data} is no data set with a split {benchmark.split}; write it with datasets, "
        f'`DatasetDict({{"{benchmark.split}": rows}}).save_to_disk(folder)`'
    )


def harness_environment() -> dict[str, str]:
    """The variables of a harness's environment: without the Hub, lmms-eval would try for minutes to download data."""
    from huggingface_hub import model_info
    from huggingface_hub.errors import HfHubHTTPError

    try:
        model_info("jinaai/jina-vlm", timeout=10)
    except HfHubHTTPError:
        pass  # the Hub answers
    except Exception:  # its class is that of one of several HTTP libraries
        print("The Hugging Face Hub cannot be reached. Only what is in its cache is used.", flush=True)
        return {**os.environ, "HF_HUB_OFFLINE": "1"}
    return dict(os.environ)


def measure(
    benchmark: Benchmark, settings: Settings, folder: Path, environment: dict[str, str] | None = None
) -> Outcome:
    """
    Runs a benchmark, in the environment of this process or another one, unless `folder` has its result for the same
    settings. The result is written at once when the harness has ended with a number for all rows.
    """
    described = json.loads(json.dumps([asdict(benchmark), asdict(settings)], default=lambda each: each.__name__))
    versions = {name: version(name) for name in ("jvlm", "transformers", PACKAGES[benchmark.harness])}
    data = str(Path(settings.data_dir) / str(benchmark.task)) if settings.data_dir else None
    identity = [described, versions, *map(files_of, (settings.model, settings.include_path, data))]
    result_file, output = folder / "result.json", folder / "harness"
    if result_file.is_file():
        result = json.loads(result_file.read_text())
        if result["identity"] == identity:
            return Outcome(benchmark, result["score"])
        result_file.unlink()
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    if data:
        if problem := problem_of_local_data(benchmark, data):
            return Outcome(benchmark, None, problem, has_failed=True)
        write_local_task(benchmark, data, folder / "task")
    # Tasks write files into the working folder. What they find there must not hide a package.
    status = subprocess.run(command(benchmark, settings, folder), cwd=output, env=environment).returncode
    files = [file for file in output.rglob("*.json") if RESULTS.fullmatch(file.name)]
    if status or len(files) != 1:  # lmms-eval prints errors, but exits with 0
        return Outcome(benchmark, None, f"{benchmark.harness} failed, see above", has_failed=True)
    try:
        score = read_score(benchmark, json.loads(files[0].read_text()), settings.limit)
    except ValueError as error:
        return Outcome(benchmark, None, str(error), has_failed=True)
    part = result_file.with_suffix(".part")
    part.write_text(json.dumps({"identity": identity, "score": score}, indent=2) + "\n")
    part.replace(result_file)
    return Outcome(benchmark, score)


def read_score(benchmark: Benchmark, results: dict, limit: int | None) -> float:
    """
    The score on the paper's scale.

    Args:
        benchmark ([`Benchmark`]): the benchmark.
        results (`dict`): what the harness wrote.
        limit (`int`, *optional*): the number of rows of each task that were asked for.

    Raises:
        ValueError: if a metric is missing, is no number, or was computed on fewer rows.
    """
    for task, count in results["n-samples"].items():
        expected = count["original"] if limit is None else min(limit, count["original"])
        if count["effective"] != expected:
            raise ValueError(f"{task} was scored on {count['effective']} of {expected} rows")
    by_task = {**results.get("groups", {}), **results["results"]}
    found = by_task.get(benchmark.task) or by_task.get(f"{benchmark.task}_local", {})
    values = []
    for metric in benchmark.metrics:
        keys = [key for key in found if key == metric or key.split(",")[0] == metric]
        if len(keys) != 1:
            raise ValueError(f"the results of {benchmark.task} have no single {metric}: {sorted(found)}")
        value = found[keys[0]]
        if isinstance(value, str) and value.endswith("%"):  # of WeMath
            value = float(value.removesuffix("%"))
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{metric} of {benchmark.task} is {value!r}")
        values.append(value)
    return benchmark.combine(values) * benchmark.scale


def markdown(outcomes: list[Outcome], settings: Settings) -> str:
    """The outcomes as Markdown: a table of ours, the published number and the difference, and notes below it."""
    path = Path(settings.model)
    limit = "all rows" if settings.limit is None else f"the first {settings.limit} rows of each task"
    lines = [
        f"Model: {path.resolve().name if path.is_dir() else settings.model}, {limit}. The published numbers are those "
        "of jina-vlm (arXiv 2512.04032), measured with VLMEvalKit and its prompts.",
        "",
        "| group | benchmark | task | ours | published | difference | note |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    notes: list[str] = []
    for outcome in outcomes:
        benchmark, score = outcome.benchmark, outcome.score
        note = outcome.reason or benchmark.unknown
        if note and note not in notes:
            notes.append(note)
        cells = [
            benchmark.group,
            benchmark.name,
            f"`{benchmark.task}`" if benchmark.task else "",
            "" if score is None else f"{score:.1f}",
            f"{benchmark.published:g}",
            "" if score is None else f"{score - benchmark.published:+.1f}",
            f"({notes.index(note) + 1})" if note else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if notes:
        lines += ["", *(f"({number}) {note.rstrip('.')}." for number, note in enumerate(notes, start=1))]
    return "\n".join(lines) + "\n"


def description() -> str:
    """The benchmarks as a Markdown table: what measures them, and the paper's numbers."""
    lines = [
        "| benchmark | harness | task | split | suffix | tokens | metric | published |",
        "|---|---|---|---|---|---:|---|---:|",
    ]
    for each in BENCHMARKS:
        suffix = "" if each.suffix is None else f"`{json.dumps(each.suffix)[1:-1]}`" if each.suffix else "none"
        metrics = ", ".join(f"`{metric}`" for metric in each.metrics) + (" by a judge" if each.judge else "")
        cells = [
            each.name,
            each.harness if each.task else "",
            f"`{each.task}`" if each.task else "unknown",
            each.split or "",
            suffix,
            "" if each.max_new_tokens is None else str(each.max_new_tokens),
            metrics,
            f"{each.published:g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def evaluate(
    model: str = "jinaai/jina-vlm",
    suite: list[str] | None = None,
    output_dir: str = "evaluated",
    dry_run: bool = False,
    **options,
) -> list[Outcome]:
    """
    Measures benchmarks and writes `results.md`.

    Args:
        model (`str`): folder or Hub id of a checkpoint.
        suite (`list[str]`, *optional*): names of benchmarks, by default all of the paper.
        output_dir (`str`): folder for results; each benchmark has a folder in it.
        dry_run (`bool`): whether to print the commands instead.
        options: other values of [`Settings`].

    Returns:
        `list[Outcome]`: in the order of the paper; empty for a dry run.

    Raises:
        OSError: if there is no such model.
        ValueError: if there is no benchmark of a name, or the harness cannot read a path.
    """
    benchmarks = choose(suite or ["paper"])
    for name in ("include_path", "data_dir"):
        if options.get(name) is not None:
            if not Path(options[name]).is_dir():
                raise ValueError(f"`{name}` is no folder: {options[name]}")
            options[name] = str(Path(options[name]).resolve())
    if not (dry_run or Path(model).is_dir()):
        _check_repository(model)
    settings = Settings(str(Path(model).resolve()) if Path(model).is_dir() else model, **options)
    output = Path(output_dir).resolve()
    environment = None if dry_run else harness_environment()
    outcomes = []
    for number, benchmark in enumerate(benchmarks, start=1):
        folder = output / benchmark.slug
        head = f"[{number}/{len(benchmarks)}] {benchmark.name}"
        reason = reason_not_to_run(benchmark, settings)
        if dry_run and benchmark.task is not None:
            print(f"{head}:\n  {' '.join(command(benchmark, settings, folder))}", flush=True)
            if reason:
                print(f"  not now: {reason}", flush=True)
        elif reason:
            print(f"{head}: not run: {reason}", flush=True)
            outcomes.append(Outcome(benchmark, None, reason))
        else:
            print(head, flush=True)
            outcomes.append(outcome := measure(benchmark, settings, folder, environment))
            print(f"{head}: {outcome.reason if outcome.score is None else f'{outcome.score:.1f}'}", flush=True)
    if dry_run:
        return []
    text = markdown(outcomes, settings)
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.md").write_text(text)
    print(f"\n{text}\nWritten to {output / 'results.md'}")
    return outcomes


def _check_repository(model: str) -> None:
    """Raises an `OSError` if there is no such repository, before the harness starts, which takes half a minute."""
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(model)
    except OSError as error:
        raise OSError(f"{model} is neither a folder nor a repository with a model: {error}") from error


def main(argv: list[str] | None = None) -> int:
    parser = argument_parser("jvlm evaluate", __doc__)
    parser.add_argument("--model", default="jinaai/jina-vlm", metavar="ID", help="folder or Hub id of a checkpoint")
    parser.add_argument("--suite", nargs="+", default=["paper"], metavar="NAME", help="paper, or benchmarks by name")
    parser.add_argument("--output_dir", default="evaluated", metavar="DIR", help="folder for the results")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first rows of each task")
    parser.add_argument("--batch_size", type=int, default=1, metavar="N", help="questions at once")
    parser.add_argument("--max_crops", type=int, metavar="N", help="maximum number of tiles of an image")
    parser.add_argument("--dtype", help="by default float32 on a CPU and the checkpoint's elsewhere")
    parser.add_argument("--device", help="for example cpu or cuda:1; by default an accelerator if there is one")
    parser.add_argument("--include_path", metavar="DIR", help="folder with more task files of the harness")
    parser.add_argument(
        "--data_dir",
        metavar="DIR",
        help="read the data of each task from a folder of its name, which `save_to_disk` of datasets wrote, and run "
        "only these",
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands that would run")
    parser.add_argument("--describe", action="store_true", help="print the table of benchmarks and do nothing else")
    outcomes = run(parser, _evaluate_or_describe, argv)
    has_run_nothing = bool(outcomes) and all(outcome.score is None for outcome in outcomes)
    return int(has_run_nothing or any(outcome.has_failed for outcome in outcomes))


def _evaluate_or_describe(describe: bool, **arguments) -> list[Outcome]:
    if describe:
        print(description(), end="")
        return []
    return evaluate(**arguments)


if __name__ == "__main__":
    sys.exit(main())
