"""Tileable patterns that material textures are drawn with: noise, cells, bonds, strokes, blobs and letters.

T = TEXELS is the side of a tile; rows run downwards (v), columns to the right (u); everything wraps round.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import ArrayLike

TEXELS = 256  # side of one texture tile

Rgb = tuple[float, float, float]


def floats(values: ArrayLike) -> np.ndarray:
    """Any numbers as a float32 array: the one precision of textures and scenes."""
    return np.asarray(values, np.float32)


def noise(rng: np.random.Generator, low: float, high: float, stretch: tuple[float, float] = (1, 1)) -> np.ndarray:
    """Periodic 1/f noise with `low`..`high` cycles per tile, (T, T) float32, zero mean, unit deviation.

    `stretch` (rows, columns) makes it smoother along that axis.
    """
    rows = np.fft.fftfreq(TEXELS, 1 / TEXELS)[:, None] * stretch[0]
    columns = np.fft.rfftfreq(TEXELS, 1 / TEXELS)[None] * stretch[1]
    frequency = np.hypot(rows, columns)
    gain = np.where((frequency >= low) & (frequency <= high), 1 / np.maximum(frequency, 1), 0)
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((TEXELS, TEXELS))) * gain, s=(TEXELS, TEXELS))
    return (noise / noise.std()).astype(np.float32)


def mix(dark: Rgb, light: Rgb, amount: np.ndarray) -> np.ndarray:
    """Colour ramp: (T, T) amounts, clipped to [0, 1], to (T, T, 3) RGB."""
    t = np.clip(amount, 0, 1)[..., None]
    return floats(dark) * (1 - t) + floats(light) * t


def relief(height: np.ndarray, strength: float) -> np.ndarray:
    """Shading factor (T, T, 1) of a height field (T, T) lit from the upper left."""
    slope = height - np.roll(height, (-1, -1), (0, 1))
    return np.clip(1 - strength * slope, 0.35, 1.6)[..., None]


def cells(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Periodic Voronoi cells, `count` per side: distance to centre, gap to border, random value per cell.

    Distances are in cells; all (T, T).
    """
    points, values = rng.random((count, count, 2), np.float32), rng.random((count, count), np.float32)
    at = (np.arange(TEXELS, dtype=np.float32) + 0.5) * count / TEXELS
    cell = at.astype(int)
    first = np.full((TEXELS, TEXELS), 9, np.float32)
    second, value = first.copy(), np.zeros_like(first)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            rows, columns = ((cell + dy) % count)[:, None], ((cell + dx) % count)[None]
            centre = points[rows, columns]
            gap_y = (at - cell)[:, None] - dy - centre[..., 0]
            gap_x = (at - cell)[None] - dx - centre[..., 1]
            distance = np.hypot(gap_y, gap_x)
            second = np.minimum(second, np.maximum(first, distance))
            value = np.where(distance < first, values[rows, columns], value)
            first = np.minimum(first, distance)
    return first, second - first, value


