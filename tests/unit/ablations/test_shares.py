"""The share of a gain that is kept, on made-up gains whose share is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ablations.shares import share_of_gain
from megasr.evaluation.intervals import paired_bootstrap
from megasr.rng import numpy_generator

KEYS = [f"image{number}" for number in range(60)]


def _gains(mean: float, spread: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, spread, (1, len(KEYS))).repeat(3, axis=0)


@pytest.mark.parametrize("share", [0.1, 0.5, 1.2])
def test_a_known_share_is_found(share: float) -> None:
    oracle = _gains(1.0, 0.3, 0)
    found, low, high = share_of_gain(share * oracle + _gains(0, 0.05, 1), oracle, KEYS)
    assert low < share < high
    assert found == pytest.approx(share, abs=0.03)
    assert high - low < 0.1


def test_a_gain_that_is_proportional_everywhere_leaves_no_doubt() -> None:
    oracle = _gains(1.0, 0.3, 0)
    assert share_of_gain(0.4 * oracle, oracle, KEYS) == pytest.approx((0.4, 0.4, 0.4), abs=2e-3)


def test_nothing_is_kept_exactly_when_the_gain_itself_is_not_shown() -> None:
    oracle = _gains(1.0, 0.3, 0)
    for seed in range(6):
        arm = _gains(0.1, 0.4, 10 + seed)
        shown = paired_bootstrap(arm, KEYS, numpy_generator(0, "share"), resamples=2_000).low > 0
        assert (share_of_gain(arm, oracle, KEYS)[1] > 0) == shown


def test_of_a_gain_that_is_not_shown_any_share_may_be_kept() -> None:
    _, low, high = share_of_gain(_gains(0.5, 0.3, 1), _gains(0.01, 1.0, 3) + 0.05, KEYS)
    assert math.isinf(low) or math.isinf(high)
