"""The degradation's operations on a CPU, one image at a time, as in Real-ESRGAN's published code."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from data_pipelines.degradations.sampling import Op, factorise, make_kernel, trim
from megasr.errors import MegaSRError
from megasr.rng import numpy_generator

BANK_SIZE = 2**22
NUM_QUANTILES = 2048
_Z_MAX = 5.5  # beyond the largest of 4 million normal numbers, all but surely
POISSON_LEVELS = 256  # photons at white


@functools.cache
def normal_bank() -> np.ndarray:
    """Standard normal numbers, (2 * BANK_SIZE,) float32: the bank twice, so that a slice need not wrap around."""
    bank = numpy_generator(0, "noise bank").standard_normal(BANK_SIZE, dtype=np.float32)
    return np.concatenate([bank, bank])


@functools.cache
def quantile_bank() -> np.ndarray:
    """The same numbers quantised to NUM_QUANTILES equal steps of z, (2 * BANK_SIZE,) uint16."""
    steps = np.floor((normal_bank() + _Z_MAX) * (NUM_QUANTILES / (2 * _Z_MAX)))
    return steps.clip(0, NUM_QUANTILES - 1).astype(np.uint16)


@functools.cache
def poisson_table() -> np.ndarray:
    """Poisson noise by inverse transform: (256 * NUM_QUANTILES,) float32, row = 8-bit level, column = step of z.

    An entry is (count - expected count) / POISSON_LEVELS, where level / 255 * POISSON_LEVELS photons are expected.
    Quantising z changes no probability of a count by more than 0.0011.
    """
    from scipy.special import ndtr, pdtr

    probabilities = ndtr((np.arange(NUM_QUANTILES) + 0.5) * (2 * _Z_MAX / NUM_QUANTILES) - _Z_MAX)
    expected = np.arange(256) / 255 * POISSON_LEVELS
    counts = np.stack([np.searchsorted(pdtr(np.arange(2 * POISSON_LEVELS), mean), probabilities) for mean in expected])
    return ((counts - expected[:, None]) / POISSON_LEVELS).astype(np.float32).reshape(-1)


def stretch(bank: np.ndarray, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    """A slice of normal_bank() or quantile_bank() in this shape; more than BANK_SIZE numbers repeat the bank."""
    count, start = int(np.prod(shape)), offset % BANK_SIZE
    if count > BANK_SIZE:
        return np.resize(np.roll(bank[:BANK_SIZE], -start), shape)
    return bank[start : start + count].reshape(shape)


SIZE_PX = 51
SIGMA_PX = 8.0  # what OpenCV derives from the size
AMOUNT = 0.5
THRESHOLD = 10 / 255
_PAD_PX = 28


def sharpen(hq: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W, 3) uint8, within one level of the exact formula."""
    image = hq.astype(np.float32)
    image *= np.float32(1 / 255)
    residual = cv2.subtract(image, wide_gaussian(image))
    mask = wide_gaussian((cv2.absdiff(residual, 0) > THRESHOLD).astype(np.float32))
    sharp = np.clip(cv2.scaleAdd(residual, AMOUNT, image), 0, 1)
    return cv2.convertScaleAbs(cv2.add(image, cv2.multiply(mask, cv2.subtract(sharp, image))), alpha=255)


