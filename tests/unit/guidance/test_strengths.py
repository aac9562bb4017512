"""Strengths as mixtures of subsets that training can show."""

import itertools

import pytest

from megasr.errors import UsageError
from megasr.guidance.extract import check_strengths, mix_subsets


def modulation(strengths, of_subset):
    return sum(weight * of_subset(names) for weight, names in mix_subsets(strengths))


def test_strengths_of_0_and_1_are_one_subset():
    for bits in itertools.product((0.0, 1.0), repeat=3):
        strengths = dict(zip("abc", bits, strict=True))
        assert mix_subsets(strengths) == [(1.0, frozenset(name for name, bit in strengths.items() if bit))]


def test_types_that_add_up_are_scaled_each_by_its_own_strength():
    strengths, effect = {"a": 0.25, "b": 1.5, "c": 0.0}, {"a": 10.0, "b": 3.0, "c": 7.0}
    found = modulation(strengths, lambda names: 100 + sum(effect[name] for name in names))
    assert found == pytest.approx(100 + 0.25 * 10 + 1.5 * 3)


def test_weights_sum_to_1_and_types_that_interact_are_mixed_continuously():
    def together(names):  # only both have an effect
        return float(names >= {"a", "b"})

    for a, b in itertools.product((0.0, 0.2, 0.7, 1.0), repeat=2):
        assert sum(weight for weight, _ in mix_subsets({"a": a, "b": b})) == pytest.approx(1)
        assert modulation({"a": a, "b": b}, together) == pytest.approx(min(a, b))


def test_missing_strengths_are_the_default_and_bad_ones_are_refused():
    assert check_strengths({"a": 0.5}, {"a": 1.0, "b": 0.0}) == {"a": 0.5, "b": 0.0}
    for strengths, message in (({"c": 1}, "c: the adapter was trained with a"), ({"a": 2.5}, "from 0 to 2, got 2.5")):
        with pytest.raises(UsageError, match=message):
            check_strengths(strengths, {"a": 1.0})
    with pytest.raises(UsageError, match="trained with no guidance"):
        check_strengths({"a": 1}, {})
