"""Progress bars on stderr for work that knows how far it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

_REDRAW_S = 0.1


class Advance(Protocol):
    """Called as the work goes on; the first call for a name adds its bar."""

    def __call__(self, name: str, done: int, total: int | None, **fields: Any) -> None:
        """`done` of `total` units, and what the columns show besides (TextColumn("{task.fields[x]}"))."""


@contextmanager
def progress_bars(*columns: Any) -> Iterator[Advance]:
    """A bar per name, with these columns of rich and the time left.

    No thread redraws them: worker processes are forked, and a fork copies the locks that other threads hold.
    """
    from rich.console import Console
    from rich.progress import Progress, TimeRemainingColumn

    tasks: dict[str, Any] = {}
    shown = 0.0
    bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), auto_refresh=False)

    def advance(name: str, done: int, total: int | None, **fields: Any) -> None:
        nonlocal shown
        if not tasks:
            bar.start()
        if name not in tasks:
            tasks[name] = bar.add_task(name, total=total, **fields)
        bar.update(tasks[name], completed=done, total=total, **fields)
        if bar.get_time() - shown > _REDRAW_S or done == total:
            shown = bar.get_time()
            bar.refresh()

    try:
        yield advance
    finally:
        if tasks:
            bar.stop()
