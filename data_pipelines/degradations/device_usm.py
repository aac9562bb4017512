"""Unsharp masking of the target on tensors: the exact formula of data_pipelines.degradations.usm."""

from __future__ import annotations

import numpy as np
import torch

from data_pipelines.degradations.device_blur import convolve
from data_pipelines.degradations.device_context import exact, upload
from data_pipelines.degradations.usm import AMOUNT, SIGMA_PX, SIZE_PX, THRESHOLD
from megasr.images import quantise


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
