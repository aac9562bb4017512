"""Materials of `scenes`: one table of names, textures and finish, and one mip-mapped atlas built once per process."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from data_pipelines import material_textures as textures
from data_pipelines.material_textures import PAINTS
from data_pipelines.texture_patterns import TEXELS, floats

_LEVELS = 7  # mip levels of 256 .. 4 texels
_COLUMNS = 6  # tiles per atlas row
_PAD = 1  # wrapped border round each tile: a bilinear look-up never reads a neighbour's texels
_ATLAS_SEED = 20240607
_NATURAL = ((1.0, 1.0, 1.0), (1.08, 0.98, 0.88), (0.90, 0.97, 1.05), (0.84, 0.82, 0.80), (1.1, 1.06, 1.0))
_GREENS = ((1.0, 1.0, 1.0), (0.86, 1.0, 0.9), (1.18, 1.02, 0.8), (1.5, 0.95, 0.55), (0.75, 0.92, 0.85))
_ANY = tuple(PAINTS)


@dataclass(frozen=True)
class Material:
    """What a surface is made of; `paints` (if any) colour the tile and are named in the tag."""

    name: str  # segmentation class and the word in the tag
    texture: Callable[[np.random.Generator], np.ndarray]
    tile_m: float = 2.0  # world size of one tile
    paints: tuple[str, ...] = ()
    tints: tuple[tuple[float, float, float], ...] = _NATURAL  # unnamed colour variety, used without paints
    muted: float = 0.0  # how far paints are drawn towards gray, 0..1
    gloss: float = 0.0  # strength of the sun highlight, 0..1
    mirror: float = 0.0  # share of reflected sky, 0..1
    fitted: bool = False  # on a flat panel the tile fills the surface once instead of repeating
    cells: tuple[int, int] = (1, 1)  # columns and rows that a fitted tile may be shifted by, for variety


MATERIALS: tuple[Material, ...] = (
    Material("sky", textures.clouds),
    Material("brick", textures.brick, 2.4, ("red", "brown", "orange", "white", "gray", "beige", "red"), muted=0.4),
    Material("wooden", textures.wood, 1.6),
    Material("grass", textures.grass, 2.2, tints=_GREENS),
    Material("gravel", textures.gravel, 2.2),
    Material("stone", textures.stone, 2.6),
    Material("tiled", textures.tiles, 3.0, ("white", "blue", "green", "beige", "pink", "teal"), gloss=0.3, mirror=0.06),
    Material("cloth", textures.weave, 1.2, _ANY),
    Material("fur", textures.fur, 1.3, ("white", "brown", "gray", "black", "beige", "orange", "pink")),
    Material("water", textures.water, 5.0, tints=((1, 1, 1), (0.8, 1.1, 1.05), (0.9, 1, 1.2)), gloss=0.5, mirror=0.35),
    Material(
        "marble", textures.marble, 2.2, ("white", "green", "pink", "black", "beige"), muted=0.3, gloss=0.5, mirror=0.08
    ),
    Material("metal", textures.metal, 1.5, ("gray", "white", "yellow", "orange", "blue"), gloss=0.9, mirror=0.4),
    Material("leafy", textures.foliage, 1.8, tints=_GREENS),
    Material("sand", textures.sand, 3.0),
    Material("plaster", textures.plaster, 2.5, _ANY, muted=0.25),
    Material("shingle", textures.shingles, 2.4, ("red", "brown", "gray", "orange", "green", "blue", "red"), muted=0.35),
    Material("printed paper", textures.paper, 1.5, ("white", "beige", "yellow"), fitted=True, cells=(20, 14)),
    Material("asphalt", textures.asphalt, 3.0),
    Material("bark", textures.bark, 1.6),
    Material("straw", textures.straw, 1.6),
    Material("wicker", textures.wicker, 1.2),
    Material("rusty", textures.rust, 2.0, gloss=0.2),
    Material("flowery", textures.flowers, 2.4, tints=((1.0, 1.0, 1.0), (1.1, 1.0, 1.1))),
    Material("knitted", textures.knit, 1.3, _ANY),
    Material("cracked soil", textures.soil, 2.6),
    Material("corrugated", textures.corrugated, 1.8, ("gray", "white", "green", "blue", "red"), gloss=0.3, mirror=0.08),
    Material("snow", textures.snow, 3.0, tints=((1, 1, 1), (0.97, 1, 1.03))),
    Material(
        "glossy", textures.skin, 2.0, ("red", "green", "orange", "yellow", "purple", "red"), gloss=0.9, mirror=0.06
    ),
    Material("glass", textures.window, tints=((1, 1, 1), (0.8, 0.85, 0.9)), gloss=0.3, mirror=0.12, fitted=True),
    Material("panelled", textures.door, 1.0, _ANY, fitted=True),
    Material(
        "lettered", textures.sign, 1.5, ("white", "yellow", "orange", "red", "teal", "pink"), fitted=True, cells=(6, 4)
    ),
    Material("book", textures.books, 1.6, fitted=True, cells=(16, 3)),
)
MATERIAL_INDEX: dict[str, int] = {material.name: i for i, material in enumerate(MATERIALS)}


def distinct_colors(count: int) -> np.ndarray:
    """(count, 3) float32 RGB in [0, 1]: golden-angle hues in three brightness bands, all different."""
    return floats(
        [
            colorsys.hsv_to_rgb(i * 0.61803 % 1, (0.55, 0.95, 0.75)[i % 3], (1.0, 0.85, 0.6)[i // 3 % 3])
            for i in range(count)
        ]
    )


@dataclass(frozen=True)
class _Atlas:
    image: np.ndarray  # (rows, columns, 3) uint8: mip levels below each other
    level_row: np.ndarray  # (levels,) float32: first row of each level


@lru_cache(maxsize=1)
def _atlas() -> _Atlas:
    """All tiles at all mip levels; about half a second once per process."""
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
    return _Atlas(np.asarray(np.concatenate(levels) * 255 + 0.5, np.uint8), floats(first))


def sample(material: np.ndarray, u: np.ndarray, v: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    """Texture colours (H, W, 3) uint8 of material indices at u, v.

    All inputs are (H, W); u, v and the footprint (size of one sample) are in tiles; tiles repeat. Each sample reads
    one mip level, rounded with an ordered dither: the average over neighbouring samples blends the levels.
    """
    atlas = _atlas()
    dither = floats([[0.0, 0.5], [0.75, 0.25]])
    lod = np.log2(np.maximum(footprint * floats(TEXELS), 1))
    lod += np.tile(dither, (lod.shape[0] // 2 + 1, lod.shape[1] // 2 + 1))[: lod.shape[0], : lod.shape[1]]
    level = np.minimum(lod.astype(np.int32), _LEVELS - 1)
    side = (TEXELS * floats(0.5) ** np.arange(_LEVELS, dtype=np.float32))[level]
    row, column = (floats(part)[material] for part in np.divmod(np.arange(len(MATERIALS)), _COLUMNS))
    pitch = side + 2 * _PAD
    x = column * pitch + (u - np.floor(u)) * side + floats(_PAD - 0.5)
    y = atlas.level_row[level] + row * pitch + (v - np.floor(v)) * side + floats(_PAD - 0.5)
    return cv2.remap(atlas.image, floats(x), floats(y), cv2.INTER_LINEAR)
