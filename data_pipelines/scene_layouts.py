"""Compositions of `scenes`: which solids stand where, in which light, all drawn from one generator."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_pipelines.scene_architecture import arcade, stack, stairs, surface
from data_pipelines.scene_builder import FLOORS, GREENERY, GROUNDS, INDOOR, OUTDOOR, WALLS, Builder
from data_pipelines.scene_geometry import Rgb, Solid, Vector


@dataclass(frozen=True)
class Weather:
    """Sky and light; colours are linear RGB gains."""

    tag: str
    zenith: Rgb
    horizon: Rgb
    cover: float  # share of the sky under clouds, 0..1
    sun: Rgb
    ambient: float  # sky light relative to the sun
    haze_m: float  # distance at which 63 % of the light is scattered


_WEATHERS = (
    Weather("clear blue sky", (0.10, 0.27, 0.68), (0.52, 0.70, 0.90), 0.0, (1.25, 1.15, 1.0), 0.55, 240),
    Weather("cloudy blue sky", (0.12, 0.30, 0.68), (0.60, 0.74, 0.88), 0.45, (1.2, 1.1, 0.98), 0.6, 220),
    Weather("cloudy blue sky", (0.14, 0.34, 0.70), (0.62, 0.76, 0.88), 0.65, (1.15, 1.08, 1.0), 0.65, 200),
    Weather("overcast gray sky", (0.52, 0.56, 0.62), (0.74, 0.77, 0.80), 0.8, (0.45, 0.45, 0.46), 1.15, 130),
    Weather("orange sunset sky", (0.20, 0.27, 0.52), (0.98, 0.58, 0.28), 0.4, (1.45, 0.90, 0.52), 0.55, 160),
    Weather("pale morning sky", (0.45, 0.56, 0.74), (0.95, 0.86, 0.74), 0.25, (1.25, 1.05, 0.85), 0.7, 100),
)


@dataclass(frozen=True)
class Layout:
    """Everything the renderer needs; the camera stands at (0, eye_m, 0) and looks along +z, tilted by `pitch`."""

    solids: tuple[Solid, ...]
    eye_m: float
    pitch: float  # radians, positive looks down
    zoom: float  # tangent of half the field of view
    to_sun: Vector
    weather: Weather


def _street(b: Builder) -> tuple[float, float]:
    """A facade behind a pavement with things, poles and wires in front."""
    b.ground(b.pick(GROUNDS))
    z, height = b.between(8, 13), b.between(2.5, 8)
    b.wall(z, height, b.pick(WALLS))
    b.openings(z - 0.2, -z * 0.55, z * 0.55, height)
    b.scatter(OUTDOOR, int(b.rng.integers(2, 6)), 3.5, z - 1.5)
    if b.chance(0.6):
        b.pole(b.between(-2.5, 2.5), b.between(4.5, z - 1))
    if b.chance(0.3):
        b.fence(b.between(5, z - 1))
    if b.chance(0.3):
        b.tree(b.between(-3, 3), b.between(5, z - 1), b.between(1.8, 3))
    return b.between(1.4, 2.2), b.between(-0.05, 0.14)


def _garden(b: Builder) -> tuple[float, float]:
    """Trees, bushes, a fence and perhaps a house on open ground."""
    b.ground(b.pick(GREENERY))
    for _ in range(int(b.rng.integers(0, 3))):
        x, z, size = b.between(-30, 30), b.between(45, 80), b.between(9, 25)
        b.add(
            "sphere",
            b.pick(("grass", "leafy", "snow", "stone")),
            "hill",
            (x, -1, z),
            (size * 1.8, size * 0.45, size),
        )
    for _ in range(int(b.rng.integers(1, 5))):
        z = b.between(6, 18)
        b.tree(b.between(-0.5, 0.5) * z, z, b.between(1.6, 4))
    if b.chance(0.55):
        b.house(b.between(-3, 3), b.between(13, 20), b.between(5, 8))
    if b.chance(0.5):
        b.fence(b.between(5, 9))
    if b.chance(0.3):
        b.wires(b.between(9, 16), b.between(4, 6))
    b.scatter(OUTDOOR, int(b.rng.integers(1, 4)), 3.5, 8)
    return b.between(1.4, 2.4), b.between(-0.06, 0.12)


def _room(b: Builder) -> tuple[float, float]:
    """A corner of a room with furniture-sized things, books or posters."""
    b.ground(b.pick(FLOORS), "floor")
    z = b.between(5.5, 8)
    wall = b.pick(("plaster", "plaster", "brick", "wooden", "tiled", "cloth"))
    b.wall(z, 8, wall)
    if b.chance(0.6):
        side = -1 if b.chance(0.5) else 1
        b.wall(z - 4, 8, b.pick((wall, "plaster")), yaw=math.pi / 2, x=side * b.between(2.2, 3.2), half=8)
    for x in (-1.6, 0.3, 2.0)[: int(b.rng.integers(0, 4))]:
        kind, noun = (("printed paper", "poster"), ("book", "shelf"), ("glass", "window"), ("lettered", "sign"))[
            int(b.rng.integers(4))
        ]
        b.add(
            "quad",
            kind,
            noun,
            (x + b.between(-0.2, 0.2), b.between(1.6, 2.4), z - 0.22),
            (b.between(0.45, 0.8), b.between(0.5, 0.9), 1),
        )
    if b.chance(0.4):
        b.add(
            "box",
            b.pick(("fur", "cloth", "knitted", "straw")),
            "rug",
            (b.between(-1, 1), 0.02, z - 2.5),
            (1.8, 0.02, 1.2),
            yaw=b.between(-0.5, 0.5),
        )
    b.scatter(INDOOR, int(b.rng.integers(2, 6)), 3.0, z - 1)
    return b.between(1.3, 2.2), b.between(0.02, 0.2)


def _table(b: Builder) -> tuple[float, float]:
    """A still life close to the camera."""
    b.ground(b.pick(FLOORS), "floor")
    b.wall(b.between(5, 9), 8, b.pick(("plaster", "brick", "wooden", "cloth", "stone", "tiled")))
    top = b.between(0.75, 0.95)
    b.add(
        "box",
        b.pick(("wooden", "marble", "cloth", "metal", "stone", "tiled")),
        "table",
        (0, top - 0.08, 2.9),
        (2.4, 0.08, 1.6),
        yaw=b.between(-0.25, 0.25),
    )
    stretch = b.between(0.8, 1.1)
    for x in (-1.05, -0.35, 0.35, 1.0)[: int(b.rng.integers(2, 5))]:
        b.prop(INDOOR, x * stretch + b.between(-0.1, 0.1), b.between(2.9, 3.8), top, b.between(0.55, 0.85))
    if b.chance(0.5):
        b.add(
            "box",
            "printed paper",
            "page",
            (b.between(-1, 1), top + 0.015, b.between(2.5, 2.9)),
            (0.36, 0.015, 0.26),
            yaw=b.between(-0.6, 0.6),
        )
    return b.between(1.5, 2.1), b.between(0.2, 0.36)


def _close_up(b: Builder) -> tuple[float, float]:
    """One surface seen from near, with a few things before it."""
    b.ground(b.pick(GROUNDS + FLOORS))
    z = b.between(3.2, 5)
    b.wall(
        z,
        b.between(1.2, 6),
        b.pick((*WALLS, "straw", "rusty", "bark", "leafy", "marble", "metal", "book")),
        yaw=b.between(-0.5, 0.5),
    )
    b.scatter(INDOOR + OUTDOOR[:-1], int(b.rng.integers(1, 4)), 2.2, z - 0.7, 0.75)
    if b.chance(0.35):
        b.add(
            "quad",
            b.pick(("lettered", "printed paper")),
            "sign",
            (b.between(-0.8, 0.8), b.between(1.3, 2), z - 0.9),
            (b.between(0.4, 0.8), b.between(0.3, 0.5), 1),
        )
    return b.between(1.2, 1.8), b.between(0.0, 0.3)


def _shore(b: Builder) -> tuple[float, float]:
    """Water with a near bank, a far bank and trees."""
    b.ground("water", "surface")
    b.add(
        "box",
        b.pick(("sand", "grass", "gravel", "stone", "wooden")),
        "bank",
        (b.between(-2, 2), 0, b.between(1.5, 3)),
        (20, 0.12, b.between(1.5, 3.5)),
        yaw=b.between(-0.35, 0.35),
    )
    z = b.between(16, 28)
    b.add(
        "sphere",
        b.pick(("grass", "sand", "stone", "snow", "leafy")),
        "hill",
        (b.between(-12, 12), 0, z + 12),
        (b.between(14, 30), b.between(1.5, 6), 10),
    )
    for _ in range(int(b.rng.integers(1, 4))):
        b.tree(b.between(-0.45, 0.45) * z, z, b.between(2, 4))
    if b.chance(0.3):
        b.house(b.between(-5, 5), z, b.between(4, 6))
    if b.chance(0.4):
        b.fence(b.between(4.5, 6))
    b.scatter(OUTDOOR, int(b.rng.integers(1, 4)), 2.4, 5.5)
    return b.between(1.5, 2.4), b.between(-0.02, 0.12)


_COMPOSERS: tuple[Callable[[Builder], tuple[float, float]], ...] = (
    _street, _street, _garden, _garden, _room, _table, _table, _close_up, _close_up, _shore,
    surface, surface, surface, surface, stairs, arcade, stack,
)  # fmt: skip


def compose(rng: np.random.Generator) -> Layout:
    """Draws one composition with its camera and light."""
    builder = Builder(rng)
    eye_m, pitch = _COMPOSERS[int(rng.integers(len(_COMPOSERS)))](builder)
    weather = _WEATHERS[int(rng.integers(len(_WEATHERS)))]
    # the sun stays mostly behind the camera, so that what faces it is lit
    azimuth, height = builder.between(-1.25, 1.25), builder.between(0.45, 1.05)
    to_sun = (math.sin(azimuth) * math.cos(height), math.sin(height), -math.cos(azimuth) * math.cos(height))
    shade = (9 * to_sun[0], 1 + 9 * to_sun[1], 5 + 9 * to_sun[2])
    if shade[2] < -1 and builder.chance(0.3):
        # a tree behind the camera: unseen, but its shadow falls into the picture
        builder.add("sphere", "leafy", "tree", shade, (2.2, 1.6, 2.2), cutout="ragged")
    return Layout(tuple(builder.solids), eye_m, pitch, builder.between(0.42, 0.58), to_sun, weather)
