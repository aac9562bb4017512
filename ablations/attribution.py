"""Which guidance types help: Shapley values, pairwise synergies, ranks, and the agreement of two rankings.

A study is a game over guidance types: a subset of types, trained together, has the value that it scored. Shapley values
and synergies are linear in the scores, so their intervals are those of paired differences. Ranks and Kendall's tau are
not; their intervals come from resampling the scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

import numpy as np

from ablations.statistics import pool_of_contrasts
from megasr.errors import UsageError
from megasr.evaluation.intervals import Resampler, paired_bootstrap

_Name = TypeVar("_Name", str, tuple[str, str])
Subset = frozenset[str]
Scores = Mapping[Subset, np.ndarray]  # subset -> (S, I), seeds by images, larger is better; Subset() is "none"


@dataclass(frozen=True)
class Estimate:
    """A mean over all images and seeds with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """The whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Attribution(Estimate):
    """A Shapley value or a synergy.

    Attributes:
        p_value: two-sided, not corrected; see `megasr.evaluation.intervals.Interval`.
        used: contrasts (pairs of subsets, or quadruples) that were run.
        possible: contrasts in the full game; with used < possible it is not the exact value.
    """

    p_value: float
    used: int
    possible: int


@dataclass(frozen=True)
class Ranked:
    """A subset in the ranking.

    Attributes:
        subset: the guidance types.
        mean: score over all images and seeds.
        rank: mean rank over the resamples; 1 is best, equal scores share their mean rank.
        rank_low, rank_high: its 95 % percentile interval.
        wins: share of resamples in which it is first; a shared first place counts in parts.
    """

    subset: Subset
    mean: float
    rank: float
    rank_low: float
    rank_high: float
    wins: float


def shapley(
    scores: Scores, keys: Sequence[str], generator: np.random.Generator, resamples: int = 10_000
) -> dict[str, Attribution]:
    """What each type adds, averaged over the subsets it may join (Shapley 1953), in the unit of the scores.

    Exact when all subsets were run. Otherwise the mean over the pairs (T, T + type) that were run: equal weights within
    a size of T, then equal weights over the sizes that have a pair.

    Raises:
        UsageError: a type has no pair, or the scores do not fit together.
    """
    types = _types(scores, keys)
    contrasts = {name: _contrasts(scores, (name,)) for name in types}
    if alone := [name for name, pairs in contrasts.items() if not pairs]:
        raise UsageError(
            f"guidance type {alone[0]!r} has no pair of subsets that differ by it alone: run one, such as none and it"
        )
    return _attributions(contrasts, 2 ** (len(types) - 1), keys, generator, resamples)


def synergy(
    scores: Scores, keys: Sequence[str], generator: np.random.Generator, resamples: int = 10_000
) -> dict[tuple[str, str], Attribution]:
    """What two types add together beyond what each adds alone: the Shapley index (Grabisch, Roubens 1999).

    Over the quadruples (T, T + a, T + b, T + a + b) that were run, weighted as in `shapley`. Negative: the two say the
    same. Pairs of types without a quadruple are absent.

    Raises:
        UsageError: the scores do not fit together.
    """
    types = _types(scores, keys)
    contrasts = {pair: quadruples for pair in combinations(types, 2) if (quadruples := _contrasts(scores, pair))}
    return _attributions(contrasts, 2 ** (len(types) - 2), keys, generator, resamples)


def ranking(
    scores: Scores, keys: Sequence[str], generator: np.random.Generator, resamples: int = 10_000
) -> list[Ranked]:
    """All subsets, best first, with how stable their places are when other photographs and seeds are drawn.

    All subsets share the resampled photographs and seeds. Two or three seeds have few outcomes, so the stability over
    seeds is a lower bound on the doubt. Measured: where seeds vary little, 99 % of the intervals hold the true rank;
    where they vary as much as photographs do, 86 % with two seeds and 92 to 96 % with three.

    Raises:
        UsageError: the scores do not fit together.
    """
    _types(scores, keys)
    resampler = Resampler(keys, generator, resamples)
    seeds = resampler.seeds(len(next(iter(scores.values()))))
    subsets = sorted(scores, key=lambda subset: (-float(scores[subset].mean()), len(subset), sorted(subset)))
    drawn = np.stack([resampler.means(scores[subset], seeds) for subset in subsets])  # (K, R)
    ranks = np.stack([1 + (drawn > own).sum(0) + ((drawn == own).sum(0) - 1) / 2 for own in drawn])
    first = drawn == drawn.max(0)
    means = [scores[subset].mean() for subset in subsets]
    columns = (means, ranks.mean(1), *np.quantile(ranks, [0.025, 0.975], axis=1), (first / first.sum(0)).mean(1))
    return [Ranked(subset, *map(float, row)) for subset, *row in zip(subsets, *columns, strict=True)]


def kendall(
    scores_a: Scores, scores_b: Scores, keys: Sequence[str], generator: np.random.Generator, resamples: int = 10_000
) -> Estimate:
    """Kendall's tau-b of two rankings of the subsets common to both, in [-1, 1] (Kendall 1945).

    Both sides were measured on the same images, whose photographs are resampled together; the seeds of a side are
    its own. Noise pulls tau towards 0, and resampling adds noise, so the interval holds both the percentile interval
    and its reflection at the estimate.

    Raises:
        UsageError: fewer than two common subsets, a side that scores all of them alike, or scores that do not fit.
    """
    for scores in (scores_a, scores_b):
        _types(scores, keys)
    common = sorted(set(scores_a) & set(scores_b), key=sorted)
    if len(common) < 2:
        raise UsageError(f"{len(common)} subset(s) in both rankings: Kendall's tau needs at least two")
    resampler = Resampler(keys, generator, resamples)
    means, drawn = [], []
    for scores in (scores_a, scores_b):
        seeds = resampler.seeds(len(scores[common[0]]))
        means.append(np.array([[scores[subset].mean()] for subset in common]))
        drawn.append(np.stack([resampler.means(scores[subset], seeds) for subset in common]))
    tau = float(_tau_b(*means)[0])
    if np.isnan(tau):
        raise UsageError("one side scores all common subsets alike: there is no ranking to compare")
    low, high = (float(end) for end in np.nanquantile(_tau_b(*drawn), [0.025, 0.975]))
    return Estimate(tau, max(-1.0, min(low, 2 * tau - high)), min(1.0, max(high, 2 * tau - low)))


def seed_agreement(scores: Scores, subsets: Sequence[Subset]) -> float | None:
    """Mean tau-b between the rankings that single seeds of one study give, in [-1, 1]; None with fewer than two seeds.

    The scale of `kendall`: a study whose own seeds disagree cannot be predicted by another.
    """
    rankings = np.stack([scores[subset].mean(-1) for subset in subsets])  # (K, seeds)
    pairs = list(combinations(range(rankings.shape[1]), 2))
    if not pairs:
        return None
    first, second = (rankings[:, list(side)] for side in zip(*pairs, strict=True))
    return float(np.nanmean(_tau_b(first, second)))


def _tau_b(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """tau-b of the columns of two (K, R) arrays: (R,), NaN where a column is constant."""
    agreement, untied_first, untied_second = (np.zeros(first.shape[1]) for _ in range(3))
    for i in range(len(first) - 1):
        a, b = (np.sign(side[i + 1 :] - side[i]) for side in (first, second))
        agreement += (a * b).sum(0)
        untied_first += np.abs(a).sum(0)
        untied_second += np.abs(b).sum(0)
    scale = np.sqrt(untied_first * untied_second)
    return np.divide(agreement, scale, out=np.full(len(scale), np.nan), where=scale > 0)


def _contrasts(scores: Scores, joining: tuple[str, ...]) -> dict[int, list[np.ndarray]]:
    """Size of T -> differences of T when all of `joining` join it, for every T of which all parts were run.

    For one type v(T + a) - v(T); for two v(T + a + b) - v(T + a) - v(T + b) + v(T).
    """
    parts = [Subset(part) for size in range(len(joining) + 1) for part in combinations(joining, size)]
    signs = [(-1) ** (len(joining) - len(part)) for part in parts]
    contrasts: dict[int, list[np.ndarray]] = {}
    for base in sorted(scores, key=sorted):
        if not base & set(joining) and all(base | part in scores for part in parts):
            terms = [sign * scores[base | part] for sign, part in zip(signs, parts, strict=True)]
            contrasts.setdefault(len(base), []).append(np.sum(terms, axis=0))
    return contrasts


def _attributions(
    contrasts: Mapping[_Name, dict[int, list[np.ndarray]]], possible: int, keys: Sequence[str],
    generator: np.random.Generator, resamples: int,
) -> dict[_Name, Attribution]:  # fmt: skip
    """For each name the mean over sizes of the mean within each size: with all subsets these are Shapley's weights."""
    means = {
        name: np.mean([np.mean(of_size, axis=0) for of_size in sizes.values()], axis=0)
        for name, sizes in contrasts.items()
    }
    pool = pool_of_contrasts(list(means.values())) if means else None
    attributions = {}
    for name, contrast in means.items():
        one = paired_bootstrap(contrast, keys, generator, resamples=resamples, pool=pool)
        used = sum(map(len, contrasts[name].values()))
        attributions[name] = Attribution(one.mean, one.low, one.high, one.p_value, used, possible)
    return attributions


def _types(scores: Scores, keys: Sequence[str]) -> list[str]:
    """All types of the game in order. Raises UsageError when the scores do not fit the keys or each other."""
    types = sorted(Subset().union(*scores))
    if not types:
        raise UsageError("no subset with a guidance type was scored: there is nothing to attribute")
    shape = next(iter(scores.values())).shape
    for subset, values in scores.items():
        if values.shape != shape or len(shape) != 2 or shape[1] != len(keys):
            name = "+".join(sorted(subset)) or "none"
            raise UsageError(f"scores of {name} have shape {values.shape}: give (seeds, {len(keys)} images) as for all")
    return types
