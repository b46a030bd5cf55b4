# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The soak program: its report, and the detection of answers that change."""

import pytest

from benchmarks import soak


def test_fit_line():
    seconds = [10.0, 20.0, 30.0, 40.0]
    slope, explained, share = soak.fit_line(seconds, [100, 120, 140, 160])
    assert (slope, explained, share) == (pytest.approx(2), pytest.approx(1), pytest.approx(60 / 130))
    assert soak.fit_line(seconds, [7, 7, 7, 7]) == (pytest.approx(0), 0, pytest.approx(0))
    slope, explained, _ = soak.fit_line(seconds, [100, 160, 100, 160])
    assert slope == pytest.approx(1.2)
    assert explained == pytest.approx(0.2)


@pytest.fixture
def short(monkeypatch):
    """Arguments for a short soak with three repeated conversations."""
    monkeypatch.setattr(soak, "NUM_REPEATED", 3)
    monkeypatch.setattr(soak, "SECONDS_BETWEEN_SAMPLES", 0)
    return ["--minutes", "0.02"]


def test_report(short, capsys):
    assert soak.main(short) == 0
    printed = capsys.readouterr().out
    assert "all answers of the 3 repeated conversations were the same" in printed
    assert "resident memory" in printed
    assert "MB/hour" in printed


def test_changed_answers_are_detected(short, monkeypatch, capsys):
    answers = iter(range(10**9))

    def build(*args, **kwargs):
        return lambda **call: [{"generated_text": str(next(answers))}]

    monkeypatch.setattr(soak, "pipeline", build)
    assert soak.main(short) == 1
    assert "answers that changed when repeated: conversations [0, 1, 2]" in capsys.readouterr().out


def test_conversations_are_deterministic():
    samples = soak.load_samples("train")
    first, second = (soak.conversation(samples, 0, 40)[0]["content"] for _ in range(2))
    assert [part.get("text") for part in first] == [part.get("text") for part in second]
    images = [[part["image"].tobytes() for part in content if "image" in part] for content in (first, second)]
    assert images[0] == images[1] != []
