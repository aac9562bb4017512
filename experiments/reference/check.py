"""Measure one seed of a recipe again, training included, and compare it with the reference.

What may differ: on the platform of the record (CPU, machine, threads and versions of the libraries), nothing; every
row must be equal to the last bit. Elsewhere rounding errors grow in training, at worst until the run is like one of
another seed. So the mean of a metric may then differ from its record by as much as the other recorded seeds differ from
one another: of the differences between every two of them, paired per image, the farthest end of a 95 % interval of the
mean (bootstrap over images). The seed itself is left out: a wrong record would widen what it is judged by. With fewer
than two other seeds no spread is known; 2 % of the recorded mean are allowed then, which is a guess.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from ablations.progress import steps_progress
from ablations.statistics import paired_differences
from experiments.reference.measure import Workplace, prepare, run_seed, start
from experiments.reference.records import Reference, SeedRun, by_key, changes, find_reference, same_images
from megasr.errors import MegaSRError
from megasr.evaluation.evaluator import Evaluator
from megasr.evaluation.intervals import paired_bootstrap
from megasr.rng import numpy_generator

FEW_SEEDS_SHARE = 0.02


@dataclass(frozen=True)
class Line:
    """One metric, recorded and measured again.

    Attributes:
        metric: its name.
        recorded: mean over the images.
        measured: mean over the images.
        allowed: largest difference of the means; 0 asks for rows that are equal to the last bit.
        deviates: the difference is not allowed.
    """

    metric: str
    recorded: float
    measured: float
    allowed: float
    deviates: bool


@dataclass(frozen=True)
class Comparison:
    """What a check found: a line per metric, and whether the record was made on this platform."""

    lines: tuple[Line, ...]
    same_platform: bool

    @property
    def deviating(self) -> list[str]:
        """Metrics that deviate."""
        return [line.metric for line in self.lines if line.deviates]


def check(name: str, seed: int | None, place: Workplace) -> Comparison:
    """Measure a seed again (by default the first recorded one), on as many threads as its record, and compare.

    Raises:
        UsageError: the recipe or the seed is not measured yet.
        MegaSRError: recipe, prior, protocol or evaluation images have changed since, or the run failed.
    """
    reference = find_reference(name, place.references)
    recorded = reference.of_seed(reference.seeds[0] if seed is None else seed)
    recipe = place.load(name)
    if reasons := changes(reference, recipe.config, recipe.fingerprints):
        raise MegaSRError(f"{name}: changed since it was measured: {', '.join(reasons)}; measure it again")
    evaluator = Evaluator(place.protocol)
    if not same_images(reference.bicubic, start(recipe, place, evaluator).bicubic):
        raise MegaSRError(f"{name}: bicubic has other numbers: the evaluation images have changed; measure it again")
    with _threads(int(recorded.platform["threads"])):
        plan = recipe.plan(recorded.seed)
        prepare(plan, place)
        with steps_progress(plan.max_steps) as (advance, describe, _):
            describe(f"seed {recorded.seed} of {name}")
            measured = run_seed(recipe, recorded.seed, place, evaluator, place.runs / "check", advance)
    return compare(reference, recorded, measured)


def compare(reference: Reference, recorded: SeedRun, measured: SeedRun) -> Comparison:
    """Compare two measurements of one seed by the rule above.

    Raises:
        UsageError: they did not measure the same images.
    """
    same = _same_platform(recorded, measured)
    lines = tuple(_line(reference, recorded, measured, metric, same) for metric in reference.metrics)
    return Comparison(lines, same)


def _line(reference: Reference, recorded: SeedRun, measured: SeedRun, metric: str, same_platform: bool) -> Line:
    before, after = by_key(recorded.rows, metric), by_key(measured.rows, metric)
    difference = paired_differences([after], [before])[0]
    allowed = 0.0 if same_platform else allowed_difference(reference, recorded, metric)
    deviates = bool(difference.any()) if same_platform else abs(difference.mean()) > allowed
    return Line(metric, _mean(before), _mean(after), allowed, deviates)


def allowed_difference(reference: Reference, recorded: SeedRun, metric: str) -> float:
    """How far another platform may be off in the mean of a metric: see above."""
    others = [by_key(run.rows, metric) for run in reference.runs if run.seed != recorded.seed]
    if len(others) < 2:
        return FEW_SEEDS_SHARE * abs(_mean(by_key(recorded.rows, metric)))
    ends = []
    for first, second in itertools.combinations(others, 2):
        generator = numpy_generator(0, "spread", reference.recipe, metric)
        interval = paired_bootstrap(*paired_differences([first], [second]), generator)
        ends += [abs(interval.low), abs(interval.high)]
    return max(ends)


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)


def _same_platform(recorded: SeedRun, measured: SeedRun) -> bool:
    """Are equal bits expected? A GPU adds in any order, and the number of cores does not matter."""
    before, after = ({**run.platform, "cores": None} for run in (recorded, measured))
    return before == after and after["device"] == "cpu"


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