def bond(rng: np.random.Generator, rows: int, columns: int, shift: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Courses of bricks shifted by `shift` per odd row: in-brick u, v (0..1) and a random value per brick, (T, T)."""
    row_at, column_at = np.meshgrid(np.arange(TEXELS) * rows / TEXELS, np.arange(TEXELS) / TEXELS, indexing="ij")
    row = row_at.astype(int)
    column_at = (column_at * columns + shift * (row % 2)) % columns
    value = rng.random((rows, columns), np.float32)[row, column_at.astype(int)]
    return floats(column_at % 1), floats(row_at % 1), value


def joint(u: np.ndarray, v: np.ndarray, gap_u: float, gap_v: float) -> np.ndarray:
    """1 inside a brick, falling to 0 in the joint round it, (T, T)."""
    inside = np.minimum(np.minimum(u, 1 - u) / gap_u, np.minimum(v, 1 - v) / gap_v)
    return np.clip(inside - 0.6, 0, 1)


_WRAPS = [(x, y) for x in (-TEXELS, 0, TEXELS) for y in (-TEXELS, 0, TEXELS)]


def strokes(
    rng: np.random.Generator, dark: Rgb, light: Rgb, count: int, length: float, angle: float, spread: float, width: int
) -> np.ndarray:
    """Overlapping hair-like strokes (angle and spread in radians, 0 = along u), later ones lighter, (T, T, 3)."""
    canvas = np.full((TEXELS, TEXELS, 3), floats(dark) * 0.7, np.float32)
    start = rng.random((count, 2)) * TEXELS
    turn = angle + spread * rng.standard_normal(count)
    reach = length * (0.5 + rng.random((count, 1))) * np.stack([np.cos(turn), np.sin(turn)], 1)
    tone = np.clip(np.linspace(0, 0.8, count) + 0.25 * rng.standard_normal(count), 0, 1)[:, None]
    colours = (floats(dark) * (1 - tone) + floats(light) * tone).tolist()
    for begin, end, colour in zip(start, start + reach, colours, strict=True):
        for wrap in _WRAPS:
            a, b = begin + wrap, end + wrap
            if (
                max(a[0], b[0]) > -3
                and min(a[0], b[0]) < TEXELS + 3
                and max(a[1], b[1]) > -3
                and min(a[1], b[1]) < TEXELS + 3
            ):
                cv2.line(canvas, (int(a[0]), int(a[1])), (int(b[0]), int(b[1])), colour, width, cv2.LINE_8)
    return cv2.blur(canvas, (2, 2), borderType=cv2.BORDER_REFLECT)


def blobs(rng: np.random.Generator, canvas: np.ndarray, count: int, size: float, ramp: tuple[Rgb, Rgb]) -> np.ndarray:
    """Leaf- or petal-like ellipses from dark (below) to light (on top) drawn on `canvas` (T, T, 3)."""
    centres, turns = rng.random((count, 2)) * TEXELS, rng.random(count) * 360
    for i, (centre, turn) in enumerate(zip(centres, turns, strict=True)):
        tone = min(1.0, max(0.0, i / count + 0.2 * rng.standard_normal()))
        colour = [a * (1 - tone) + b * tone for a, b in zip(*ramp, strict=True)]
        axes = (max(1, int(size * (0.7 + 0.6 * rng.random()))), max(1, int(size * 0.45)))
        for wrap in _WRAPS:
            x, y = (centre + wrap).astype(int).tolist()
            if -20 < x < TEXELS + 20 and -20 < y < TEXELS + 20:
                cv2.ellipse(canvas, (x, y), axes, turn, 0, 360, [c * 0.55 for c in colour], -1)
                cv2.ellipse(canvas, (x, y - 1), axes, turn, 0, 300, colour, -1)
    return canvas


# Letters as poly-lines over a 3 x 5 grid of nodes a..o, row by row.
_LETTERS = (
    "amo", "ac bn", "am co gi", "camo gi", "cam gi", "mbo jl", "maoc", "anc", "ao cm", "acmo", "am cgo", "acoma",
    "amoc", "bn", "maeco", "cagiom", "macig", "macig ho", "ahc hn", "ahcoma",
)  # fmt: skip


def text(rng: np.random.Generator, rows: int, columns: int, width: int, ink: Rgb, page: Rgb) -> np.ndarray:
    """Rows of capital letters and gaps between words, (T, T, 3)."""
    canvas = np.full((TEXELS * 2, TEXELS * 2, 3), floats(page), np.float32)
    step_y, step_x = TEXELS * 2 / rows, TEXELS * 2 / columns
    for row in range(rows):
        for column in range(columns):
            if rng.random() < 0.16:
                continue
            for stroke in _LETTERS[rng.integers(len(_LETTERS))].split():
                nodes = np.array([divmod(ord(node) - ord("a"), 3)[::-1] for node in stroke])
                at = (np.array([column, row]) + 0.2 + nodes * (0.3, 0.15)) * (step_x, step_y)
                cv2.polylines(canvas, [at.astype(np.int32)], False, ink, width, cv2.LINE_8)
    return cv2.resize(canvas, (TEXELS, TEXELS), interpolation=cv2.INTER_AREA)


def waves(cycles_u: int, cycles_v: int) -> tuple[np.ndarray, np.ndarray]:
    """Phases in radians of `cycles` per tile along u and along v, (T, T) each."""
    at = np.arange(TEXELS, dtype=np.float32) * 2 * math.pi / TEXELS
    return np.meshgrid(at * cycles_u, at * cycles_v)
