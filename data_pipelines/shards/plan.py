"""The plan of a shard set: which images go in, in which order, and why the others do not.

It is made once and written whole before the first shard, so that a run that is killed goes on with the same one.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from data_pipelines.filters import ImageFilter
from data_pipelines.order import permuted
from data_pipelines.shards.parallel import Progress, map_ordered
from data_pipelines.shards.sources import Verdict, judge
from megasr.errors import MegaSRError, UsageError
from megasr.guidance.registry import is_made_from_lq

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
        ImageFilter(self.min_size_px, self.min_sharpness)  # it knows which values are possible
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

    def to_json(self) -> str:
        """The text of plan.json, one line per image."""
        head = json.dumps({"format": PLAN_FORMAT, "options": asdict(self.options)})
        samples, dropped = (",\n".join(map(json.dumps, rows)) for rows in (self.samples, self.dropped))
        return f'{head[:-1]}, "samples": [\n{samples}\n], "dropped": [\n{dropped}\n]}}\n'

    def dropped_csv(self) -> str:
        """The text of dropped.csv."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("key", "reason", "detail"))
        rows.writerows(self.dropped)
        return text.getvalue()


def read_plan(path: Path) -> Plan:
    """Read plan.json.

    Raises:
        MegaSRError: it cannot be read or is no plan.
    """
    try:
        content = json.loads(path.read_text())
        if content["format"] != PLAN_FORMAT:
            raise MegaSRError(f"{path}: format is {content['format']!r}, this version reads {PLAN_FORMAT!r}")
        options = content["options"] | {"folders": tuple(content["options"]["folders"])}
        samples = [(key, fields) for key, fields in content["samples"]]
        dropped = [(key, reason, detail) for key, reason, detail in content["dropped"]]
        return Plan(PackOptions(**options), samples, dropped)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise MegaSRError(f"{path}: not the plan of a shard set ({error!r}); pack into another folder") from error


def make_plan(options: PackOptions, images: Mapping[str, Path], workers: int, progress: Progress) -> Plan:
    """Read, decode, filter and hash every image, and mix what is left.

    Raises:
        UsageError: nothing is left.
    """
    kept: list[Verdict] = []
    dropped: list[tuple[str, str, str]] = []
    size = 0
    look = partial(judge, options.maps, ImageFilter(options.min_size_px, options.min_sharpness))
    for number, verdict in enumerate(map_ordered(look, sorted(images.items()), workers), start=1):
        if verdict.reason:
            dropped.append((verdict.key, verdict.reason, verdict.detail))
        else:
            kept.append(verdict)
        size += verdict.size
        progress("looking at images", number, len(images), size)
    order = (kept[permuted(n, len(kept), options.seed, "pack")] for n in range(len(kept)))
    plan = Plan(options, [(verdict.key, verdict.digests) for verdict in order], dropped)
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in plan.drop_counts.items())
        raise UsageError(f"{' '.join(options.folders)}: no image is left to pack: {reasons}")
    return plan


def check_same(plan: Plan, options: PackOptions, images: Mapping[str, Path], where: Path) -> None:
    """Refuse to go on with the plan of something else.

    Raises:
        UsageError: options or images differ; names them.
    """
    old, new = asdict(plan.options), asdict(options)
    differing = [f"{name} was {old[name]!r}, is {new[name]!r}" for name in new if old[name] != new[name]]
    planned = {key for key, _ in plan.samples} | {key for key, _, _ in plan.dropped}
    for what, keys in (("new", images.keys() - planned), ("gone", planned - images.keys())):
        if keys:
            differing.append(f"{len(keys)} images are {what}, the first is {min(keys)!r}")
    if differing:
        raise UsageError(
            f"{where} was begun as another set: {'; '.join(differing)}. Give another --output, or delete this folder"
        )
