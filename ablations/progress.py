"""What a person sees while runs are made: a bar over all steps, and a table of what runs where."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ablations.launch.local import Event
from megasr.console import LINE_EVERY_S

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_REDRAW_S = 0.5


@dataclass
class _Row:
    label: str
    runs: int
    max_steps: int
    state: str = "waiting"
    slot: str = ""
    done: int = 0
    step: int = 0
    loss: float | None = None
    since: float = 0.0
    first_step: int = 0


class StudyTable:
    """A live table of the trainings of a study: state, steps, loss, evaluations done, time left.

    Without a terminal it prints a line whenever a training changes its state, and one per minute that says how far all
    are. No thread redraws it: processes are forked while it is shown.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rows: dict[str, _Row] = {}
        self._live: object | None = None
        self._shown = time.monotonic()

    def add(self, name: str, label: str, runs: int, max_steps: int) -> None:
        """A training that is to be done, and how many runs rest on it."""
        self._rows[name] = _Row(label, runs, max_steps)

    def tell(self, line: str) -> None:
        """Print a line above the table."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=not self._console.is_terminal)

    def heard(self, event: Event) -> None:
        """Show what has happened to a training."""
        row = self._rows[event.task]
        if event.kind == "started":
            row.state, row.slot, row.since, row.done = "starting", event.details["slot"], time.monotonic(), 0
        elif event.kind == "queue":
            row.state, row.slot = event.details["state"], event.details["slot"]
        elif event.kind == "step":
            if row.state != "training":
                row.state, row.since, row.first_step = "training", time.monotonic(), event.details["step"] - 1
            row.step, row.loss = event.details["step"], event.details["loss"]
        elif event.kind == "run":
            row.state, row.done = "evaluating", event.details["number"]
        elif event.kind in ("failed", "crashed"):
            row.state = event.kind
        elif event.kind == "finished":
            row.state, row.done = "done", row.runs
        changed = event.kind != "step"
        if self._console.is_terminal:
            self._draw(changed)
        elif not changed:
            self._tell_steps()
        elif event.kind != "run":
            self.tell(f"{row.label}: {row.state}{f' on {row.slot}' if event.kind in ('started', 'queue') else ''}")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the table within the block, its last state stays."""
        if not self._console.is_terminal:
            yield
            return
        from rich.live import Live

        with Live(self._table(), console=self._console, auto_refresh=False) as live:
            self._live = live
            yield
            live.update(self._table(), refresh=True)

    def _tell_steps(self) -> None:
        if time.monotonic() - self._shown > LINE_EVERY_S:
            self._shown = time.monotonic()
            done = sum(row.state == "done" for row in self._rows.values())
            running = [row for row in self._rows.values() if row.state == "training"]
            steps = ", ".join(f"{row.label} {row.step}/{row.max_steps} steps" for row in running)
            left = _minutes(max(map(_left_s, running), default=0))
            self.tell(f"{done} of {len(self._rows)} trainings are done; {steps}{f', {left} left' if left else ''}")

    def _draw(self, now: bool) -> None:
        if now or time.monotonic() - self._shown > _REDRAW_S:
            self._shown = time.monotonic()
            self._live.update(self._table(), refresh=True)  # type: ignore[union-attr, attr-defined]

    def _table(self) -> Table:
        from rich.table import Table

        table = Table("training", "state", "where", "steps", "loss", "evaluated", "left")
        for row in self._rows.values():
            loss = "" if row.loss is None else f"{row.loss:.4f}"
            steps = f"{row.step}/{row.max_steps}" if row.max_steps else ""
            table.add_row(row.label, row.state, row.slot, steps, loss, f"{row.done}/{row.runs}", _minutes(_left_s(row)))
        return table


def _left_s(row: _Row) -> float:
    """Seconds of training left, at the speed so far; 0 when that is not known."""
    taken = row.step - row.first_step
    if row.state != "training" or taken < 2:
        return 0
    return (time.monotonic() - row.since) / taken * (row.max_steps - row.step)


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}" if seconds else ""


@contextmanager
def steps_progress(
    total_steps: int,
) -> Iterator[tuple[Callable[[int, float], None], Callable[[str], None], Callable[[str], None]]]:
    """One bar over the steps of all runs, with the time left: advance(step, loss), describe(text) and tell(line)."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps ·"),
        TimeElapsedColumn(),
        TextColumn("· left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("", total=total_steps)
        yield (
            lambda step, loss: bar.advance(task),
            lambda text: bar.update(task, description=text),
            lambda line: bar.console.print(line, markup=False, highlight=False),
        )
