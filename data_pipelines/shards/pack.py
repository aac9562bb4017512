"""Packs image folders into a shard set: a plan, then the tars and their indexes, the manifest last.

Every file appears whole or not at all, and its bytes follow from the plan, so a killed run goes on where it was.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from data_pipelines.filters import ImageFilter
from data_pipelines.folder import index_folder, read_tags
from data_pipelines.mixture import permuted
from data_pipelines.samples import UnusableSampleError
from data_pipelines.shards.fields import TAGS_FIELD, decode_map, map_field
from data_pipelines.shards.manifest import MANIFEST, Manifest, ShardEntry, write_manifest
from data_pipelines.shards.parallel import Progress, map_ordered, no_progress
from data_pipelines.shards.tar import digest, finished_tar, index_name, write_tar
from megasr.errors import MegaSRError, UsageError
from megasr.files import locked_folder, remove_parts, write_whole
from megasr.guidance.registry import is_made_from_lq
from megasr.images import decode_image

PLAN_FORMAT = "megasr-shard-plan-1"
PLAN, DROPPED = "plan.json", "dropped.csv"


@dataclass(frozen=True)
class PackOptions:
    """What decides the content of a shard set. Together with the images it determines every byte.

    Args:
        folders: of images, searched recursively.
        licence: under which the images may be used.
        samples_per_shard: the last shard may have fewer.
        min_size_px: images whose shorter side is smaller are dropped.
        min_sharpness: images that are less sharp are dropped, see data_pipelines.filters.
        maps: guidance name -> folder that holds KEY.png for every image.
        seed: of the order, in which images of all folders are mixed.
    """

    folders: tuple[str, ...]
    licence: str
    samples_per_shard: int = 1000
    min_size_px: int = 0
    min_sharpness: float = 0.0
    maps: dict[str, str] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1:
            raise UsageError(f"samples_per_shard must be at least 1, got {self.samples_per_shard}")
        ImageFilter(self.min_size_px, self.min_sharpness)  # checks the values
        for name in self.maps:
            # Not the registry: maps of a type that is registered later can be packed today.
            if not re.fullmatch(r"[a-z0-9_]+", name):
                raise UsageError(f"{name!r} is not the name of a guidance type: lower-case letters, digits and _")
            if is_made_from_lq(name):
                raise UsageError(
                    f"{name} is extracted from lq, and maps beside the originals are made of hq: "
                    f"pack them as oracle_{name}, or bake {name}"
                )


@dataclass(frozen=True)
class Plan:
    """(key, field -> digest) of the samples in the order of the shards; (key, reason, detail) of all other images."""

    options: PackOptions
    samples: list[tuple[str, dict[str, str]]]
    dropped: list[tuple[str, str, str]]

    @property
    def drop_counts(self) -> dict[str, int]:
        """Reason -> number of images."""
        return dict(sorted(Counter(reason for _, reason, _ in self.dropped).items()))


def read_plan(path: Path) -> Plan:
    """Read plan.json; a MegaSRError says that it cannot be read or is no plan."""
    try:
        content = json.loads(path.read_text())
        if content["format"] != PLAN_FORMAT:
            raise ValueError(f"format is {content['format']!r}, this version reads {PLAN_FORMAT!r}")
        options = content["options"] | {"folders": tuple(content["options"]["folders"])}
        samples, dropped = ([tuple(row) for row in content[name]] for name in ("samples", "dropped"))
        return Plan(PackOptions(**options), samples, dropped)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise MegaSRError(f"{path}: not the plan of a shard set ({error!r}); pack into another folder") from error


def pack(options: PackOptions, output: Path, workers: int = 1, progress: Progress = no_progress) -> Manifest:
    """Make a shard set, or finish one that was begun with the same options and images; a finished one is not read.

    Args:
        options: what decides the content.
        output: folder of the set.
        workers: processes.
        progress: called with what is done.

    Raises:
        UsageError: a folder, an option, or what is in `output` already cannot be used.
        MegaSRError: an image changed while it was packed; the disk is full. Running it again goes on.
    """
    images = _find_images(options.folders)
    with locked_folder(output):
        remove_parts(output)
        plan = _planned(options, images, output, workers, progress)
        step = options.samples_per_shard
        parts = [plan.samples[start : start + step] for start in range(0, len(plan.samples), step)]
        paths = [output / f"shard-{number:06d}.tar" for number in range(len(parts))]
        if (finished := _finished(output, paths)) is not None:
            return finished
        shards: list[ShardEntry] = []
        jobs = list(zip(paths, parts, strict=True))
        for entry in map_ordered(partial(_write_shard, options.maps, images), jobs, workers):
            shards.append(entry)
            done, size = sum(shard.samples for shard in shards), sum(shard.bytes for shard in shards)
            progress("writing shards", done, len(plan.samples), size)
        fields = Counter(name for _, digests in plan.samples for name in digests)
        command = _command(options)
        return write_manifest(output, shards, fields, options.licence, command, plan.drop_counts)


def _find_images(folders: tuple[str, ...]) -> dict[str, Path]:
    """Key -> file of every image; with several folders a key begins with the folder's name."""
    images: dict[str, Path] = {}
    for folder in folders:
        prefix = f"{Path(folder).resolve().name}/" if len(folders) > 1 else ""
        for key, path in index_folder(folder).items():
            if prefix + key in images:
                raise UsageError(f"{images[prefix + key]} and {path} would both be called {prefix + key!r}; rename one")
            images[prefix + key] = path
    return images


