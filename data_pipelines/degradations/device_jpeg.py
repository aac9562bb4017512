"""JPEG as libjpeg-turbo does it, on tensors: 4:2:0 chroma, Annex K tables, accurate DCT, triangle up-sampling.

Integers are kept as float32, in which everything but the two DCTs is exact: colour conversion has products below 2^24.
The blocks of all images go through the DCTs together. Differs from libjpeg-turbo: its DCTs round inside, to 13 bits,
which turns a coefficient that lies between two levels over once in some thousand.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from data_pipelines.degradations.device_context import upload

# ITU-T T.81, tables K.1 and K.2, row by row.
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
_ONE = 65536  # libjpeg's fixed point: 16 bits behind the point
_HALF = 32768
# libjpeg rounds half a step away from zero. What is not half a step is off it by 1.2e-4 of itself, or more.
_AWAY_FROM_ZERO = 1 + 2**-17
# Rows Y, Cb, Cr of R, G, B (JFIF 1.02), and what is added before rounding down.
_TO_YCC = ((19595, 38470, 7471), (-11059, -21709, 32768), (32768, -27439, -5329))
_TO_YCC_OFFSET = (_HALF, 128 * _ONE + _HALF - 1, 128 * _ONE + _HALF - 1)
# Rows R, G, B of Cb - 128, Cr - 128.
_TO_RGB = ((0, 91881), (-22554, -46802), (116130, 0))


class _Constants(NamedTuple):
    to_ycc: torch.Tensor
    to_ycc_offset: torch.Tensor
    to_rgb: torch.Tensor
    # (64, 64): the passes of the DCT and its inverse, in libjpeg's fixed point; a block's pixels stand row by row.
    rows: torch.Tensor
    columns: torch.Tensor
    back_columns: torch.Tensor
    back_rows: torch.Tensor
    bias: torch.Tensor  # (64,): libjpeg rounds averages of four down and up by turns


def compress(images: Sequence[torch.Tensor], qualities: Sequence[int]) -> list[torch.Tensor]:
    """Through JPEG and back.

    Args:
        images: (3, H, W) float32 RGB each, of any sizes; rounded to 8 bit and clipped first.
        qualities: 1 to 100, one per image.

    Returns:
        Images of the same sizes in [0, 1], at 8-bit levels.
    """
    constants = _constants(images[0].device)
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    areas = [height * width for height, width in sizes]
    pixels = torch.cat([image.reshape(3, -1) for image in images], 1).mul_(255).round_().clamp_(0, 255)
    ycc = torch.addmm(constants.to_ycc_offset, constants.to_ycc, pixels).floor_()
    planes = [part.view(3, *size) for part, size in zip(ycc.split(areas, 1), sizes, strict=True)]
    luma, chroma = zip(*[_to_blocks(plane, constants.bias) for plane in planes], strict=True)
    blocks = [*luma, *chroma]
    steps = upload(np.stack([quantisation_tables(quality) for quality in qualities], 1).reshape(-1, 64), ycc.device)
    counts = [len(part) for part in blocks]
    done = _quantise(torch.cat(blocks), steps, counts, constants).split(counts)
    parts = zip(done[: len(images)], done[len(images) :], sizes, strict=True)
    decoded = [_from_blocks(y, cbcr, *size) for y, cbcr, size in parts]
    y = torch.cat([part.reshape(1, -1) for part, _ in decoded], 1)
    cbcr = torch.cat([part.reshape(2, -1) for _, part in decoded], 1).sub_(128)
    rgb = (constants.to_rgb @ cbcr).add_(0.5).floor_().add_(y).clamp_(0, 255).mul_(1 / 255)
    return [part.view(3, *size) for part, size in zip(rgb.split(areas, 1), sizes, strict=True)]


def quantisation_tables(quality: int) -> np.ndarray:
    """libjpeg's tables of luma and chroma, (2, 64) float32, row by row."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    standard = np.array([_LUMA, _CHROMA]).reshape(2, 64)
    return ((standard * percent + 50) // 100).clip(1, 255).astype(np.float32)


@functools.cache
def _constants(device: torch.device) -> _Constants:
    frequency, place = np.mgrid[:8, :8]
    waves = np.cos((2 * place + 1) * frequency * np.pi / 16) * np.where(frequency > 0, np.sqrt(2), 1)
    rows, columns = np.kron(np.eye(8), waves.T), np.kron(waves.T, np.eye(8))
    passes = (4 * rows, columns / 4, 4 * columns.T, rows.T / 32)
    to_ycc, to_ycc_offset, to_rgb = (np.array(table) for table in (_TO_YCC, _TO_YCC_OFFSET, _TO_RGB))
    arrays = (to_ycc / _ONE, to_ycc_offset[:, None] / _ONE, to_rgb / _ONE, *passes, np.array([1, 2] * 32))
    return _Constants(*(torch.from_numpy(array.astype(np.float32)).to(device) for array in arrays))


def _to_blocks(ycc: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(3, H, W) -> 8x8 blocks of Y (n, 64) and of Cb, then Cr, at half size (m, 64), integers from -128 to 127.

    Borders are repeated up to whole blocks: rows of chroma after averaging, all else before, as in libjpeg.
    """
    height, width = ycc.shape[-2:]
    wide = F.pad(ycc, (0, -width % 16, 0, height % 2), mode="replicate")
    sums = wide[1:, 0::2] + wide[1:, 1::2]
    sums = sums[..., 0::2] + sums[..., 1::2]
    missing = -wide.shape[1] % 16
    luma = F.pad(wide[:1], (0, 0, 0, missing), mode="replicate")
    chroma = F.pad(sums, (0, 0, 0, missing // 2), mode="replicate")
    return _cut(luma) - 128, (_cut(chroma) + bias).div_(4).floor_().sub_(128)


def _cut(planes: torch.Tensor) -> torch.Tensor:
    channels, height, width = planes.shape
    return planes.view(channels, height // 8, 8, width // 8, 8).transpose(2, 3).reshape(-1, 64)


def _join(blocks: torch.Tensor, channels: int, rows: int, columns: int) -> torch.Tensor:
    """The inverse of _cut, rows and columns counting blocks."""
    return blocks.view(channels, rows, columns, 8, 8).transpose(2, 3).reshape(channels, rows * 8, columns * 8)


def _quantise(blocks: torch.Tensor, steps: torch.Tensor, counts: list[int], constants: _Constants) -> torch.Tensor:
    """DCT, rounding to multiples of each image's steps, inverse DCT: (n, 64) integers -> (n, 64) from 0 to 255."""
    step = torch.cat([row.expand(count, 64) for row, count in zip(steps, counts, strict=True)])
    # libjpeg's DCTs round to quarters between rows and columns; the forward one ends at eighths.
    quarters = (blocks @ constants.rows).round_()
    eighths = (quarters @ constants.columns).add_(0.5).floor_()
    levels = eighths.div_(step).mul_(_AWAY_FROM_ZERO / 8).round_()
    quarters = (levels.mul_(step) @ constants.back_columns).round_()
    return (quarters @ constants.back_rows).add_(128.5).floor_().clamp_(0, 255)


def _from_blocks(
    luma: torch.Tensor, chroma: torch.Tensor, height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks -> Y (1, H, W), and CbCr (2, H, W) brought to full size."""
    rows, columns = -(-height // 16), -(-width // 16)
    y = _join(luma, 1, 2 * rows, 2 * columns)[:, :height, :width]
    cbcr = _join(chroma, 2, rows, columns)[:, : (height + 1) // 2, : (width + 1) // 2]
    return y, _fancy_upsample(cbcr)[:, :height, :width]


def _fancy_upsample(chroma: torch.Tensor) -> torch.Tensor:
    """(2, h, w) -> (2, 2 h, 2 w): libjpeg's triangle filter, 9/16, 3/16, 3/16, 1/16, rounded down and up by turns."""
    channels, height, width = chroma.shape
    if width <= 2:  # libjpeg repeats pixels there
        return chroma.repeat_interleave(2, 1).repeat_interleave(2, 2)
    above, below = _with_neighbours(chroma, 1)
    tall = torch.stack((above, below), 2).view(channels, 2 * height, width)
    left, right = _with_neighbours(tall, 2)
    wide = torch.stack((left.add_(8), right.add_(7)), 3).view(channels, 2 * height, 2 * width)
    return wide.mul_(1 / 16).floor_()


def _with_neighbours(planes: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three times each sample plus the one before it, and plus the one behind it; the border is its own neighbour."""
    size = planes.shape[dim]
    before = torch.cat((planes.narrow(dim, 0, 1), planes.narrow(dim, 0, size - 1)), dim)
    behind = torch.cat((planes.narrow(dim, 1, size - 1), planes.narrow(dim, size - 1, 1)), dim)
    return before.add_(planes, alpha=3), behind.add_(planes, alpha=3)
