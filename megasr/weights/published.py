"""What is said of a published weight and of its files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Where the library that reads a weight looks for it: a folder of the torch hub cache, or "hub" for the Hugging Face
# cache. "" is a weight that this project reads by itself.
Place = Literal["", "pyiqa", "checkpoints", "clip", "hub"]


@dataclass(frozen=True)
class PublishedFile:
    """One file of a weight.

    Attributes:
        name: below the weight's folder, with / between folders.
        size: in bytes; None when it is not known.
        sha256: 64 hexadecimal digits, or the first of them where the publisher tells no more; empty when not known.
        instead: the same weights in another format, which some mirrors or caches hold instead.
    """

    name: str
    size: int | None = None
    sha256: str = ""
    instead: PublishedFile | None = None

    @property
    def forms(self) -> tuple[PublishedFile, ...]:
        """This file and those that may take its place, the preferred one first."""
        return (self, *(self.instead.forms if self.instead else ()))


@dataclass(frozen=True)
class Weight:
    """One external weight.

    Attributes:
        name: by which configs and commands call it.
        purpose: what reads it.
        mirrors: where it is hosted, in order of preference: a hub id (`owner/name`), the address of a folder (it ends
            in /) or the address of the only file.
        licence: under which it is published.
        files: what is needed of it; one file is a weight by itself, several are a folder.
        non_commercial: the licence forbids commercial use.
        about: bytes of all files, roughly, for people.
        elsewhere: where else it is hosted, in words.
        place: where the library that reads it looks for it.
    """

    name: str
    purpose: str
    mirrors: tuple[str, ...]
    licence: str
    files: tuple[PublishedFile, ...]
    non_commercial: bool = False
    about: int = 0
    elsewhere: str = ""
    place: Place = ""

    @property
    def hub_ids(self) -> tuple[str, ...]:
        """Those mirrors that are repositories of the Hugging Face hub."""
        return tuple(mirror for mirror in self.mirrors if "://" not in mirror)

    @property
    def terms(self) -> str:
        """The licence, and whether it is non-commercial."""
        return f"{self.licence} (non-commercial)" if self.non_commercial else self.licence
