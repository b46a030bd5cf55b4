# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Runs only where `make conformance` has unpacked Transformers' common tests, and counts what it overrides."""

import os
from collections import Counter


os.environ["RUN_SLOW"] = (
    "1"  # before `transformers.testing_utils`: the slow ones that need no accelerator are quick here
)

import upstream


if (upstream.FOLDER / "tests").is_dir():
    upstream.install()
else:
    collect_ignore_glob = ["test_*.py"]

OVERRIDES = {}


def pytest_collection_modifyitems(items):
    for item in items:
        reason = getattr(getattr(item, "function", None), "override_reason", None)
        if reason is not None:
            OVERRIDES[item.nodeid] = reason


def pytest_terminal_summary(terminalreporter):
    outcomes, skips = {}, {}
    for outcome in ("passed", "skipped", "failed", "error"):  # a test is what the worst of its parts is
        for report in terminalreporter.stats.get(outcome, []):
            outcomes[report.nodeid] = outcome
            if outcome == "skipped":
                reason = report.longrepr[2].removeprefix("Skipped: ")
                skips[report.nodeid] = "the task of another pipeline" if "model_mapping" in reason else reason
    for name in OVERRIDES.keys() & outcomes.keys():
        if outcomes[name] in ("passed", "skipped"):
            outcomes[name] = "overridden"
    reasons = {
        "skipped": Counter(skips[name] for name, outcome in outcomes.items() if outcome == "skipped"),
        "overridden": Counter(OVERRIDES[name] for name, outcome in outcomes.items() if outcome == "overridden"),
        "not run": Counter(upstream.NOT_RUN),
    }
    terminalreporter.section("conformance")
    for title, counts in reasons.items():
        terminalreporter.line(f"{title}:")
        for reason, count in counts.most_common():
            terminalreporter.line(f"  {count:3} × {reason}")
    counts = Counter(outcomes.values())
    terminalreporter.line(
        ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "skipped", "overridden", "failed", "error"))
    )
