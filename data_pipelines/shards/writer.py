"""Packs image folders into a shard set: a plan, then the tars and their indexes, the manifest last.

Every file appears whole or not at all, and its bytes follow from the plan, so a killed run goes on where it was.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from data_pipelines.samples import UnusableSampleError
from data_pipelines.shards.manifest import MANIFEST, Manifest, ShardEntry
from data_pipelines.shards.plan import (
    DROPPED,
    PLAN,
    PackOptions,
    Plan,
    Progress,
    check_same,
    find_images,
    make_plan,
    map_ordered,
    no_progress,
    read_fields,
    read_plan,
)
from data_pipelines.shards.tar import digest, finished_tar, index_name, write_tar
from megasr import __version__
from megasr.errors import MegaSRError, UsageError
from megasr.files import locked_folder, remove_parts, write_whole


@dataclass(frozen=True)
class ShardJob:
    """One shard to write: (key, image, field -> digest that its content must have) of every sample."""

    path: Path
    samples: Sequence[tuple[str, Path, dict[str, str]]]
    maps: Mapping[str, str]


@dataclass(frozen=True)
class PackResult:
    """What pack did: the manifest, and False when the set had been finished before."""

    manifest: Manifest
    written: bool


def pack(options: PackOptions, output: Path, workers: int = 1, progress: Progress = no_progress) -> PackResult:
    """Make a shard set, or finish one that was begun with the same options and images.

    Args:
        options: what decides the content.
        output: folder of the set.
        workers: processes.
        progress: is told what is done.

    Raises:
        UsageError: a folder, an option, or what is in `output` already cannot be used.
        MegaSRError: an image changed while it was packed; the disk is full. Running it again goes on.
    """
    images = find_images(options.folders)
    with locked_folder(output):
        remove_parts(output)
        plan = _planned(options, images, output, workers, progress)
        jobs = _jobs(plan, images, output)
        if (finished := _finished(output, jobs)) is not None:
            return PackResult(finished, written=False)
        sizes = Counter[str]()
        shards: list[ShardEntry] = []
        done = 0
        for job, entry in zip(jobs, map_ordered(write_shard, jobs, workers), strict=True):
            shards.append(entry)
            sizes.update(name for _, _, digests in job.samples for name in digests)
            done += entry.samples
            progress("writing shards", done, len(plan.samples), sum(shard.bytes for shard in shards))
        manifest = Manifest(
            shards=tuple(shards),
            fields=dict(sorted(sizes.items())),
            licence=options.licence,
            command=_command(options),
            version=__version__,
            created=date.today().isoformat(),
            dropped=plan.drop_counts,
        )
        write_whole(output / MANIFEST, manifest.to_json().encode(), durable=True)
        return PackResult(manifest, written=True)


def _planned(options: PackOptions, images: dict[str, Path], output: Path, workers: int, progress: Progress) -> Plan:
    if (output / PLAN).is_file():
        plan = read_plan(output / PLAN)
        check_same(plan, options, images, output)
        return plan
    if present := sorted(output.glob("*.tar")) + sorted(output.glob(MANIFEST)):
        raise UsageError(f"{output} holds {present[0].name}, which has no plan: give another --output")
    plan = make_plan(options, images, workers, progress)
    write_whole(output / DROPPED, plan.dropped_csv().encode(errors="backslashreplace"), durable=True)
    write_whole(output / PLAN, plan.to_json().encode(), durable=True)
    return plan


def _jobs(plan: Plan, images: Mapping[str, Path], output: Path) -> list[ShardJob]:
    step = plan.options.samples_per_shard
    return [
        ShardJob(
            path=output / f"shard-{start // step:06d}.tar",
            samples=[(key, images[key], digests) for key, digests in plan.samples[start : start + step]],
            maps=plan.options.maps,
        )
        for start in range(0, len(plan.samples), step)
    ]


def _finished(output: Path, jobs: Iterable[ShardJob]) -> Manifest | None:
    """The manifest when all its files are there; verify is for what is inside them."""
    try:
        manifest = Manifest.from_json((output / MANIFEST).read_text(), str(output / MANIFEST))
        sizes = {shard.name: shard.bytes for shard in manifest.shards}
        there = {job.path.name: job.path.stat().st_size for job in jobs}
    except (OSError, UnicodeDecodeError, MegaSRError):
        return None
    indexed = all((output / index_name(name)).is_file() for name in sizes)
    return manifest if indexed and sizes == there else None


def write_shard(job: ShardJob) -> ShardEntry:
    """Write one tar and its index, unless both are there and as planned.

    Raises:
        MegaSRError: an image is not what the plan says; the disk is full.
    """
    if (finished := finished_tar(job.path)) is not None:
        entry, samples = finished
        if [(s.key, s.digests) for s in samples] == [(key, digests) for key, _, digests in job.samples]:
            return entry
    contents = ((key, _planned_fields(job, key, path, digests)) for key, path, digests in job.samples)
    return write_tar(job.path, contents)[0]


def _planned_fields(job: ShardJob, key: str, path: Path, digests: Mapping[str, str]) -> dict[str, bytes]:
    try:
        contents = read_fields(key, path, job.maps)
    except UnusableSampleError as error:
        raise MegaSRError(f"{path} was changed while it was packed: {error}") from error
    found = {name: digest(content) for name, content in contents.items()}
    if found != digests:
        changed = sorted(name for name in found.keys() | digests.keys() if found.get(name) != digests.get(name))
        raise MegaSRError(
            f"{path} was changed after {job.path.parent / PLAN} was made ({', '.join(changed)} differs): "
            "restore it, or delete that folder and pack again"
        )
    return contents


def _command(options: PackOptions) -> str:
    """The command that makes this set, without what does not change it."""
    words = ["megasr", "shards", "pack", *options.folders]
    words += ["--samples-per-shard", str(options.samples_per_shard), "--min-size", str(options.min_size_px)]
    words += ["--min-sharpness", str(options.min_sharpness)]
    for name, folder in options.maps.items():
        words += ["--map", f"{name}={folder}"]
    return shlex.join([*words, "--licence", options.licence, "--seed", str(options.seed)])