def _planned(options: PackOptions, images: dict[str, Path], output: Path, workers: int, progress: Progress) -> Plan:
    if (output / PLAN).is_file():
        plan = read_plan(output / PLAN)
        _check_same(plan, options, images, output)
        return plan
    if present := sorted(output.glob("*.tar")) + sorted(output.glob(MANIFEST)):
        raise UsageError(f"{output} holds {present[0].name}, which has no plan: give another --output")
    plan = _make_plan(options, images, workers, progress)
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([("key", "reason", "detail"), *plan.dropped])
    write_whole(output / DROPPED, table.getvalue().encode(errors="backslashreplace"), durable=True)
    content = json.dumps({"format": PLAN_FORMAT} | asdict(plan))
    write_whole(output / PLAN, content.encode(), durable=True)
    return plan


def _check_same(plan: Plan, options: PackOptions, images: Mapping[str, Path], output: Path) -> None:
    old, new = asdict(plan.options), asdict(options)
    differing = [f"{name} was {old[name]!r}, is {new[name]!r}" for name in new if old[name] != new[name]]
    planned = {key for key, _ in plan.samples} | {key for key, _, _ in plan.dropped}
    for what, keys in (("new", images.keys() - planned), ("gone", planned - images.keys())):
        if keys:
            differing.append(f"{len(keys)} images are {what}, the first is {min(keys)!r}")
    if differing:
        raise UsageError(
            f"{output} was begun as another set: {'; '.join(differing)}. Give another --output, or delete this folder"
        )


def _make_plan(options: PackOptions, images: Mapping[str, Path], workers: int, progress: Progress) -> Plan:
    """Read, decode, filter and hash every image, and mix what is left."""
    kept: list[tuple[str, dict[str, str]]] = []
    dropped: list[tuple[str, str, str]] = []
    total = 0
    look = partial(_look_at, options.maps, ImageFilter(options.min_size_px, options.min_sharpness))
    for number, (digests, size, drop) in enumerate(map_ordered(look, sorted(images.items()), workers), start=1):
        if drop is None:
            kept.append(digests)
        else:
            dropped.append(drop)
        total += size
        progress("looking at images", number, len(images), total)
    order = [kept[permuted(n, len(kept), options.seed, "pack")] for n in range(len(kept))]
    plan = Plan(options, order, dropped)
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in plan.drop_counts.items())
        raise UsageError(f"{' '.join(options.folders)}: no image is left to pack: {reasons}")
    return plan


