"""Pairing by key and seed; Holm against a worked example."""

from __future__ import annotations

import pytest

from ablations.statistics import holm, paired_differences
from megasr.errors import UsageError


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
