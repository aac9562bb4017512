"""How many photographs or seeds would decide: checked against intervals of as many."""

from __future__ import annotations

import pytest

from ablations.power import photographs_needed, seeds_needed, what_would_decide
from megasr.evaluation.intervals import Interval, paired_bootstrap
from megasr.rng import numpy_generator


def interval(photographs: int, seeds: int, seed_spread: float, effect: float = 0.01) -> Interval:
    """Of made-up differences with this mean; every photograph and every seed has an effect of its own."""
    rng = numpy_generator(0, "power", photographs, seeds)
    photos, of_seeds = rng.normal(0, 0.05, photographs), rng.normal(0, seed_spread, seeds)
    values = effect + (photos - photos.mean()) + (of_seeds - of_seeds.mean())[:, None]
    values = values + rng.normal(0, 0.01, (seeds, photographs))
    values += effect - values.mean()
    return paired_bootstrap(values, [f"photo-{i}" for i in range(photographs)], numpy_generator(1, "draws"))


def test_as_many_photographs_decide_and_fewer_do_not() -> None:
    small = interval(40, 3, seed_spread=0.0)
    assert not small.excludes_zero
    needed = photographs_needed(small, 0.0, 0.05)
    assert needed == pytest.approx(40 * (1.96 * small.photo_error / 0.01) ** 2, rel=0.1)
    assert interval(4 * needed, 3, 0.0).excludes_zero
    assert not interval(needed // 3, 3, 0.0).excludes_zero
    assert photographs_needed(small, 0.0, 0.005) > 1.5 * needed, "a stricter level takes more"
    assert photographs_needed(small, 0.005, 0.05) == pytest.approx(4 * needed, rel=0.01), "half the room, four times"


def test_no_number_of_photographs_makes_up_for_seeds_that_differ() -> None:
    few = interval(400, 3, seed_spread=0.05)
    assert photographs_needed(few, 0.0, 0.05) is None
    assert seeds_needed(few, 0.0, 0.05) > 10 * 3
    assert photographs_needed(few, 0.02, 0.05) is None, "the mean lies below what counts"


def test_one_seed_says_nothing_of_others() -> None:
    assert seeds_needed(interval(40, 1, 0.0), 0.0, 0.05) is None


def test_the_sentence_names_every_open_comparison() -> None:
    one, other = interval(40, 3, 0.0), interval(400, 3, 0.3)
    said = what_would_decide({"hed": one, "depth": other}, "fsim", 0.0, 0.05)
    assert "in fsim as large as they were seen" in said
    assert f"hed (+0.01): {photographs_needed(one, 0.0, 0.05)} photographs" in said
    assert said.endswith(f"depth (+0.01): {seeds_needed(other, 0.0, 0.05):,} seeds.")
    assert "hed (+0.01): no number of either alone" in what_would_decide({"hed": one}, "fsim", 0.01, 0.05)


def test_what_has_not_decided_is_never_enough() -> None:
    """Student's t and the smallest p-value of few photographs ask for more than normal quantiles say."""
    sure = Interval(-0.01, -0.011, -0.009, 0.25, 3, 4, 0.0001, 0.0001)
    assert (photographs_needed(sure, 0.0, 0.05), seeds_needed(sure, 0.0, 0.05)) == (6, None)
    assert photographs_needed(sure, 0.0, 0.05 / 4) == 8, "as the report says of four comparisons"
    many = Interval(-0.01, -0.021, 0.001, 0.06, 50, 3, 0.0001, 0.003)
    assert (photographs_needed(many, 0.0, 0.05), seeds_needed(many, 0.0, 0.05)) == (51, 4)
    assert "a (-0.01): 51 photographs of own or 4 seeds" in what_would_decide(
        {"a": many}, "own/fsim", 0.0, 0.05, "photographs of own"
    )


def test_means_that_are_nothing_take_no_number() -> None:
    nothing = Interval(0.0, -1, 1, 1.0, 20, 3, 0.1, 0.0)
    assert photographs_needed(nothing, 0.0, 0.05) is None
