"""Superpixels: SLIC regions filled with their mean colour (Achanta et al. 2012, scikit-image's implementation)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from megasr.images import from_uint8, to_uint8

_PIXELS_PER_REGION = 256
# After three iterations the regions hardly move any more, and the connectivity pass would take longer than SLIC itself.
_ITERATIONS = 3


def extract_superpixel(image: torch.Tensor, keys: Sequence[str]) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 3, H, W) in [0, 1], constant in each region. Keys are not used."""
    return torch.stack([from_uint8(_mean_colours(photo)) for photo in to_uint8(image)]).to(image.device)


def _mean_colours(photo: np.ndarray) -> np.ndarray:
    from skimage.segmentation import slic

    height, width = photo.shape[:2]
    regions = slic(
        photo,
        n_segments=max(1, height * width // _PIXELS_PER_REGION),
        max_num_iter=_ITERATIONS,
        enforce_connectivity=False,
        start_label=0,
    ).ravel()
    counts = np.maximum(np.bincount(regions), 1)
    sums = [np.bincount(regions, weights=photo[..., channel].ravel()) for channel in range(3)]
    means = np.stack([total / counts for total in sums], axis=1)
    return means[regions].reshape(photo.shape).round().astype(np.uint8)
