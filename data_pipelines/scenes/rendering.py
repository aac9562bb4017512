"""Procedural scenes with exact depth, normals, edges, segmentation and tags."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np

from data_pipelines.scenes.geometry import Solid
from data_pipelines.scenes.layouts import Layout, compose
from data_pipelines.scenes.materials import MATERIALS, distinct_colors, floats, sample

_TAG_SHARE = 0.01  # a tag needs this share of the pixels


def visible_tags(names: Sequence[str], instance: np.ndarray) -> tuple[str, ...]:
    """Tags (object id -> tag) that cover at least 1 % of the ids (H, W), largest first; equal tags count together."""
    area: Counter[str] = Counter()
    for name, count in zip(names, np.bincount(instance.ravel(), minlength=len(names)).tolist(), strict=True):
        area[name] += count
    ranked = sorted(area.items(), key=lambda item: (-item[1], item[0]))
    return tuple(name for name, count in ranked if count >= _TAG_SHARE * instance.size)


def patch_tags(names: Sequence[str], instance: np.ndarray, patches: int) -> tuple[str, ...]:
    """The largest tag in each of patches x patches parts of the ids (H, H), row by row; patches divides H."""
    side = len(instance) // patches
    parts = instance.reshape(patches, side, patches, side).swapaxes(1, 2).reshape(patches * patches, -1)
    return tuple(visible_tags(names, part)[0] for part in parts)


SEGMENT_CLASSES: tuple[str, ...] = tuple(material.name for material in MATERIALS)
SEGMENT_COLORS: np.ndarray = distinct_colors(len(SEGMENT_CLASSES))  # (N, 3) float32 RGB in [0, 1]

_MIN_SIZE_PX = 16
_SKY = 0  # object id and class of what no solid covers


@dataclass(frozen=True)
class Scene:
    """One picture and its exact maps."""

    hq: np.ndarray  # (H, W, 3) uint8 RGB
    depth: np.ndarray  # (H, W) float32 in [0, 1]: inverse depth over the scene's largest; sky 0, nearest pixel 1
    normal: np.ndarray  # (H, W, 3) float32 in [0, 1]: (n + 1) / 2; camera x right, y up, z to the viewer; sky 0.5
    segmentation: np.ndarray  # (H, W) int32 index into SEGMENT_CLASSES
    instance: np.ndarray  # (H, W) int32 object id, 0 = sky
    edges: np.ndarray  # (H, W) float32 in {0, 1}: object borders (hence depth steps) and creases, no texture
    names: tuple[str, ...]  # object id -> tag; 0 is the weather's
    tags: tuple[str, ...]  # visible things, largest area first


class _Hits(NamedTuple):
    """What the rays of the sample grid (odd rows and columns are pixel centres) hit; all (G, G) or (3, G, G)."""

    direction: np.ndarray  # world, scaled so that t is the camera-space depth
    distance: np.ndarray  # t in metres, inf = sky
    owner: np.ndarray  # int32 object id
    normal: np.ndarray  # world unit normal, zero on the sky
    u: np.ndarray  # tiles
    v: np.ndarray
    face: np.ndarray  # int32 face of the owner
    footprint: np.ndarray  # size of a sample in tiles


def segmentation_rgb(segmentation: np.ndarray) -> np.ndarray:
    """Class ids (H, W) to their colours (H, W, 3) float32 in [0, 1]."""
    return SEGMENT_COLORS[segmentation]


def render_scene(index: int, seed: int = 0, size_px: int = 128) -> Scene:
    """Render scene `index` of the endless series `seed` at size_px x size_px."""
    if index < 0:
        raise ValueError(f"index is {index}, but must be 0 or more")
    if size_px < _MIN_SIZE_PX:
        raise ValueError(f"size_px is {size_px}, but must be at least {_MIN_SIZE_PX}")
    layout = compose(np.random.default_rng([seed, index]))
    hits = _trace(layout, size_px)
    hq = _shade(layout, hits, _shadow(layout, hits))
    owner = hits.owner[1::2, 1::2]
    material = np.asarray([_SKY, *(solid.material for solid in layout.solids)], np.int32)
    inverse = 1 / hits.distance[1::2, 1::2]
    names = (layout.weather.tag, *(solid.tag for solid in layout.solids))
    return Scene(
        hq=hq,
        depth=floats(inverse / max(inverse.max(), 1e-6)),
        normal=_camera_normal(layout, hits.normal[:, 1::2, 1::2]),
        segmentation=material[owner],
        instance=owner.copy(),
        edges=_edges(owner, hits.face[1::2, 1::2]),
        names=names,
        tags=visible_tags(names, owner),
    )


def _trace(layout: Layout, size_px: int) -> _Hits:
    """Cast the sample grid: 2 size_px + 1 rays a side, half a pixel apart."""
    side = 2 * size_px + 1
    step = 2 * layout.zoom / (side - 1)
    # 1/2000 px off centre: a ray exactly along an axis would divide by zero
    at = (np.arange(side, dtype=np.float32) - size_px + floats(1e-3)) * floats(step)
    c, s = math.cos(layout.pitch), math.sin(layout.pitch)
    up = -at[:, None]
    direction = np.stack(np.broadcast_arrays(at[None], up * c - s, up * s + c)).astype(np.float32)
    eye = floats((0, layout.eye_m, 0))
    distance = np.full((side, side), np.inf, np.float32)
    owner = np.zeros((side, side), np.int32)
    for number, solid in enumerate(layout.solids, 1):
        window = _window(solid, layout, side, step)
        if window is None:
            continue
        t = solid.cast(eye[:, None, None], direction[:, *window])
        nearer = t < distance[window]
        distance[window][nearer] = t[nearer]
        owner[window][nearer] = number
    return _describe(layout, direction, distance, owner, step, eye)


def _window(solid: Solid, layout: Layout, side: int, step: float) -> tuple[slice, slice] | None:
    """Rows and columns of the grid that can see the solid; None when none can."""
    x, y, z = solid.corners()
    y = y - layout.eye_m
    c, s = math.cos(layout.pitch), math.sin(layout.pitch)
    depth, height = z * c - y * s, y * c + z * s
    if depth.max() < 0.05:
        return None
    if depth.min() < 0.05:
        return slice(0, side), slice(0, side)
    columns, rows = x / depth / step + side // 2, -height / depth / step + side // 2
    low_c, high_c = max(0, math.floor(columns.min())), min(side, math.ceil(columns.max()) + 1)
    low_r, high_r = max(0, math.floor(rows.min())), min(side, math.ceil(rows.max()) + 1)
    return (slice(low_r, high_r), slice(low_c, high_c)) if low_c < high_c and low_r < high_r else None


def _describe(
    layout: Layout, direction: np.ndarray, distance: np.ndarray, owner: np.ndarray, step: float, eye: np.ndarray
) -> _Hits:
    """Normals, texture coordinates and faces of the visible surfaces."""
    # sorted by owner, every solid's samples are contiguous: one gather and one scatter in all
    order = np.argsort(owner.ravel().astype(np.int16), kind="stable")
    ends = np.cumsum(np.bincount(owner.ravel(), minlength=len(layout.solids) + 1)).tolist()
    rays, t = direction.reshape(3, -1)[:, order], distance.ravel()[order]
    values = np.zeros((7, owner.size), np.float32)  # normal x, y, z, then u, v, footprint and face
    for solid, *ends_of in zip(layout.solids, ends[:-1], ends[1:], strict=True):
        part = slice(*ends_of)
        if part.start == part.stop:
            continue
        normal, u, v, values[6, part] = solid.surface(eye[:, None] + rays[:, part] * t[part])
        size_u, size_v, shift_u, shift_v = _tile(solid)
        facing = np.abs((normal * rays[:, part]).sum(0)) / np.sqrt((rays[:, part] * rays[:, part]).sum(0))
        values[:3, part], values[3, part], values[4, part] = (
            normal,
            u * (1 / size_u) + shift_u,
            v * (1 / size_v) + shift_v,
        )
        # the geometric mean of the long and the short side of the footprint: sharper than isotropic
        values[5, part] = t[part] * floats(step / min(size_u, size_v)) / np.sqrt(np.maximum(facing, 0.04))
    unsorted = np.empty_like(values)
    unsorted[:, order] = values
    planes = unsorted.reshape(7, *owner.shape)
    return _Hits(direction, distance, owner, planes[:3], planes[3], planes[4], planes[6].astype(np.int32), planes[5])


def _tile(solid: Solid) -> tuple[float, float, float, float]:
    """Width and height of the texture tile in metres, and the place of the solid's middle on it, in tiles."""
    entry = MATERIALS[solid.material]
    if entry.fitted and solid.shape == "quad":
        middle = (solid.offset[0] + solid.scale / 2, solid.offset[1] + solid.scale / 2)
        return 2 * solid.half[0] / solid.scale, 2 * solid.half[1] / solid.scale, *middle
    return entry.tile_m * solid.scale, entry.tile_m * solid.scale, *solid.offset


