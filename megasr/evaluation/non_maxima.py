"""Crests of a soft edge map: the first thinning of the boundary benchmark, as edge networks are scored."""

from __future__ import annotations

import numpy as np

from megasr.errors import UsageError

# Dollar and Zitnick's values (1406.5549, the Structured Edge Detection Toolbox), which edge networks are scored with.
_SMOOTH_RADIUS, _ORIENTATION_RADIUS, _SLACK, _BORDER_PX = 1, 4, 1.01, 5


def is_binary(edges: np.ndarray) -> bool:
    """Whether a map holds nothing but 0 and 1, so that all thresholds between give the same one operating point."""
    return bool(np.isin(edges, (0, 1)).all())


def suppress_non_maxima(edges: np.ndarray) -> np.ndarray:
    """Keep the crests of a soft edge map.

    The map is smoothed a little (triangle filter of radius 1); of it, pixels stay that are no lower than both
    neighbours at one pixel's distance across the edge, whose orientation comes from second derivatives of the map
    smoothed more (radius 4). Along the border of 5 px values fade out, because edges there are mostly artefacts.
    A binary map has no crests and comes back as it is: smoothing would invent heights for it.

    Args:
        edges: (H, W) in [0, 1], at least 2 px high and wide.

    Returns:
        (H, W) float64 in [0, 1], 0 off the crests, smoothed values on them.

    Raises:
        UsageError: it is not one map in [0, 1].
    """
    check_edges(edges)
    if is_binary(edges):
        return edges.astype(np.float64)
    from scipy.ndimage import map_coordinates

    smooth = _triangle(edges.astype(np.float64), _SMOOTH_RADIUS)
    across = _angle_across(_triangle(smooth, _ORIENTATION_RADIUS))
    rows, columns = np.indices(edges.shape)
    dy, dx = np.sin(across), np.cos(across)
    crest = smooth > 0
    for side in (-1, 1):
        neighbour = map_coordinates(smooth, (rows + side * dy, columns + side * dx), order=1, mode="nearest")
        crest &= smooth * _SLACK >= neighbour
    return np.where(crest, smooth, 0) * _fade(edges.shape)


def check_edges(edges: np.ndarray) -> None:
    """Refuse what is not one edge map.

    Raises:
        UsageError: it is not (H, W), smaller than 2 px, or not in [0, 1].
    """
    if edges.ndim != 2 or min(edges.shape) < 2:
        raise UsageError(f"an edge map of shape {edges.shape}: give one map (H, W) of at least 2 x 2 px")
    if not (edges.min() >= 0 and edges.max() <= 1):  # also true for NaN
        raise UsageError(f"an edge map from {edges.min()} to {edges.max()}: its values must be in [0, 1]")


def _triangle(image: np.ndarray, radius: int) -> np.ndarray:
    """Separable triangle filter with 2 radius + 1 taps; the border is mirrored."""
    import cv2

    taps = radius + 1 - np.abs(np.arange(-radius, radius + 1.0))
    taps /= taps.sum()
    smooth = cv2.sepFilter2D(image, cv2.CV_64F, taps, taps, borderType=cv2.BORDER_REFLECT)
    return np.clip(smooth, 0, 1)  # rounding


def _angle_across(smooth: np.ndarray) -> np.ndarray:
    """Angle of the strongest curvature, y down: the principal axis of the matrix of second derivatives.

    The toolbox takes arctan of the ratio of two of them, which is right for multiples of 45 degrees, and undefined for
    exactly horizontal edges.
    """
    slope_y, slope_x = np.gradient(smooth)
    xx = np.gradient(slope_x, axis=1)
    yy, yx = np.gradient(slope_y)
    sign = np.where(xx + yy > 0, 1, -1)  # a crest curves down, the flank of a wide one up
    return np.arctan2(2 * yx * sign, (xx - yy) * sign) / 2


def _fade(shape: tuple[int, ...]) -> np.ndarray:
    """(H, W) weights that rise from 0 at the border to 1."""
    to_border = (np.minimum(np.arange(n), np.arange(n)[::-1]) for n in shape)
    rows, columns = (np.minimum(distance / _BORDER_PX, 1) for distance in to_border)
    return rows[:, None] * columns
