"""The degradation's operations as tensors, for batches on a GPU, in the arithmetic of OpenCV and libjpeg.

Nothing here waits for the GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len

from data_pipelines.degradations.cpu import (
    AMOUNT,
    BANK_SIZE,
    NUM_QUANTILES,
    SIGMA_PX,
    SIZE_PX,
    THRESHOLD,
    normal_bank,
    poisson_table,
    quantile_bank,
    scaled,
)  # fmt: skip
from data_pipelines.degradations.sampling import Op, make_kernel, trim
from megasr.errors import UsageError
from megasr.images import quantise


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Full float32 whatever the training uses: no gradients, no autocast, no TF32."""
    cuda, mkldnn = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    precisions = cuda.fp32_precision, mkldnn.fp32_precision
    cuda.fp32_precision = mkldnn.fp32_precision = "ieee"
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        cuda.fp32_precision, mkldnn.fp32_precision = precisions


def upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Send to the device, asynchronously on CUDA."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def convolve(image: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Convolve (C, H, W) float32 with a (k, k) kernel, k odd, by FFT; borders are mirrored (reflect-101)."""
    radius, (height, width) = len(kernel) // 2, image.shape[-2:]
    if radius == 0:
        return image
    rows, columns = fast_size(height + 2 * radius), fast_size(width + 2 * radius)
    spectrum = torch.fft.rfft2(_mirror(image, radius, rows, columns)) * torch.fft.rfft2(kernel, s=(rows, columns))
    # the product wraps around; the wrapped pixels are in the border that is cut off
    return torch.fft.irfft2(spectrum, s=(rows, columns))[:, 2 * radius :, 2 * radius :][:, :height, :width]


