"""Colour fixes: a diffusion prior shifts colours, most of all where sampling starts from noise.

Shapes: sr, lq_up (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F

from megasr.errors import unknown_name

ColorFix = Literal["adain", "wavelet"]
_LEVELS = 5  # StableSR's number of blurs, 1, 2, 4, 8 and 16 px wide


def check_color_fix(kind: ColorFix | None) -> ColorFix | None:
    """The kind, if it is known.

    Raises:
        UsageError: shows those that are.
    """
    if kind is not None and kind not in get_args(ColorFix):
        raise unknown_name("color_fix", kind, get_args(ColorFix))
    return kind


def fix_color(sr: torch.Tensor, lq_up: torch.Tensor, kind: ColorFix | None) -> torch.Tensor:
    """sr with the colours of lq_up.

    Args:
        sr: restored image.
        lq_up: lq at the same size.
        kind: `adain` gives every channel the mean and standard deviation of lq_up's (1703.06868); `wavelet` takes
            everything coarser than about 32 px from lq_up (StableSR, 2305.07015); None changes nothing.
    """
    if kind is None:
        return sr
    fixed = adain(sr, lq_up) if kind == "adain" else sr - blur(sr) + blur(lq_up)
    return fixed.clamp(0, 1)


def adain(sr: torch.Tensor, lq_up: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation of every channel of every image as in lq_up, not clipped (1703.06868, eq. 8)."""
    (std, mean), (lq_std, lq_mean) = (
        torch.std_mean(image, dim=(-2, -1), keepdim=True, correction=0) for image in (sr, lq_up)
    )
    return (sr - mean) / std.clamp_min(1e-5) * lq_std + lq_mean


def blur(image: torch.Tensor) -> torch.Tensor:
    """The coarse part of StableSR's a trous wavelet: dilated binomial blurs, each twice as wide; borders repeat."""
    channels = image.shape[1]
    kernel = torch.tensor([0.25, 0.5, 0.25], dtype=image.dtype, device=image.device)
    for level in range(_LEVELS):
        gap = 2**level
        for shape, padding in (((1, 1, 3, 1), (0, 0, gap, gap)), ((1, 1, 1, 3), (gap, gap, 0, 0))):
            weight = kernel.view(shape).expand(channels, *shape[1:])
            image = F.conv2d(F.pad(image, padding, mode="replicate"), weight, groups=channels, dilation=gap)
    return image
