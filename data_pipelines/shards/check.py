"""One tar against its index, the manifest and the decoders: what is wrong with which sample."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data_pipelines.shards.local_storage import open_plain
from data_pipelines.shards.manifest import ShardEntry
from data_pipelines.shards.members import decode_map
from data_pipelines.shards.tar_index import (
    IMAGE_FIELDS,
    PARAMS_FIELD,
    TAGS_FIELD,
    IndexedSample,
    digest,
    index_name,
    load_record,
    scan_tar,
)
from megasr.errors import MegaSRError
from megasr.images import decode_image


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Args:
        kind: a short phrase that findings are counted by.
        where: the file.
        key: of the sample, "" when it is about a whole file.
        detail: what is wrong with it.
    """

    kind: str
    where: str
    key: str
    detail: str


@dataclass(frozen=True)
class ShardReport:
    """What one tar holds and what is wrong with it.

    Args:
        name: of the tar.
        keys: of the samples that should be in it.
        fields: field -> number of samples that have it.
        bytes: size of the tar.
        findings: inside it.
    """

    name: str
    keys: list[str]
    fields: Counter[str]
    bytes: int
    findings: list[Finding]


def check_shard(folder: Path, shard: tuple[str, ShardEntry | None]) -> ShardReport:
    """Compare a tar with its index and with the manifest, and decode all its images.

    Args:
        folder: of the set.
        shard: file name of the tar, and what the manifest says of it.
    """
    name, entry = shard
    indexed, index_sha256, findings = _read_index(folder, name)
    samples, size = list(indexed or []), 0
    try:
        with open_plain(folder / name) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
            findings += _check_whole(name, entry, index_sha256, sha256, size)
            scanned = _scan(file, name, findings)
            if scanned is not None:
                findings += [] if indexed is None else _compare(name, indexed, scanned)
                known = {sample.key for sample in samples}
                samples += [sample for sample in scanned if sample.key not in known]
            for sample in samples:
                findings += _check_sample(file, name, sample, size)
    except FileNotFoundError:
        findings.append(Finding("missing shard", name, "", f"{entry.samples if entry else len(samples)} samples"))
        findings += [Finding("missing sample", name, sample.key, "its shard is missing") for sample in samples]
    except OSError as error:
        findings.append(Finding("unreadable shard", name, "", error.strerror or str(error)))
    if entry is not None and samples and len(samples) != entry.samples:
        findings.append(Finding("wrong count", name, "", f"{len(samples)} samples, the manifest has {entry.samples}"))
    fields = Counter(field for sample in samples for field in sample.files)
    return ShardReport(name, [sample.key for sample in samples], fields, size, findings)


def _read_index(folder: Path, name: str) -> tuple[list[IndexedSample] | None, str, list[Finding]]:
    """(samples or None, sha256 of the tar or "", findings)."""
    path = folder / index_name(name)
    try:
        with open_plain(path) as file:
            return *load_record(file.read().decode(), path.name), []
    except FileNotFoundError:
        return None, "", [Finding("missing index", path.name, "", f"of {name}")]
    except (OSError, UnicodeDecodeError, MegaSRError) as error:
        return None, "", [Finding("damaged index", path.name, "", str(error))]


def _check_whole(name: str, entry: ShardEntry | None, index_sha256: str, sha256: str, size: int) -> Iterator[Finding]:
    if entry is not None and size != entry.bytes:
        yield Finding("wrong size", name, "", f"{size} bytes, the manifest has {entry.bytes}")
    if entry is not None and sha256 != entry.sha256:
        yield Finding("wrong sha256", name, "", f"{sha256}, the manifest has {entry.sha256}")
    elif index_sha256 and sha256 != index_sha256:
        yield Finding("wrong sha256", name, "", f"{sha256}, the index has {index_sha256}")


def _scan(file: BinaryIO, name: str, findings: list[Finding]) -> list[IndexedSample] | None:
    try:
        return scan_tar(file, name)
    except MegaSRError as error:
        findings.append(Finding("damaged tar", name, "", str(error).removeprefix(f"{name}: ")))
        return None


def _compare(name: str, indexed: Sequence[IndexedSample], scanned: Sequence[IndexedSample]) -> Iterator[Finding]:
    in_tar = {sample.key: sample.files for sample in scanned}
    for sample in indexed:
        files = in_tar.pop(sample.key, {})
        for field in sorted(files.keys() | sample.files.keys()):
            if field not in files:
                yield Finding("missing sample", name, sample.key, f"{field} is in the index, not in the tar")
            elif field not in sample.files:
                yield Finding("wrong index", name, sample.key, f"{field} is in the tar, not in the index")
            elif files[field] != sample.files[field]:
                yield Finding("wrong index", name, sample.key, f"{field} lies elsewhere in the tar")
    for key in in_tar:
        yield Finding("wrong index", name, key, "is in the tar, not in the index")


def _check_sample(file: BinaryIO, name: str, sample: IndexedSample, size: int) -> Iterator[Finding]:
    unusable = PARAMS_FIELD in sample.files  # a baked set keeps the place of an original that could not be used
    if not unusable and not any(_is_image(field) and not field.startswith("map.") for field in sample.files):
        yield Finding("no image", name, sample.key, f"only {', '.join(sorted(sample.files)) or 'nothing'}")
    for field, (offset, length) in sample.files.items():
        if offset + length > size:
            yield Finding("missing sample", name, sample.key, f"{field} is cut off")
            continue
        file.seek(offset)
        content = file.read(length)
        if digest(content) != sample.digests.get(field, digest(content)):
            yield Finding("damaged sample", name, sample.key, f"{field} is not what was packed")
        elif problem := _undecodable(field, content):
            yield Finding("damaged sample", name, sample.key, f"{field}: {problem}")


def _is_image(field: str) -> bool:
    """A photograph, a map, or the lq of a baked variant."""
    return field.rpartition(".")[2] in IMAGE_FIELDS


def _undecodable(field: str, content: bytes) -> str:
    """Why the content of a field cannot be used, "" when it can."""
    try:
        if field.startswith("map."):
            decode_map(content)
        elif _is_image(field):
            decode_image(content, "")
        elif field == TAGS_FIELD:
            content.decode()
    except (MegaSRError, ValueError) as error:
        return " ".join(str(error).removeprefix("cannot read image :").split())
    return ""