def _shadow(layout: Layout, hits: _Hits) -> np.ndarray:
    """Share of the sun's light that arrives, (G, G) in [0, 1]; traced at pixel centres, so its borders are soft."""
    owner = hits.owner[1::2, 1::2]
    sun = floats(layout.to_sun)
    lit = (np.einsum("i,ihw->hw", sun, hits.normal[:, 1::2, 1::2]) > 0) & (owner != _SKY)
    rows, columns = np.nonzero(lit)
    eye = floats((0, layout.eye_m, 0))[:, None]
    points = eye + hits.direction[:, 1::2, 1::2][:, rows, columns] * hits.distance[1::2, 1::2][rows, columns]
    own = owner[rows, columns]
    right = floats((sun[2], 0, -sun[0])) / math.hypot(sun[0], sun[2])
    plane = np.stack([right, np.cross(sun, right)])
    flat, reach = plane @ points, sun @ points
    blocked = np.zeros(len(rows), bool)
    for number, solid in enumerate(layout.solids, 1):
        corners = solid.corners()
        low, high = (plane @ corners).min(1)[:, None], (plane @ corners).max(1)[:, None]
        maybe = ((flat > low) & (flat < high)).all(0) & (reach < (sun @ corners).max()) & (own != number) & ~blocked
        at = np.flatnonzero(maybe)
        if len(at):
            blocked[at] = np.isfinite(solid.cast(points[:, at], sun[:, None]))
    share = np.ones(owner.shape, np.float32)
    share[rows[blocked], columns[blocked]] = 0
    side = hits.owner.shape[0]
    shift = floats([[0.5, 0, -0.5], [0, 0.5, -0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(share, shift, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _shade(layout: Layout, hits: _Hits, shadow: np.ndarray) -> np.ndarray:
    """Light the surfaces, add sky and haze, average the samples and expose: (H, W, 3) uint8."""
    weather = layout.weather
    material = np.asarray([_SKY, *(solid.material for solid in layout.solids)], np.int32)[hits.owner]
    tints = floats([(1, 1, 1)] + [solid.tint for solid in layout.solids]) / 255
    texture = sample(material, hits.u, hits.v, hits.footprint)
    diffuse = np.maximum(np.einsum("i,ihw->hw", floats(layout.to_sun), hits.normal), 0) * shadow
    above = hits.normal[1] * floats(0.325) + floats(0.675)  # share of the sky's light, with that from the ground
    ambient = weather.ambient * (0.3 * floats(weather.zenith) + 0.3 * floats(weather.horizon) + 0.3)
    colour = np.empty((3, *hits.owner.shape), np.float32)
    # channel by channel: numpy is several times slower on arrays with a last axis of 3
    for channel in range(3):
        albedo = texture[..., channel] * tints[hits.owner, channel]
        light = diffuse * floats(weather.sun[channel]) + above * ambient[channel]
        np.multiply(albedo * albedo, light, out=colour[channel])  # gamma 2: near enough to sRGB, and cheap
    _polish(layout, hits, material, colour, shadow)
    clear = np.exp(hits.distance * floats(-1 / weather.haze_m))
    for channel in range(3):
        colour[channel] = colour[channel] * clear + floats(weather.horizon[channel]) * (1 - clear)
    _paint_sky(layout, hits, colour)
    return _expose(colour)


def _expose(colour: np.ndarray) -> np.ndarray:
    """Linear samples (3, G, G) to the picture (H, W, 3) uint8: tent filter, exposure, highlight roll-off, gamma."""
    kernel = floats((0.21, 0.58, 0.21))
    linear = np.stack([cv2.sepFilter2D(plane, -1, kernel, kernel)[1::2, 1::2] for plane in colour], -1)
    linear *= floats(np.clip(0.36 / max(float(np.median(linear)), 1e-3), 0.95, 2.4))
    linear *= (1 + linear * floats(1 / 6.0)) / (1 + linear * floats(0.55))
    return np.asarray(np.sqrt(np.clip(linear, 0, 1)) * 255 + 0.5, np.uint8)


def _paint_sky(layout: Layout, hits: _Hits, colour: np.ndarray) -> None:
    """Paint a gradient with clouds on a plane overhead where no solid is; colour is (3, G, G)."""
    rows = np.flatnonzero((hits.owner == _SKY).any(1))
    if not len(rows):
        return
    weather, band = layout.weather, slice(int(rows[0]), int(rows[-1]) + 1)
    is_sky = hits.owner[band] == _SKY
    up = np.maximum(hits.direction[1, band], 0)
    t = np.sqrt(np.minimum(up * 1.6, 1))
    scale = 0.22 / (up + 0.22)
    zero = np.zeros(up.shape, np.int32)
    drift = floats(layout.to_sun[0])
    noise = sample(zero, hits.direction[0, band] * scale + drift, scale, scale * 0.004)[..., 0] * floats(1 / 255)
    amount = np.clip((noise - 0.75 + weather.cover * 0.5) * 4, 0, 1) * np.minimum(up * 8 + 0.2, 1) * (weather.cover > 0)
    for channel in range(3):
        low, high = floats(weather.horizon[channel]), floats(weather.zenith[channel])
        clear = low + (high - low) * t
        cloud = (0.65 + 0.5 * noise) * (floats(weather.sun[channel]) * 0.5 + 0.5 * low)
        colour[channel, band][is_sky] = (clear + (cloud - clear) * amount)[is_sky]


def _polish(layout: Layout, hits: _Hits, material: np.ndarray, colour: np.ndarray, shadow: np.ndarray) -> None:
    """Add sky reflections and the sun's highlight where the material has them; colour is (3, G, G)."""
    finish = floats([(m.gloss, m.mirror) for m in MATERIALS])
    at = np.flatnonzero((finish.sum(1) > 0)[material])
    if not len(at):
        return
    gloss, mirror = finish[material.ravel()[at]].T
    ray, normal = hits.direction.reshape(3, -1)[:, at], hits.normal.reshape(3, -1)[:, at]
    ray = ray / np.sqrt((ray * ray).sum(0))
    facing = (ray * normal).sum(0)
    bounce = ray - 2 * facing * normal
    share = np.clip(mirror * (1 + 1.5 * np.maximum(1 + facing, 0) ** 3), 0, 0.85)
    t = np.clip(bounce[1] * 1.6, 0, 1)
    dim = np.clip(0.75 + bounce[1] * 2.5, 0.25, 1)  # what mirrors the ground is darker
    shine = gloss * np.maximum(floats(layout.to_sun) @ bounce, 0) ** 24 * shadow.ravel()[at]
    weather, flat = layout.weather, colour.reshape(3, -1)
    for channel in range(3):
        low, high = floats(weather.horizon[channel]), floats(weather.zenith[channel])
        mirrored = (low + (high - low) * t) * dim
        flat[channel, at] = flat[channel, at] * (1 - share) + mirrored * share + shine * floats(weather.sun[channel])


def _camera_normal(layout: Layout, normal: np.ndarray) -> np.ndarray:
    """World normals (3, H, W) to camera space as (n + 1) / 2, (H, W, 3)."""
    c, s = math.cos(layout.pitch), math.sin(layout.pitch)
    x, y, z = normal
    return np.stack([x, y * c + z * s, y * s - z * c], -1) * floats(0.5) + floats(0.5)


def _edges(owner: np.ndarray, face: np.ndarray) -> np.ndarray:
    """1 where the right or the lower neighbour belongs to another object or face."""
    key = owner * 8 + face
    edges = np.zeros(key.shape, np.float32)
    edges[:, :-1][key[:, :-1] != key[:, 1:]] = 1
    edges[:-1][key[:-1] != key[1:]] = 1
    return edges


def crop_scene(scene: Scene, top: int, left: int, size_px: int) -> Scene:
    """A window of a scene as a scene: with the tags of what the window shows, and depth 1 at its nearest pixel."""
    window = slice(top, top + size_px), slice(left, left + size_px)
    maps = ("hq", "depth", "normal", "segmentation", "instance", "edges")
    crop = replace(scene, **{name: getattr(scene, name)[window] for name in maps})
    depth = crop.depth / floats(max(crop.depth.max(), 1e-6))
    return replace(crop, depth=depth, tags=visible_tags(scene.names, crop.instance))
