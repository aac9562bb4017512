"""What is told of a study where there is no terminal."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from ablations.launch.local import Event
from ablations.progress import StudyTable


def test_without_a_terminal_a_line_per_minute_says_how_far_all_are(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    said = io.StringIO()
    table = StudyTable(Console(file=said, width=40))  # a log has no width: lines are not broken
    for name, label in (("a", "none seed 0"), ("b", "canny seed 0"), ("c", "hed seed 0")):
        table.add(name, label, 1, 300)
    with table.shown():
        table.heard(Event("a", "finished", {}))
        table.heard(Event("b", "started", {"slot": "cpu0", "attempt": 0}))
        for step in range(1, 201):
            now[0] += 0.7
            table.heard(Event("b", "step", {"step": step, "loss": 0.5}))
    assert said.getvalue().splitlines() == [
        "none seed 0: done",
        "canny seed 0: starting on cpu0",
        "1 of 3 trainings are done; canny seed 0 86/300 steps, 2:28 left",
        "1 of 3 trainings are done; canny seed 0 172/300 steps, 1:29 left",
    ]


def test_what_is_left_is_that_of_the_training_that_takes_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    said = io.StringIO()
    table = StudyTable(Console(file=said))
    for name, steps in (("a", 600), ("b", 690)):
        table.add(name, name, 1, steps)
    for step in range(1, 70):
        now[0] += 1
        for name in ("a", "b"):
            table.heard(Event(name, "step", {"step": step, "loss": 0.5}))
    line = "0 of 2 trainings are done; a 61/600 steps, b 60/690 steps, 10:30 left\n"
    assert said.getvalue() == line  # a's 8:59 comes after 10:30 in the alphabet
