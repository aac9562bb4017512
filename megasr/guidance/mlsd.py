"""Straight line segments: LSD (von Gioi et al. 2010, OpenCV's implementation), standing in for M-LSD (2106.00186).

LSD needs no weights. Unlike M-LSD, which learned the outlines of rooms and objects, it finds every straight border
between bright and dark, and a thin bar gives two segments, one for each of its sides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from megasr.images import from_uint8, to_uint8

# Segments shorter than this share of the diagonal are texture: 20 px at 512 x 512, as M-LSD's own demonstration has it.
_SHORTEST = 20 / (512 * 2**0.5)
_SUBPIXEL_BITS = 4  # cv2.line takes coordinates in sixteenths of a pixel


def extract_mlsd(image: torch.Tensor, keys: Sequence[str]) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> segments (B, 1, H, W) in [0, 1], 1 px wide and anti-aliased. Keys are not used.

    An image smaller than a few pixels, where no segment can be told from chance, gives zeros.
    """
    return torch.stack([from_uint8(_draw(photo)[..., None]) for photo in to_uint8(image)]).to(image.device)


def _draw(photo: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W) uint8."""
    import cv2

    canvas = np.zeros(photo.shape[:2], np.uint8)
    for segment in np.rint(_segments(photo) * 2**_SUBPIXEL_BITS).astype(int).tolist():
        cv2.line(canvas, segment[:2], segment[2:], 255, 1, cv2.LINE_AA, _SUBPIXEL_BITS)
    return canvas


def _segments(photo: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (N, 4): x and y of both ends in pixels; the centre of the first pixel is (0, 0)."""
    import cv2

    # The advanced refinement is the one that tests each segment against chance: the others find lines in noise.
    detector = cv2.createLineSegmentDetector(cv2.LSD_REFINE_ADV)
    found = detector.detect(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY))[0]
    if found is None:
        return np.zeros((0, 4), np.float32)
    ends = found.reshape(-1, 4)
    lengths = np.hypot(ends[:, 2] - ends[:, 0], ends[:, 3] - ends[:, 1])
    return ends[lengths >= _SHORTEST * np.hypot(*photo.shape[:2])]
