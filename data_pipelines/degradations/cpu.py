"""The `cpu` back end: one image at a time in the loader's workers, with OpenCV and libjpeg-turbo.

Images are (H, W, 3) float32 in [0, 1], channels in OpenCV's order (BGR): libjpeg is reached through OpenCV, and turning
the channels once at either end is cheaper than at every JPEG. Between the operations values may leave [0, 1] (a sinc
filter overshoots); noise and JPEG clip, as in Real-ESRGAN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from data_pipelines.degradations.kernels import Separable, factorise, make_kernel, trim
from data_pipelines.degradations.noise import NUM_QUANTILES, normal_bank, poisson_table, quantile_bank, stretch
from data_pipelines.degradations.sampling import Op
from megasr.errors import MegaSRError

_INTERPOLATION = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
_BORDER = cv2.BORDER_REFLECT_101
# Where OpenCV's direct filter ends; beyond, it transforms to frequencies, which costs as much as 40 separable passes.
_DIRECT_SIZE = 11


def apply_ops(hq: np.ndarray, ops: Sequence[Op | None]) -> np.ndarray:
    """Degrade one image.

    Args:
        hq: (H, W, 3) uint8 RGB.
        ops: see data_pipelines.degradations.sampling; None is left out.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    height, width = hq.shape[:2]
    image = cv2.cvtColor(hq, cv2.COLOR_RGB2BGR).astype(np.float32)
    image *= np.float32(1 / 255)
    for op in ops:
        if op is None:
            continue
        image = resize(image, op, height, width) if op["op"] == "resize" else _OPERATIONS[op["op"]](image, op)
    return cv2.cvtColor(to_uint8(image), cv2.COLOR_BGR2RGB)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Round to nearest and clip; the exact halves go to the even number, as torch.round has it."""
    return cv2.convertScaleAbs(cv2.max(image, 0), alpha=255)


def blur(image: np.ndarray, op: Op) -> np.ndarray:
    """Convolve with the kernel, borders mirrored. By the cheaper of two forms, both within kernels.TOLERANCE of it."""
    kernel = trim(make_kernel(op))
    size = len(kernel)
    if size == 1:
        return image
    terms = factorise(kernel)
    if size <= _DIRECT_SIZE and len(terms.rows) * (size + 3) > 0.3 * size * size + 3:
        return cv2.filter2D(image, -1, kernel.astype(np.float32), borderType=_BORDER)
    return filter_separable(image, terms)


def filter_separable(image: np.ndarray, terms: Separable) -> np.ndarray:
    """The sum of the terms' two one-dimensional filters each."""
    result: np.ndarray | None = None
    for column, row in zip(terms.columns, terms.rows, strict=True):
        term = cv2.sepFilter2D(image, -1, row, column, borderType=_BORDER)
        result = term if result is None else cv2.add(result, term, dst=result)
    assert result is not None
    return result


def resize(image: np.ndarray, op: Op, hq_height: int, hq_width: int) -> np.ndarray:
    """Resize to op's scale of hq. Not antialiased but in `area`: Real-ESRGAN's are not either."""
    height, width = (scaled(n, op["scale"]) for n in (hq_height, hq_width))
    if image.shape[:2] == (height, width):
        return image
    return cv2.resize(image, (width, height), interpolation=_INTERPOLATION[op["mode"]])


def scaled(size_px: int, scale: float) -> int:
    """Size after a resize, at least 2: OpenCV takes an image of one pixel for a number."""
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
    """To 8 bits, through libjpeg (4:2:0 chroma, as cameras have it) and back.

    Raises:
        MegaSRError: libjpeg refuses; JPEG ends at 65,535 px.
    """
    done, encoded = cv2.imencode(".jpg", to_uint8(image), [cv2.IMWRITE_JPEG_QUALITY, op["quality"]])
    if not done:
        raise MegaSRError(f"libjpeg does not encode an image of {image.shape[1]}x{image.shape[0]} px")
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert decoded is not None, "what libjpeg has just encoded"
    return cv2.multiply(decoded, (1 / 255,) * 4, dtype=cv2.CV_32F)


_OPERATIONS: dict[str, Callable[[np.ndarray, Op], np.ndarray]] = {
    "blur": blur,
    "gaussian_noise": gaussian_noise,
    "poisson_noise": poisson_noise,
    "jpeg": jpeg,
}
