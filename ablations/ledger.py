"""What happened to the trainings of a study, event after event: append-only, so that nothing is ever lost of it."""

from __future__ import annotations

import fcntl
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ablations.launch.local import Event
from megasr.errors import MegaSRError

LEDGER_FILE = "ledger.jsonl"


class Ledger:
    """A JSON line per event: time, training (the run that hosts it), what happened, and its details.

    Args:
        folder: of the study.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LEDGER_FILE

    def add(self, event: Event) -> None:
        """Append an event.

        Raises:
            MegaSRError: the file cannot be written to.
        """
        details = {name: str(value) if isinstance(value, Exception) else value for name, value in event.details.items()}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"time": now, "training": event.task, "event": event.kind, **details}) + "\n"
        try:
            with self._path.open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # the jobs of a cluster write to the same file
                file.write(line)
        except OSError as error:
            raise MegaSRError(f"cannot write {self._path}: {error.strerror or error}") from error


def read_ledger(folder: Path) -> list[dict[str, Any]]:
    """All events, oldest first; a last line that a crash has cut short is left out."""
    path = folder / LEDGER_FILE
    if not path.is_file():
        return []
    events = []
    for line in path.read_text().splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events