def wide_gaussian(image: np.ndarray) -> np.ndarray:
    """Blur (H, W, 3) float32 with the 51 px Gaussian, borders mirrored.

    At half size, for an eighth of the time; off by at most 0.3 of 255 levels, 0.04 on average.
    """
    height, width = image.shape[:2]
    # mirrored at full size: at half size the mirror would be half a pixel off
    padded = cv2.copyMakeBorder(
        image, _PAD_PX, _PAD_PX + height % 2, _PAD_PX, _PAD_PX + width % 2, cv2.BORDER_REFLECT_101
    )
    half = cv2.resize(padded, (padded.shape[1] // 2, padded.shape[0] // 2), interpolation=cv2.INTER_AREA)
    taps = _half_size_taps()
    blurred = cv2.sepFilter2D(half, -1, taps, taps, borderType=cv2.BORDER_REFLECT_101)
    full = cv2.resize(blurred, (padded.shape[1], padded.shape[0]), interpolation=cv2.INTER_LINEAR)
    return full[_PAD_PX : _PAD_PX + height, _PAD_PX : _PAD_PX + width]


def _half_size_taps() -> np.ndarray:
    """Gaussian taps with the variance of the 51 taps minus that of averaging two pixels."""
    taps = cv2.getGaussianKernel(SIZE_PX, SIGMA_PX)[:, 0]
    variance = float((taps * (np.arange(SIZE_PX) - SIZE_PX // 2) ** 2).sum())
    averaging = (2**2 - 1) / 12
    return cv2.getGaussianKernel(_PAD_PX + 1, np.sqrt(variance - averaging) / 2, cv2.CV_32F)


_INTERPOLATION = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
_BORDER = cv2.BORDER_REFLECT_101
# above, OpenCV's filter2D uses the DFT, which costs as much as 40 separable passes
_DIRECT_SIZE = 11


def apply_ops(hq: np.ndarray, ops: Sequence[Op | None]) -> np.ndarray:
    """Degrade (H, W, 3) uint8 RGB to (h, w, 3) uint8; `ops` of data_pipelines.degradations.sampling, None left out."""
    height, width = hq.shape[:2]
    image = cv2.cvtColor(hq, cv2.COLOR_RGB2BGR).astype(np.float32)
    image *= np.float32(1 / 255)
    for op in ops:
        if op is None:
            continue
        image = resize(image, op, height, width) if op["op"] == "resize" else _OPERATIONS[op["op"]](image, op)
    return cv2.cvtColor(to_uint8(image), cv2.COLOR_BGR2RGB)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Round to nearest (half to even, as torch.round) and clip."""
    return cv2.convertScaleAbs(cv2.max(image, 0), alpha=255)


def blur(image: np.ndarray, op: Op) -> np.ndarray:
    """Convolve with the kernel, borders mirrored, by the cheaper of two forms, both within sampling.TOLERANCE of it."""
    kernel = trim(make_kernel(op))
    size = len(kernel)
    if size == 1:
        return image
    terms = factorise(kernel)
    if size <= _DIRECT_SIZE and len(terms.rows) * (size + 3) > 0.3 * size * size + 3:
        return cv2.filter2D(image, -1, kernel.astype(np.float32), borderType=_BORDER)
    first, *others = (cv2.sepFilter2D(image, -1, *pair, borderType=_BORDER) for pair in zip(*terms, strict=True))
    for other in others:
        cv2.add(first, other, dst=first)
    return first


def resize(image: np.ndarray, op: Op, hq_height: int, hq_width: int) -> np.ndarray:
    """Resize to op's scale of hq. Only `area` is antialiased, as in Real-ESRGAN."""
    height, width = (scaled(n, op["scale"]) for n in (hq_height, hq_width))
    if image.shape[:2] == (height, width):
        return image
    return cv2.resize(image, (width, height), interpolation=_INTERPOLATION[op["mode"]])


def scaled(size_px: int, scale: float) -> int:
    """Size after a resize, at least 2: OpenCV takes an image of one pixel for a scalar."""
    return max(2, round(size_px * scale))


def gaussian_noise(image: np.ndarray, op: Op) -> np.ndarray:
    """Add normal noise of op's sigma and clip."""
    z = stretch(normal_bank(), op["offset"], image.shape[:2] if op["grey"] else image.shape)
    if op["grey"]:
        z = cv2.merge([z, z, z])
    return _clip(cv2.scaleAdd(z, op["sigma"] / 255, image))


def poisson_noise(image: np.ndarray, op: Op) -> np.ndarray:
    """Add op's scale times (photon count - expected count) and clip. The count is that of the 8-bit image."""
    levels = to_uint8(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if op["grey"] else image)
    index = levels.astype(np.int32)
    index *= NUM_QUANTILES
    index += stretch(quantile_bank(), op["offset"], levels.shape)
    noise = poisson_table().take(index)
    if op["grey"]:
        noise = cv2.merge([noise, noise, noise])
    return _clip(cv2.scaleAdd(noise, op["scale"], image))


def _clip(image: np.ndarray) -> np.ndarray:
    return np.clip(image, 0, 1, out=image)


def jpeg(image: np.ndarray, op: Op) -> np.ndarray:
    """Round to 8 bits, encode with libjpeg (4:2:0) and decode.

    Raises:
        MegaSRError: the image is larger than JPEG's 65,535 px.
    """
    done, encoded = cv2.imencode(".jpg", to_uint8(image), [cv2.IMWRITE_JPEG_QUALITY, op["quality"]])
    if not done:
        raise MegaSRError(f"libjpeg does not encode an image of {image.shape[1]}x{image.shape[0]} px")
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert decoded is not None
    return cv2.multiply(decoded, (1 / 255,) * 4, dtype=cv2.CV_32F)


_OPERATIONS: dict[str, Callable[[np.ndarray, Op], np.ndarray]] = {
    "blur": blur, "gaussian_noise": gaussian_noise, "poisson_noise": poisson_noise, "jpeg": jpeg,
}  # fmt: skip