def _look_at(
    maps: Mapping[str, str], keep: ImageFilter, image: tuple[str, Path]
) -> tuple[tuple[str, dict[str, str]], int, tuple[str, str, str] | None]:
    """((key, field -> digest), bytes that were read, (key, reason, detail) of an image that is dropped)."""
    key, path = image
    contents: dict[str, bytes] = {}
    dropped = None
    try:
        contents = _read_fields(key, path, maps)
        _check_pixels(key, path, contents, maps, keep)
    except UnusableSampleError as error:
        dropped = key, error.reason, str(error).removeprefix(f"{key}: {error.reason}")[2:-1]
    return (
        (key, {name: digest(content) for name, content in contents.items()}),
        sum(map(len, contents.values())),
        dropped,
    )


def _read_fields(key: str, path: Path, maps: Mapping[str, str]) -> dict[str, bytes]:
    """Field -> content of one sample: the image's file as it is, its tags if it has any, its maps."""
    what = "image"
    try:
        contents = {path.suffix[1:].lower(): path.read_bytes()}
        what = "tags"
        if tags := read_tags(path):
            contents[TAGS_FIELD] = tags.encode()
        for name, folder in sorted(maps.items()):
            what = f"{name} map"
            contents[map_field(name)] = Path(folder, f"{key}.png").read_bytes()
    except (MegaSRError, OSError) as error:
        reason = "no" if isinstance(error, FileNotFoundError) else "unreadable"
        raise UnusableSampleError(key, f"{reason} {what}", str(error)) from error
    return contents


def _check_pixels(
    key: str, path: Path, contents: Mapping[str, bytes], maps: Mapping[str, str], keep: ImageFilter
) -> None:
    reason = "damaged image"
    try:
        hq = decode_image(next(iter(contents.values())), str(path))
        if dropped := keep.reason(hq):
            raise UnusableSampleError(key, dropped, damaged=False)
        for name in maps:
            reason = f"unusable {name} map"
            decode_map(contents[map_field(name)], *hq.shape[:2])
    except UnusableSampleError:
        raise
    except (MegaSRError, ValueError) as error:
        raise UnusableSampleError(key, reason, str(error)) from error


def _finished(output: Path, paths: list[Path]) -> Manifest | None:
    """The manifest when all its files are there; verify is for what is inside them."""
    try:
        manifest = Manifest.from_json((output / MANIFEST).read_text(), str(output / MANIFEST))
        present = {path.name: path.stat().st_size for path in paths}
    except (OSError, UnicodeDecodeError, MegaSRError):
        return None
    indexed = all((output / index_name(name)).is_file() for name in present)
    return manifest if indexed and present == {shard.name: shard.bytes for shard in manifest.shards} else None


def _write_shard(
    maps: Mapping[str, str], images: Mapping[str, Path], job: tuple[Path, list[tuple[str, dict[str, str]]]]
) -> ShardEntry:
    """Write one tar and its index, unless both are there and as planned."""
    path, planned = job
    if (finished := finished_tar(path)) is not None:
        entry, samples = finished
        if [(s.key, {name: m.digest for name, m in s.files.items()}) for s in samples] == planned:
            return entry
    return write_tar(path, ((key, _planned_fields(key, images[key], maps, digests)) for key, digests in planned))[0]


def _planned_fields(key: str, path: Path, maps: Mapping[str, str], planned: Mapping[str, str]) -> dict[str, bytes]:
    changed = "restore it, or delete the output folder and pack again"
    try:
        contents = _read_fields(key, path, maps)
    except UnusableSampleError as error:
        raise MegaSRError(f"{path} was changed after {PLAN} was made ({error}): {changed}") from error
    digests = {name: digest(content) for name, content in contents.items()}
    if digests != planned:
        names = sorted(name for name in digests.keys() | planned.keys() if digests.get(name) != planned.get(name))
        raise MegaSRError(f"{path} was changed after {PLAN} was made ({', '.join(names)} differs): {changed}")
    return contents


def _command(options: PackOptions) -> str:
    """The command that makes this set, without what does not change it."""
    words = ["megasr", "shards", "pack", *options.folders]
    words += ["--samples-per-shard", str(options.samples_per_shard), "--min-size", str(options.min_size_px)]
    words += ["--min-sharpness", str(options.min_sharpness)]
    for name, folder in options.maps.items():
        words += ["--map", f"{name}={folder}"]
    return shlex.join([*words, "--licence", options.licence, "--seed", str(options.seed)])
