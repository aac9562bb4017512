"""The boundary benchmark on drawings whose scores are known beforehand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from skimage.morphology import thin

from experiments.guidance.ods import (
    THRESHOLDS,
    boundary_counts,
    match,
    ods_intervals,
    score,
    suppress_non_maxima,
)
from megasr.errors import UsageError
from megasr.rng import numpy_generator
from tests.helpers.shared import shared

SIZE = (60, 80)  # a diagonal of 100 px: a tolerance of 0.03 is 3 px


def _line(column: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    drawn = np.zeros(size, bool)
    drawn[:, column] = True
    return drawn


def _f(edges: np.ndarray, *truths: np.ndarray) -> float:
    return score(boundary_counts(edges.astype(float), truths, [0.5], 0.03)[None], [0.5]).ods


def _scattered(seed: int, share: float) -> np.ndarray:
    return numpy_generator(seed, "scattered").random((40, 50)) < share


@pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (1, 1.0), (3, 1.0), (4, 0.0)])
def test_a_shift_within_the_tolerance_is_right_and_beyond_it_is_wrong(shift: int, expected: float) -> None:
    assert _f(_line(30 + shift), _line(30)) == expected


def test_an_empty_map_scores_nothing() -> None:
    assert _f(np.zeros(SIZE), _line(30)) == 0
    assert _f(_line(30), _line(30), np.zeros(SIZE, bool)) == 1  # an annotator who drew nothing
    with pytest.raises(UsageError, match="no annotator drew"):
        _f(_line(30), np.zeros(SIZE, bool))


def test_a_duplicate_is_not_counted_twice() -> None:
    """Two lines near one drawn line: half of the prediction is right, all of the drawing is found."""
    both = _line(29) | _line(31)
    (counts,) = boundary_counts(both.astype(float), [_line(30)], [0.5], 0.03)
    assert counts.tolist() == [60, 60, 60, 120]
    # Two annotators drew one of the lines each: all is right, and either drawing is found.
    (counts,) = boundary_counts(both.astype(float), [_line(29), _line(31)], [0.5], 0.03)
    assert counts.tolist() == [120, 120, 120, 120]


def test_of_two_annotators_one_is_enough_for_precision_but_recall_wants_both() -> None:
    (counts,) = boundary_counts(_line(10).astype(float), [_line(10), _line(60)], [0.5], 0.03)
    assert counts.tolist() == [60, 120, 60, 60]
    assert _f(_line(10), _line(10), _line(60)) == pytest.approx(2 * 0.5 / 1.5)


@pytest.mark.parametrize(("share", "other"), [(0.02, 0.02), (0.1, 0.04), (0.1, 0.3), (0.5, 0.2)])
@pytest.mark.parametrize("tolerance_px", [0.0, 1.0, 2.9, 4.3])
def test_as_many_pairs_as_possible(share: float, other: float, tolerance_px: float) -> None:
    """Against SciPy's Hopcroft-Karp on the whole graph."""
    predicted, truth = _scattered(1, share), _scattered(2, other)
    of_predicted, of_truth = match(predicted, truth, tolerance_px)
    assert not (of_predicted & ~predicted).any() and not (of_truth & ~truth).any()
    there, here = np.argwhere(truth), np.argwhere(predicted)
    near = np.hypot(*(here[:, None] - there[None]).transpose(2, 0, 1)) <= tolerance_px
    most = (maximum_bipartite_matching(csr_array(near), perm_type="column") >= 0).sum()
    assert of_predicted.sum() == of_truth.sum() == most


def test_greed_alone_would_lose_a_pair() -> None:
    """p q on a row, truth t at p's place and u left of it: q reaches only t, so p has to take u."""
    predicted, truth = np.zeros((1, 20), bool), np.zeros((1, 20), bool)
    predicted[0, [10, 12]] = True
    truth[0, [10, 8]] = True
    of_predicted, of_truth = match(predicted, truth, 2.0)
    assert of_predicted.sum() == of_truth.sum() == 2


def test_the_nearer_pixel_gets_the_partner() -> None:
    predicted, truth = _line(28) | _line(31) | _line(33), _line(30)
    assert np.array_equal(match(predicted, truth, 3.0)[0], _line(31))


def _ridge(angle: float, width: float = 2.0) -> np.ndarray:
    """A soft line through the centre; `angle` is that of its normal, y down."""
    y, x = np.mgrid[-30:31, -30:31]
    return np.exp(-((x * math.cos(angle) + y * math.sin(angle)) ** 2) / (2 * width**2))


@pytest.mark.parametrize("degrees", [0, 30, 45, 90, 120, 135, 170])
def test_a_soft_line_becomes_its_crest(degrees: int) -> None:
    angle = math.radians(degrees)
    kept = suppress_non_maxima(_ridge(angle))[8:-8, 8:-8] > 0.3
    y, x = np.nonzero(kept) - np.full((2, 1), 22)
    assert np.abs(x * math.cos(angle) + y * math.sin(angle)).max() <= 0.8
    assert 40 <= thin(kept).sum() <= 70  # unbroken: one pixel in each row or column, few more
    assert kept.sum() < 2.1 * thin(kept).sum()


