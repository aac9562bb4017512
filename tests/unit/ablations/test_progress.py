"""What is printed of a study where there is no terminal."""

from __future__ import annotations

import time

import pytest

from ablations.launch.local import Event
from ablations.progress import StudyProgress


def test_without_a_terminal_a_line_per_minute_says_how_far_all_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with StudyProgress({"a": ("none seed 0", 300), "b": ("canny seed 0", 300)}) as progress:
        progress.show(Event("a", "finished"))
        progress.show(Event("b", "started", {"slot": "cpu0"}))
        for step in range(1, 101):
            now[0] += 0.7
            progress.show(Event("b", "step", {"step": step, "loss": 0.5}))
    said = capsys.readouterr()
    assert said.out.splitlines() == ["none seed 0: finished", "canny seed 0: started on cpu0"]
    (line,) = said.err.splitlines()
    assert line.startswith("study  386/600  steps  canny seed 0 86/300 loss 0.5000")
