"""The manifest of a shard set: which tars belong to it, what is in them, and where they came from."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from megasr.errors import MegaSRError

FORMAT = "megasr-shards-1"
MANIFEST = "manifest.json"
_TOO_MANY = 2**50  # of samples or bytes: what no set has, and arithmetic and files have room for


@dataclass(frozen=True)
class ShardEntry:
    """One tar of the set.

    Args:
        name: file name inside the set, without folder.
        samples: number of samples in it.
        bytes: size of the tar.
        sha256: of the tar, 64 hexadecimal digits.
    """

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says.

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
        """Read the text of the manifest at `where`.

        Raises:
            MegaSRError: it is not JSON, of another format, incomplete, or contradicts itself.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise MegaSRError(f"{where}: not a shard manifest, not even JSON ({error})") from error
        found = content.get("format") if isinstance(content, dict) else None
        if found != FORMAT:
            raise MegaSRError(f"{where}: format is {found!r}, this version reads {FORMAT!r}")
        missing = {"samples", "bytes", *(f.name for f in fields(cls))} - set(content)
        if missing:
            raise MegaSRError(f"{where}: the manifest lacks {', '.join(sorted(missing))}")
        manifest = cls(
            shards=tuple(_shard(entry, where) for entry in _typed(content, "shards", list, where)),
            fields=_counts(content, "fields", where),
            dropped=_counts(content, "dropped", where),
            **{name: _typed(content, name, str, where) for name in ("licence", "command", "version", "created")},
        )
        _check_sums(manifest, content, where)
        return manifest


def _typed(content: dict[str, Any], name: str, kind: type, where: str) -> Any:
    value = content[name]
    if not isinstance(value, kind):
        raise MegaSRError(f"{where}: {name} should be a {kind.__name__}, is {value!r}")
    return value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _TOO_MANY


def _counts(content: dict[str, Any], name: str, where: str) -> dict[str, int]:
    counts: dict[str, int] = _typed(content, name, dict, where)
    for key, count in counts.items():
        if not _is_count(count):
            raise MegaSRError(f"{where}: {name}.{key} should be a count, is {count!r}")
    return counts


def _shard(entry: Any, where: str) -> ShardEntry:
    names = [f.name for f in fields(ShardEntry)]
    if not isinstance(entry, dict) or set(entry) != set(names):
        raise MegaSRError(f"{where}: a shard should have {', '.join(names)}, one is {entry!r}")
    shard = ShardEntry(**entry)
    if not isinstance(shard.name, str) or not re.fullmatch(r"[^./\x00-\x1f\x7f][^/\x00-\x1f\x7f]*", shard.name):
        raise MegaSRError(f"{where}: {shard.name!r} is not the file name of a shard")
    if not _is_count(shard.samples) or not _is_count(shard.bytes):
        raise MegaSRError(f"{where}: {shard.name}: samples and bytes should be counts, are {entry!r}")
    if not isinstance(shard.sha256, str) or len(shard.sha256) != 64 or not set(shard.sha256) <= set("0123456789abcdef"):
        raise MegaSRError(f"{where}: {shard.name}: {shard.sha256!r} is not a sha256")
    return shard


def _check_sums(manifest: Manifest, content: dict[str, Any], where: str) -> None:
    for name, total in (("samples", manifest.samples), ("bytes", manifest.bytes)):
        if content[name] != total:
            raise MegaSRError(f"{where}: {name} is {content[name]!r}, its shards add up to {total}")
    for name, count in manifest.fields.items():
        if count > manifest.samples:
            raise MegaSRError(f"{where}: {count} samples have {name!r}, there are only {manifest.samples}")
    names = [shard.name for shard in manifest.shards]
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if repeated:
        raise MegaSRError(f"{where}: {', '.join(repeated)} is listed more than once")
