"""The prior's VAE in tiles, and in single precision where half of it overflows."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from megasr.errors import MegaSRError
from megasr.inference.tiling import Grid
from megasr.prior import Prior


def encode_tiles(prior: Prior, lq_up: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> z (B, C, h, w) float32; see Prior.encode."""
    latents = grid.divided(prior.downsampling)
    return latents.blend(lambda boxes: _run(prior, lambda: prior.encode(grid.crop(lq_up, boxes)))).float()


def decode_tiles(prior: Prior, z: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Z -> (B, 3, H, W) float32 in [0, 1].

    Raises:
        MegaSRError: z is not finite: the U-Net overflowed.
    """
    if not z.isfinite().all():
        raise MegaSRError(
            "sampling ended in values that are not finite: use bfloat16 or float32, or a smaller guidance_scale"
        )
    latents = grid.divided(prior.downsampling)
    return grid.blend(lambda boxes: _run(prior, lambda: prior.decode(latents.crop(z, boxes))))


def _run(prior: Prior, call: Callable[[], torch.Tensor]) -> torch.Tensor:
    made = call()
    if prior.vae.dtype != torch.float32 and not made.isfinite().all():
        # Stable Diffusion's VAE has features beyond 65504; once is enough, it stays in float32 from here on.
        warnings.warn(f"the VAE overflows in {prior.vae.dtype}: it computes in float32 from here on", stacklevel=2)
        prior.vae.float()
        made = call()
    return made
