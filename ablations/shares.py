"""How much of what the positive control gains over the reference the other ablations gain."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ablations.results import StudyResult, values
from ablations.statistics import paired_differences
from megasr.evaluation.intervals import SeedPool, paired_bootstrap
from megasr.rng import numpy_generator

_RESAMPLES = 2_000
_FARTHEST = 10.0
_STEP = 2e-3  # the ends of an interval are found to this


def shares_kept(result: StudyResult, pool: SeedPool | None) -> list[str]:
    """A sentence for each positive control that gains in the primary metric: the shares with their 95 % intervals.

    Args:
        result: of a study.
        pool: what seeds do to differences in the primary metric.
    """
    study, primary = result.study, result.primary
    sign = 1 if primary.higher_is_better else -1
    scores = {
        name: [values(run, primary.name) for run in result.of(name, primary.name)]
        for name in (study.reference.name, *(ablation.name for ablation in study.ablations))
    }

    def gain(name: str) -> tuple[np.ndarray, list[str]]:
        differences, keys = paired_differences(scores[name], scores[study.reference.name])
        return sign * differences, keys

    lines = []
    for control in (name for name, kind in study.controls.items() if kind == "positive"):
        whole, keys = gain(control)
        generator = numpy_generator(0, "share", study.name, control)
        if paired_bootstrap(whole, keys, generator, resamples=_RESAMPLES, pool=pool).low <= 0:
            continue
        kept = []
        for name in (ablation.name for ablation in study.ablations if ablation.name != control):
            share, low, high = share_of_gain(gain(name)[0], whole, keys, pool)
            kept.append(f"{name} {share:z.0%} [{low:z.0%}, {high:z.0%}]")
        if kept:
            lines.append(
                f"Of what {control} gains over {study.reference.name} in {primary.name} ({sign * whole.mean():+.4f}), "
                f"others gain (95 % intervals, not corrected): {', '.join(kept)}."
            )
    return lines


def share_of_gain(
    gain: np.ndarray, whole: np.ndarray, keys: Sequence[str], pool: SeedPool | None = None
) -> tuple[float, float, float]:
    """The share that one gain is of another, with its 95 % interval.

    Fieller's (1954): the shares s at which gain - s * whole, paired, is not told apart from zero. So it holds 0 exactly
    when the gain itself is not shown. A share of a gain that is hardly shown itself reaches far, or to infinity.

    Args:
        gain: (S, I), seeds by images.
        whole: (S, I), of the same seeds and images, positive on the whole.
        keys: I images.
        pool: see paired_bootstrap.
    """

    def possible(share: float) -> bool:
        rest = gain - share * whole
        return not paired_bootstrap(
            rest, keys, numpy_generator(0, "share"), resamples=_RESAMPLES, pool=pool
        ).excludes_zero

    share = float(gain.mean() / whole.mean())
    return share, share - _reach(possible, share, -1), share + _reach(possible, share, 1)


def _reach(possible: Callable[[float], bool], share: float, side: int) -> float:
    """How far from a share to one side others are possible, to _STEP; infinite beyond _FARTHEST."""
    inside, outside = 0.0, 0.05
    while possible(share + side * outside):
        inside, outside = outside, outside * 2
        if inside > _FARTHEST:
            return float("inf")
    while outside - inside > _STEP:
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if possible(share + side * middle) else (inside, middle)
    return inside
