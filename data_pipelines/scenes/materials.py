"""Materials and textures of procedural scenes."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike

TEXELS = 256  # side of one texture tile

Rgb = tuple[float, float, float]


def floats(values: ArrayLike) -> np.ndarray:
    """As a float32 array, the precision of textures and scenes."""
    return np.asarray(values, np.float32)


def noise(rng: np.random.Generator, low: float, high: float, stretch: tuple[float, float] = (1, 1)) -> np.ndarray:
    """Periodic 1/f noise of `low`..`high` cycles per tile, (T, T) float32, mean 0, deviation 1; `stretch` blurs it."""
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
    """Periodic Voronoi cells, `count` per side: distance to centre, gap to border (in cells), value; all (T, T)."""
    points, values = rng.random((count, count, 2), np.float32), rng.random((count, count), np.float32)
    at = (np.arange(TEXELS, dtype=np.float32) + 0.5) * count / TEXELS
    cell = at.astype(int)
    first = np.full((TEXELS, TEXELS), 9, np.float32)
    second, value = first.copy(), np.zeros_like(first)
    for dy, dx in product((-1, 0, 1), repeat=2):
        rows, columns = ((cell + dy) % count)[:, None], ((cell + dx) % count)[None]
        centre = points[rows, columns]
        distance = np.hypot((at - cell)[:, None] - dy - centre[..., 0], (at - cell)[None] - dx - centre[..., 1])
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


_WRAPS = tuple(product((-TEXELS, 0, TEXELS), repeat=2))


def strokes(
    rng: np.random.Generator, dark: Rgb, light: Rgb, count: int, length: float, angle: float, spread: float, width: int
) -> np.ndarray:
    """Overlapping strokes like hair (angle and spread in radians, 0 = along u), later ones lighter, (T, T, 3)."""
    canvas = np.full((TEXELS, TEXELS, 3), floats(dark) * 0.7, np.float32)
    start = rng.random((count, 2)) * TEXELS
    turn = angle + spread * rng.standard_normal(count)
    reach = length * (0.5 + rng.random((count, 1))) * np.stack([np.cos(turn), np.sin(turn)], 1)
    tone = np.clip(np.linspace(0, 0.8, count) + 0.25 * rng.standard_normal(count), 0, 1)[:, None]
    colours = (floats(dark) * (1 - tone) + floats(light) * tone).tolist()
    for begin, end, colour in zip(start, start + reach, colours, strict=True):
        for wrap in _WRAPS:
            a, b = begin + wrap, end + wrap
            if (np.maximum(a, b) > -3).all() and (np.minimum(a, b) < TEXELS + 3).all():
                cv2.line(canvas, a.astype(int).tolist(), b.astype(int).tolist(), colour, width, cv2.LINE_8)
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
    for row, column in product(range(rows), range(columns)):
        if rng.random() < 0.16:
            continue
        for stroke in _LETTERS[rng.integers(len(_LETTERS))].split():
            nodes = np.array([divmod(ord(node) - ord("a"), 3)[::-1] for node in stroke])
            at = (np.array([column, row]) + 0.2 + nodes * (0.3, 0.15)) * (step_x, step_y)
            cv2.polylines(canvas, [at.astype(np.int32)], False, ink, width, cv2.LINE_8)
    return cv2.resize(canvas, (TEXELS, TEXELS), interpolation=cv2.INTER_AREA)


def grey(values: np.ndarray) -> np.ndarray:
    """(T, T) -> (T, T, 3) with three equal channels."""
    return values[..., None].repeat(3, 2)


def waves(cycles_u: int, cycles_v: int) -> tuple[np.ndarray, np.ndarray]:
    """Phases in radians of `cycles` per tile along u and along v, (T, T) each."""
    at = np.arange(TEXELS, dtype=np.float32) * 2 * math.pi / TEXELS
    return np.meshgrid(at * cycles_u, at * cycles_v)


PAINTS: dict[str, Rgb] = {
    "red": (0.85, 0.20, 0.17), "orange": (0.93, 0.52, 0.16), "yellow": (0.94, 0.80, 0.28),
    "green": (0.33, 0.62, 0.27), "teal": (0.20, 0.62, 0.62), "blue": (0.22, 0.42, 0.80),
    "purple": (0.55, 0.33, 0.68), "pink": (0.93, 0.60, 0.68), "brown": (0.56, 0.38, 0.25),
    "beige": (0.90, 0.81, 0.66), "white": (0.96, 0.95, 0.92), "gray": (0.62, 0.63, 0.65), "black": (0.22, 0.22, 0.24),
}  # fmt: skip


def clouds(rng: np.random.Generator) -> np.ndarray:
    """Gray cloud cover, also the sky's noise."""
    return grey(0.5 + 0.18 * noise(rng, 1, 60))


