"""Canny edges of the grey image (Canny 1986, OpenCV's implementation)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from megasr.images import from_uint8, to_uint8

_BLUR_SIGMA_PX = 1.0
_LOW_TO_HIGH = 0.5


def extract_canny(image: torch.Tensor, keys: Sequence[str]) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> edges (B, 1, H, W), each pixel 0 or 1.

    The upper threshold is Otsu's of the gradient magnitude, so that dark, flat and blurred photographs keep their
    strongest edges; the lower one is half of it. Keys are not used.
    """
    return torch.stack([from_uint8(_canny(photo)[..., None]) for photo in to_uint8(image)]).to(image.device)


def _canny(photo: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W) uint8, each pixel 0 or 255."""
    import cv2

    grey = cv2.GaussianBlur(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), (0, 0), _BLUR_SIGMA_PX)
    dx = cv2.Sobel(grey, cv2.CV_16S, 1, 0)
    dy = cv2.Sobel(grey, cv2.CV_16S, 0, 1)
    magnitude = np.abs(dx.astype(np.int32)) + np.abs(dy)  # the L1 norm that cv2.Canny thresholds
    peak = max(1, int(magnitude.max()))
    scaled = (magnitude * 255 // peak).astype(np.uint8)
    threshold, _ = cv2.threshold(scaled, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    high = max(1.0, threshold * peak / 255)
    return cv2.Canny(dx, dy, _LOW_TO_HIGH * high, high)
