"""Bootstrap intervals against closed forms and hand-made cases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from megasr.errors import UsageError
from megasr.evaluation.intervals import SeedPool, mean_intervals, paired_bootstrap, photograph
from megasr.rng import numpy_generator


def _keys(count: int) -> list[str]:
    return [f"photo{i}" for i in range(count)]


def test_coverage_of_normal_data() -> None:
    """Of 400 intervals for the known mean 0.3 of normal data, 95 % +- 4 % hold it (measured: 94 %)."""
    hits = 0
    for trial in range(400):
        generator = numpy_generator(trial, "coverage")
        data = generator.normal(0.3, 1.0, size=(1, 40))
        interval = paired_bootstrap(data, _keys(40), generator, resamples=500)
        hits += interval.low <= 0.3 <= interval.high
    assert 0.91 <= hits / 400 <= 0.985


def test_width_is_the_standard_error() -> None:
    generator = numpy_generator(0, "width")
    data = generator.normal(size=(1, 200))
    interval = paired_bootstrap(data, _keys(200), generator)
    expected = 2 * 1.96 * data.std(ddof=1) / math.sqrt(200)
    assert interval.high - interval.low == pytest.approx(expected, rel=0.05)
    assert interval.mean == pytest.approx(data.mean())


def test_few_photographs_do_not_make_intervals_too_narrow() -> None:
    """With four photographs it is Student's interval: the quantile for 68.27 % and 3 degrees of freedom is 1.197."""
    data = numpy_generator(0, "few").normal(size=(1, 4))
    interval = paired_bootstrap(data, _keys(4), numpy_generator(0), confidence=0.6827)
    assert (interval.high - interval.low) / (2 * data.std(ddof=1) / math.sqrt(4)) == pytest.approx(1.197, abs=0.001)
    eight = numpy_generator(0, "eight").normal(size=(1, 8))
    interval = paired_bootstrap(eight, _keys(8), numpy_generator(0))
    assert (interval.high - interval.low) / (2 * eight.std(ddof=1) / math.sqrt(8)) > 1.96


def test_a_long_tail_pulls_the_interval_to_its_side() -> None:
    data = np.array([[1.0] * 8 + [1.5, 2.0, 3.0, 6.0]]) + numpy_generator(0, "tail").normal(0, 0.1, size=12)
    interval = paired_bootstrap(data, _keys(12), numpy_generator(0))
    assert interval.high - interval.mean > 1.5 * (interval.mean - interval.low)
    mirrored = paired_bootstrap(-data, _keys(12), numpy_generator(0))
    assert (mirrored.low, mirrored.high) == pytest.approx((-interval.high, -interval.low))


def test_seeds_add_their_own_error_with_their_own_quantile() -> None:
    """Nothing but the seeds varies: Student's interval of two numbers, 12.706 times their standard error."""
    interval = paired_bootstrap(np.repeat([[0.0], [2.0]], 10, axis=1), _keys(10), numpy_generator(0))
    assert (interval.low, interval.high) == pytest.approx((1 - 12.706, 1 + 12.706), abs=1e-3)


def test_a_pool_lends_variance_and_degrees_of_freedom_to_seeds_that_agree() -> None:
    """Its own seeds do not differ (1 degree), the pool's variance is 10 (4 degrees): together 8 with 5 degrees."""
    agreeing = np.ones((2, 10))
    interval = paired_bootstrap(agreeing, _keys(10), numpy_generator(0), pool=SeedPool(10.0, 4))
    half_width = 2.5706 * math.sqrt(8 / 2)
    assert (interval.low, interval.high) == pytest.approx((1 - half_width, 1 + half_width), abs=1e-3)
    alone = paired_bootstrap(agreeing[:1], _keys(10), numpy_generator(0), pool=SeedPool(10.0, 4))
    assert (alone.low, alone.high) == (1.0, 1.0)


def test_noise_of_the_crops_is_not_taken_for_a_difference_of_the_seeds() -> None:
    """Of pure noise the seed variance is 0 in two of three trials; the seeds then cost nothing."""
    wide = 0
    for trial in range(200):
        data = numpy_generator(trial, "pure").normal(size=(2, 20))
        interval = paired_bootstrap(data, _keys(20), numpy_generator(trial), resamples=500)
        wide += interval.high - interval.low > 2 * 3 * math.sqrt(1 / 40)
    assert wide < 80


def test_the_p_value_agrees_with_the_interval() -> None:
    claims = 0
    for trial in range(60):
        generator = numpy_generator(trial, "agree")
        data = generator.normal(0.5, 1.0, size=(1 + trial % 3, 6 + trial % 9))
        interval = paired_bootstrap(data, _keys(data.shape[1]), generator, resamples=500)
        assert (interval.p_value < 0.05) == interval.excludes_zero
        claims += interval.excludes_zero
    assert 10 < claims < 50


def test_the_p_value_of_a_smallest_difference_agrees_with_the_interval() -> None:
    """Below 0.05 exactly when the 95 % interval lies beyond it, on either side; the interval itself is the same."""
    data = numpy_generator(3, "least").normal(0.5, 1.0, size=(2, 40))
    for sign in (1, -1):
        plain = paired_bootstrap(sign * data, _keys(40), numpy_generator(0, "b"))
        end = plain.low if sign > 0 else -plain.high
        assert end > 0
        for least, beyond in ((0.98 * end, True), (1.02 * end, False), (10.0, False)):
            found = paired_bootstrap(sign * data, _keys(40), numpy_generator(0, "b"), least=least)
            assert (found.low, found.high) == (plain.low, plain.high)
            assert found.beyond(least) == beyond == (found.p_value < 0.05)
            assert found.p_value >= plain.p_value