def brick(rng: np.random.Generator) -> np.ndarray:
    """Courses of mottled bricks in light mortar."""
    u, v, value = bond(rng, 10, 4, 0.5)
    body = joint(u, v, 0.035, 0.09)
    face = 0.52 + 0.44 * value + 0.06 * noise(rng, 8, 100)
    mortar = mix((0.74, 0.71, 0.66), (0.8, 0.8, 0.8), 0.3 * noise(rng, 20, 120))
    lit = relief(body + 0.05 * noise(rng, 8, 90), 0.3) * floats((1, 0.97, 0.94))
    return mortar * (1 - body[..., None]) + (body * face)[..., None] * lit


def wood(rng: np.random.Generator) -> np.ndarray:
    """Vertical planks with grain."""
    u, _, value = bond(rng, 1, 5, 0)
    seam = np.clip(np.minimum(u, 1 - u) / 0.05, 0.25, 1)
    grain = np.sin(9 * noise(rng, 1, 6, (6, 1)) + 40 * value) * 0.12 + 0.10 * noise(rng, 10, 120, (14, 1))
    return mix((0.46, 0.30, 0.18), (0.90, 0.70, 0.47), 0.45 + grain + 0.45 * (value - 0.5)) * seam[..., None]


def grass(rng: np.random.Generator) -> np.ndarray:
    """Blades of grass."""
    blades = strokes(rng, (0.16, 0.27, 0.08), (0.60, 0.70, 0.26), 2600, 13, -math.pi / 2, 0.45, 1)
    return blades * (1 + 0.10 * noise(rng, 1, 8))[..., None]


def gravel(rng: np.random.Generator) -> np.ndarray:
    """Small pebbles."""
    distance, gap, value = cells(rng, 26)
    stone = mix((0.40, 0.38, 0.36), (0.88, 0.85, 0.80), value + 0.08 * noise(rng, 20, 120))
    return stone * np.clip(gap * 3.5 + 0.15, 0.2, 1)[..., None] * relief(-distance, 1.6)


def stone(rng: np.random.Generator) -> np.ndarray:
    """Large irregular stones in mortar."""
    distance, gap, value = cells(rng, 6)
    body = np.clip((gap - 0.05) * 9, 0, 1)
    rough = noise(rng, 6, 110)
    face = mix((0.46, 0.44, 0.42), (0.80, 0.77, 0.71), 0.15 + 0.7 * value + 0.12 * rough)
    face *= relief(body * 0.9 - distance + 0.10 * rough, 0.9)
    return face * body[..., None] + floats((0.36, 0.34, 0.31)) * (1 - body[..., None])


