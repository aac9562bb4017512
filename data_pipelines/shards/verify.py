"""Finds every damaged, missing or duplicated sample of a shard set, and goes on after each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from data_pipelines.shards.baked import BAKED
from data_pipelines.shards.check import Finding, ShardReport, check_shard
from data_pipelines.shards.local_storage import open_plain
from data_pipelines.shards.manifest import MANIFEST, Manifest, ShardEntry
from data_pipelines.shards.parallel import Progress, map_ordered, no_progress
from data_pipelines.shards.tar_index import index_name
from megasr.errors import MegaSRError


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
    findings += _stray_files(folder, names, listed if manifest else None)
    reports: list[ShardReport] = []
    for report in map_ordered(partial(check_shard, folder), [(name, listed.get(name)) for name in names], workers):
        reports.append(report)
        progress("verifying shards", len(reports), len(names), sum(done.bytes for done in reports))
        findings += report.findings
    findings += _duplicates(reports, baked=(folder / BAKED).is_file())
    return findings + (_wrong_counts(manifest, reports) if manifest else [])


def _read_manifest(folder: Path, findings: list[Finding]) -> Manifest | None:
    try:
        with open_plain(folder / MANIFEST) as file:
            return Manifest.from_json(file.read().decode(), MANIFEST)
    except FileNotFoundError:
        findings.append(Finding("no manifest", MANIFEST, "", "the set is unfinished: run the command that makes it"))
    except (OSError, UnicodeDecodeError, MegaSRError) as error:
        findings.append(Finding("damaged manifest", MANIFEST, "", str(error)))
    return None


def _stray_files(folder: Path, names: list[str], listed: dict[str, ShardEntry] | None) -> Iterator[Finding]:
    if listed is not None:
        for name in names:
            if name not in listed:
                yield Finding("extra shard", name, "", "not in the manifest")
    indexes = {index_name(name) for name in names}
    for path in sorted(folder.glob(index_name("*"))):
        if path.name not in indexes:
            yield Finding("extra index", path.name, "", "there is no such shard")


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
    fields = sum((report.fields for report in reports if report.name in listed), Counter[str]())
    return [
        Finding(
            "wrong count", MANIFEST, "", f"{manifest.fields.get(name, 0)} samples with {name!r}, found {fields[name]}"
        )
        for name in sorted(manifest.fields.keys() | fields.keys())
        if manifest.fields.get(name, 0) != fields[name]
    ]