def fast_size(size: int) -> int:
    """The next size 4 * 2^a * 3^b * 5^c, for fast FFTs of few different sizes (plans are cached)."""
    return 4 * int(next_fast_len(-(-size // 4), real=True))


def _mirror(image: torch.Tensor, radius: int, rows: int, columns: int) -> torch.Tensor:
    """Pad (C, H, W) to (C, rows, columns), the image at (radius, radius), by reflection, repeated where it is small."""
    for dim, total in ((1, rows), (2, columns)):
        period = max(2 * (image.shape[dim] - 1), 1)
        place = torch.arange(-radius, total - radius, device=image.device) % period
        image = image.index_select(dim, torch.minimum(place, period - place))
    return image


# ITU-T T.81, tables K.1 and K.2, row by row.
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99), *((99,) * 8,) * 4,
)  # fmt: skip
_ONE, _HALF = 65536, 32768  # libjpeg's fixed point has 16 fractional bits
# libjpeg rounds half a step away from zero; all other values are at least 1.2e-4 of themselves off half a step
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
    # (64, 64): passes of the DCT and its inverse in libjpeg's fixed point, on blocks flattened row by row
    rows: torch.Tensor
    columns: torch.Tensor
    back_columns: torch.Tensor
    back_rows: torch.Tensor
    bias: torch.Tensor  # (64,): libjpeg alternately rounds averages of four down and up


def compress(images: Sequence[torch.Tensor], qualities: Sequence[int]) -> list[torch.Tensor]:
    """Encode and decode JPEGs as libjpeg does (4:2:0).

    Args:
        images: (3, H, W) float32 RGB each, of any sizes; rounded to 8 bits and clipped first.
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

    Borders are replicated up to whole blocks: rows of chroma after averaging, all else before, as in libjpeg.
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
    """(2, h, w) -> (2, 2 h, 2 w): libjpeg's triangle filter, 9/16, 3/16, 3/16, 1/16, alternately rounded."""
    channels, height, width = chroma.shape
    if width <= 2:  # libjpeg repeats pixels there
        return chroma.repeat_interleave(2, 1).repeat_interleave(2, 2)
    above, below = _with_neighbours(chroma, 1)
    tall = torch.stack((above, below), 2).view(channels, 2 * height, width)
    left, right = _with_neighbours(tall, 2)
    wide = torch.stack((left.add_(8), right.add_(7)), 3).view(channels, 2 * height, 2 * width)
    return wide.mul_(1 / 16).floor_()


def _with_neighbours(planes: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three times each sample plus the previous one, and plus the next one; the border is its own neighbour."""
    size = planes.shape[dim]
    previous = torch.cat((planes.narrow(dim, 0, 1), planes.narrow(dim, 0, size - 1)), dim)
    following = torch.cat((planes.narrow(dim, 1, size - 1), planes.narrow(dim, size - 1, 1)), dim)
    return previous.add_(planes, alpha=3), following.add_(planes, alpha=3)


def resize(image: torch.Tensor, height: int, width: int, mode: str) -> torch.Tensor:
    """Resize (C, H, W) float32 in the mode area, bilinear or bicubic (a = -0.75); see cpu.resize."""
    rows, columns = image.shape[-2:]
    if (rows, columns) == (height, width):
        return image
    if mode != "area":
        return F.interpolate(image[None], (height, width), mode=mode, align_corners=False)[0]
    # OpenCV averages areas only if neither side grows
    if height <= rows and width <= columns:
        across = image @ _overlaps(columns, width, image.device).T
        return _overlaps(rows, height, image.device) @ across
    return _repeat_and_mix(_repeat_and_mix(image, 2, width), 1, height)


def _overlaps(size_in: int, size_out: int, device: torch.device) -> torch.Tensor:
    """(size_out, size_in): the share of each input pixel in each output pixel."""
    edge = torch.arange(size_out + 1, device=device)[:, None] * size_in  # in units of 1 / size_out: exact integers
    start = torch.arange(size_in, device=device) * size_out
    covered = (edge - start).clamp_(0, size_out).float()
    return (covered[1:] - covered[:-1]) / size_in


def _repeat_and_mix(image: torch.Tensor, dim: int, size_out: int) -> torch.Tensor:
    """OpenCV's INTER_AREA when an axis grows, in its own arithmetic, whose rounding decides which pixel is repeated."""
    size_in = image.shape[dim]
    growth = size_out / size_in
    place = np.arange(size_out)
    first = np.floor(place * (1 / growth))
    share = (place + 1 - (first + 1) * growth).clip(min=0).astype(np.float32)
    share = np.where(first < size_in - 1, share - np.floor(share), 0)
    first = first.clip(max=size_in - 1)
    numbers = upload(np.stack([first, (first + 1).clip(max=size_in - 1), share]).astype(np.float32), image.device)
    index = numbers[:2].int()
    shape = [-1 if axis == dim else 1 for axis in range(3)]
    return torch.lerp(image.index_select(dim, index[0]), image.index_select(dim, index[1]), numbers[2].view(shape))


def sharpen_batched(hq: torch.Tensor) -> torch.Tensor:
    """Sharpen (B, 3, H, W) in [0, 1] -> the same shape, float32 at 8-bit levels (2107.10833, section 3.4)."""
    taps = np.exp(-0.5 * ((np.arange(SIZE_PX) - SIZE_PX // 2) / SIGMA_PX) ** 2)
    kernel = np.outer(taps, taps) / taps.sum() ** 2
    with exact(hq.device):
        gaussian = upload(kernel.astype(np.float32), hq.device)
        return quantise(torch.stack([_sharpen(image, gaussian) for image in hq.float()]))


def _sharpen(image: torch.Tensor, gaussian: torch.Tensor) -> torch.Tensor:
    residual = image - convolve(image, gaussian)
    mask = convolve((residual.abs() > THRESHOLD).float(), gaussian)
    sharp = torch.add(image, residual, alpha=AMOUNT).clamp_(0, 1)
    return torch.lerp(image, sharp, mask)


# BT.601 luma of the full range, as OpenCV turns colour into grey.
_GREY = (0.299, 0.587, 0.114)


def apply_ops_batched(hq: torch.Tensor, ops: Sequence[Sequence[Op | None]]) -> torch.Tensor:
    """Degrade (B, 3, H, W) RGB in [0, 1] to (B, 3, h, w) at 8-bit levels; samples do not depend on each other.

    Args:
        hq: the batch.
        ops: one list per sample, see data_pipelines.degradations.sampling; None is left out.

    Raises:
        UsageError: there is not one list per sample, or they end in different sizes.
    """
    if len(ops) != len(hq):
        raise UsageError(f"{len(hq)} images need as many lists of operations, got {len(ops)}")
    with exact(hq.device):
        images = list(hq.float().unbind(0))
        for slot in zip_longest(*ops):
            images = _apply_slot(images, slot, hq.shape[-2:])
        sizes = sorted({(image.shape[-1], image.shape[-2]) for image in images})
        if len(sizes) > 1:
            shown = ", ".join(f"{width}x{height}" for width, height in sizes)
            raise UsageError(f"the lq of one batch must be of one size; these parameters make {shown} px")
        return quantise(torch.stack(images))


def _apply_slot(images: list[torch.Tensor], slot: Sequence[Op | None], hq_size: torch.Size) -> list[torch.Tensor]:
    """One operation, or none, for each image; images with the same kind of operation go together."""
    places: dict[str, list[int]] = {}
    for place, op in enumerate(slot):
        if op is not None:
            places.setdefault(op["op"], []).append(place)
    for name, at in places.items():
        chosen, ops = [images[i] for i in at], [op for i in at if (op := slot[i]) is not None]
        if name == "resize":
            done = [
                resize(image, scaled(hq_size[0], op["scale"]), scaled(hq_size[1], op["scale"]), op["mode"])
                for image, op in zip(chosen, ops, strict=True)
            ]
        else:
            done = _OPERATIONS[name](chosen, ops)
        images = [dict(zip(at, done, strict=True)).get(i, image) for i, image in enumerate(images)]
    return images


def _blur(images: list[torch.Tensor], ops: list[Op]) -> list[torch.Tensor]:
    kernels = [trim(make_kernel(op)) for op in ops]
    flat = upload(np.concatenate([kernel.reshape(-1) for kernel in kernels]).astype(np.float32), images[0].device)
    taps = flat.split([kernel.size for kernel in kernels])
    return [
        convolve(image, values.view(kernel.shape)) for image, values, kernel in zip(images, taps, kernels, strict=True)
    ]


def _gaussian_noise(images: list[torch.Tensor], ops: list[Op]) -> list[torch.Tensor]:
    bank = _normal_bank(images[0].device)
    return [
        torch.add(image, _stretch(bank, op, image), alpha=op["sigma"] / 255).clamp_(0, 1)
        for image, op in zip(images, ops, strict=True)
    ]


def _poisson_noise(images: list[torch.Tensor], ops: list[Op]) -> list[torch.Tensor]:
    return [_add_photons(image, op) for image, op in zip(images, ops, strict=True)]


def _add_photons(image: torch.Tensor, op: Op) -> torch.Tensor:
    """See cpu.poisson_noise."""
    bank, table = _poisson_tables(image.device)
    source = sum(w * image[i : i + 1] for i, w in enumerate(_GREY)) if op["grey"] else image
    levels = torch.as_tensor(source * 255).round_().clamp_(0, 255).to(torch.int32)
    index = levels.mul_(NUM_QUANTILES).add_(_stretch(bank, op, image))
    noise = table.index_select(0, index.reshape(-1)).view(index.shape)
    return torch.add(image, noise, alpha=op["scale"]).clamp_(0, 1)


def _stretch(bank: torch.Tensor, op: Op, image: torch.Tensor) -> torch.Tensor:
    """cpu.stretch as (1 or 3, H, W) RGB; there it is (H, W) or (H, W, 3) BGR."""
    channels, (height, width) = 1 if op["grey"] else 3, image.shape[-2:]
    count, start = channels * height * width, op["offset"] % BANK_SIZE
    if count > BANK_SIZE:
        bank, start = bank[:BANK_SIZE].roll(-start).repeat(-(-count // BANK_SIZE)), 0
    return bank[start : start + count].view(height, width, channels).permute(2, 0, 1).flip(0)


@functools.cache
def _normal_bank(device: torch.device) -> torch.Tensor:
    return torch.from_numpy(normal_bank()).to(device)


@functools.cache
def _poisson_tables(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    quantiles = torch.from_numpy(quantile_bank().astype(np.int16))  # torch has few operations on uint16
    return quantiles.to(device), torch.from_numpy(poisson_table()).to(device)


def _jpeg(images: list[torch.Tensor], ops: list[Op]) -> list[torch.Tensor]:
    return compress(images, [op["quality"] for op in ops])


_OPERATIONS: dict[str, Callable[[list[torch.Tensor], list[Op]], list[torch.Tensor]]] = {
    "blur": _blur, "gaussian_noise": _gaussian_noise, "poisson_noise": _poisson_noise, "jpeg": _jpeg,
}  # fmt: skip
