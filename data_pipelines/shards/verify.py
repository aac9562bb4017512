"""Checks of shard sets, own and of others, and a summary of what one holds."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
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


@dataclass
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
    keys: list[str] = field(default_factory=list)
    fields: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)

    def add(self, kind: str, detail: str, key: str = "", where: str = "") -> None:
        """Add a finding about the tar, or about another file."""
        self.findings.append(Finding(kind, where or self.name, key, detail))


def verify(folder: Path, workers: int = 1, progress: Progress = no_progress) -> list[Finding]:
    """Read and decode everything that is in a shard set.

    Raises:
        MegaSRError: the folder is not there.
    """
    if not folder.is_dir():
        raise MegaSRError(f"{folder}: no such folder")
    whole = ShardReport(MANIFEST)
    manifest = None
    try:
        manifest = Manifest.from_json((folder / MANIFEST).read_text(), MANIFEST)
    except FileNotFoundError:
        whole.add("no manifest", "the set is unfinished: run the command that makes it")
    except (OSError, UnicodeDecodeError, MegaSRError) as error:
        whole.add("damaged manifest", str(error))
    listed = {shard.name: shard for shard in manifest.shards} if manifest else {}
    names = sorted(listed.keys() | {path.name for path in folder.glob("[!.]*.tar")})
    for name in names:
        if manifest and name not in listed:
            whole.add("extra shard", "not in the manifest", where=name)
    for name in sorted({path.name for path in folder.glob(index_name("*"))} - set(map(index_name, names))):
        whole.add("extra index", "there is no such shard", where=name)
    reports: list[ShardReport] = []
    for report in map_ordered(partial(_check_shard, folder), [(name, listed.get(name)) for name in names], workers):
        reports.append(report)
        progress("verifying shards", len(reports), len(names), sum(done.bytes for done in reports))
        whole.findings += report.findings
    _check_duplicates(whole, reports, baked=(folder / BAKED).is_file())
    if manifest:
        counts = sum((report.fields for report in reports if report.name in listed), Counter[str]())
        for name in sorted(manifest.fields.keys() | counts):
            if (expected := manifest.fields.get(name, 0)) != counts[name]:
                whole.add("wrong count", f"{expected} samples with {name!r}, the tars have {counts[name]}")
    return whole.findings


def _check_shard(folder: Path, shard: tuple[str, ShardEntry | None]) -> ShardReport:
    """Compare a tar with the manifest and, sample by sample, with its index; decode all its images."""
    name, entry = shard
    report = ShardReport(name)
    samples, index_sha256 = _read_index(folder, report)
    try:
        with (folder / name).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            report.bytes = file.tell()
            if entry is not None and report.bytes != entry.bytes:
                report.add("wrong size", f"{report.bytes} bytes, the manifest has {entry.bytes}")
            for place, recorded in (("manifest", entry.sha256 if entry else ""), ("index", index_sha256)):
                if recorded and sha256 != recorded:
                    report.add("wrong sha256", f"{sha256}, the {place} has {recorded}")
                    break
            samples = scan_tar(file, name) if samples is None else samples
            for sample in samples:
                _check_sample(report, file, sample)
    except MegaSRError as error:
        report.add("damaged tar", str(error))
    except FileNotFoundError:
        report.add("missing shard", f"{entry.samples if entry else len(samples or [])} samples")
        for sample in samples or []:
            report.add("missing sample", "its shard is missing", sample.key)
    except OSError as error:
        report.add("unreadable shard", error.strerror or str(error))
    if entry is not None and samples and len(samples) != entry.samples:
        report.add("wrong count", f"{len(samples)} samples, the manifest has {entry.samples}")
    report.keys = [sample.key for sample in samples or []]
    report.fields = Counter(name for sample in samples or [] for name in sample.files)
    return report


def _read_index(folder: Path, report: ShardReport) -> tuple[list[IndexedSample] | None, str]:
    """(samples or None, sha256 of the tar or "")."""
    path = folder / index_name(report.name)
    try:
        return load_index(path.read_text(), path.name)
    except FileNotFoundError:
        report.add("missing index", f"of {report.name}", where=path.name)
    except (OSError, UnicodeDecodeError, MegaSRError) as error:
        report.add("damaged index", str(error), where=path.name)
    return None, ""


def _check_sample(report: ShardReport, file: BinaryIO, sample: IndexedSample) -> None:
    unusable = PARAMS_FIELD in sample.files  # a baked set keeps the place of an original that could not be used
    if not unusable and not any(_is_image(name) and not name.startswith("map.") for name in sample.files):
        report.add("no image", f"only {', '.join(sorted(sample.files)) or 'nothing'}", sample.key)
    for name, member in sample.files.items():
        if member.offset + member.size > report.bytes:
            report.add("missing sample", f"{name} is cut off", sample.key)
            continue
        file.seek(member.offset)
        content = file.read(member.size)
        if member.digest and digest(content) != member.digest:
            report.add("damaged sample", f"{name} is not what was packed", sample.key)
        elif problem := _undecodable(name, content):
            report.add("damaged sample", f"{name}: {problem}", sample.key)


def _is_image(name: str) -> bool:
    """A photograph, a map, or the lq of a baked variant."""
    return name.rpartition(".")[2] in IMAGE_FIELDS


def _undecodable(name: str, content: bytes) -> str:
    """Why the content of a field cannot be used, "" when it can."""
    try:
        if name.startswith("map."):
            decode_map(content)
        elif _is_image(name):
            decode_image(content, "")
        elif name == TAGS_FIELD:
            content.decode()
    except (MegaSRError, ValueError) as error:
        return " ".join(str(error).removeprefix("cannot read image :").split())
    return ""


def _check_duplicates(whole: ShardReport, reports: Iterable[ShardReport], baked: bool) -> None:
    """A baked set holds every key once per variant, in tars whose names end in the variant."""
    first: dict[tuple[str, str], str] = {}
    for report in reports:
        variant = report.name.rpartition("-")[2] if baked else ""
        for key in report.keys:
            if (variant, key) in first:
                whole.add("duplicate key", f"is in {first[variant, key]} too", key, where=report.name)
            first.setdefault((variant, key), report.name)


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
        if (name := image_field(files)) is not None:
            height, width = decode_image(files[name], key).shape[:2]
            yield height, width