def tiles(rng: np.random.Generator) -> np.ndarray:
    """Glazed checker tiles."""
    u, v, value = bond(rng, 6, 6, 0)
    checker = (np.indices((TEXELS, TEXELS)) * 6 // TEXELS).sum(0) % 2
    body = joint(u, v, 0.03, 0.03)[..., None]
    return (mix((0.30, 0.31, 0.34), (0.97, 0.96, 0.93), checker * (0.86 + 0.14 * value)) * body
            + 0.55 * (1 - body)) * (1 + 0.03 * noise(rng, 2, 60))[..., None]  # fmt: skip


def weave(rng: np.random.Generator) -> np.ndarray:
    """Woven threads with a checked pattern."""
    u, v = waves(20, 20)
    over = np.sign(np.sin(u) * np.sin(v))
    thread = np.where(over > 0, np.abs(np.sin(2 * u)), np.abs(np.sin(2 * v)))
    stripes = 1 - 0.28 * ((np.sin(u / 5) > 0.55) | (np.sin(v / 5) > 0.55))
    return grey((0.58 + 0.36 * thread + 0.05 * over) * stripes + 0.03 * noise(rng, 4, 100))


def fur(rng: np.random.Generator) -> np.ndarray:
    """Hanging hair."""
    return strokes(rng, (0.40, 0.36, 0.33), (1.0, 0.97, 0.92), 3000, 20, math.pi / 2, 0.5, 1)


def water(rng: np.random.Generator) -> np.ndarray:
    """Ripples, longer across than along."""
    wave = noise(rng, 4, 60, (1, 3))
    return mix((0.10, 0.24, 0.30), (0.62, 0.76, 0.80), 0.28 + 0.16 * wave + 0.10 * np.clip(wave, 1, 4))


def marble(rng: np.random.Generator) -> np.ndarray:
    """Veined polished stone."""
    vein = np.abs(noise(rng, 1, 40)) ** 0.6
    thin = np.clip(np.abs(noise(rng, 2, 60)) * 6, 0, 1)
    return mix((0.52, 0.52, 0.55), (0.96, 0.95, 0.93), 0.42 + 0.45 * vein) * (0.78 + 0.22 * thin)[..., None]


def metal(rng: np.random.Generator) -> np.ndarray:
    """Brushed sheet."""
    return (0.74 + 0.07 * noise(rng, 4, 128, (1, 16)) + 0.02 * noise(rng, 1, 6))[..., None] * floats((0.98, 1, 1.02))


def foliage(rng: np.random.Generator) -> np.ndarray:
    """Dense leaves."""
    canvas = np.full((TEXELS, TEXELS, 3), (0.07, 0.13, 0.05), np.float32)
    return blobs(rng, canvas, 750, 9, ((0.10, 0.20, 0.06), (0.52, 0.68, 0.24)))


def flowers(rng: np.random.Generator) -> np.ndarray:
    """Grass with leaves and petals in three colours."""
    canvas = blobs(rng, grass(rng), 160, 7, ((0.14, 0.28, 0.08), (0.35, 0.55, 0.18)))
    for ramp in (((0.9, 0.3, 0.4), (1, 0.55, 0.65)), ((0.95, 0.75, 0.2), (1, 0.92, 0.4)), ((0.8, 0.8, 0.9), (1, 1, 1))):
        canvas = blobs(rng, canvas, 75, 5, ramp)
    return canvas


def sand(rng: np.random.Generator) -> np.ndarray:
    """Wind ripples and grains."""
    _, v = waves(1, 14)
    ripple = np.sin(v + 2.2 * noise(rng, 1, 6)) * 0.13
    return mix((0.66, 0.52, 0.36), (0.96, 0.86, 0.66), 0.55 + ripple + 0.09 * noise(rng, 30, 128))


def plaster(rng: np.random.Generator) -> np.ndarray:
    """Rough, slightly stained wall."""
    rough = noise(rng, 3, 128)
    return (0.87 + 0.02 * rough + 0.035 * noise(rng, 1, 7))[..., None] * relief(rough, 0.10) * np.ones(3, np.float32)


def shingles(rng: np.random.Generator) -> np.ndarray:
    """Overlapping roof shingles."""
    u, v, value = bond(rng, 10, 8, 0.5)
    curve = v + 0.35 * (1 - 4 * (u - 0.5) ** 2) - 0.35
    shade = np.clip(0.45 + 0.55 * curve, 0.3, 1) * np.clip(np.minimum(u, 1 - u) * 14, 0.5, 1)
    return (shade * (0.72 + 0.32 * value) * (1 + 0.06 * noise(rng, 10, 120)))[..., None] * floats((1, 0.97, 0.95))


def paper(rng: np.random.Generator) -> np.ndarray:
    """Small print."""
    return text(rng, 14, 20, 3, (0.16, 0.16, 0.20), (0.97, 0.95, 0.90))


def sign(rng: np.random.Generator) -> np.ndarray:
    """Large dark letters on a light plate."""
    return text(rng, 4, 6, 11, (0.08, 0.08, 0.10), (0.97, 0.97, 0.97))


def asphalt(rng: np.random.Generator) -> np.ndarray:
    """Speckled, cracked road."""
    crack = np.clip(np.abs(noise(rng, 1, 30)) * 14, 0.45, 1)
    stones = 0.44 + 0.07 * noise(rng, 40, 128) + 0.03 * noise(rng, 1, 8)
    return stones[..., None] * crack[..., None] * floats((1, 1, 1.03))


def bark(rng: np.random.Generator) -> np.ndarray:
    """Fissured tree bark."""
    ridge = np.abs(noise(rng, 5, 60, (4, 1)))
    amount = 0.1 + 0.6 * ridge + 0.05 * noise(rng, 20, 120)
    return mix((0.20, 0.14, 0.10), (0.66, 0.54, 0.42), amount) * relief(ridge, 0.35)


def straw(rng: np.random.Generator) -> np.ndarray:
    """Loose straws."""
    return strokes(rng, (0.48, 0.36, 0.14), (0.97, 0.86, 0.50), 1500, 34, 0, 0.5, 2)


def wicker(rng: np.random.Generator) -> np.ndarray:
    """Woven canes."""
    u, v = waves(8, 16)
    rib = 0.5 + 0.5 * np.cos(u) * np.sign(np.sin(v / 2))
    strand = np.abs(np.sin(v / 2))
    return mix((0.28, 0.17, 0.08), (0.92, 0.74, 0.48), (0.25 + 0.75 * rib) * strand + 0.05 * noise(rng, 4, 100))


def rust(rng: np.random.Generator) -> np.ndarray:
    """Rust patches on bare metal."""
    patch = 0.5 + 0.5 * noise(rng, 1, 60) + 0.12 * noise(rng, 30, 128)
    rusted = mix((0.34, 0.16, 0.09), (0.78, 0.42, 0.20), patch)
    return np.where((patch > 0.75)[..., None], floats((0.60, 0.64, 0.66)), rusted)


def knit(rng: np.random.Generator) -> np.ndarray:
    """Rows of knitted stitches."""
    u, v = waves(12, 16)
    slant = np.sin(v + 2.0 * np.abs(((u / (2 * math.pi)) % 1) - 0.5) * 2 * math.pi)
    return grey((0.70 + 0.24 * slant) * np.clip(np.abs(np.sin(u / 2)) * 3, 0.45, 1) + 0.03 * noise(rng, 20, 120))


def soil(rng: np.random.Generator) -> np.ndarray:
    """Dried, cracked mud."""
    _, gap, value = cells(rng, 8)
    mud = mix((0.50, 0.37, 0.26), (0.78, 0.64, 0.50), 0.3 + 0.4 * value + 0.12 * noise(rng, 6, 110))
    return mud * np.clip(gap * 9, 0.35, 1)[..., None]


def corrugated(rng: np.random.Generator) -> np.ndarray:
    """Vertical metal folds."""
    u, _ = waves(12, 1)
    return grey((0.68 + 0.24 * np.sin(u)) * (1 + 0.04 * noise(rng, 2, 60, (1, 4))))


def snow(rng: np.random.Generator) -> np.ndarray:
    """Soft uneven snow."""
    rough = noise(rng, 1, 60)
    return mix((0.72, 0.78, 0.87), (0.93, 0.94, 0.95), 0.7 + 0.2 * rough) * relief(rough, 0.12)


def skin(rng: np.random.Generator) -> np.ndarray:
    """Fruit skin with streaks and dots."""
    streak = noise(rng, 3, 40, (5, 1))
    dots = np.clip(0.14 - cells(rng, 16)[0], 0, 0.1) * 5
    return np.clip(0.84 + 0.06 * streak + dots, 0, 1)[..., None] * np.ones(3, np.float32)


def window(rng: np.random.Generator) -> np.ndarray:
    """Six panes that mirror a sky, in a light frame."""
    height = np.linspace(1.0, -0.1, TEXELS)[:, None]
    canvas = mix((0.16, 0.21, 0.27), (0.60, 0.70, 0.80), height + 0.15 * noise(rng, 1, 6))
    for left in (0, 86, 172, 246):
        canvas[:, left : left + 11] = 0.92
    for top in (0, 124, 245):
        canvas[top : top + 11] = 0.92
    return canvas


def door(rng: np.random.Generator) -> np.ndarray:
    """Four panels and a knob."""
    grain = (0.80 + 0.05 * noise(rng, 8, 120, (12, 1)))[..., None] * np.ones(3, np.float32)
    for (top, bottom), left in product(((20, 110), (135, 235)), (28, 142)):
        cv2.rectangle(grain, (left, top), (left + 86, bottom), (0.42,) * 3, 5)
        cv2.rectangle(grain, (left + 8, top + 8), (left + 90, bottom + 5), (0.95,) * 3, 2)
    cv2.circle(grain, (236, 128), 8, (0.98, 0.9, 0.5), -1)
    return grain


def books(rng: np.random.Generator) -> np.ndarray:
    """Three shelves of coloured book spines."""
    u, v, value = bond(rng, 3, 16, 0)
    hues = floats(list(PAINTS.values()))[(value * 997).astype(int) % len(PAINTS)]
    spine = hues * np.clip(np.minimum(u, 1 - u) * 9, 0.25, 1)[..., None]
    label = (np.abs(u - 0.5) < 0.22) & (np.abs(v - 0.45) < 0.16) & (np.sin(v * 90) > -0.3)
    spine[label] = (0.95, 0.90, 0.72)
    spine[v < 0.08 + 0.22 * ((value * 31) % 1)] = (0.10, 0.07, 0.05)
    spine[v > 0.92] = (0.52, 0.36, 0.22)
    return spine


_LEVELS = 7  # mip levels of 256 .. 4 texels
_COLUMNS = 6  # tiles per atlas row
_PAD = 1  # wrapped border of each tile, for bilinear look-ups
_ATLAS_SEED = 20240607
_NATURAL = ((1.0, 1.0, 1.0), (1.08, 0.98, 0.88), (0.90, 0.97, 1.05), (0.84, 0.82, 0.80), (1.1, 1.06, 1.0))
_GREENS = ((1.0, 1.0, 1.0), (0.86, 1.0, 0.9), (1.18, 1.02, 0.8), (1.5, 0.95, 0.55), (0.75, 0.92, 0.85))
_ANY = tuple(PAINTS)


class Material(NamedTuple):
    """What a surface is made of; `paints` (if any) colour the tile and are named in the tag."""

    name: str  # segmentation class and the word in the tag
    texture: Callable[[np.random.Generator], np.ndarray]
    tile_m: float = 2.0  # world size of one tile
    paints: tuple[str, ...] = ()
    tints: tuple[Rgb, ...] = _NATURAL  # unnamed colour variety, used without paints
    muted: float = 0.0  # how far paints are drawn towards gray, 0..1
    gloss: float = 0.0  # strength of the sun highlight, 0..1
    mirror: float = 0.0  # share of reflected sky, 0..1
    fitted: bool = False  # on a flat panel the tile fills the surface once instead of repeating
    cells: tuple[int, int] = (1, 1)  # columns and rows that a fitted tile may be shifted by, for variety


MATERIALS: tuple[Material, ...] = (
    Material("sky", clouds),
    Material("brick", brick, 2.4, ("red", "brown", "orange", "white", "gray", "beige", "red"), muted=0.4),
    Material("wooden", wood, 1.6),
    Material("grass", grass, 2.2, tints=_GREENS),
    Material("gravel", gravel, 2.2),
    Material("stone", stone, 2.6),
    Material("tiled", tiles, 3.0, ("white", "blue", "green", "beige", "pink", "teal"), gloss=0.3, mirror=0.06),
    Material("cloth", weave, 1.2, _ANY),
    Material("fur", fur, 1.3, ("white", "brown", "gray", "black", "beige", "orange", "pink")),
    Material("water", water, 5.0, tints=((1, 1, 1), (0.8, 1.1, 1.05), (0.9, 1, 1.2)), gloss=0.5, mirror=0.35),
    Material("marble", marble, 2.2, ("white", "green", "pink", "black", "beige"), muted=0.3, gloss=0.5, mirror=0.08),
    Material("metal", metal, 1.5, ("gray", "white", "yellow", "orange", "blue"), gloss=0.9, mirror=0.4),
    Material("leafy", foliage, 1.8, tints=_GREENS),
    Material("sand", sand, 3.0),
    Material("plaster", plaster, 2.5, _ANY, muted=0.25),
    Material("shingle", shingles, 2.4, ("red", "brown", "gray", "orange", "green", "blue", "red"), muted=0.35),
    Material("printed paper", paper, 1.5, ("white", "beige", "yellow"), fitted=True, cells=(20, 14)),
    Material("asphalt", asphalt, 3.0),
    Material("bark", bark, 1.6),
    Material("straw", straw, 1.6),
    Material("wicker", wicker, 1.2),
    Material("rusty", rust, 2.0, gloss=0.2),
    Material("flowery", flowers, 2.4, tints=((1.0, 1.0, 1.0), (1.1, 1.0, 1.1))),
    Material("knitted", knit, 1.3, _ANY),
    Material("cracked soil", soil, 2.6),
    Material("corrugated", corrugated, 1.8, ("gray", "white", "green", "blue", "red"), gloss=0.3, mirror=0.08),
    Material("snow", snow, 3.0, tints=((1, 1, 1), (0.97, 1, 1.03))),
    Material("glossy", skin, 2.0, ("red", "green", "orange", "yellow", "purple", "red"), gloss=0.9, mirror=0.06),
    Material("glass", window, tints=((1, 1, 1), (0.8, 0.85, 0.9)), gloss=0.3, mirror=0.12, fitted=True),
    Material("panelled", door, 1.0, _ANY, fitted=True),
    Material("lettered", sign, 1.5, ("white", "yellow", "orange", "red", "teal", "pink"), fitted=True, cells=(6, 4)),
    Material("book", books, 1.6, fitted=True, cells=(16, 3)),
)
MATERIAL_INDEX: dict[str, int] = {material.name: i for i, material in enumerate(MATERIALS)}


def distinct_colors(count: int) -> np.ndarray:
    """(count, 3) float32 RGB in [0, 1]: golden-angle hues in three brightness bands, all different."""
    saturations, values = (0.55, 0.95, 0.75), (1.0, 0.85, 0.6)
    hsv = [(i * 0.61803 % 1, saturations[i % 3], values[i // 3 % 3]) for i in range(count)]
    return floats([colorsys.hsv_to_rgb(*colour) for colour in hsv])


@lru_cache(maxsize=1)
def _atlas() -> tuple[np.ndarray, np.ndarray]:
    """All tiles at all mip levels, one below the other: (R, C, 3) uint8, and the first row of each level, float32."""
    tiles = [np.clip(m.texture(np.random.default_rng([_ATLAS_SEED, i])), 0, 1) for i, m in enumerate(MATERIALS)]
    levels, first, start = [], [], 0
    width = _COLUMNS * (TEXELS + 2 * _PAD)
    for level in range(_LEVELS):
        side = TEXELS >> level
        small = [cv2.resize(floats(tile), (side, side), interpolation=cv2.INTER_AREA) for tile in tiles]
        padded = [np.pad(tile, ((_PAD, _PAD), (_PAD, _PAD), (0, 0)), mode="wrap") for tile in small]
        padded += [np.zeros_like(padded[0])] * (-len(padded) % _COLUMNS)
        band = np.concatenate([np.concatenate(padded[i : i + _COLUMNS], 1) for i in range(0, len(padded), _COLUMNS)])
        levels.append(np.pad(band, ((0, 0), (0, width - band.shape[1]), (0, 0))))
        first.append(start)
        start += len(band)
    return np.asarray(np.concatenate(levels) * 255 + 0.5, np.uint8), floats(first)


def sample(material: np.ndarray, u: np.ndarray, v: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    """Texture colours (H, W, 3) uint8 of material indices at u, v; tiles repeat.

    All inputs are (H, W); u, v and the footprint (size of one sample) are in tiles. Each sample reads one mip level,
    dithered, so that the average over neighbouring samples blends the levels.
    """
    atlas, level_row = _atlas()
    dither = floats([[0.0, 0.5], [0.75, 0.25]])
    lod = np.log2(np.maximum(footprint * floats(TEXELS), 1))
    lod += np.tile(dither, (lod.shape[0] // 2 + 1, lod.shape[1] // 2 + 1))[: lod.shape[0], : lod.shape[1]]
    level = np.minimum(lod.astype(np.int32), _LEVELS - 1)
    side = (TEXELS * floats(0.5) ** np.arange(_LEVELS, dtype=np.float32))[level]
    row, column = (floats(part)[material] for part in np.divmod(np.arange(len(MATERIALS)), _COLUMNS))
    pitch = side + 2 * _PAD
    x = column * pitch + (u - np.floor(u)) * side + floats(_PAD - 0.5)
    y = level_row[level] + row * pitch + (v - np.floor(v)) * side + floats(_PAD - 0.5)
    return cv2.remap(atlas, floats(x), floats(y), cv2.INTER_LINEAR)
