"""Rays, solids and views of procedural scenes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_pipelines.scenes.materials import Rgb, floats

Vector = tuple[float, float, float]
_NEAR_M = 0.05
Surface = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # normals, u and v in metres, face numbers


@dataclass(frozen=True)
class Solid:
    """A unit shape (about [-1, 1] on each axis) scaled by `half`, turned by `yaw` and moved to `centre`."""

    shape: str  # key of _SHAPES
    centre: Vector
    half: Vector
    material: int
    tag: str
    yaw: float = 0.0  # radians about y
    tint: Rgb = (1.0, 1.0, 1.0)
    scale: float = 1.0  # texture size factor
    offset: tuple[float, float] = (0.0, 0.0)  # texture shift, tiles
    cutout: str = ""  # key of _CUTOUTS: which part of the surface exists

    def to_local(self, vectors: np.ndarray) -> np.ndarray:
        """Turn and scale vectors (3, ...) into the unit shape's frame."""
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        x, y, z = vectors
        a, b, h = self.half
        return np.stack([x * (c / a) - z * (s / a), y / b, x * (s / h) + z * (c / h)])

    def normal_to_world(self, normal: np.ndarray) -> np.ndarray:
        """Unit world normals of gradients (3, ...) in the unit shape's frame."""
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        x, y, z = normal / floats(self.half).reshape(3, *[1] * (normal.ndim - 1))
        world = np.stack([x * c + z * s, y, z * c - x * s])
        return world / np.maximum(np.sqrt(np.einsum("i...,i...->...", world, world)), 1e-9)

    def corners(self) -> np.ndarray:
        """The bounding box's eight corners, (3, 8)."""
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        signs = floats([[i & 1, i >> 1 & 1, i >> 2] for i in range(8)]).T * 2 - 1
        x, y, z = signs * floats(self.half)[:, None]
        return np.stack([x * c + z * s, y, z * c - x * s]) + floats(self.centre)[:, None]

    def cast(self, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """Distance t of the first hit, inf for none; origin and direction (3, ...) broadcast."""
        centre = floats(self.centre).reshape(3, *[1] * (origin.ndim - 1))
        start, ray = self.to_local(origin - centre), self.to_local(direction)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            t = _SHAPES[self.shape][0](start, ray)
            t = np.where(t > _NEAR_M, t, np.inf)
            if self.cutout:
                point = start + np.where(np.isfinite(t), t, 0) * ray
                t = np.where(_CUTOUTS[self.cutout](point, ray, self.half), t, np.inf)
        return t

    def surface(self, points: np.ndarray) -> Surface:
        """Unit normals (3, N), u and v in metres (N,) and face numbers (N,) of world points (3, N) on the solid."""
        local = self.to_local(points - floats(self.centre)[:, None])
        gradient, u, v, face = _SHAPES[self.shape][1](local, self.half)
        return self.normal_to_world(gradient), u, v, face


def _between(enter: np.ndarray, leave: np.ndarray) -> np.ndarray:
    return np.where(enter <= leave, enter, np.inf)


def _cast_box(o: np.ndarray, d: np.ndarray) -> np.ndarray:
    inverse = 1 / d
    middle, reach = -o * inverse, np.abs(inverse)
    return _between((middle - reach).max(0), (middle + reach).min(0))


def _cast_quadric(o: np.ndarray, d: np.ndarray, weights: Vector, constant: float) -> tuple[np.ndarray, np.ndarray]:
    """Both roots of weights . p^2 = constant; NaN where the ray misses."""
    w = floats(weights).reshape(3, *[1] * (d.ndim - 1))
    a, b, c = (w * d * d).sum(0), (w * o * d).sum(0), (w * o * o).sum(0) - constant
    root = np.sqrt(b * b - a * c)
    return (-b - root) / a, (-b + root) / a


def _cast_sphere(o: np.ndarray, d: np.ndarray) -> np.ndarray:
    enter = _cast_quadric(o, d, (1, 1, 1), 1)[0]
    return np.where(np.isnan(enter), np.inf, enter)


def _cast_cylinder(o: np.ndarray, d: np.ndarray) -> np.ndarray:
    enter, leave = _cast_quadric(o, d, (1, 0, 1), 1)
    inverse = 1 / d[1]
    middle, reach = -o[1] * inverse, np.abs(inverse)
    return _between(np.maximum(enter, middle - reach), np.minimum(leave, middle + reach))


def _cast_cone(o: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Apex at y = 1, open base of radius 1 at y = -1 (it stands on something)."""
    apex = floats((0, 1, 0)).reshape(3, *[1] * (o.ndim - 1))
    roots = _cast_quadric(o - apex, d, (1, -0.25, 1), 0)
    best = np.full(np.broadcast_shapes(o.shape[1:], d.shape[1:]), np.inf, np.float32)
    for t in roots:
        height = o[1] + t * d[1]
        best = np.where((np.abs(height) <= 1) & (t > _NEAR_M) & (t < best), t, best)
    return best


def _cast_roof(o: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Gable prism: ridge along z at y = 1, eaves at x = +-1, y = -1."""
    enter, leave = floats(-np.inf), floats(np.inf)
    for nx, ny, nz, limit in ((2, 1, 0, 1), (-2, 1, 0, 1), (0, -1, 0, 1), (0, 0, 1, 1), (0, 0, -1, 1)):
        slope = nx * d[0] + ny * d[1] + nz * d[2]
        t = (limit - (nx * o[0] + ny * o[1] + nz * o[2])) / slope
        enter = np.maximum(enter, np.where(slope < 0, t, -np.inf))
        leave = np.minimum(leave, np.where(slope > 0, t, np.inf))
    return _between(enter, leave)


def _cast_quad(o: np.ndarray, d: np.ndarray) -> np.ndarray:
    t = -o[2] / d[2]
    inside = (np.abs(o[0] + t * d[0]) <= 1) & (np.abs(o[1] + t * d[1]) <= 1)
    return np.where(inside, t, np.inf)


def _surface_box(p: np.ndarray, half: Vector) -> Surface:
    axis = np.abs(p).argmax(0)
    sign = np.sign(np.take_along_axis(p, axis[None], 0))[0]
    gradient = (axis == np.arange(3)[:, None]) * sign
    x, y, z = p * floats(half)[:, None]
    u = np.where(axis == 0, sign * z, np.where(axis == 2, -sign * x, x))  # to the right for who faces the side
    return gradient, u, np.where(axis == 1, -z, -y), axis * 2 + (sign > 0)


def _surface_sphere(p: np.ndarray, half: Vector) -> Surface:
    # the texture's seam is at the back: cameras look along +z
    u = np.arctan2(p[0], -p[2]) * half[0]
    return p, u, -np.arcsin(np.clip(p[1], -1, 1)) * half[1], np.zeros(p.shape[1], np.int64)


def _surface_cylinder(p: np.ndarray, half: Vector) -> Surface:
    cap = np.abs(p[1]) > p[0] ** 2 + p[2] ** 2
    gradient = np.where(cap, np.stack([p[0] * 0, np.sign(p[1]), p[0] * 0]), np.stack([p[0], p[0] * 0, p[2]]))
    u = np.where(cap, p[0], np.arctan2(p[0], -p[2])) * half[0]
    return gradient, u, np.where(cap, -p[2] * half[2], -p[1] * half[1]), cap.astype(np.int64)


def _surface_cone(p: np.ndarray, half: Vector) -> Surface:
    gradient = np.stack([p[0], (1 - p[1]) / 4, p[2]])
    return gradient, np.arctan2(p[0], -p[2]) * half[0], -p[1] * half[1], np.zeros(p.shape[1], np.int64)


def _surface_roof(p: np.ndarray, half: Vector) -> Surface:
    gable, zero, one = np.abs(p[2]) > 0.9999, p[0] * 0, p[0] * 0 + 1
    under = p[1] < -0.9999
    side = np.sign(p[0])
    slope = np.where(under, np.stack([zero, -one, zero]), np.stack([2 * side, one, zero]))
    gradient = np.where(gable, np.stack([zero, zero, np.sign(p[2])]), slope)
    length = math.hypot(half[0], 2 * half[1])
    u, v = np.where(gable, p[0] * half[0], p[2] * half[2]), np.where(gable, -p[1] * half[1], np.abs(p[0]) * length)
    return gradient, u, v, np.where(gable, 2, np.where(under, 3, side > 0)).astype(np.int64)


def _surface_quad(p: np.ndarray, half: Vector) -> Surface:
    back = p[:1] * 0 - 1
    return np.concatenate([back * 0, back * 0, back]), p[0] * half[0], -p[1] * half[1], np.zeros(p.shape[1], np.int64)


_SHAPES: dict[str, tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], Callable[[np.ndarray, Vector], Surface]]] = {
    "box": (_cast_box, _surface_box),
    "sphere": (_cast_sphere, _surface_sphere),
    "cylinder": (_cast_cylinder, _surface_cylinder),
    "cone": (_cast_cone, _surface_cone),
    "roof": (_cast_roof, _surface_roof),
    "quad": (_cast_quad, _surface_quad),
}


