"""How far work is: bars on a terminal, a line per minute anywhere else (a log file, a job of a cluster)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

LINE_EVERY_S = 60.0
_REDRAW_S = 0.1


class Advance(Protocol):
    """Called as the work goes on; the first call for a name adds its bar."""

    def __call__(self, name: str, done: int, total: int | None, **fields: Any) -> None:
        """`done` of `total` units, and what the columns show besides (TextColumn("{task.fields[x]}"))."""


@contextmanager
def progress_bars(*columns: Any) -> Iterator[Advance]:
    """A bar per name on stderr, with these columns of rich and the time left.

    Where stderr is no terminal it is a line per name and minute, and one when the work is done.

    No thread redraws them: worker processes are forked, and a fork copies the locks that other threads hold.
    """
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    name = TextColumn("{task.description}", markup=False)
    live = console.is_terminal
    bar = Progress(name, *columns, TimeRemainingColumn(), console=console, auto_refresh=False, disable=not live)
    tasks: dict[str, Any] = {}
    shown: dict[str, float] = {}

    def advance(name: str, done: int, total: int | None, **fields: Any) -> None:
        if name not in tasks:
            bar.start()
            tasks[name], shown[name] = bar.add_task(name, total=total, **fields), time.monotonic()
        ended = bar.tasks[tasks[name]].finished
        bar.update(tasks[name], completed=done, total=total, **fields)
        ends = bar.tasks[tasks[name]].finished and not ended
        if ends or time.monotonic() - shown[name] > (_REDRAW_S if live else LINE_EVERY_S):
            shown[name] = time.monotonic()
            bar.refresh() if live else _print_line(bar.tasks[tasks[name]], bar.columns)

    try:
        yield advance
    finally:
        if tasks:
            bar.stop()


def _print_line(task: Any, columns: Sequence[Any]) -> None:
    """What the columns show, without bars."""
    from rich.progress import BarColumn, TimeRemainingColumn

    texts = [column.render(task) for column in columns if not isinstance(column, BarColumn | TimeRemainingColumn)]
    left = "" if task.finished or task.time_remaining is None else f"{timedelta(seconds=int(task.time_remaining))} left"
    sys.stderr.write("  ".join(filter(None, [*(str(text).strip() for text in texts), left])) + "\n")
    sys.stderr.flush()
