"""The training objective. Nothing here draws a random number: noise is always an argument.

Shapes: z0, noise, z_t (B, C, h, w) latents; timesteps (B,) integers in [0, num_train_timesteps).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from megasr.errors import UsageError

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (z_t, timesteps) -> prediction


def add_noise(scheduler: Any, z0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """z_t = sqrt(a_t) z0 + sqrt(1 - a_t) noise, a_t the cumulative product of alphas (DDPM, 2006.11239, eq. 4)."""
    return scheduler.add_noise(z0, noise, timesteps)


def prediction_target(scheduler: Any, z0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Target of the U-Net: the noise, or v = sqrt(a_t) noise - sqrt(1 - a_t) z0 (2202.00512, app. D).

    Raises:
        UsageError: the prior's scheduler predicts something else.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(z0, noise, timesteps)
    raise UsageError(f"prediction_type {kind!r} of the prior's scheduler; this project trains epsilon or v_prediction")


def diffusion_loss(
    denoiser: Denoiser, scheduler: Any, z0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of the prediction, one value per sample, shape (B,), in float32 (2006.11239, eq. 14)."""
    prediction = denoiser(add_noise(scheduler, z0, noise, timesteps), timesteps)
    target = prediction_target(scheduler, z0, noise, timesteps)
    return (prediction.float() - target.float()).square().mean(dim=(1, 2, 3))


def stratified_timesteps(num_strata: int, num_train_timesteps: int) -> torch.Tensor:
    """The middle of each of `num_strata` equal parts of the schedule, for a validation loss without draws."""
    return ((torch.arange(num_strata) + 0.5) / num_strata * num_train_timesteps).long()
