# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Formats results as a Markdown table and plots the growth curves."""

import statistics
from pathlib import Path


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def gigabytes(num_bytes: int | None) -> str:
    if num_bytes is None:
        return ""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def _ratio(ratios: list[float]) -> str:
    """The median with the smallest and the largest ratio of a round."""
    if not ratios:
        return ""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def _notes(record: dict) -> str:
    notes = []
    if "tokens_per_second" in record:
        notes.append(f"{record['tokens_per_second']:.2f} tokens/s")
    if "held_memory" in record:
        notes.append(f"holds {gigabytes(record['held_memory'])}")
    if "agreement" in record:
        notes.append(f"{record['agreement']:.0%} of the answers as in {record.get('like', 'bfloat16')}")
    return ", ".join(notes)


def table(results: list[dict]) -> str:
    """
    Args:
        results (`list[dict]`): results of `python -m benchmarks`, one per stage.

    Returns:
        `str`: a Markdown table with the median seconds, peak memory and ratios of every case.
    """
    lines = [
        "| stage | case | what | median | ratio | wanted | peak memory | |",
        "|---|---|---|---:|---:|---|---:|---|",
    ]
    for result in results:
        for record in result["records"]:
            cells = (
                f"{result['stage'].replace('_', ' ')}, {result['dtype']}",
                record["case"],
                record["name"],
                _seconds(record["median"]),
                _ratio(record["ratios"]),
                record["wanted"],
                gigabytes(record["peak_memory"]),
                _notes(record),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(results: list[dict], path: Path) -> bool:
    """Plots the growth curves of the results and returns whether there are any. Requires matplotlib."""
    curves = {}
    for result in results:
        for record in result["records"]:
            if "axis" in record:
                label = f"{record['name']}, {result['dtype']}"
                points = curves.setdefault(record["axis"], {}).setdefault(label, [])
                points.append((record["value"], record["median"]))
    if not curves:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(curves), 3.5), layout="constrained")
    for axes, (axis, lines) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for label, points in lines.items():
            axes.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
        axes.set(xlabel=axis, ylabel="seconds", xlim=0, ylim=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    return True
