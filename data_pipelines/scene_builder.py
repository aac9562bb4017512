"""What `scenes` are built of: props, walls, trees, houses, fences and poles, placed with random colours and sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from data_pipelines.materials import MATERIAL_INDEX, MATERIALS, PAINTS
from data_pipelines.scene_geometry import Solid, Vector
from data_pipelines.texture_patterns import floats


@dataclass(frozen=True)
class _Prop:
    """A free-standing thing: sizes in metres are full width (and depth) and height."""

    noun: str
    shape: str
    materials: tuple[str, ...]
    width: tuple[float, float]
    height: tuple[float, float]  # relative to the width
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


_FENCES = (  # outline, material and noun
    ("pickets", "wooden", "fence"),
    ("pickets", "plaster", "fence"),
    ("railing", "metal", "railing"),
    ("mesh", "metal", "mesh fence"),
)


# What stands, lies and rises where.
INDOOR = ("box", "crate", "block", "ball", "apple", "pot", "basket", "cone", "cushion", "barrel", "ball", "apple")
OUTDOOR = (
    "box",
    "crate",
    "block",
    "ball",
    "barrel",
    "pot",
    "stump",
    "bale",
    "pile",
    "boulder",
    "bush",
    "bush",
    "column",
)
GROUNDS = ("grass", "gravel", "stone", "sand", "asphalt", "cracked soil", "tiled", "snow", "flowery", "grass", "brick")
FLOORS = ("wooden", "tiled", "marble", "cloth", "fur", "stone", "wooden")
WALLS = ("brick", "plaster", "stone", "wooden", "corrugated", "brick", "tiled")
UPRIGHT = (*WALLS, "cloth", "fur", "marble", "metal", "leafy", "bark", "straw", "wicker", "rusty", "knitted", "shingle",
            "stone", "plaster", "book", "flowery", "snow")  # fmt: skip
GREENERY = ("grass", "flowery", "grass", "snow", "cracked soil", "sand")


@dataclass
class Builder:
    """Collects solids; every random choice comes from `rng`."""

    rng: np.random.Generator
    solids: list[Solid] = field(default_factory=list)
    taken: list[tuple[float, float, float]] = field(default_factory=list)  # x, z, radius of what stands

    def between(self, low: float, high: float) -> float:
        """A number from the range."""
        return float(self.rng.uniform(low, high))

    def pick(self, options: Sequence[str]) -> str:
        """One of the options."""
        return options[int(self.rng.integers(len(options)))]

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
            self.add(
                "cone",
                "leafy",
                "fir tree",
                (x, trunk + size * 0.6, z),
                (size * 0.5, size * 0.9, size * 0.5),
                cutout="tiers",
            )
            return
        crown = size * self.between(0.45, 0.62)
        for dx, dy in ((0, 0), (-0.6, -0.35), (0.55, -0.25))[: int(self.rng.integers(1, 4))]:
            centre = (x + dx * crown, trunk * 2 + crown * (0.6 + dy), z + 0.2 * dx)
            self.add("sphere", "leafy", "tree", centre, (crown, crown * 0.85, crown), cutout="ragged")

    def fence(self, z: float) -> None:
        """A see-through fence across the view."""
        kind, material, noun = _FENCES[int(self.rng.integers(len(_FENCES)))]
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
            self.add(
                "quad", "lettered", "sign", (x, high * 2 - 0.3, z - 0.08), (wide, wide * self.between(0.45, 0.8), 1)
            )

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
        self.add(
            "box",
            self.pick(("brick", "plaster", "stone", "wooden", "plaster")),
            "house",
            (x, height / 2, z),
            (width / 2, height / 2, depth / 2),
        )
        rise = width * self.between(0.16, 0.3)
        roof = self.pick(("shingle", "shingle", "straw", "corrugated"))
        if self.chance(0.5):
            self.add("roof", roof, "roof", (x, height + rise, z), (width * 0.56, rise, depth * 0.56))
        else:
            self.add("roof", roof, "roof", (x, height + rise, z), (depth * 0.56, rise, width * 0.54), yaw=math.pi / 2)
        self.openings(z - depth / 2, x - width / 2, x + width / 2, height)
