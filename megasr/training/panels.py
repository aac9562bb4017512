"""Pictures of a training: one strip per image (lq, every map, sr, hq), and which site uses which branch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from megasr.images import to_uint8

_TILE_PX = 192  # smaller images are enlarged by a whole factor, so that their labels can be read
_LABEL_PX = 20
_GAP_PX = 4
_CELL_PX = (92, 20)
_INK, _PAPER, _FULL = (32, 32, 32), (255, 255, 255), (178, 34, 34)


def strip(tiles: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Images of one sample side by side, each under its name.

    Args:
        tiles: name -> (C, h, w) in [0, 1]; what has not three channels is shown as its mean. All are enlarged without
            smoothing to the height of the largest, at least.

    Returns:
        (H, W, 3) uint8.
    """
    height = max(image.shape[-2] for image in tiles.values())
    height *= -(-_TILE_PX // height)
    arrays = [to_uint8(_as_rgb(_enlarge(image, height))) for image in tiles.values()]
    width = sum(array.shape[1] for array in arrays) + _GAP_PX * (len(arrays) - 1)
    canvas = Image.new("RGB", (width, height + _LABEL_PX), _PAPER)
    draw, left = ImageDraw.Draw(canvas), 0
    for name, array in zip(tiles, arrays, strict=True):
        canvas.paste(Image.fromarray(array), (left, _LABEL_PX))
        draw.text((left + 2, 2), name, fill=_INK, font=_font())
        left += array.shape[1] + _GAP_PX
    return np.asarray(canvas)


def heat_map(strengths: Mapping[str, float], title: str) -> np.ndarray:
    """Sites (rows, in the order of the forward pass) by branches (columns): how strong every branch is.

    Args:
        strengths: gate/<site> and modulation/<site>/<branch> -> strength. Every column is coloured from 0 to
            its largest.
        title: above the picture.

    Returns:
        (H, W, 3) uint8.
    """
    cells = {_cell(key): value for key, value in strengths.items()}
    sites, branches = (list(dict.fromkeys(pair[axis] for pair in cells)) for axis in (0, 1))
    (cell_width, cell_height), label_width = _CELL_PX, 10 + max(_width(name) for name in [*sites, "largest"])
    cell_width = max(cell_width, 12 + max(_width(name) for name in branches))
    width = max(label_width + cell_width * len(branches), _width(title)) + 8
    canvas = Image.new("RGB", (width, cell_height * (len(sites) + 2) + 6), _PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((4, 2), title, fill=_INK, font=_font())
    for column, branch in enumerate(branches):
        left = label_width + cell_width * column
        largest = max(value for (_, name), value in cells.items() if name == branch)
        draw.text((left + 4, cell_height + 2), branch, fill=_INK, font=_font())
        for row, site in enumerate(sites, 2):
            draw.text((4, cell_height * row + 2), site, fill=_INK, font=_font())
            value = cells.get((site, branch))
            if value is not None:
                _draw_cell(draw, (left, cell_height * row), (cell_width, cell_height), value, largest)
    return np.asarray(canvas)


def _draw_cell(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], size: tuple[int, int], value: float, largest: float
) -> None:
    share = value / largest if largest > 0 else 0.0
    color = tuple(round(p + (f - p) * share) for p, f in zip(_PAPER, _FULL, strict=True))
    (left, top), (width, height) = corner, size
    draw.rectangle((left, top, left + width - 2, top + height - 2), fill=color, outline=(220, 220, 220))
    draw.text((left + 4, top + 2), f"{100 * value:.3g} %", fill=_PAPER if share > 0.6 else _INK, font=_font())


def _cell(key: str) -> tuple[str, str]:
    """Key of a strength -> (site, branch)."""
    kind, site, *branch = key.split("/")
    return site, branch[0] if kind == "modulation" else "image tokens"


def _enlarge(image: torch.Tensor, height: int) -> torch.Tensor:
    width = round(image.shape[-1] * height / image.shape[-2])
    return F.interpolate(image[None].float(), (height, width), mode="nearest")[0]


def _as_rgb(image: torch.Tensor) -> torch.Tensor:
    return image if len(image) == 3 else image.mean(0, keepdim=True).expand(3, -1, -1)


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=13)


def _width(text: str) -> int:
    return int(_font().getlength(text))


def scores(row: Mapping[str, object], metrics: Sequence[str]) -> str:
    """The numbers of one image, for a caption."""
    return ", ".join(f"{name} {row[name]:.4g}" for name in metrics)
