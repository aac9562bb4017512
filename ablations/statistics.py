"""Paired differences between runs, what seeds do to them, and Holm's correction.

The bootstrap is megasr.evaluation.intervals'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from megasr.errors import UsageError
from megasr.evaluation.intervals import SeedPool

# Measured on simulated studies: with 8 more true differences are found, and more false ones where ablations differ in
# how much seeds move them (experiments.statistics.coverage).
_POOL_DEGREES = 4


def paired_differences(
    treatment: Sequence[Mapping[str, float]], reference: Sequence[Mapping[str, float]]
) -> tuple[np.ndarray, list[str]]:
    """Differences treatment - reference, (S, I) over seeds and images, with the I keys in sorted order.

    Args:
        treatment: one {key: value} per seed.
        reference: one {key: value} per seed in the same order, or a single one that is shared by all seeds.

    Raises:
        UsageError: the runs did not measure the same images (the keys are listed), or numbers of seeds differ.
    """
    if len(reference) not in (1, len(treatment)):
        raise UsageError(f"{len(treatment)} seeds cannot be paired with {len(reference)}")
    together, keys = score_table([*treatment, *reference])
    return together[: len(treatment)] - together[len(treatment) :], keys


def score_table(runs: Sequence[Mapping[str, float]]) -> tuple[np.ndarray, list[str]]:
    """Values (S, I) of runs by images, with the I keys in sorted order.

    Raises:
        UsageError: the runs did not measure the same images (the keys are listed).
    """
    keys = sorted(runs[0])
    for values in runs:
        if different := sorted(set(keys) ^ set(values)):
            raise UsageError(f"the compared runs did not measure the same images: {', '.join(different)}")
    return np.array([[values[key] for key in keys] for values in runs]), keys


def pool_of_pairs(runs: Sequence[np.ndarray]) -> SeedPool | None:
    """What seeds do to the difference between any two of K ablations that share their seeds.

    The mean over all pairs, not over those with one reference: that one's few seeds are in all of its comparisons, and
    where they happen to agree, so would all.

    Args:
        runs: K arrays (S, I) of seeds by images.

    Returns:
        None when seeds or ablations are too few to say more than a pair says itself.
    """
    means = np.array([values.mean(1) for values in runs])  # (K, S)
    means -= means.mean(0)  # what a seed does to all ablations is in no difference
    return _pool(means, 2 * len(runs) / (len(runs) - 1), others=len(runs) - 2)


def pool_of_contrasts(contrasts: Sequence[np.ndarray]) -> SeedPool | None:
    """What seeds do to contrasts (S, I) of one kind, as the Shapley values of several types are; None as above."""
    return _pool(np.array([values.mean(1) for values in contrasts]), 1.0, others=len(contrasts) - 1)


def _pool(means: np.ndarray, scale: float, others: int) -> SeedPool | None:
    """The mean variance of rows (K, S), with the weight of at most the degrees of freedom that the others bring."""
    degrees = min(_POOL_DEGREES, others * (means.shape[1] - 1))
    return SeedPool(scale * float(means.var(1, ddof=1).mean()), degrees) if degrees > 0 else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given (Holm 1979): valid for any dependence of the tests."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values, float)[order] * factors))
    result = np.empty(len(p_values))
    result[order] = adjusted
    return result.tolist()
