"""Checks of shard sets, own and of others, and a summary of what one holds."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from data_pipelines.shards.baked import BAKED
from data_pipelines.shards.fields import IMAGE_FIELDS, PARAMS_FIELD, TAGS_FIELD, decode_map, image_field
from data_pipelines.shards.manifest import MANIFEST, Manifest, ShardEntry
from data_pipelines.shards.parallel import Progress, map_ordered, no_progress
from data_pipelines.shards.reader import ShardSource
from data_pipelines.shards.tar import IndexedSample, digest, index_name, load_index, scan_tar
from megasr.errors import MegaSRError
from megasr.images import decode_image

_MEASURED = 32  # images that are decoded for their size


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
    """A tar's name, the keys that should be in it, field -> number of samples, its size in bytes, and what is wrong."""

    name: str
    keys: list[str]
    fields: Counter[str]
    bytes: int
    findings: list[Finding]


def verify(folder: Path, workers: int = 1, progress: Progress = no_progress) -> list[Finding]:
    """Read and decode everything that is in a shard set.

    Raises:
        MegaSRError: the folder is not there.
    """
    if not folder.is_dir():
        raise MegaSRError(f"{folder}: no such folder")
    findings: list[Finding] = []
    manifest = _read_manifest(folder, findings)
    listed = {shard.name: shard for shard in manifest.shards} if manifest else {}
    names = sorted(listed.keys() | {path.name for path in folder.glob("[!.]*.tar")})
    if manifest:
        findings += [Finding("extra shard", name, "", "not in the manifest") for name in names if name not in listed]
    indexes = {index_name(name) for name in names}
    extra = sorted({path.name for path in folder.glob(index_name("*"))} - indexes)
    findings += [Finding("extra index", name, "", "there is no such shard") for name in extra]
    reports: list[ShardReport] = []
    for report in map_ordered(partial(_check_shard, folder), [(name, listed.get(name)) for name in names], workers):
        reports.append(report)
        progress("verifying shards", len(reports), len(names), sum(done.bytes for done in reports))
        findings += report.findings
    findings += _duplicates(reports, baked=(folder / BAKED).is_file())
    return findings + (_wrong_counts(manifest, reports) if manifest else [])


def _read_manifest(folder: Path, findings: list[Finding]) -> Manifest | None:
    try:
        return Manifest.from_json((folder / MANIFEST).read_text(), MANIFEST)
    except FileNotFoundError:
        findings.append(Finding("no manifest", MANIFEST, "", "the set is unfinished: run the command that makes it"))
    except (OSError, UnicodeDecodeError, MegaSRError) as error:
        findings.append(Finding("damaged manifest", MANIFEST, "", str(error)))
    return None


def _check_shard(folder: Path, shard: tuple[str, ShardEntry | None]) -> ShardReport:
    """Compare a tar with its index and with the manifest, and decode all its images."""
    name, entry = shard
    findings: list[Finding] = []
    indexed, index_sha256 = _read_index(folder, name, findings)
    samples, size = list(indexed or []), 0
    try:
        with (folder / name).open("rb") as file:
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


def _read_index(folder: Path, name: str, findings: list[Finding]) -> tuple[list[IndexedSample] | None, str]:
    """(samples or None, sha256 of the tar or "")."""
    path = folder / index_name(name)
    try:
        return load_index(path.read_text(), path.name)
    except FileNotFoundError:
        findings.append(Finding("missing index", path.name, "", f"of {name}"))
    except (OSError, UnicodeDecodeError, MegaSRError) as error:
        findings.append(Finding("damaged index", path.name, "", str(error)))
    return None, ""


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
        findings.append(Finding("damaged tar", name, "", str(error)))
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
            elif files[field][:2] != sample.files[field][:2]:
                yield Finding("wrong index", name, sample.key, f"{field} lies elsewhere in the tar")
    for key in in_tar:
        yield Finding("wrong index", name, key, "is in the tar, not in the index")


def _check_sample(file: BinaryIO, name: str, sample: IndexedSample, size: int) -> Iterator[Finding]:
    unusable = PARAMS_FIELD in sample.files  # a baked set keeps the place of an original that could not be used
    if not unusable and not any(_is_image(field) and not field.startswith("map.") for field in sample.files):
        yield Finding("no image", name, sample.key, f"only {', '.join(sorted(sample.files)) or 'nothing'}")
    for field, (offset, length, packed) in sample.files.items():
        if offset + length > size:
            yield Finding("missing sample", name, sample.key, f"{field} is cut off")
            continue
        file.seek(offset)
        content = file.read(length)
        if packed and digest(content) != packed:
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


def _duplicates(reports: Iterable[ShardReport], baked: bool) -> Iterator[Finding]:
    """A baked set holds every key once per variant, in tars whose names end in the variant."""
    first: dict[tuple[str, str], str] = {}
    for report in reports:
        variant = report.name.rpartition("-")[2] if baked else ""
        for key in report.keys:
            if (variant, key) in first:
                yield Finding("duplicate key", report.name, key, f"is in {first[variant, key]} too")
            first.setdefault((variant, key), report.name)


def _wrong_counts(manifest: Manifest, reports: Iterable[ShardReport]) -> list[Finding]:
    listed = {shard.name for shard in manifest.shards}
    present = sum((report.fields for report in reports if report.name in listed), Counter[str]())
    counts = [(name, manifest.fields.get(name, 0), present[name]) for name in sorted(manifest.fields.keys() | present)]
    return [
        Finding("wrong count", MANIFEST, "", f"{expected} samples with {name!r}, the tars have {count}")
        for name, expected, count in counts
        if expected != count
    ]


def describe(folder: Path) -> Iterator[tuple[str, str]]:
    """(name, value) of everything worth knowing of a shard set.

    Raises:
        MegaSRError: the manifest, or an image that is looked at, cannot be read.
    """
    if not folder.is_dir():
        raise MegaSRError(f"{folder}: no such folder")
    source = ShardSource(str(folder))
    manifest = source.manifest
    yield "samples", f"{manifest.samples}"
    yield "shards", f"{len(manifest.shards)}"
    yield "bytes", f"{manifest.bytes} ({manifest.bytes / 2**20:.1f} MiB)"
    for name, count in manifest.fields.items():
        yield f"field {name}", f"{count}"
    sizes = list(_image_sizes(source))
    if sizes:
        height, width = (sum(side) / len(sizes) for side in zip(*sizes, strict=True))
        yield "mean image size", f"{width:.0f}x{height:.0f} px (of {len(sizes)} images)"
    yield "licence", manifest.licence
    yield "command", manifest.command
    yield "made", f"{manifest.created} by megasr {manifest.version}"
    yield "dropped", f"{sum(manifest.dropped.values())}"
    for reason, count in manifest.dropped.items():
        yield f"  {reason}", f"{count}"


def _image_sizes(source: ShardSource) -> Iterator[tuple[int, int]]:
    """(height, width) of images from all over the set."""
    for index in range(0, len(source), -(-len(source) // _MEASURED)):
        key, files = source.files(index)
        if (field := image_field(files)) is not None:
            height, width = decode_image(files[field], key).shape[:2]
            yield height, width
