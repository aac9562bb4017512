"""The Berkeley boundary benchmark: how well an edge map agrees with the outlines that people drew.

Martin, Fowlkes and Malik 2004 (Learning to detect natural image boundaries), Arbelaez et al. 2011 (Contour detection
and hierarchical image segmentation). An edge map is thinned, binarised at several thresholds, thinned again, and its
pixels are matched one to one with those of every annotator within 0.0075 of the image's diagonal. Precision is the
share of predicted pixels that any annotator's drawing matches, recall the share of all annotators' pixels that are
matched, and F their harmonic mean. Unlike the official code, matchings have exactly the maximum cardinality, there are
fewer thresholds, and nothing is interpolated between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.integrate import trapezoid
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from scipy.spatial import KDTree
from skimage.morphology import thin

from megasr.errors import UsageError

TOLERANCE = 0.0075  # of the image's diagonal
_MATCHED_TRUE, _TRUE, _MATCHED_PREDICTED, _PREDICTED = range(4)  # columns of the counts


def spread_thresholds(count: int) -> tuple[float, ...]:
    """`count` thresholds from 0.007 to 0.993, equally far apart in their log odds.

    The official code takes 99 equal steps. A network that was trained on outlines of one pixel is seldom sure of the
    very pixel: its best threshold lies below 0.05.
    """
    return tuple(1 / (1 + math.exp(-odds)) for odds in np.linspace(-5, 5, count).tolist())


THRESHOLDS = spread_thresholds(24)


def suppress_non_maxima(edges: np.ndarray) -> np.ndarray:
    """Keep the crests of a soft edge map, as edge networks are scored (Dollar and Zitnick, 1406.5549, and its toolbox).

    The map is smoothed (triangle filter of radius 1); pixels stay that are no lower than both neighbours at one pixel's
    distance across the edge, whose orientation is that of the largest curvature of a smoother map (radius 4). Values
    fade out over 5 px at the border, where edges are mostly artefacts. A binary map comes back as it is.

    Args:
        edges: (H, W) in [0, 1], at least 2 x 2 px.

    Returns:
        (H, W) float64 in [0, 1], 0 off the crests.

    Raises:
        UsageError: it is not one map in [0, 1].
    """
    _check_edges(edges)
    edges = edges.astype(np.float64)
    if np.isin(edges, (0, 1)).all():
        return edges
    smooth = _triangle(edges, 1)
    slope_y, slope_x = np.gradient(_triangle(smooth, 4))
    xx = np.gradient(slope_x, axis=1)
    yy, yx = np.gradient(slope_y)
    sign = np.where(xx + yy > 0, 1, -1)  # a crest curves down, the flank of a wide one up
    across = np.arctan2(2 * yx * sign, (xx - yy) * sign) / 2
    here, step = np.indices(edges.shape), np.stack([np.sin(across), np.cos(across)])
    both = [ndimage.map_coordinates(smooth, here + side * step, order=1, mode="nearest") for side in (-1, 1)]
    crest = smooth * 1.01 >= np.maximum(*both)  # some slack, as in the toolbox
    to_border = [np.minimum(np.minimum(np.arange(n), np.arange(n)[::-1]) / 5, 1) for n in edges.shape]
    return np.where(crest, smooth, 0) * np.outer(*to_border)


def _triangle(image: np.ndarray, radius: int) -> np.ndarray:
    taps = radius + 1 - np.abs(np.arange(-radius, radius + 1.0))
    for axis in (0, 1):
        image = ndimage.convolve1d(image, taps / taps.sum(), axis)
    return np.clip(image, 0, 1)  # rounding


def _check_edges(edges: np.ndarray) -> None:
    if edges.ndim != 2 or min(edges.shape) < 2 or not (edges.min() >= 0 and edges.max() <= 1):  # NaN compares false
        raise UsageError(f"an edge map must be (H, W) in [0, 1], got {edges.shape} in [{edges.min()}, {edges.max()}]")


def match(predicted: np.ndarray, truth: np.ndarray, tolerance_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Match boundary pixels one to one, as many as possible, nearer ones first.

    As a flow by Dinic's algorithm, which takes shortest paths first: the further a pair is apart, the longer is its
    path. (scipy's matchings take minutes where many pixels find no partner.)

    Args:
        predicted, truth: (H, W) bool.
        tolerance_px: largest distance of a pair, inclusive.

    Returns:
        Which predicted and which true pixels are matched, (H, W) bool, equally many.
    """
    matched = np.zeros_like(predicted), np.zeros_like(truth)
    places = np.argwhere(predicted), np.argwhere(truth)
    near = KDTree(places[0]).sparse_distance_matrix(KDTree(places[1]), tolerance_px, output_type="coo_matrix")
    if not near.nnz:
        return matched
    count, true = near.shape
    distances, rank = np.unique(near.data.round(6), return_inverse=True)
    # A predicted pixel is a chain of nodes, one for each distance, nearest first.
    chain = np.arange(count * len(distances))
    first_true = len(chain)
    source, sink = first_true + true, first_true + true + 1
    begins = [rank * count + near.row, chain[:-count], np.full(count, source), first_true + np.arange(true)]
    ends = [first_true + near.col, chain[count:], np.arange(count), np.full(true, sink)]
    rows, columns = np.concatenate(begins), np.concatenate(ends)
    edges = csr_array((np.ones(len(rows), np.int32), (rows, columns)), shape=(sink + 1, sink + 1))
    flow = maximum_flow(edges, source, sink, method="dinic").flow.tocoo()
    pair = (flow.row < first_true) & (flow.col >= first_true) & (flow.col < source) & (flow.data > 0)
    matched[0][tuple(places[0][flow.row[pair] % count].T)] = True
    matched[1][tuple(places[1][flow.col[pair] - first_true].T)] = True
    return matched