def test_crops_of_one_photograph_are_one_unit() -> None:
    crops = [f"photo{i // 50}/0-{i % 50}" for i in range(300)]
    values = np.repeat(np.arange(6.0), 50)[None]
    clustered = paired_bootstrap(values, crops, numpy_generator(0, "a"))
    pretended = paired_bootstrap(values, _keys(300), numpy_generator(0, "a"))
    assert clustered.mean == pretended.mean == 2.5
    assert (clustered.photographs, pretended.photographs) == (6, 300)
    assert clustered.high - clustered.low > 5 * (pretended.high - pretended.low)


def test_seeds_that_disagree_widen_the_interval() -> None:
    photos = numpy_generator(0, "photos").normal(1.0, 0.1, size=(1, 30))
    agreeing = paired_bootstrap(np.repeat(photos, 2, axis=0), _keys(30), numpy_generator(0, "b"))
    disagreeing = paired_bootstrap(np.concatenate([photos - 2, photos + 2]), _keys(30), numpy_generator(0, "b"))
    assert agreeing.low > 0.9
    assert agreeing.excludes_zero
    assert disagreeing.low < -0.9
    assert not disagreeing.excludes_zero
    assert disagreeing.seeds == 2


def test_photographs_with_more_crops_weigh_more() -> None:
    interval = paired_bootstrap(
        np.array([[1.0, 1.0, 1.0, 5.0]]), ["a/0-0", "a/0-1", "a/9-0", "b/0-0"], numpy_generator(0, "c")
    )
    assert interval.mean == 2.0
    # The sums 3 and 5 deviate from 2 a crop by -3 and 3; over 2 crops a photograph the standard error is 1.5.
    assert (interval.low, interval.high) == pytest.approx((2 - 12.706 * 1.5, 2 + 12.706 * 1.5), abs=1e-3)


def test_identical_runs_differ_by_nothing() -> None:
    interval = paired_bootstrap(np.zeros((2, 20)), _keys(20), numpy_generator(0, "zero"))
    assert (interval.mean, interval.low, interval.high, interval.p_value) == (0, 0, 0, 1)
    assert not interval.excludes_zero


def test_the_p_value_is_small_only_with_enough_photographs() -> None:
    for count, expected in ((3, 0.25), (8, 2.0**-7), (40, 2 / 10_001)):
        interval = paired_bootstrap(np.full((1, count), 1.0), _keys(count), numpy_generator(0, "p"))
        assert interval.p_value == pytest.approx(expected)
        assert interval.excludes_zero
        assert paired_bootstrap(np.full((1, count), -1.0), _keys(count), numpy_generator(0, "p")).excludes_zero


def test_the_p_value_is_two_sided_and_agrees_with_a_z_test() -> None:
    data = numpy_generator(3, "z").normal(size=(1, 400))
    data += 0.1 - data.mean()
    z = 0.1 / (data.std(ddof=1) / 20)
    expected = math.erfc(z / math.sqrt(2))
    for sign in (1, -1):
        interval = paired_bootstrap(sign * data, _keys(400), numpy_generator(0, "two"))
        assert interval.p_value == pytest.approx(expected, rel=0.25)


def test_the_same_generator_gives_the_same_interval() -> None:
    data = numpy_generator(0, "same").normal(size=(2, 10))
    first, second = (paired_bootstrap(data, _keys(10), numpy_generator(7, "g")) for _ in range(2))
    assert first == second
    assert first != paired_bootstrap(data, _keys(10), numpy_generator(8, "g"))


def test_one_photograph_has_no_interval() -> None:
    with pytest.raises(UsageError, match="at least two"):
        paired_bootstrap(np.ones((1, 3)), ["a/0-0", "a/0-1", "a/9-0"], numpy_generator(0))
    with pytest.raises(UsageError, match="do not fit 2 keys"):
        paired_bootstrap(np.ones((1, 3)), ["a", "b"], numpy_generator(0))
    with pytest.raises(UsageError, match="do not fit 3 keys"):
        paired_bootstrap(np.ones(3), ["a", "b", "c"], numpy_generator(0))


def test_photograph_of_a_key() -> None:
    keys = ["lake/0-128", "lake", "set/lake/64-0", "eval-scene/3", "set/lake_1-2", "/1-2", "0801_pch_00002"]
    photographs = ["lake", "lake", "set/lake", "eval-scene/3", "set/lake_1-2", "/1-2", "0801"]
    assert [photograph(key) for key in keys] == photographs


def test_intervals_of_means_are_those_of_the_paired_bootstrap() -> None:
    data = numpy_generator(0, "means").normal(size=(60, 2)) * [1, 10]
    crops = [f"photo{i // 3}/0-{i % 3}" for i in range(60)]
    found = mean_intervals(data, crops, numpy_generator(0, "r"))
    for column, interval in enumerate(found):
        paired = paired_bootstrap(data[None, :, column], crops, numpy_generator(1, "r"))
        assert interval == pytest.approx((paired.low, paired.high), rel=0.1)
    assert mean_intervals(data[:3], crops[:3], numpy_generator(0)) == []
    (two,) = mean_intervals(np.array([[1.0], [5.0]]), ["a", "b"], numpy_generator(0))
    assert two == pytest.approx((3 - 12.706 * 2, 3 + 12.706 * 2), abs=1e-3)


def test_no_metric_has_no_interval() -> None:
    """A set that is measured by FID alone has no values of single images."""
    assert mean_intervals(np.zeros((3, 0)), ["a", "b", "c"], numpy_generator(0)) == []
