"""Do 95 % intervals hold the truth 95 % of the time, and does Holm's correction keep its 5 %? On simulated studies.

    python -m experiments.statistics.coverage --trials 1000 --output coverage.json

A study of two guidance types is simulated: "useful" adds EFFECT, "useless" nothing, and their synergy is nothing. Each
of the three gains varies over photographs (variance 1; normal, lognormal with skewness 1.75, or Student's t with 4
degrees of freedom) and over seeds (a normal of `seed_ratio` times that variance), and each score has crop noise
(normal, variance 1, two crops per photograph). The variance of seeds is pooled as a study's report does it. Coverage is
that of the gain over none, of the Shapley values, and of the synergy. "told_apart" is the share of studies where the
interval of the useful type lies above zero and that of the useless one does not exclude it.

Family-wise error: comparisons with one reference, none of which differ. "even": seeds move every ablation alike;
"uneven": by another amount each, lognormal with sigma 0.5; "factorial": the ablations are subsets of types, and a seed
moves what a type gives wherever it is. Ranks and Kendall's tau: five subsets EFFECT / 2 apart, trained twice with other
seeds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from ablations.attribution import Scores, Subset, kendall, ranking, shapley, synergy
from ablations.statistics import holm, pool_of_pairs
from experiments.benchmarks.record import publish
from megasr.evaluation.intervals import paired_bootstrap
from megasr.rng import numpy_generator

DESIGNS = ((8, 2), (16, 2), (24, 2), (24, 3), (48, 2), (48, 3), (96, 3), (24, 1))  # photographs, seeds
COSTLY_DESIGNS = ((24, 2), (24, 3), (96, 3))  # of family-wise error and ranks too
SHAPES = ("normal", "lognormal", "student4")
SEED_RATIOS = (0.0, 0.05, 1.0)  # none, as runs of this project have it (up to a tenth), equal to the photographs'
CROPS, EFFECT = 2, 0.8  # the effect in standard deviations over photographs
FAMILIES = (4, 16)
SEED_KINDS = ("even", "uneven", "factorial")
_SIGMA = 0.5  # of the logarithm
_RESAMPLES = 1000
_NONE, _USEFUL, _USELESS = Subset(), Subset(["useful"]), Subset(["useless"])


def keys(photographs: int) -> list[str]:
    """The crops of so many photographs."""
    return [f"p{photo}/0-{crop}" for photo in range(photographs) for crop in range(CROPS)]


def gain(generator: np.random.Generator, shape: str, photographs: int, seeds: int, seed_ratio: float) -> np.ndarray:
    """A gain of mean 0 and its variation over photographs and seeds: (S, I), the same for all crops of a photograph."""
    if shape == "normal":
        of_photos = generator.normal(size=photographs)
    elif shape == "lognormal":
        mean, variance = np.exp(_SIGMA**2 / 2), np.exp(_SIGMA**2) * (np.exp(_SIGMA**2) - 1)
        of_photos = (generator.lognormal(0, _SIGMA, photographs) - mean) / np.sqrt(variance)
    else:
        of_photos = generator.standard_t(4, photographs) / np.sqrt(2)
    of_seeds = np.sqrt(seed_ratio) * generator.normal(size=(seeds, 1))
    return of_seeds + np.repeat(of_photos, CROPS)


def game(generator: np.random.Generator, shape: str, photographs: int, seeds: int, seed_ratio: float) -> Scores:
    """Scores of all four subsets of the two types."""
    useful, useless, together = (gain(generator, shape, photographs, seeds, seed_ratio) for _ in range(3))
    noise = generator.normal(size=(4, seeds, photographs * CROPS))
    useful = useful + EFFECT
    return {
        _NONE: noise[0],
        _USEFUL: useful + noise[1],
        _USELESS: useless + noise[2],
        _USEFUL | _USELESS: useful + useless + together + noise[3],
    }


def coverage(shape: str, photographs: int, seeds: int, seed_ratio: float, trials: int) -> dict[str, float]:
    """Shares of studies whose intervals hold the truth, and what they tell of the two types."""
    images, truths = keys(photographs), {"useful": EFFECT, "useless": 0.0}
    rows = []
    for trial in range(trials):
        generator = numpy_generator(trial, "coverage", shape, photographs, seeds, str(seed_ratio))
        scores = game(generator, shape, photographs, seeds, seed_ratio)
        pool = pool_of_pairs(list(scores.values()))
        gained = paired_bootstrap(scores[_USEFUL] - scores[_NONE], images, generator, resamples=_RESAMPLES, pool=pool)
        values = shapley(scores, images, generator, _RESAMPLES)
        (pair,) = synergy(scores, images, generator, _RESAMPLES).values()
        rows.append(
            {
                "comparison": gained.low <= EFFECT <= gained.high,
                "shapley": np.mean([one.low <= truths[name] <= one.high for name, one in values.items()]),
                "synergy": pair.low <= 0 <= pair.high,
                "told_apart": values["useful"].low > 0 and not values["useless"].excludes_zero,
                "useless_called_useful": values["useless"].low > 0,
                "p_agrees": (gained.p_value < 0.05) == gained.excludes_zero,
                "width": gained.high - gained.low,
            }
        )
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def family_wise_error(shape: str, photographs: int, seeds: int, seed_ratio: float, trials: int) -> dict[str, float]:
    """Share of families with a false claim (p below 0.05 after Holm), by what seeds do and how many compare."""
    return {
        f"{kind}_of_{size}": _false_claims(kind, size, shape, photographs, seeds, seed_ratio, trials)
        for kind in SEED_KINDS
        for size in FAMILIES
    }


def _false_claims(
    kind: str, size: int, shape: str, photographs: int, seeds: int, seed_ratio: float, trials: int
) -> float:
    images, wrong = keys(photographs), 0
    for trial in range(trials):
        generator = numpy_generator(trial, "family", kind, size, shape, photographs, seeds, str(seed_ratio))
        reference, *others = _family(generator, kind, size, shape, photographs, seeds, seed_ratio)
        pool = pool_of_pairs([reference, *others])
        found = [
            paired_bootstrap(o - reference, images, generator, resamples=2 * _RESAMPLES, pool=pool) for o in others
        ]
        wrong += min(holm([interval.p_value for interval in found])) < 0.05
    return wrong / trials


def _family(
    generator: np.random.Generator, kind: str, size: int, shape: str, photographs: int, seeds: int, seed_ratio: float
) -> list[np.ndarray]:
    """Scores (S, I) of a reference and so many ablations, all with mean 0."""
    runs = [_run(generator, shape, photographs, seeds, 0.0) for _ in range(1 + size)]
    deviations = np.sqrt(seed_ratio) * generator.normal(size=(1 + size, seeds))
    if kind == "uneven":
        deviations *= generator.lognormal(0, _SIGMA, (1 + size, 1)) / np.exp(_SIGMA**2)  # mean square 1
    elif kind == "factorial":  # number i of the ablations has the types of i's binary digits; the reference has none
        types = int(np.log2(size)) + 1
        digits = np.arange(1 + size)[:, None] >> np.arange(types) & 1
        deviations = (
            digits @ deviations[:types] * np.sqrt(4 / types)
        )  # between two subsets as between two of the others
    return [run + deviation[:, None] for run, deviation in zip(runs, deviations, strict=True)]


def _run(generator: np.random.Generator, shape: str, photographs: int, seeds: int, seed_ratio: float) -> np.ndarray:
    noise = generator.normal(size=(seeds, photographs * CROPS))
    return gain(generator, shape, photographs, seeds, seed_ratio) + noise


def ranks(shape: str, photographs: int, seeds: int, seed_ratio: float, trials: int) -> dict[str, float]:
    """How often the interval of a rank holds the true rank, and that of tau the tau of the true means, which is 1.

    Also the mean share of wins of the best, beside how often its measured mean is the first.
    """
    images = keys(photographs)
    subsets = [Subset([name]) for name in "abcde"]
    rows = []
    for trial in range(trials):
        generator = numpy_generator(trial, "ranks", shape, photographs, seeds, str(seed_ratio))
        first, second = (
            {s: _run(generator, shape, photographs, seeds, seed_ratio) - i * EFFECT / 2 for i, s in enumerate(subsets)}
            for _ in range(2)
        )
        ranked = ranking(first, images, generator, _RESAMPLES)
        tau = kendall(first, second, images, generator, _RESAMPLES)
        held = [one.rank_low <= subsets.index(one.subset) + 1 <= one.rank_high for one in ranked]
        wins = next(one.wins for one in ranked if one.subset == subsets[0])
        rows.append((np.mean(held), wins, ranked[0].subset == subsets[0], tau.mean, tau.low <= 1.0 <= tau.high))
    names = ("rank_held", "wins_of_best", "best_is_first", "tau", "tau_held")
    return dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))


def conditions() -> Iterator[tuple[str, int, int, float]]:
    """All that is simulated. A single seed says nothing of others, so it is asked only where seeds do not differ."""
    for shape in SHAPES:
        for photographs, seeds in DESIGNS:
            yield from ((shape, photographs, seeds, ratio) for ratio in (SEED_RATIOS if seeds > 1 else (0.0,)))


def simulate(condition: tuple[str, int, int, float], trials: int) -> dict[str, dict[str, object]]:
    """The rows of one condition: coverage; for some designs also family-wise error and ranks, in fewer trials."""
    measurements = {"coverage": coverage(*condition, trials)}
    if condition[1:3] in COSTLY_DESIGNS:
        measurements["family_wise_error"] = family_wise_error(*condition, trials // 2)
        measurements["ranks"] = ranks(*condition, trials // 4)
    named = dict(zip(("shape", "photographs", "seeds", "seed_ratio"), condition, strict=True))
    return {
        measurement: named | {name: round(number, 4) for name, number in numbers.items()}
        for measurement, numbers in measurements.items()
    }


def main() -> None:
    """Simulate and publish the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000, help="simulated studies per condition")
    parser.add_argument("--processes", type=int, default=1, help="conditions simulated side by side")
    parser.add_argument("--output", type=Path, help="file for the JSON that is printed")
    options = parser.parse_args()
    results: dict[str, list[dict[str, object]]] = {"coverage": [], "family_wise_error": [], "ranks": []}
    with ProcessPoolExecutor(options.processes) as pool:
        for found in pool.map(partial(simulate, trials=options.trials), conditions()):
            for measurement, row in found.items():
                results[measurement].append(row)
            print(found, file=sys.stderr, flush=True)
    settings = {"trials": options.trials, "resamples": _RESAMPLES, "crops": CROPS, "effect": EFFECT}
    publish("statistics_coverage", settings, results, options.output)


if __name__ == "__main__":
    main()
