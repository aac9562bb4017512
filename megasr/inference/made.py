"""Which files of a folder this program made, from what and how: a JSON line per file in upscale.jsonl.

A line is written before its file takes its place, so there is no moment in which a file of ours looks like someone's:
whatever kills the program, the next run knows what is done.
"""

from __future__ import annotations

import fcntl
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from megasr.errors import MegaSRError
from megasr.files import file_sha256

MADE_FILE = "upscale.jsonl"


@dataclass(frozen=True)
class Made:
    """One file of sr.

    Attributes:
        name: its path in the folder.
        content: sha256 of it.
        source: sha256 of the photograph.
        settings: what decides how it comes out.
    """

    name: str
    content: str
    source: str
    settings: dict[str, Any]


class MadeFiles:
    """The record of a folder.

    Args:
        folder: holds the files of sr.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._path = folder, folder / MADE_FILE

    @cached_property
    def _known(self) -> dict[str, list[Made]]:
        known: dict[str, list[Made]] = {}
        for line in self._path.read_text().splitlines() if self._path.is_file() else []:
            try:
                made = Made(**json.loads(line))
            except (ValueError, TypeError):
                continue  # cut short by a crash
            known.setdefault(made.name, []).append(made)
        return known

    def add(self, target: Path, content: str, source: str, settings: dict[str, Any]) -> None:
        """Write down a file that is about to be written.

        Raises:
            MegaSRError: the record cannot be written to.
        """
        made = Made(self._name(target), content, source, settings)
        try:
            with self._path.open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # the processes of several devices write to it
                file.write(json.dumps(asdict(made)) + "\n")
        except OSError as error:
            raise MegaSRError(f"cannot write {self._path}: {error.strerror or error}") from error

    def find(self, target: Path) -> Made | None:
        """How the file came about that is there now; None for one that this program did not make, or that changed."""
        candidates = self._known.get(self._name(target))
        if not candidates or not target.is_file():
            return None
        content = file_sha256(target)
        return next((made for made in reversed(candidates) if made.content == content), None)

    def is_done(self, target: Path, source: Path, settings: dict[str, Any]) -> bool:
        """True when the target was made from this very photograph with the same settings."""
        made = self.find(target)
        return made is not None and made.settings == settings and made.source == file_sha256(source)

    def _name(self, target: Path) -> str:
        return target.relative_to(self.folder).as_posix()
