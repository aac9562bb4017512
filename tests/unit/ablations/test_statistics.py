"""Pairing by key and seed; Holm against a worked example."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from ablations.statistics import holm, paired_differences, pool_of_contrasts, pool_of_pairs
from megasr.errors import UsageError
from megasr.evaluation.intervals import SeedPool
from megasr.rng import numpy_generator


def test_differences_are_paired_by_key_and_seed() -> None:
    treatment = [{"a": 3.0, "b": 5.0}, {"b": 7.0, "a": 4.0}]
    reference = [{"b": 1.0, "a": 1.0}, {"a": 2.0, "b": 2.0}]
    differences, keys = paired_differences(treatment, reference)
    assert keys == ["a", "b"]
    assert differences.tolist() == [[2.0, 4.0], [2.0, 5.0]]
    shared, _ = paired_differences(treatment, reference[:1])
    assert shared.tolist() == [[2.0, 4.0], [3.0, 6.0]]


def test_runs_on_other_images_cannot_be_paired() -> None:
    with pytest.raises(UsageError, match="same images: b, c"):
        paired_differences([{"a": 1.0, "b": 1.0}], [{"a": 1.0, "c": 1.0}])
    with pytest.raises(UsageError, match="3 seeds cannot be paired with 2"):
        paired_differences([{"a": 1.0}] * 3, [{"a": 1.0}] * 2)


def test_holm_worked_example() -> None:
    # Sorted .005 .01 .03 .04 -> factors 4 3 2 1 -> .02 .03 .06 .06 (made monotone)
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.01]) == [0.01]
    assert holm([]) == []


def test_the_pool_is_the_mean_over_all_pairs_of_ablations() -> None:
    runs = list(numpy_generator(0, "pool").normal(size=(5, 3, 4)))
    of_pairs = [np.var((a - b).mean(1), ddof=1) for a, b in combinations(runs, 2)]
    assert pool_of_pairs(runs) == SeedPool(pytest.approx(np.mean(of_pairs)), 4)
    moved_together = [run + np.array([[0.0], [5.0], [-9.0]]) for run in runs]
    assert pool_of_pairs(moved_together) == SeedPool(pytest.approx(np.mean(of_pairs)), 4)


def test_the_pool_weighs_no_more_than_the_others_have_seeds() -> None:
    runs = list(numpy_generator(0, "pool").normal(size=(3, 2, 4)))
    assert pool_of_pairs(runs).degrees == 1  # three ablations with two seeds: one other, which brings one
    assert pool_of_pairs(runs[:2]) is None
    assert pool_of_pairs([run[:1] for run in runs]) is None
    variance = np.mean([np.var(run.mean(1), ddof=1) for run in runs])
    assert pool_of_contrasts(runs) == SeedPool(pytest.approx(variance), 2)
    assert pool_of_contrasts(runs[:1]) is None
