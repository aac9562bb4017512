"""Distances between sets of images: FID and KID from Inception features, in float64.

Features are those of clean-fid (Parmar et al. 2022) as pyiqa takes them: 8-bit images, resized to 299 x 299 with PIL's
bicubic filter channel by channel, through the Inception network of the original FID.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

FEATURES = 2048
CAVEAT_IMAGES = 2048  # up to it the covariance of the features has no full rank
_SIZE_PX = 299


class InceptionFeatures:
    """Features of images for FID and KID. The weights must be where pyiqa looks for them (`found_weights`).

    Args:
        device: where the network runs.
    """

    def __init__(self, device: torch.device) -> None:
        from pyiqa.archs.inception import InceptionV3

        self._device = device
        self._network = InceptionV3(output_blocks=[InceptionV3.BLOCK_INDEX_BY_DIM[FEATURES]]).eval().to(device)

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> torch.Tensor:
        """(H, W, 3) uint8 -> (2048,) float64."""
        from PIL import Image

        size = (_SIZE_PX, _SIZE_PX)
        channels = [
            Image.fromarray(channel.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
            for channel in np.moveaxis(image, -1, 0)
        ]
        resized = torch.from_numpy(np.stack([np.asarray(channel) for channel in channels])).clamp(0, 255)
        signed = ((resized - 128) / 128)[None].to(self._device)
        return self._network(signed, False, False)[0].flatten().double().cpu()


def frechet_distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """FID: squared Frechet distance of two Gaussians fitted to features (N, D) and (M, D) (Heusel et al. 2017, eq. 6).

    The trace of the root of the product of the covariances is the nuclear norm of X Y^T / sqrt((N - 1)(M - 1)) with X
    and Y the centred features: exact, also for fewer images than features, where a matrix root is not.
    """
    x, y = first.double(), second.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = (x - mean_x) / (len(x) - 1) ** 0.5, (y - mean_y) / (len(y) - 1) ** 0.5
    root = torch.linalg.matrix_norm(x @ y.T, "nuc")
    return float((mean_x - mean_y).square().sum() + x.square().sum() + y.square().sum() - 2 * root)


def kernel_distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """KID: unbiased squared maximum mean discrepancy with k(a, b) = (a.b / D + 1)^3 (Binkowski et al. 2018, eq. 4).

    Over all pairs of (N, D) and (M, D) features; pyiqa averages random subsets of them. It may be negative.
    """
    x, y = first.double(), second.double()

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def off_diagonal_mean(gram: torch.Tensor) -> torch.Tensor:
        return (gram.sum() - gram.trace()) / (len(gram) * (len(gram) - 1))

    return float(off_diagonal_mean(kernel(x, x)) + off_diagonal_mean(kernel(y, y)) - 2 * kernel(x, y).mean())


DISTANCES: dict[str, Callable[[torch.Tensor, torch.Tensor], float]] = {
    "frechet": frechet_distance,
    "kernel": kernel_distance,
}


def caveat(images: int) -> str:
    """What has to be said beside an FID of this many images; empty when nothing has."""
    if images > CAVEAT_IMAGES:
        return ""
    return (
        f"fid of {images} images is biased upwards and noisy ({FEATURES} features need more than {CAVEAT_IMAGES} "
        "images): compare it only over the same images, and prefer kid, which is unbiased"
    )
