"""Compositions of `scenes` that are built rather than furnished: one bare surface, stairs, an arcade, a stack."""

from __future__ import annotations

from data_pipelines.scene_builder import FLOORS, GROUNDS, OUTDOOR, UPRIGHT, WALLS, Builder


def surface(b: Builder) -> tuple[float, float]:
    """One material and nothing else: what a word looks like."""
    if b.chance(0.5):
        b.ground(b.pick(GROUNDS))
        b.wall(b.between(1.7, 3.4), 12, b.pick(UPRIGHT), yaw=b.between(-0.6, 0.6))
        return b.between(2.4, 3.5), b.between(-0.2, 0.1)
    lying, noun = (GROUNDS, "ground") if b.chance(0.5) else (FLOORS, "floor")
    b.ground(b.pick((*lying, "straw", "knitted", "leafy") if noun == "floor" else (*lying, "water")), noun)
    return b.between(1.3, 2.6), b.between(0.75, 1.15)


def stairs(b: Builder) -> tuple[float, float]:
    """Steps that lead up to a wall, with things standing on them."""
    b.ground(b.pick(GROUNDS))
    material, rise, run = b.pick(("stone", "brick", "wooden", "marble", "tiled")), b.between(0.14, 0.24), 0.55
    x, half, first = b.between(-0.8, 0.8), b.between(1.2, 2.6), b.between(3.4, 4.6)
    steps = int(b.rng.integers(4, 8))
    step = b.add("box", material, "stairs", (x, rise / 2, first + run + 2), (half, rise / 2, 2))
    for i in range(2, steps + 1):
        b.repeat(step, (x, rise * i / 2, first + i * run + 2), (half, rise * i / 2, 2))
    top, back = rise * steps, first + steps * run
    b.wall(back + 2.2, b.between(3.5, 7), b.pick(WALLS))
    for at in (-0.6, 0.6)[: int(b.rng.integers(0, 3))]:
        b.prop(OUTDOOR[:7], x + at * half, back + b.between(0.5, 1.2), top, 0.8)
    b.scatter(OUTDOOR, int(b.rng.integers(0, 3)), 2.6, first - 0.2, 0.7)
    return b.between(1.5, 2.3), b.between(0.0, 0.16)


def arcade(b: Builder) -> tuple[float, float]:
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
    b.scatter(OUTDOOR, int(b.rng.integers(1, 4)), 3.2, 9)
    return b.between(1.3, 2.0), b.between(-0.1, 0.1)


def stack(b: Builder) -> tuple[float, float]:
    """Boxes on top of each other before a wall."""
    b.ground(b.pick(GROUNDS + FLOORS))
    z = b.between(4.2, 6)
    b.wall(z + b.between(1.5, 3), b.between(3, 8), b.pick(WALLS))
    size, base = b.between(0.45, 0.65), int(b.rng.integers(2, 5))
    for row in range(base):
        for i in range(base - row):
            x = (i - (base - row - 1) / 2) * size * 2.15 + b.between(-0.06, 0.06)
            material, noun = (("wooden", "crate"), ("printed paper", "box"), ("cloth", "box"), ("stone", "block"),
                              ("metal", "crate"), ("straw", "bale"))[int(b.rng.integers(6))]  # fmt: skip
            centre = (x, size * (2 * row + 1), z + b.between(-0.1, 0.1))
            b.add("box", material, noun, centre, (size, size, size), yaw=b.between(-0.2, 0.2))
    b.scatter(OUTDOOR, int(b.rng.integers(0, 3)), 2.8, z - 1.2, 0.7)
    return b.between(1.3, 1.9), b.between(-0.04, 0.14)
