"""A reference: the numbers of one recipe over its seeds, as a JSON file that grows seed by seed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ablations.registry import Config, diff, flatten
from ablations.statistics import paired_differences
from megasr.errors import MegaSRError, UsageError, unknown_name
from megasr.evaluation.intervals import Interval, paired_bootstrap
from megasr.evaluation.result import Row
from megasr.files import write_whole
from megasr.rng import numpy_generator

REFERENCES = Path(__file__).parent
# JPEG and resizing may round differently on another machine; other images or another degradation move metrics more.
_SAME_IMAGES_SHARE = 0.01


@dataclass(frozen=True)
class SeedRun:
    """One seed of a recipe.

    Attributes:
        seed: of model, noise and order of the data.
        rows: one {"key", metric: value} per evaluation image.
        train_s: seconds of training; what is prepared once, such as a pool of scenes, is not in it.
        evaluate_s: seconds of restoring and measuring.
        platform: cpu, cores, machine, device, threads (of torch on the CPU) and versions.
        commit: of the code.
        time: when it was measured, UTC.
    """

    seed: int
    rows: list[Row]
    train_s: float
    evaluate_s: float
    platform: dict[str, Any]
    commit: str | None
    time: str


@dataclass(frozen=True)
class Reference:
    """What a recipe gave.

    Attributes:
        recipe: its name.
        fingerprints: see Recipe.
        protocol: name of the protocol.
        steps: training steps of every run.
        batch_size: samples per step and device; None when the data section does not say.
        config: the resolved config without seeds.
        bicubic: rows of bicubic on the same images.
        runs: in the order of their seeds.
    """

    recipe: str
    fingerprints: dict[str, str | None]
    protocol: str
    steps: int
    batch_size: int | None
    config: dict[str, Any]
    bicubic: list[Row]
    runs: tuple[SeedRun, ...] = ()

    @property
    def seeds(self) -> list[int]:
        """Seeds that are measured, in order."""
        return [run.seed for run in self.runs]

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics, in the order of the protocol."""
        return [name for name in self.bicubic[0] if name != "key"]

    def of_seed(self, seed: int) -> SeedRun:
        """The run of a seed. Raises UsageError when it is not measured."""
        if seed not in self.seeds:
            raise UsageError(f"{self.recipe} has no seed {seed}; measured: {', '.join(map(str, self.seeds))}")
        return self.runs[self.seeds.index(seed)]

    def with_run(self, run: SeedRun) -> Reference:
        """This reference with a seed added, or replaced."""
        runs = {old.seed: old for old in self.runs} | {run.seed: run}
        return replace(self, runs=tuple(runs[seed] for seed in sorted(runs)))

    def interval(self, metric: str) -> Interval:
        """Mean and 95 % interval of a metric over images and seeds: paired_bootstrap of the values themselves."""
        values, keys = _stacked([run.rows for run in self.runs], metric)
        return paired_bootstrap(values, keys, numpy_generator(0, "reference", self.recipe, metric))

    def bicubic_interval(self, metric: str) -> Interval:
        """Mean and 95 % interval of bicubic over the images."""
        values, keys = _stacked([self.bicubic], metric)
        return paired_bootstrap(values, keys, numpy_generator(0, "reference", "bicubic", metric))

    def difference(self, other: Reference | None, metric: str) -> Interval | None:
        """This minus another recipe, or minus bicubic (None), paired over images and the seeds that both have.

        Returns:
            None when they have no seed in common.

        Raises:
            UsageError: they did not measure the same images.
        """
        seeds = [seed for seed in self.seeds if other is None or seed in other.seeds]
        if not seeds:
            return None
        mine = [by_key(self.of_seed(seed).rows, metric) for seed in seeds]
        rows = [self.bicubic] if other is None else [other.of_seed(seed).rows for seed in seeds]
        differences, keys = paired_differences(mine, [by_key(of_seed, metric) for of_seed in rows])
        name = "bicubic" if other is None else other.recipe
        return paired_bootstrap(differences, keys, numpy_generator(0, "reference", self.recipe, name, metric))


