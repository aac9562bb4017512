"""What a person sees while a study runs: a line per change of a training, and one bar over all steps."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from ablations.launch.local import Event
from megasr.console import progress_bars


def say(line: str) -> None:
    """Print a line, above the bar if there is one."""
    from rich.console import Console

    Console().print(line, markup=False, highlight=False, soft_wrap=True)


class StudyProgress:
    """Prints what happens to the trainings; a bar, or a line per minute in a file, says how far all are.

    Args:
        trainings: name -> (label, optimizer steps).
    """

    def __init__(self, trainings: Mapping[str, tuple[str, int]]) -> None:
        self._trainings = trainings
        self._steps = dict.fromkeys(trainings, 0)
        self._running: dict[str, str] = {}
        self._open = ExitStack()

    def __enter__(self) -> StudyProgress:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

        running = TextColumn("steps  {task.fields[running]}", markup=False)
        self._advance = self._open.enter_context(progress_bars(BarColumn(), MofNCompleteColumn(), running))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def show(self, event: Event) -> None:
        """Show what has happened to a training."""
        label, max_steps = self._trainings[event.task]
        if event.kind == "step":
            self._steps[event.task] = event.details["step"]
            self._running[event.task] = f"{label} {event.details['step']}/{max_steps} loss {event.details['loss']:.4f}"
        elif event.kind == "message":
            say(event.details["line"])
        elif event.kind == "run":
            self._running[event.task] = f"{label} evaluated {event.details['run']}"
        else:
            state = event.details.get("state", event.kind)
            where = f" on {event.details['slot']}" if "slot" in event.details else ""
            say(f"{label}: {state}{where}")
            if event.kind in ("finished", "failed", "crashed"):
                self._running.pop(event.task, None)
            if event.kind == "finished":
                self._steps[event.task] = max_steps
        total = sum(steps for _, steps in self._trainings.values())
        if total:
            self._advance("study", sum(self._steps.values()), total, running=", ".join(self._running.values()))
