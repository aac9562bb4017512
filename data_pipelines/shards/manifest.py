"""The manifest of a shard set: which tars belong to it, what is in them, and where they came from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any

from megasr import __version__
from megasr.errors import MegaSRError
from megasr.files import write_whole

FORMAT = "megasr-shards-1"
MANIFEST = "manifest.json"
_MAX_COUNT = 2**50  # of samples or bytes


def _check_count(name: str, value: Any) -> None:
    if type(value) is not int or not 0 <= value < _MAX_COUNT:
        raise ValueError(f"{name} should be a count, is {value!r}")


@dataclass(frozen=True)
class ShardEntry:
    """One tar of a set: its file name, number of samples, size in bytes and sha256 (64 hexadecimal digits)."""

    name: str
    samples: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^./\x00-\x1f\x7f][^/\x00-\x1f\x7f]*", self.name):
            raise ValueError(f"{self.name!r} is not the file name of a shard")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(f"{self.name}: {self.sha256!r} is not a sha256")
        _check_count(f"{self.name}: samples", self.samples)
        _check_count(f"{self.name}: bytes", self.bytes)


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json.

    Args:
        shards: the tars, in reading order.
        fields: field -> number of samples that have it.
        licence: under which the images may be used.
        command: that made the set.
        version: of megasr that made the set.
        created: ISO date.
        dropped: reason -> number of images that were left out.
    """

    shards: tuple[ShardEntry, ...]
    fields: dict[str, int]
    licence: str
    command: str
    version: str
    created: str
    dropped: dict[str, int]

    def __post_init__(self) -> None:
        for group in (self.fields, self.dropped):
            for name, count in group.items():
                _check_count(name, count)
        if len({shard.name for shard in self.shards}) < len(self.shards):
            raise ValueError("a shard is listed more than once")

    @property
    def samples(self) -> int:
        """Number of samples in the set."""
        return sum(shard.samples for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Size of all tars together."""
        return sum(shard.bytes for shard in self.shards)

    def to_json(self) -> str:
        """The text of manifest.json, with the totals that from_json checks."""
        totals = {"format": FORMAT, "samples": self.samples, "bytes": self.bytes}
        return json.dumps(totals | asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Manifest:
        """Parse the manifest at `where`.

        Raises:
            MegaSRError: it is not JSON, of another format, incomplete, or contradicts itself.
        """
        try:
            content = json.loads(text)
            if content["format"] != FORMAT:
                raise ValueError(f"format is {content['format']!r}, this version reads {FORMAT!r}")
            shards = tuple(ShardEntry(**entry) for entry in content["shards"])
            manifest = cls(shards, **{f.name: content[f.name] for f in fields(cls) if f.name != "shards"})
            for name in ("samples", "bytes"):
                if content[name] != (total := getattr(manifest, name)):
                    raise ValueError(f"{name} is {content[name]!r}, its shards add up to {total}")
        except KeyError as error:
            raise MegaSRError(f"{where}: not a shard manifest, it lacks {error}") from error
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise MegaSRError(f"{where}: not a shard manifest ({error})") from error
        return manifest


def write_manifest(
    folder: Path,
    shards: Sequence[ShardEntry],
    counts: Mapping[str, int],
    licence: str,
    command: str,
    dropped: Mapping[str, int] | None = None,
) -> Manifest:
    """Write manifest.json, which finishes a set; `counts` are its fields (see Manifest)."""
    today = date.today().isoformat()
    manifest = Manifest(
        tuple(shards), dict(sorted(counts.items())), licence, command, __version__, today, dict(dropped or {})
    )
    write_whole(folder / MANIFEST, manifest.to_json().encode(), durable=True)
    return manifest
