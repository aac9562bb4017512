"""Procedural, tileable textures: each maker turns a generator into one (T, T, 3) float32 RGB tile, about [0, 1].

Rows run downwards (v), columns to the right (u); light comes from the upper left. `materials` lists and packs them.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from data_pipelines.texture_patterns import (
    TEXELS,
    Rgb,
    blobs,
    bond,
    cells,
    floats,
    joint,
    mix,
    noise,
    relief,
    strokes,
    text,
    waves,
)

PAINTS: dict[str, Rgb] = {
    "red": (0.85, 0.20, 0.17), "orange": (0.93, 0.52, 0.16), "yellow": (0.94, 0.80, 0.28),
    "green": (0.33, 0.62, 0.27), "teal": (0.20, 0.62, 0.62), "blue": (0.22, 0.42, 0.80),
    "purple": (0.55, 0.33, 0.68), "pink": (0.93, 0.60, 0.68), "brown": (0.56, 0.38, 0.25),
    "beige": (0.90, 0.81, 0.66), "white": (0.96, 0.95, 0.92), "gray": (0.62, 0.63, 0.65), "black": (0.22, 0.22, 0.24),
}  # fmt: skip


def clouds(rng: np.random.Generator) -> np.ndarray:
    """Gray cloud cover, also the sky's noise."""
    return np.repeat((0.5 + 0.18 * noise(rng, 1, 60))[..., None], 3, 2)


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
    return ((0.58 + 0.36 * thread + 0.05 * over) * stripes + 0.03 * noise(rng, 4, 100))[..., None].repeat(3, 2)


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
    return (
        (0.44 + 0.07 * noise(rng, 40, 128) + 0.03 * noise(rng, 1, 8))[..., None]
        * crack[..., None]
        * floats((1, 1, 1.03))
    )


def bark(rng: np.random.Generator) -> np.ndarray:
    """Fissured tree bark."""
    ridge = np.abs(noise(rng, 5, 60, (4, 1)))
    return mix((0.20, 0.14, 0.10), (0.66, 0.54, 0.42), 0.1 + 0.6 * ridge + 0.05 * noise(rng, 20, 120)) * relief(
        ridge, 0.35
    )


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
    return np.where(
        (patch > 0.75)[..., None], floats((0.60, 0.64, 0.66)), mix((0.34, 0.16, 0.09), (0.78, 0.42, 0.20), patch)
    )


def knit(rng: np.random.Generator) -> np.ndarray:
    """Rows of knitted stitches."""
    u, v = waves(12, 16)
    slant = np.sin(v + 2.0 * np.abs(((u / (2 * math.pi)) % 1) - 0.5) * 2 * math.pi)
    return ((0.70 + 0.24 * slant) * np.clip(np.abs(np.sin(u / 2)) * 3, 0.45, 1) + 0.03 * noise(rng, 20, 120))[
        ..., None
    ].repeat(3, 2)


def soil(rng: np.random.Generator) -> np.ndarray:
    """Dried, cracked mud."""
    _, gap, value = cells(rng, 8)
    mud = mix((0.50, 0.37, 0.26), (0.78, 0.64, 0.50), 0.3 + 0.4 * value + 0.12 * noise(rng, 6, 110))
    return mud * np.clip(gap * 9, 0.35, 1)[..., None]


def corrugated(rng: np.random.Generator) -> np.ndarray:
    """Vertical metal folds."""
    u, _ = waves(12, 1)
    return ((0.68 + 0.24 * np.sin(u)) * (1 + 0.04 * noise(rng, 2, 60, (1, 4))))[..., None].repeat(3, 2)


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
    canvas = mix(
        (0.16, 0.21, 0.27), (0.60, 0.70, 0.80), np.linspace(1.0, -0.1, TEXELS)[:, None] + 0.15 * noise(rng, 1, 6)
    )
    for left in (0, 86, 172, 246):
        canvas[:, left : left + 11] = 0.92
    for top in (0, 124, 245):
        canvas[top : top + 11] = 0.92
    return canvas


def door(rng: np.random.Generator) -> np.ndarray:
    """Four panels and a knob."""
    grain = (0.80 + 0.05 * noise(rng, 8, 120, (12, 1)))[..., None] * np.ones(3, np.float32)
    for top, bottom in ((20, 110), (135, 235)):
        for left in (28, 142):
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
