"""Progress bars, and libraries' warnings that do not concern a user. Imports the standard library only."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

# Warnings about how this project uses libraries. MEGASR_DEBUG=1 shows them.
NOISE = (
    r"module.s. in eval mode",  # the frozen prior
    r"isinstance.treespec",  # Lightning's own use of torch
    r"weights_only",  # what is read, and how, is decided in megasr.training.checkpoint
    r"no `validation_step`",
    r"Trying to infer the `batch_size`",
    r"recommended to use `self.log\(.*sync_dist",
    r"Checkpoint directory .* exists and is not empty",  # it holds the run
    r"Using `DistributedSampler` with the dataloaders",  # megasr.training.protocol_metrics counts every image once
    r"`lr_scheduler.step\(\)` before `optimizer.step\(\)`",  # a step that the gradient scaler left out
    r"TensorFloat32 tensor cores",
    r"pkg_resources is deprecated",
    r"Overwriting .* in registry",
    r"os.fork\(\) was called",
    r"The `srun` command is available",  # also where SLURM is installed and this is no job
)
_NOISE = re.compile("|".join(NOISE))
_OUTDATED = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)


def is_noise(message: str, category: type[Warning]) -> bool:
    """Whether a warning is for developers, not for users."""
    return issubclass(category, _OUTDATED) or _NOISE.search(message) is not None


def quiet_warnings() -> None:
    """Show warnings in one line without their place in the code, and noise not at all."""
    if os.environ.get("MEGASR_DEBUG") == "1":
        return

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if not is_noise(str(message), category):
            sys.stderr.write(f"megasr: warning: {' '.join(str(message).split())}\n")

    warnings.showwarning = show


def quiet_lightning() -> None:
    """Hide Lightning's own messages below warnings (hardware, seeds, tips); ours through its logger stay."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_is_shown)  # once, however often it is called


def _is_shown(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or "/lightning/" not in record.pathname.replace(os.sep, "/")


LINE_EVERY_S = 60.0
_REDRAW_S = 0.1


# (name, done, total, **fields): the first call for a name adds its bar; columns show fields as {task.fields[x]}.
Advance = Callable[..., None]


@contextmanager
def progress_bars(*columns: Any) -> Iterator[Advance]:
    """A bar per name on stderr, with these columns of rich and the time left.

    Where stderr is no terminal it is a line per name and minute, and one at the end. No thread redraws them: workers
    are forked, and a fork copies locks that other threads hold.
    """
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    name = TextColumn("{task.description}", markup=False)
    live = console.is_terminal
    bar = Progress(name, *columns, TimeRemainingColumn(), console=console, auto_refresh=False, disable=not live)
    tasks: dict[str, Any] = {}
    drawn: dict[str, float] = {}

    def advance(name: str, done: int, total: int | None, **fields: Any) -> None:
        if name not in tasks:
            bar.start()
            tasks[name], drawn[name] = bar.add_task(name, total=total, **fields), time.monotonic()
        ended = bar.tasks[tasks[name]].finished
        bar.update(tasks[name], completed=done, total=total, **fields)
        ends = bar.tasks[tasks[name]].finished and not ended
        if ends or time.monotonic() - drawn[name] > (_REDRAW_S if live else LINE_EVERY_S):
            drawn[name] = time.monotonic()
            bar.refresh() if live else _print_line(bar.tasks[tasks[name]], bar.columns)

    try:
        yield advance
    finally:
        if tasks:
            bar.stop()


def _print_line(task: Any, columns: Sequence[Any]) -> None:
    from rich.progress import BarColumn, TimeRemainingColumn

    texts = [column.render(task) for column in columns if not isinstance(column, BarColumn | TimeRemainingColumn)]
    left = "" if task.finished or task.time_remaining is None else f"{timedelta(seconds=int(task.time_remaining))} left"
    sys.stderr.write("  ".join(filter(None, [*(str(text).strip() for text in texts), left])) + "\n")
    sys.stderr.flush()