def _pickets(p: np.ndarray, _: np.ndarray, half: Vector) -> np.ndarray:
    """Pointed boards 9 cm wide every 16 cm, and two rails."""
    x, y = np.abs((p[0] * half[0]) % 0.16 - 0.08), p[1] * half[1] + half[1]
    rails = (np.abs(p[1] + 0.45) < 0.09) | (np.abs(p[1] - 0.45) < 0.09)
    return ((x < 0.045) & (y < 2 * half[1] - x * 1.8)) | rails


def _railing(p: np.ndarray, _: np.ndarray, half: Vector) -> np.ndarray:
    """Bars 3 cm wide every 15 cm between two rails."""
    return (np.abs((p[0] * half[0]) % 0.15 - 0.075) < 0.016) | (np.abs(np.abs(p[1]) - 0.93) < 0.05)


def _mesh(p: np.ndarray, _: np.ndarray, half: Vector) -> np.ndarray:
    """Chain-link: two families of diagonal wires, 14 cm apart."""
    x, y = p[0] * half[0], p[1] * half[1]
    wires = (np.abs((x + y) % 0.2 - 0.1) < 0.014) | (np.abs((x - y) % 0.2 - 0.1) < 0.014)
    return wires | (np.abs(p[1]) > 0.96) | (np.abs(x % 2.0 - 1) < 0.03)


