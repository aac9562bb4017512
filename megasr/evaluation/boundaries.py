"""The Berkeley boundary benchmark: how well an edge map agrees with the outlines that people drew.

Martin, Fowlkes and Malik 2004 (Learning to detect natural image boundaries), Arbelaez et al. 2011 (Contour detection
and hierarchical image segmentation). An edge map is thinned, binarised at several thresholds, thinned again, and its
pixels are paired one-to-one with those of every annotator within a tolerance, 0.0075 of the image's diagonal. Precision
is the share of predicted pixels with a partner in any annotator's drawing, recall the share of all annotators' pixels
with a partner, and F their harmonic mean.

What differs from the official code: the pairing (see megasr.evaluation.pixel_matching: exact where theirs is
approximate); fewer thresholds, and no interpolation between two of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from megasr.errors import UsageError
from megasr.evaluation.intervals import Interval
from megasr.evaluation.non_maxima import check_edges, is_binary, suppress_non_maxima
from megasr.evaluation.pixel_matching import match

__all__ = [
    "THRESHOLDS", "TOLERANCE", "BoundaryScores", "boundary_counts", "is_binary", "match", "ods_difference",
    "ods_interval", "score", "spread_thresholds", "suppress_non_maxima",
]  # fmt: skip

TOLERANCE = 0.0075  # of the image's diagonal
_ODDS = 5.0  # logarithm of the odds of the outermost thresholds: 0.007 and 0.993


def spread_thresholds(count: int) -> tuple[float, ...]:
    """`count` rising thresholds, equally far apart in the logarithm of their odds.

    The official code takes 99 equal steps. A network that was trained on outlines of one pixel is seldom sure of the
    very pixel: its best threshold lies below 0.05.
    """
    return tuple(1 / (1 + math.exp(-odds)) for odds in np.linspace(-_ODDS, _ODDS, count).tolist())


THRESHOLDS = spread_thresholds(24)

# Columns of the counts.
_PAIRED_TRUTH, _TRUTH, _PAIRED_PREDICTED, _PREDICTED = range(4)

_CHUNK = 500  # resamples at once


@dataclass(frozen=True)
class BoundaryScores:
    """Agreement with people over a data set.

    Attributes:
        ods: F in [0, 1] at the one threshold that is best for the data set (optimal data set scale).
        ods_threshold: that threshold, the lowest of equally good ones.
        ois: F when every image has the threshold that is best for it (optimal image scale); the counts are summed.
        ap: area below precision over recall, of the recalls that were reached; None for one operating point, as of a
            binary map.
    """

    ods: float
    ods_threshold: float
    ois: float
    ap: float | None


def boundary_counts(
    edges: np.ndarray,
    truths: Sequence[np.ndarray],
    thresholds: Sequence[float] = THRESHOLDS,
    tolerance: float = TOLERANCE,
) -> np.ndarray:
    """What the scores of one image are made of.

    Args:
        edges: (H, W) in [0, 1], after suppress_non_maxima. A binary map, such as canny's, has one operating point: its
            rows are all the same, and its ODS is F of the map as it stands.
        truths: every annotator's boundaries, (H, W) bool.
        thresholds: T of them, rising, in (0, 1]; a pixel is an edge from the threshold up.
        tolerance: largest distance of a pair, as a share of the image's diagonal.

    Returns:
        (T, 4) int64: true pixels with a partner, true pixels (both summed over annotators), predicted pixels with a
        partner in any drawing, predicted pixels.

    Raises:
        UsageError: a map, the thresholds or the tolerance cannot be used.
    """
    check_edges(edges)
    _check_thresholds(thresholds)
    if not truths:
        raise UsageError("no annotator's boundaries to compare with: give at least one")
    tolerance_px = tolerance * math.hypot(*edges.shape)
    counts: list[tuple[int, ...]] = []
    previous = None
    for threshold in thresholds:
        binary = edges >= threshold
        if previous is None or not np.array_equal(binary, previous):
            row = _count(binary, truths, tolerance_px)
        counts.append(row)
        previous = binary
    return np.array(counts, dtype=np.int64)


def _count(binary: np.ndarray, truths: Sequence[np.ndarray], tolerance_px: float) -> tuple[int, ...]:
    from skimage.morphology import thin

    predicted = thin(binary)
    paired = np.zeros_like(predicted)
    paired_truth = 0
    for truth in truths:
        of_predicted, of_truth = match(predicted, truth, tolerance_px)
        paired |= of_predicted
        paired_truth += int(of_truth.sum())
    return paired_truth, sum(int(truth.sum()) for truth in truths), int(paired.sum()), int(predicted.sum())


def score(counts: np.ndarray, thresholds: Sequence[float] = THRESHOLDS) -> BoundaryScores:
    """Scores of a data set.

    Args:
        counts: (I, T, 4), boundary_counts of every image.
        thresholds: the T that they were counted at.

    Raises:
        UsageError: the shapes do not fit, or no annotator drew anything, so that there is nothing to agree with.
    """
    _check_counts(counts)
    if counts.shape[1] != len(thresholds):
        raise UsageError(f"counts at {counts.shape[1]} thresholds do not fit {len(thresholds)} thresholds")
    total = counts.sum(0)
    f = _f_measure(total)
    best = int(f.argmax())
    best_of_each = _f_measure(counts).argmax(1)
    ois = _f_measure(counts[np.arange(len(counts)), best_of_each].sum(0))
    return BoundaryScores(float(f[best]), float(thresholds[best]), float(ois), _area(total))


def _f_measure(counts: np.ndarray) -> np.ndarray:
    """(..., 4) -> (...) F in [0, 1]; 0 when nothing is predicted or nothing was drawn."""
    precision = counts[..., _PAIRED_PREDICTED] / np.maximum(counts[..., _PREDICTED], 1)
    recall = counts[..., _PAIRED_TRUTH] / np.maximum(counts[..., _TRUTH], 1)
    return 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)


def _area(total: np.ndarray) -> float | None:
    """Trapezoids below precision over recall; a threshold that leaves no pixel has no precision and no point."""
    total = total[total[:, _PREDICTED] > 0]
    recall = total[:, _PAIRED_TRUTH] / total[:, _TRUTH]
    precision = total[:, _PAIRED_PREDICTED] / total[:, _PREDICTED]
    points = np.unique(recall)
    if len(points) < 2:
        return None
    heights = np.array([precision[recall == point].max() for point in points])
    return float((np.diff(points) * (heights[1:] + heights[:-1]) / 2).sum())


def ods_interval(
    counts: np.ndarray, generator: np.random.Generator, resamples: int = 2000, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of ODS over images; every resample has its own best threshold.

    Args:
        counts: (I, T, 4), at least two images.
        generator: from `megasr.rng`.
        resamples: bootstrap resamples.
        confidence: of the interval, in (0, 1).

    Raises:
        UsageError: fewer than two images, from which no interval can be had.
    """
    _check_counts(counts)
    (values,) = _resampled_ods([counts], generator, resamples)
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def ods_difference(
    treatment: np.ndarray,
    reference: np.ndarray,
    generator: np.random.Generator,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """ODS of one method minus ODS of another, with a paired bootstrap: both are measured on the same drawn images.

    Args:
        treatment: (I, T, 4), counts of a method.
        reference: (I, S, 4), counts of the other on the same images in the same order.
        generator: from `megasr.rng`.
        resamples: bootstrap resamples.
        confidence: of the interval, in (0, 1).

    Raises:
        UsageError: fewer than two images, or the counts are not of the same images.
    """
    _check_counts(treatment)
    _check_counts(reference)
    if len(treatment) != len(reference) or (treatment[:, 0, _TRUTH] != reference[:, 0, _TRUTH]).any():
        raise UsageError(f"counts of {len(treatment)} and {len(reference)} images are not of the same images")
    first, second = _resampled_ods([treatment, reference], generator, resamples)
    differences = first - second
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    sides = [1 + int((differences <= 0).sum()), 1 + int((differences >= 0).sum())]
    # As in intervals.paired_bootstrap: no surer than a sign-flip test of so many images can be.
    p_value = min(1.0, max(2 * min(sides) / (resamples + 1), 2.0 ** (1 - len(treatment))))
    mean = float(_f_measure(treatment.sum(0)).max() - _f_measure(reference.sum(0)).max())
    return Interval(mean, float(low), float(high), p_value, photographs=len(treatment), seeds=1)


def _resampled_ods(
    methods: Sequence[np.ndarray], generator: np.random.Generator, resamples: int
) -> tuple[np.ndarray, ...]:
    """ODS of every method on the same resamples, each (R,).

    One image less than there are is drawn, as in intervals.paired_bootstrap, which says why.
    """
    images = len(methods[0])
    if images < 2:
        raise UsageError(f"{images} image(s): an interval needs at least two")
    found = []
    for start in range(0, resamples, _CHUNK):
        drawn = generator.multinomial(images - 1, np.full(images, 1 / images), size=min(_CHUNK, resamples - start))
        found.append([_f_measure(np.tensordot(drawn, counts, 1)).max(1) for counts in methods])
    return tuple(np.concatenate(values) for values in zip(*found, strict=True))


def _check_thresholds(thresholds: Sequence[float]) -> None:
    ladder = [0.0, *thresholds]
    if not thresholds or ladder[-1] > 1 or any(not low < high for low, high in pairwise(ladder)):
        raise UsageError(f"thresholds {list(thresholds)}: give rising numbers in (0, 1]")


def _check_counts(counts: np.ndarray) -> None:
    if counts.ndim != 3 or counts.shape[-1] != 4 or 0 in counts.shape:
        raise UsageError(f"counts of shape {counts.shape}: give (images, thresholds, 4)")
    if not counts[..., _TRUTH].any():
        raise UsageError("no annotator drew a boundary in any image: there is nothing to agree with")
