"""Layouts of procedural scenes: what stands where."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from data_pipelines.scenes.geometry import Solid, Vector
from data_pipelines.scenes.materials import MATERIAL_INDEX, MATERIALS, PAINTS, Rgb, floats


class _Prop(NamedTuple):
    """A free-standing thing; `height` is relative to the width in metres."""

    noun: str
    shape: str
    materials: tuple[str, ...]
    width: tuple[float, float]
    height: tuple[float, float]
    cutout: str = ""


_PROPS = (
    _Prop("box", "box", ("wooden", "cloth", "rusty", "printed paper", "marble", "corrugated"), (0.6, 1.3), (0.6, 1.3)),
    _Prop("crate", "box", ("wooden", "wicker", "metal"), (0.6, 1.2), (0.5, 1.0)),
    _Prop("block", "box", ("stone", "brick", "marble", "tiled"), (0.7, 1.4), (0.5, 1.6)),
    _Prop("ball", "sphere", ("cloth", "fur", "metal", "marble", "wicker", "knitted", "tiled"), (0.6, 1.3), (1, 1)),
    _Prop("apple", "sphere", ("glossy",), (0.6, 1.1), (0.9, 1.0)),
    _Prop("barrel", "cylinder", ("wooden", "rusty", "metal"), (0.6, 0.9), (1.1, 1.6)),
    _Prop("pot", "cylinder", ("plaster", "metal", "marble", "tiled"), (0.5, 0.9), (0.7, 1.2)),
    _Prop("basket", "cylinder", ("wicker",), (0.6, 1.2), (0.5, 0.8)),
    _Prop("stump", "cylinder", ("bark",), (0.5, 0.9), (0.6, 1.2)),
    _Prop("bale", "cylinder", ("straw",), (0.9, 1.5), (0.6, 0.9)),
    _Prop("cone", "cone", ("plaster", "glossy", "metal"), (0.5, 0.9), (1.3, 2.0)),
    _Prop("pile", "cone", ("gravel", "sand", "straw", "snow"), (1.4, 2.4), (0.4, 0.6)),
    _Prop("cushion", "sphere", ("knitted", "fur", "cloth"), (0.8, 1.4), (0.4, 0.6)),
    _Prop("boulder", "sphere", ("stone", "gravel"), (0.8, 1.8), (0.5, 0.8)),
    _Prop("bush", "sphere", ("leafy", "leafy", "flowery"), (0.9, 2.0), (0.7, 1.0), "ragged"),
    _Prop("column", "cylinder", ("marble", "stone", "plaster"), (0.4, 0.7), (4.0, 6.0)),
)
_FENCES = (  # cutout, material and noun
    ("pickets", "wooden", "fence"), ("pickets", "plaster", "fence"), ("railing", "metal", "railing"),
    ("mesh", "metal", "mesh fence"),
)  # fmt: skip
INDOOR = ("box", "crate", "block", "ball", "apple", "pot", "basket", "cone", "cushion", "barrel", "ball", "apple")
OUTDOOR = ("box", "crate", "block", "ball", "barrel", "pot", "stump", "bale", "pile", "boulder", "bush", "bush",
           "column")  # fmt: skip
GROUNDS = ("grass", "gravel", "stone", "sand", "asphalt", "cracked soil", "tiled", "snow", "flowery", "grass", "brick")
FLOORS = ("wooden", "tiled", "marble", "cloth", "fur", "stone", "wooden")
_HANGING = (("printed paper", "poster"), ("book", "shelf"), ("glass", "window"), ("lettered", "sign"))
_STACKED = (("wooden", "crate"), ("printed paper", "box"), ("cloth", "box"), ("stone", "block"), ("metal", "crate"),
            ("straw", "bale"))  # fmt: skip
WALLS = ("brick", "plaster", "stone", "wooden", "corrugated", "brick", "tiled")
UPRIGHT = (*WALLS, "cloth", "fur", "marble", "metal", "leafy", "bark", "straw", "wicker", "rusty", "knitted", "shingle",
            "stone", "plaster", "book", "flowery", "snow")  # fmt: skip
GREENERY = ("grass", "flowery", "grass", "snow", "cracked soil", "sand")


Option = TypeVar("Option")
View = tuple[float, float]  # height of the eye in metres, pitch in radians


@dataclass
class Builder:
    """Collects solids; every random choice comes from `rng`."""

    rng: np.random.Generator
    solids: list[Solid] = field(default_factory=list)
    taken: list[tuple[float, float, float]] = field(default_factory=list)  # x, z, radius of what stands

    def between(self, low: float, high: float) -> float:
        """A number from the range."""
        return float(self.rng.uniform(low, high))

    def count(self, low: int, high: int) -> int:
        """A number from range(low, high)."""
        return int(self.rng.integers(low, high))

    def pick(self, options: Sequence[Option]) -> Option:
        """One of the options."""
        return options[self.count(0, len(options))]

    def chance(self, share: float) -> bool:
        """True with this probability."""
        return bool(self.rng.random() < share)

    def add(self, shape: str, material: str, noun: str, centre: Vector, half: Vector, **more: object) -> Solid:
        """Adds one solid, in a colour of its material that the tag names where the material has paints."""
        index = MATERIAL_INDEX[material]
        entry = MATERIALS[index]
        paint = self.pick(entry.paints) if entry.paints else ""
        colour = floats(PAINTS[paint] if paint else entry.tints[int(self.rng.integers(len(entry.tints)))])
        if paint:
            colour += entry.muted * (colour.mean() - colour)
        red, green, blue = (colour * self.rng.uniform(0.9, 1.1, 3) * self.between(0.92, 1.08)).tolist()
        tag = " ".join(word for word in (paint, material, noun) if word)
        offset, scale = (self.between(0, 1), self.between(0, 1)), self.between(0.8, 1.25)
        if entry.fitted and shape == "quad":
            columns, rows = entry.cells
            offset = int(self.rng.integers(columns)) / columns, int(self.rng.integers(rows)) / rows
            scale = 0.5 if material == "lettered" and self.chance(0.5) else 1.0
        look: dict[str, Any] = {"tint": (red, green, blue), "scale": scale, "offset": offset, **more}
        solid = Solid(shape, centre, half, index, tag, **look)
        self.solids.append(solid)
        return solid

    def repeat(self, solid: Solid, centre: Vector, half: Vector | None = None) -> None:
        """Adds a solid once more, of the same make and colour, elsewhere."""
        self.solids.append(replace(solid, centre=centre, half=half or solid.half))

    def ground(self, material: str, noun: str = "ground") -> None:
        """The endless horizontal plane at height 0."""
        self.add("box", material, noun, (0, -1, 100), (200, 1, 150))

    def prop(self, nouns: Sequence[str], x: float, z: float, y: float = 0.0, size: float = 1.0) -> None:
        """One thing standing on height y."""
        noun = self.pick(nouns)
        entry = next(p for p in _PROPS if p.noun == noun)
        width = self.between(*entry.width) * size / 2
        height = width * self.between(*entry.height)
        yaw = self.between(-0.8, 0.8) if entry.shape == "box" else 0.0
        sink = 0.75 if noun in ("boulder", "bush") else 1.0
        self.add(entry.shape, self.pick(entry.materials), noun, (x, y + height * sink, z), (width, height, width),
                 yaw=yaw, cutout=entry.cutout)  # fmt: skip

    def scatter(self, nouns: Sequence[str], count: int, near: float, far: float, size: float = 1.0) -> None:
        """Things on the ground inside the view, kept apart from each other."""
        for _ in range(count * 3):
            z = self.between(near, far)
            x = self.between(-0.5, 0.5) * z
            room = 0.75 * size
            if count > 0 and all(math.hypot(x - a, z - b) > room + r for a, b, r in self.taken):
                self.taken.append((x, z, room))
                self.prop(nouns, x, z, size=size * self.between(0.8, 1.3))
                count -= 1

    def wall(self, z: float, height: float, material: str, yaw: float = 0.0, x: float = 0.0, half: float = 20) -> None:
        """A wall in the middle of which is (x, z)."""
        self.add("box", material, "wall", (x, height / 2, z), (half, height / 2, 0.2), yaw=yaw)

    def openings(self, z: float, left: float, right: float, height: float) -> None:
        """Windows in rows and sometimes a door on a wall whose front is at z."""
        wide, tall = self.between(0.45, 0.8), self.between(0.55, 0.9)
        step = wide * self.between(3, 4.5)
        door = self.chance(0.6)
        for i, x in enumerate(np.arange(left + step / 2, right - wide, step).tolist()):
            if door and i == 1:
                self.add("quad", "panelled", "door", (x, 1.05, z - 0.02), (0.5, 1.05, 1))
            elif tall + 1.2 < height:
                self.add("quad", "glass", "window", (x, 1.0 + tall, z - 0.02), (wide, tall, 1))
            if height > 4.5 + tall:
                self.add("quad", "glass", "window", (x, 4.0 + tall, z - 0.02), (wide, tall, 1))

    def tree(self, x: float, z: float, size: float) -> None:
        """A conifer or a round-crowned tree."""
        trunk = size * self.between(0.25, 0.45)
        self.add("cylinder", "bark", "trunk", (x, trunk, z), (0.09 * size**0.8, trunk, 0.09 * size**0.8))
        if self.chance(0.35):
            half = (size * 0.5, size * 0.9, size * 0.5)
            self.add("cone", "leafy", "fir tree", (x, trunk + size * 0.6, z), half, cutout="tiers")
            return
        crown = size * self.between(0.45, 0.62)
        for dx, dy in ((0, 0), (-0.6, -0.35), (0.55, -0.25))[: self.count(1, 4)]:
            centre = (x + dx * crown, trunk * 2 + crown * (0.6 + dy), z + 0.2 * dx)
            self.add("sphere", "leafy", "tree", centre, (crown, crown * 0.85, crown), cutout="ragged")

    def fence(self, z: float) -> None:
        """A see-through fence across the view."""
        kind, material, noun = self.pick(_FENCES)
        height = self.between(0.45, 0.7)
        self.add("quad", material, noun, (self.between(-2, 2), height, z), (z * 0.9, height, 1), cutout=kind)

    def pole(self, x: float, z: float) -> None:
        """A street lamp or a sign on a pole."""
        high = self.between(1.1, 2.2)
        self.add("cylinder", self.pick(("metal", "wooden", "rusty")), "pole", (x, high, z), (0.06, high, 0.06))
        if self.chance(0.4):
            self.add("sphere", "glossy", "lamp", (x, high * 2 + 0.2, z), (0.25, 0.25, 0.25))
        else:
            wide = self.between(0.5, 1.0)
            half = (wide, wide * self.between(0.45, 0.8), 1)
            self.add("quad", "lettered", "sign", (x, high * 2 - 0.3, z - 0.08), half)

    def wires(self, z: float, height: float) -> None:
        """A power line across the view."""
        reach = z * self.between(0.35, 0.6)
        shift = self.between(-2, 2)
        for side in (-1, 1):
            self.add("cylinder", "wooden", "pole", (shift + side * reach, height / 2, z), (0.1, height / 2, 0.1))
        self.add("quad", "rusty", "wires", (shift, height - 0.7, z), (reach, 0.8, 1), cutout="wires")

    def house(self, x: float, z: float, width: float) -> None:
        """Walls, gable roof, windows and a door facing the camera."""
        height, depth = self.between(2.6, 4.2), width * self.between(0.6, 1.0)
        walls = self.pick(("brick", "plaster", "stone", "wooden", "plaster"))
        self.add("box", walls, "house", (x, height / 2, z), (width / 2, height / 2, depth / 2))
        rise = width * self.between(0.16, 0.3)
        roof = self.pick(("shingle", "shingle", "straw", "corrugated"))
        if self.chance(0.5):
            self.add("roof", roof, "roof", (x, height + rise, z), (width * 0.56, rise, depth * 0.56))
        else:
            self.add("roof", roof, "roof", (x, height + rise, z), (depth * 0.56, rise, width * 0.54), yaw=math.pi / 2)
        self.openings(z - depth / 2, x - width / 2, x + width / 2, height)


def _surface(b: Builder) -> View:
    """One material and nothing else: what a word looks like."""
    if b.chance(0.5):
        b.ground(b.pick(GROUNDS))
        b.wall(b.between(1.7, 3.4), 12, b.pick(UPRIGHT), yaw=b.between(-0.6, 0.6))
        return b.between(2.4, 3.5), b.between(-0.2, 0.1)
    lying, noun = (GROUNDS, "ground") if b.chance(0.5) else (FLOORS, "floor")
    b.ground(b.pick((*lying, "straw", "knitted", "leafy") if noun == "floor" else (*lying, "water")), noun)
    return b.between(1.3, 2.6), b.between(0.75, 1.15)


def _stairs(b: Builder) -> View:
    """Steps that lead up to a wall, with things standing on them."""
    b.ground(b.pick(GROUNDS))
    material, rise, run = b.pick(("stone", "brick", "wooden", "marble", "tiled")), b.between(0.14, 0.24), 0.55
    x, half, first = b.between(-0.8, 0.8), b.between(1.2, 2.6), b.between(3.4, 4.6)
    steps = b.count(4, 8)
    step = b.add("box", material, "stairs", (x, rise / 2, first + run + 2), (half, rise / 2, 2))
    for i in range(2, steps + 1):
        b.repeat(step, (x, rise * i / 2, first + i * run + 2), (half, rise * i / 2, 2))
    top, back = rise * steps, first + steps * run
    b.wall(back + 2.2, b.between(3.5, 7), b.pick(WALLS))
    for at in (-0.6, 0.6)[: b.count(0, 3)]:
        b.prop(OUTDOOR[:7], x + at * half, back + b.between(0.5, 1.2), top, 0.8)
    b.scatter(OUTDOOR, b.count(0, 3), 2.6, first - 0.2, 0.7)
    return b.between(1.5, 2.3), b.between(0.0, 0.16)


def _arcade(b: Builder) -> View:
    """Two rows of columns that recede under beams, with a wall at their end."""
    b.ground(b.pick(("marble", "tiled", "stone", "brick", "sand", "grass")))
    material, wide, tall = b.pick(("marble", "stone", "brick", "plaster")), b.between(1.3, 2.2), b.between(3, 4.4)
    step, radius = b.between(2.0, 3.0), b.between(0.18, 0.32)
    depth = 4 + 5 * step
    column = b.add("cylinder", material, "column", (-wide, tall / 2, 4), (radius, tall / 2, radius))
    for i in range(1, 10):
        b.repeat(column, ((-wide, wide)[i % 2], tall / 2, 4 + i // 2 * step))
    beam = b.add("box", material, "beam", (-wide, tall + 0.25, 3 + depth / 2), (0.4, 0.25, depth / 2))
    b.repeat(beam, (wide, tall + 0.25, 3 + depth / 2))
    if b.chance(0.7):
        b.wall(depth + 1, tall + b.between(0.5, 3), b.pick(WALLS))
    b.scatter(OUTDOOR, b.count(1, 4), 3.2, 9)
    return b.between(1.3, 2.0), b.between(-0.1, 0.1)


def _stack(b: Builder) -> View:
    """Boxes on top of each other before a wall."""
    b.ground(b.pick(GROUNDS + FLOORS))
    z = b.between(4.2, 6)
    b.wall(z + b.between(1.5, 3), b.between(3, 8), b.pick(WALLS))
    size, base = b.between(0.45, 0.65), b.count(2, 5)
    for row in range(base):
        for i in range(base - row):
            x = (i - (base - row - 1) / 2) * size * 2.15 + b.between(-0.06, 0.06)
            material, noun = b.pick(_STACKED)
            centre = (x, size * (2 * row + 1), z + b.between(-0.1, 0.1))
            b.add("box", material, noun, centre, (size, size, size), yaw=b.between(-0.2, 0.2))
    b.scatter(OUTDOOR, b.count(0, 3), 2.8, z - 1.2, 0.7)
    return b.between(1.3, 1.9), b.between(-0.04, 0.14)


class Weather(NamedTuple):
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


def _street(b: Builder) -> View:
    """A facade behind a pavement with things, poles and wires in front."""
    b.ground(b.pick(GROUNDS))
    z, height = b.between(8, 13), b.between(2.5, 8)
    b.wall(z, height, b.pick(WALLS))
    b.openings(z - 0.2, -z * 0.55, z * 0.55, height)
    b.scatter(OUTDOOR, b.count(2, 6), 3.5, z - 1.5)
    if b.chance(0.6):
        b.pole(b.between(-2.5, 2.5), b.between(4.5, z - 1))
    if b.chance(0.3):
        b.fence(b.between(5, z - 1))
    if b.chance(0.3):
        b.tree(b.between(-3, 3), b.between(5, z - 1), b.between(1.8, 3))
    return b.between(1.4, 2.2), b.between(-0.05, 0.14)


def _garden(b: Builder) -> View:
    """Trees, bushes, a fence and perhaps a house on open ground."""
    b.ground(b.pick(GREENERY))
    for _ in range(b.count(0, 3)):
        x, z, size = b.between(-30, 30), b.between(45, 80), b.between(9, 25)
        material = b.pick(("grass", "leafy", "snow", "stone"))
        b.add("sphere", material, "hill", (x, -1, z), (size * 1.8, size * 0.45, size))
    for _ in range(b.count(1, 5)):
        z = b.between(6, 18)
        b.tree(b.between(-0.5, 0.5) * z, z, b.between(1.6, 4))
    if b.chance(0.55):
        b.house(b.between(-3, 3), b.between(13, 20), b.between(5, 8))
    if b.chance(0.5):
        b.fence(b.between(5, 9))
    if b.chance(0.3):
        b.wires(b.between(9, 16), b.between(4, 6))
    b.scatter(OUTDOOR, b.count(1, 4), 3.5, 8)
    return b.between(1.4, 2.4), b.between(-0.06, 0.12)


def _room(b: Builder) -> View:
    """A corner of a room with furniture-sized things, books or posters."""
    b.ground(b.pick(FLOORS), "floor")
    z = b.between(5.5, 8)
    wall = b.pick(("plaster", "plaster", "brick", "wooden", "tiled", "cloth"))
    b.wall(z, 8, wall)
    if b.chance(0.6):
        side = -1 if b.chance(0.5) else 1
        b.wall(z - 4, 8, b.pick((wall, "plaster")), yaw=math.pi / 2, x=side * b.between(2.2, 3.2), half=8)
    for x in (-1.6, 0.3, 2.0)[: b.count(0, 4)]:
        material, noun = b.pick(_HANGING)
        centre = (x + b.between(-0.2, 0.2), b.between(1.6, 2.4), z - 0.22)
        b.add("quad", material, noun, centre, (b.between(0.45, 0.8), b.between(0.5, 0.9), 1))
    if b.chance(0.4):
        material, centre = b.pick(("fur", "cloth", "knitted", "straw")), (b.between(-1, 1), 0.02, z - 2.5)
        b.add("box", material, "rug", centre, (1.8, 0.02, 1.2), yaw=b.between(-0.5, 0.5))
    b.scatter(INDOOR, b.count(2, 6), 3.0, z - 1)
    return b.between(1.3, 2.2), b.between(0.02, 0.2)


def _table(b: Builder) -> View:
    """A still life close to the camera."""
    b.ground(b.pick(FLOORS), "floor")
    b.wall(b.between(5, 9), 8, b.pick(("plaster", "brick", "wooden", "cloth", "stone", "tiled")))
    top = b.between(0.75, 0.95)
    material = b.pick(("wooden", "marble", "cloth", "metal", "stone", "tiled"))
    b.add("box", material, "table", (0, top - 0.08, 2.9), (2.4, 0.08, 1.6), yaw=b.between(-0.25, 0.25))
    stretch = b.between(0.8, 1.1)
    for x in (-1.05, -0.35, 0.35, 1.0)[: b.count(2, 5)]:
        b.prop(INDOOR, x * stretch + b.between(-0.1, 0.1), b.between(2.9, 3.8), top, b.between(0.55, 0.85))
    if b.chance(0.5):
        centre = (b.between(-1, 1), top + 0.015, b.between(2.5, 2.9))
        b.add("box", "printed paper", "page", centre, (0.36, 0.015, 0.26), yaw=b.between(-0.6, 0.6))
    return b.between(1.5, 2.1), b.between(0.2, 0.36)


def _close_up(b: Builder) -> View:
    """One surface seen from near, with a few things before it."""
    b.ground(b.pick(GROUNDS + FLOORS))
    z = b.between(3.2, 5)
    height, material = b.between(1.2, 6), b.pick((*WALLS, "straw", "rusty", "bark", "leafy", "marble", "metal", "book"))
    b.wall(z, height, material, yaw=b.between(-0.5, 0.5))
    b.scatter(INDOOR + OUTDOOR[:-1], b.count(1, 4), 2.2, z - 0.7, 0.75)
    if b.chance(0.35):
        material, centre = b.pick(("lettered", "printed paper")), (b.between(-0.8, 0.8), b.between(1.3, 2), z - 0.9)
        b.add("quad", material, "sign", centre, (b.between(0.4, 0.8), b.between(0.3, 0.5), 1))
    return b.between(1.2, 1.8), b.between(0.0, 0.3)


def _shore(b: Builder) -> View:
    """Water with a near bank, a far bank and trees."""
    b.ground("water", "surface")
    material, centre = b.pick(("sand", "grass", "gravel", "stone", "wooden")), (b.between(-2, 2), 0, b.between(1.5, 3))
    b.add("box", material, "bank", centre, (20, 0.12, b.between(1.5, 3.5)), yaw=b.between(-0.35, 0.35))
    z = b.between(16, 28)
    material, centre = b.pick(("grass", "sand", "stone", "snow", "leafy")), (b.between(-12, 12), 0, z + 12)
    b.add("sphere", material, "hill", centre, (b.between(14, 30), b.between(1.5, 6), 10))
    for _ in range(b.count(1, 4)):
        b.tree(b.between(-0.45, 0.45) * z, z, b.between(2, 4))
    if b.chance(0.3):
        b.house(b.between(-5, 5), z, b.between(4, 6))
    if b.chance(0.4):
        b.fence(b.between(4.5, 6))
    b.scatter(OUTDOOR, b.count(1, 4), 2.4, 5.5)
    return b.between(1.5, 2.4), b.between(-0.02, 0.12)


_COMPOSERS: tuple[Callable[[Builder], View], ...] = (
    _street, _street, _garden, _garden, _room, _table, _table, _close_up, _close_up, _shore,
    _surface, _surface, _surface, _surface, _stairs, _arcade, _stack,
)  # fmt: skip


def compose(rng: np.random.Generator) -> Layout:
    """Draws one composition with its camera and light."""
    builder = Builder(rng)
    eye_m, pitch = builder.pick(_COMPOSERS)(builder)
    weather = builder.pick(_WEATHERS)
    # the sun is mostly behind the camera
    azimuth, height = builder.between(-1.25, 1.25), builder.between(0.45, 1.05)
    to_sun = (math.sin(azimuth) * math.cos(height), math.sin(height), -math.cos(azimuth) * math.cos(height))
    shade = (9 * to_sun[0], 1 + 9 * to_sun[1], 5 + 9 * to_sun[2])
    if shade[2] < -1 and builder.chance(0.3):
        # a tree behind the camera: unseen, but its shadow falls into the picture
        builder.add("sphere", "leafy", "tree", shade, (2.2, 1.6, 2.2), cutout="ragged")
    return Layout(tuple(builder.solids), eye_m, pitch, builder.between(0.42, 0.58), to_sun, weather)