def changes(reference: Reference, config: Config, fingerprints: Mapping[str, str | None]) -> list[str]:
    """What is another than when the reference was measured, for people; empty when nothing is.

    Args:
        reference: what was measured.
        config: of the recipe as it is now, without seeds.
        fingerprints: of the recipe as it is now.
    """
    names = sorted(reference.fingerprints.keys() | fingerprints.keys())
    changed = [name for name in names if reference.fingerprints.get(name) != fingerprints.get(name)]
    leaves = diff(reference.config, flatten(config))
    detail = ", ".join(f"{path} {old!r} -> {new!r}" for path, (old, new) in leaves.items())
    return [f"recipe ({detail})" if name == "recipe" and detail else name for name in changed]


def same_images(first: Sequence[Row], other: Sequence[Row]) -> bool:
    """Do two rows of bicubic come from the same images with the same degradation? Roundings aside."""
    theirs = {row["key"]: row for row in other}
    if theirs.keys() != {row["key"] for row in first}:
        return False
    return all(
        math.isclose(row[name], theirs[row["key"]].get(name, math.nan), rel_tol=_SAME_IMAGES_SHARE)
        for row in first
        for name in row
        if name != "key"
    )


def by_key(rows: Sequence[Row], metric: str) -> dict[str, float]:
    """Image key -> value of the metric."""
    return {row["key"]: row[metric] for row in rows}


def _stacked(runs: Sequence[Sequence[Row]], metric: str) -> tuple[np.ndarray, list[str]]:
    return paired_differences([by_key(rows, metric) for rows in runs], [dict.fromkeys(by_key(runs[0], metric), 0.0)])


def write_reference(reference: Reference, path: Path) -> None:
    """Write JSON, whole or not at all; means and intervals stand beside the rows that they are of.

    Raises:
        MegaSRError: the place cannot be written to.
    """
    names = reference.metrics
    content = asdict(reference)
    runs, bicubic, config = (content.pop(name) for name in ("runs", "bicubic", "config"))
    content["seeds"] = reference.seeds
    intervals = {name: reference.interval(name) for name in names}
    content["metrics"] = {name: {"mean": i.mean, "low": i.low, "high": i.high} for name, i in intervals.items()}
    content |= {"config": config, "bicubic": bicubic, "runs": runs}
    text = json.dumps(content, indent=1)
    # One line per image: a file that people read and compare.
    text = re.sub(r'\{\s+("key"[^{}]*?)\s+\}', lambda found: "{" + re.sub(r"\n\s+", " ", found[1]) + "}", text)
    write_whole(path, f"{text}\n".encode())


def read_reference(path: Path) -> Reference:
    """Read what write_reference wrote.

    Raises:
        MegaSRError: it cannot be understood, or its means are not those of its rows.
    """
    try:
        content = json.loads(path.read_text())
        stated = content["metrics"]
        kept = {field.name: content[field.name] for field in fields(Reference)}
        reference = Reference(**kept | {"runs": tuple(SeedRun(**run) for run in content["runs"])})
        for name in reference.metrics:
            _check_mean(path, name, stated[name], reference)
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise MegaSRError(f"{path} cannot be read as a reference ({error}); delete it and measure again") from error
    return reference


def _check_mean(path: Path, metric: str, stated: Mapping[str, float], reference: Reference) -> None:
    values, _ = _stacked([run.rows for run in reference.runs], metric)
    if not math.isclose(stated["mean"], values.mean(), rel_tol=1e-9):
        raise MegaSRError(
            f"{path} has been changed by hand: {metric} is {stated['mean']:.6g}, its rows say {values.mean():.6g}"
        )


def find_reference(name: str, folder: Path) -> Reference:
    """The reference of a recipe. Raises UsageError when it is not measured, MegaSRError when it is damaged."""
    path = folder / f"{name}.json"
    if not path.is_file():
        known = [found.relative_to(folder).with_suffix("").as_posix() for found in folder.rglob("*.json")]
        if not known:
            raise UsageError(f"{name} is not measured yet, nor is any other recipe")
        raise unknown_name("reference", name, known)
    return read_reference(path)


def all_references(folder: Path) -> list[Reference]:
    """Every reference below a folder, sorted by name."""
    return [read_reference(path) for path in sorted(folder.rglob("*.json"))]