def _wires(p: np.ndarray, _: np.ndarray, half: Vector) -> np.ndarray:
    """Three wires that sag like parabolas, one below the other."""
    height = (p[1] - 0.5 * p[0] ** 2 + 0.6) * 2.2
    return (np.abs(height - np.round(height)) * half[1] / 2.2 < 0.02) & (np.abs(height - 1) < 1.4)


def _rim(p: np.ndarray, ray: np.ndarray) -> np.ndarray:
    """Cosine between the ray and the unit shape's normal: 0 at the outline seen along the ray, 1 in its middle."""
    return -(p * ray).sum(0) / np.sqrt((p * p).sum(0) * (ray * ray).sum(0) + 1e-9)


def _ragged(p: np.ndarray, ray: np.ndarray, half: Vector) -> np.ndarray:
    """A leafy outline: waves of several sizes eat into the rim of a sphere."""
    x, y, z = (p[i] * half[i] for i in range(3))
    coarse = np.sin(7 * x + 3 * y) * np.sin(8 * y + 5 * z + 1) * np.sin(6 * z - 4 * x + 2)
    fine = np.sin(21 * x + 8 * y + 2) * np.sin(24 * y - 9 * x + 7 * z)
    return _rim(p, ray) > 0.28 + 0.30 * coarse + 0.16 * fine


def _tiers(p: np.ndarray, ray: np.ndarray, half: Vector) -> np.ndarray:
    """A conifer's outline: branches in tiers, wide below and drawn in above, with a jagged lower rim."""
    flat = floats((1, 0, 1)).reshape(3, *[1] * (p.ndim - 1))
    turn = np.arctan2(p[0], p[2])
    tier = (p[1] * 3.0 + 0.12 * np.sin(turn * 9) + 0.07 * np.sin(turn * 23)) % 1
    return _rim(p * flat, ray * flat) > 0.12 + 0.5 * tier


_CUTOUTS: dict[str, Callable[[np.ndarray, np.ndarray, Vector], np.ndarray]] = {
    "pickets": _pickets, "railing": _railing, "mesh": _mesh, "wires": _wires, "ragged": _ragged, "tiers": _tiers,
}  # fmt: skip
