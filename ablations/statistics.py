"""Paired differences between runs, and Holm's correction. The bootstrap is megasr.evaluation.intervals'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from megasr.errors import UsageError


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


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given (Holm 1979): valid for any dependence of the tests."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values, float)[order] * factors))
    result = np.empty(len(p_values))
    result[order] = adjusted
    return result.tolist()