def test_heights_survive_and_the_border_fades() -> None:
    kept = suppress_non_maxima(0.6 * _ridge(0.0, width=4.0))
    column = kept[:, 30]
    assert column[10:50] == pytest.approx(0.6, abs=0.02)
    assert column[0] == 0 and column[2] == pytest.approx(0.4 * column[30])


def test_a_binary_map_stays_as_it_is_and_has_one_operating_point() -> None:
    drawn = _line(30) | _line(34)
    assert np.array_equal(suppress_non_maxima(drawn.astype(float)), drawn)
    counts = boundary_counts(drawn.astype(float), [_line(30)])
    assert (counts == counts[0]).all() and len(counts) == len(THRESHOLDS)
    assert score(counts[None]).ap is None


@pytest.mark.parametrize(
    "broken", [np.full(SIZE, np.nan), np.full(SIZE, 1.1), np.full(SIZE, -0.1), np.zeros((1, 3, 3))]
)
def test_a_map_that_is_none_is_refused(broken: np.ndarray) -> None:
    with pytest.raises(UsageError, match="edge map"):
        suppress_non_maxima(broken)
    with pytest.raises(UsageError, match="edge map"):
        boundary_counts(broken, [np.zeros(broken.shape, bool)])


def test_thick_predictions_are_thinned_before_they_are_counted() -> None:
    thick = (_line(29) | _line(30) | _line(31)).astype(float)
    (counts,) = boundary_counts(thick, [_line(30)], [0.5], 0.03)
    assert counts[3] <= 60 and counts[2] == counts[3]


def test_thresholds_separate_strong_from_weak_lines() -> None:
    """A right line of 0.8 and a wrong one of 0.4."""
    edges = 0.8 * _line(20) + 0.4 * _line(60)
    counts = boundary_counts(edges, [_line(20)], [0.2, 0.5, 0.9], 0.03)
    assert counts.tolist() == [[60, 60, 60, 120], [60, 60, 60, 60], [0, 60, 0, 0]]
    found = score(counts[None], [0.2, 0.5, 0.9])
    assert (found.ods, found.ods_threshold, found.ois) == (1, 0.5, 1)


def test_one_threshold_for_all_or_one_for_each() -> None:
    """Each image is perfect at another threshold: OIS sees it, ODS cannot. By hand."""
    perfect, half = [10, 10, 10, 10], [5, 10, 5, 10]
    counts = np.array([[perfect, half], [half, perfect]])
    found = score(counts, [0.3, 0.6])
    assert (found.ods, found.ods_threshold, found.ois) == (pytest.approx(0.75), 0.3, 1)


def test_area_is_that_of_trapezoids() -> None:
    """Points (recall, precision) (0.2, 1), (0.6, 0.5); the threshold without a pixel has no point."""
    counts = np.array([[[6, 10, 6, 12], [2, 10, 2, 2], [0, 10, 0, 0]]])
    assert score(counts, [0.1, 0.5, 0.9]).ap == pytest.approx(0.4 * 0.75)


def _made_up(seed: int, images: int, quality: float) -> np.ndarray:
    """Counts of images with 100 true and 100 predicted pixels, of which about `quality` are paired."""
    paired = numpy_generator(seed, "counts").binomial(100, quality, (images, 1)) - np.array([10, 0, 20])
    full = np.full_like(paired, 100)
    return np.stack([paired, full, paired, full], -1)


def test_the_interval_is_as_wide_as_the_standard_error() -> None:
    """At one threshold and equal sizes F is a mean over images."""
    counts = _made_up(0, 50, 0.6)
    ((low, high),) = ods_intervals([counts], numpy_generator(0, "interval"))
    per_image = counts[:, 1, 0] / 100
    assert low < per_image.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * per_image.std(ddof=1) / math.sqrt(50), rel=0.12)


def test_a_paired_difference_is_surer_than_two_intervals() -> None:
    """A method that is 0.02 better on every image."""
    reference = _made_up(1, 40, 0.6)
    treatment = reference + np.array([2, 0, 2, 0])
    _, gap = ods_intervals([treatment, reference], numpy_generator(0, "pair"))
    assert gap == (pytest.approx(0.02),) * 2
    for other in (reference[1:], reference + np.array([0, 1, 0, 0])):
        with pytest.raises(UsageError, match="the same ones"):
            ods_intervals([treatment, other], numpy_generator(0))


def test_people_agree_with_people() -> None:
    """Of BSDS500: one annotator against the others of the same image, and of another image."""
    from experiments.guidance.bsds import list_bsds, read_drawn

    first, second = (read_drawn(path) for path in list_bsds(shared("data", "bsds500"), "val")[:2])
    one, *others = first.truths
    right = boundary_counts(one.astype(float), others, [0.5])
    wrong = boundary_counts(
        one.astype(float), [truth[: one.shape[0], : one.shape[1]] for truth in second.truths], [0.5]
    )
    assert score(right[None], [0.5]).ods > 0.65
    assert score(wrong[None], [0.5]).ods < 0.5