def boundary_counts(
    edges: np.ndarray,
    truths: Sequence[np.ndarray],
    thresholds: Sequence[float] = THRESHOLDS,
    tolerance: float = TOLERANCE,
) -> np.ndarray:
    """Count the pixels that the scores of one image are made of.

    Args:
        edges: (H, W) in [0, 1], after suppress_non_maxima. A binary map has one operating point: its rows are equal.
        truths: every annotator's boundaries, (H, W) bool.
        thresholds: T of them in (0, 1]; a pixel is an edge from the threshold up.
        tolerance: largest distance of a pair, as a share of the image's diagonal.

    Returns:
        (T, 4) int64: matched true pixels, true pixels (both summed over annotators), predicted pixels that any drawing
        matches, predicted pixels.

    Raises:
        UsageError: the map is none, or nobody drew.
    """
    _check_edges(edges)
    if not truths:
        raise UsageError("no annotator's boundaries to compare with: give at least one")
    tolerance_px = tolerance * math.hypot(*edges.shape)
    counts: dict[bytes, tuple[int, ...]] = {}
    rows = []
    for threshold in thresholds:
        binary = edges >= threshold
        if (pixels := binary.tobytes()) not in counts:
            predicted = thin(binary)
            pairs = [match(predicted, truth, tolerance_px) for truth in truths]
            matched = np.logical_or.reduce([of_predicted for of_predicted, _ in pairs])
            matched_truth = sum(int(of_truth.sum()) for _, of_truth in pairs)
            true = sum(int(truth.sum()) for truth in truths)
            counts[pixels] = matched_truth, true, int(matched.sum()), int(predicted.sum())
        rows.append(counts[pixels])
    return np.array(rows, dtype=np.int64)


@dataclass(frozen=True)
class BoundaryScores:
    """Agreement with people over a data set.

    Attributes:
        ods: F in [0, 1] at the one threshold that is best for the data set (optimal data set scale).
        ods_threshold: that threshold, the lowest of equally good ones.
        ois: F with the best threshold of every image (optimal image scale).
        ap: area below precision over the recalls that were reached; None for one operating point, as of a binary map.
    """

    ods: float
    ods_threshold: float
    ois: float
    ap: float | None


def score(counts: np.ndarray, thresholds: Sequence[float] = THRESHOLDS) -> BoundaryScores:
    """Scores of a data set.

    Args:
        counts: (I, T, 4), boundary_counts of every image.
        thresholds: the T that they were counted at.

    Raises:
        UsageError: no annotator drew anything, so that there is nothing to agree with.
    """
    if not counts[..., _TRUE].any():
        raise UsageError("no annotator drew a boundary in any image: there is nothing to agree with")
    total = counts.sum(0)
    f = _f_measure(total)
    best_of_each = _f_measure(counts).argmax(1)
    ois = _f_measure(counts[np.arange(len(counts)), best_of_each].sum(0))
    return BoundaryScores(float(f.max()), float(thresholds[int(f.argmax())]), float(ois), _area(total))


def _f_measure(counts: np.ndarray) -> np.ndarray:
    """(..., 4) -> (...) F in [0, 1]; 0 when nothing is predicted or nothing was drawn."""
    precision = counts[..., _MATCHED_PREDICTED] / np.maximum(counts[..., _PREDICTED], 1)
    recall = counts[..., _MATCHED_TRUE] / np.maximum(counts[..., _TRUE], 1)
    return 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)


def _area(total: np.ndarray) -> float | None:
    total = total[total[:, _PREDICTED] > 0]  # without pixels there is no precision
    recall = total[:, _MATCHED_TRUE] / total[:, _TRUE]
    precision = total[:, _MATCHED_PREDICTED] / total[:, _PREDICTED]
    points = np.unique(recall)
    if len(points) < 2:
        return None
    return float(trapezoid([precision[recall == point].max() for point in points], points))


def ods_intervals(
    methods: Sequence[np.ndarray], generator: np.random.Generator, resamples: int = 2000
) -> list[tuple[float, float]]:
    """95 % percentile bootstrap intervals over images: of the first method's ODS, then of it minus every other's.

    Every resample has its own best threshold, and all methods are measured on the same resamples. One image fewer than
    there are is drawn, as in megasr.evaluation.intervals.

    Args:
        methods: (I, T, 4) counts of the same images, each.
        generator: from `megasr.rng`.
        resamples: bootstrap resamples.

    Raises:
        UsageError: fewer than two images, or the counts are not of the same images.
    """
    truths = [counts[:, 0, _TRUE] for counts in methods]
    images = len(truths[0])
    if images < 2 or not all(np.array_equal(true, truths[0]) for true in truths):
        raise UsageError("an interval needs two images or more, the same ones of every method")
    drawn = generator.multinomial(images - 1, np.full(images, 1 / images), size=resamples)
    first, *others = (_f_measure(np.tensordot(drawn, counts, 1)).max(1) for counts in methods)
    quantiles = [np.quantile(values, [0.025, 0.975]) for values in (first, *(first - other for other in others))]
    return [(float(low), float(high)) for low, high in quantiles]
