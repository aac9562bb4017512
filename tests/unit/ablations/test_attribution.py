"""Attribution on games small enough to solve by hand, and whether its intervals are as wide as they must be."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest

from ablations.attribution import Scores, Subset, kendall, ranking, shapley, synergy
from experiments.statistics.coverage import coverage
from megasr.errors import UsageError
from megasr.rng import numpy_generator

SEEDS, PHOTOS = 2, 12
KEYS = [f"photo{i}" for i in range(PHOTOS)]


def _game(types: str, value: Callable[[Subset], float], noise: float = 0.0) -> dict[Subset, np.ndarray]:
    """Scores of all subsets of one-letter types: their value, on top of photographs that differ from each other."""
    generator = numpy_generator(0, "game", types)
    photos = generator.normal(20, 5, size=PHOTOS)
    subsets = [Subset(part) for size in range(len(types) + 1) for part in combinations(types, size)]
    return {s: value(s) + photos + noise * generator.normal(size=(SEEDS, PHOTOS)) for s in subsets}


def test_in_an_additive_game_the_value_is_the_effect_and_nothing_interacts() -> None:
    effects = {"a": 1.0, "b": -0.5, "c": 0.0}
    scores = _game("abc", lambda s: sum(effects[t] for t in s))
    found = shapley(scores, KEYS, numpy_generator(0))
    assert {name: one.mean for name, one in found.items()} == pytest.approx(effects, abs=1e-12)
    assert {(one.used, one.possible) for one in found.values()} == {(4, 4)}
    pairs = synergy(scores, KEYS, numpy_generator(0))
    assert set(pairs) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert all(one.mean == pytest.approx(0, abs=1e-12) for one in pairs.values())


def test_types_that_help_only_together_share_the_gain() -> None:
    """The glove game: a left glove (a) and a right one (b or c) make a pair. Shapley: 2/3, 1/6, 1/6."""
    scores = _game("abc", lambda s: float("a" in s and len(s) > 1))
    found = shapley(scores, KEYS, numpy_generator(0))
    assert [found[t].mean for t in "abc"] == pytest.approx([2 / 3, 1 / 6, 1 / 6])
    assert sum(one.mean for one in found.values()) == pytest.approx(1.0)
    pairs = synergy(scores, KEYS, numpy_generator(0))
    # I(ab) = mean of T = {}: 1 - 0 - 0 + 0 and T = {c}: 1 - 1 - 0 + 0; I(bc) of T = {}: 0 and T = {a}: 1 - 1 - 1 + 0.
    assert [pairs[pair].mean for pair in (("a", "b"), ("a", "c"), ("b", "c"))] == pytest.approx([0.5, 0.5, -0.5])


def test_a_missing_subset_leaves_the_pairs_that_were_run() -> None:
    scores = _game("abc", lambda s: float(len(s) ** 2))
    del scores[Subset("ab")]
    found = shapley(scores, KEYS, numpy_generator(0))
    # a joins {}: 1, {c}: 3, {b, c}: 5; {b} is gone. c joins {}: 1, {a}: 3, {b}: 3, and {a, b} is gone, so size 2 too.
    assert [(found[t].mean, found[t].used) for t in "ac"] == [(pytest.approx(3.0), 3), (pytest.approx(2.0), 3)]
    pairs = synergy(scores, KEYS, numpy_generator(0))
    assert {pair: one.used for pair, one in pairs.items()} == {("a", "b"): 1, ("a", "c"): 1, ("b", "c"): 1}
    assert all(one.possible == 2 for one in pairs.values())
    del scores[Subset("ac")]
    assert set(synergy(scores, KEYS, numpy_generator(0))) == {("b", "c")}


def test_within_a_size_all_pairs_weigh_alike_and_all_sizes_too() -> None:
    """a adds 6 to nothing, 0 to one type and 3 to both: (6 + (0 + 0) / 2 + 3) / 3, not (6 + 0 + 0 + 3) / 4."""
    gain = {0: 6.0, 1: 0.0, 2: 3.0}
    scores = _game("abc", lambda s: gain[len(s) - 1] if "a" in s else 0.0)
    assert shapley(scores, KEYS, numpy_generator(0))["a"].mean == pytest.approx(3.0)


def test_a_useful_type_and_a_useless_one_are_told_apart() -> None:
    scores = _game("ab", lambda s: 2.0 * ("a" in s), noise=0.2)
    found = shapley(scores, KEYS, numpy_generator(0))
    assert found["a"].excludes_zero and found["a"].low > 1
    assert not found["b"].excludes_zero
    assert [one.p_value < 0.05 for one in found.values()] == [True, False]


def test_intervals_hold_the_truth_in_simulated_studies() -> None:
    """95 % of 300 studies, give or take three standard errors; wider is allowed a little."""
    found = coverage("normal", 8, 2, 0.05, trials=300)
    assert 0.912 <= found["comparison"] <= 0.99
    assert 0.912 <= found["shapley"] <= 0.99
    assert 0.912 <= found["synergy"] <= 0.99
    assert found["p_agrees"] == 1
    many = coverage("lognormal", 48, 3, 0.0, trials=100)
    assert many["told_apart"] > 0.85
    assert many["useless_called_useful"] < 0.08


def test_the_best_subset_comes_first_and_its_wins_say_how_surely() -> None:
    values = {Subset(): 0.0, Subset("a"): 3.0, Subset("b"): 3.0, Subset("ab"): 9.0}
    ranked = ranking(_game("ab", values.__getitem__, noise=0.5), KEYS, numpy_generator(0))
    assert [one.subset for one in (ranked[0], ranked[-1])] == [Subset("ab"), Subset()]
    assert (ranked[0].rank, ranked[0].rank_low, ranked[0].rank_high, ranked[0].wins) == (1, 1, 1, 1)
    assert [one.mean for one in ranked] == sorted((one.mean for one in ranked), reverse=True)
    assert 2 < ranked[1].rank < ranked[2].rank < 3  # a and b are alike
    assert (ranked[1].rank_low, ranked[1].rank_high) == (2, 3)


def test_equal_scores_share_rank_and_wins() -> None:
    ranked = ranking(_game("a", lambda _: 0.0), KEYS, numpy_generator(0))
    assert [(one.rank, one.wins) for one in ranked] == [(1.5, 0.5), (1.5, 0.5)]
    assert ranked[0].subset == Subset()  # of equals the smaller one


def test_kendall_of_known_rankings() -> None:
    first = _game("ab", lambda s: {"": 0.0, "a": 1.0, "b": 2.0, "ab": 3.0}["".join(sorted(s))])
    assert kendall(first, first, KEYS, numpy_generator(0)).mean == 1
    reverse: Scores = {subset: -values for subset, values in first.items()}
    assert kendall(first, reverse, KEYS, numpy_generator(0)).high == -1
    # Orders 0 1 2 3 and 0 2 1 3: five pairs agree and one does not, (5 - 1) / 6.
    swapped = _game("ab", lambda s: {"": 0.0, "a": 2.0, "b": 1.0, "ab": 3.0}["".join(sorted(s))])
    assert kendall(first, swapped, KEYS, numpy_generator(0)).mean == pytest.approx(4 / 6)
    # One tie on one side: 5 untied pairs, all agree: 5 / sqrt(6 * 5).
    tied = _game("ab", lambda s: {"": 0.0, "a": 1.0, "b": 1.0, "ab": 3.0}["".join(sorted(s))])
    assert kendall(first, tied, KEYS, numpy_generator(0)).mean == pytest.approx(5 / 30**0.5)


def test_noise_widens_the_interval_of_tau() -> None:
    worth = {"a": 1.0, "b": 2.0, "c": 4.0}
    quiet, noisy = (_game("abc", lambda s: sum(worth[t] for t in s), noise) for noise in (0.01, 8.0))
    sure, unsure = (kendall(quiet, side, KEYS, numpy_generator(0)) for side in (quiet, noisy))
    assert unsure.high - unsure.low > 0.2 > sure.high - sure.low


def test_sides_may_differ_in_subsets_and_seeds() -> None:
    first = _game("abc", lambda s: float(len(s)))
    second = {subset: values[:1] for subset, values in first.items() if "c" not in subset}
    assert kendall(first, second, KEYS, numpy_generator(0)).mean == pytest.approx(1.0)


def test_scores_that_cannot_be_attributed_are_refused() -> None:
    scores = _game("ab", lambda s: float(len(s)))
    with pytest.raises(UsageError, match="'b' has no pair"):
        shapley(
            {Subset(): scores[Subset()], Subset("a"): scores[Subset("a")], Subset("bc"): scores[Subset("ab")]},
            KEYS,
            numpy_generator(0),
        )
    with pytest.raises(UsageError, match="nothing to attribute"):
        shapley({Subset(): scores[Subset()]}, KEYS, numpy_generator(0))
    with pytest.raises(UsageError, match=r"scores of a\+b have shape \(1, 12\)"):
        synergy({**scores, Subset("ab"): scores[Subset("ab")][:1]}, KEYS, numpy_generator(0))
    with pytest.raises(UsageError, match="1 subset"):
        kendall(scores, {Subset("a"): scores[Subset("a")]}, KEYS, numpy_generator(0))
    flat = _game("ab", lambda _: 0.0)
    with pytest.raises(UsageError, match="alike"):
        kendall(scores, flat, KEYS, numpy_generator(0))
