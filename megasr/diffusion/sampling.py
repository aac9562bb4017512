"""Samplers: from noise (or a noised lq) to a clean latent, deterministically. Noise is an argument.

Shapes: z (B, C, h, w); alphas_cumprod (T,) with T the length of the training schedule.
"""

from __future__ import annotations

import torch

from megasr.diffusion.objective import Denoiser
from megasr.diffusion.solvers import OnStep
from megasr.errors import UsageError


def spaced_timesteps(num_steps: int, start_fraction: float, num_train_timesteps: int) -> list[int]:
    """`num_steps` equally spaced timesteps, the first at start_fraction of the schedule, descending, the last above 0.

    "Trailing" spacing (2305.08891, sec. 3.3): the sampler starts where the training schedule ends.

    Raises:
        UsageError: no step is asked for, more than the schedule has, or the start is outside (0, 1].
    """
    if not 0 < start_fraction <= 1:
        raise UsageError(f"sampler.start_fraction must be in (0, 1], got {start_fraction}")
    span = start_fraction * num_train_timesteps
    if not 1 <= num_steps <= span:
        raise UsageError(
            f"sampler.num_steps must be from 1 to {int(span)} (start_fraction of the schedule), got {num_steps}"
        )
    return [round(span * (num_steps - i) / num_steps) - 1 for i in range(num_steps)]


def split_prediction(
    prediction: torch.Tensor, z_t: torch.Tensor, alpha_cumprod: torch.Tensor, prediction_type: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prediction -> (z0, noise), from noise or from v = sqrt(a) noise - sqrt(1 - a) z0 (2202.00512, app. D)."""
    signal, sigma = alpha_cumprod.sqrt(), (1 - alpha_cumprod).sqrt()
    if prediction_type == "v_prediction":
        return signal * z_t - sigma * prediction, signal * prediction + sigma * z_t
    return (z_t - sigma * prediction) / signal, prediction


def ddim(
    denoiser: Denoiser,
    alphas_cumprod: torch.Tensor,
    prediction_type: str,
    z: torch.Tensor,
    timesteps: list[int],
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """DDIM with eta = 0 (2010.02502, eq. 12): z at timesteps[0] -> z0. The last step returns its z0 estimate."""
    for number, (t, t_next) in enumerate(zip(timesteps, [*timesteps[1:], None], strict=True)):
        prediction = denoiser(z, torch.full((z.shape[0],), t, device=z.device)).to(z.dtype)
        z0, noise = split_prediction(prediction, z, alphas_cumprod[t], prediction_type)
        alpha = alphas_cumprod[t_next] if t_next is not None else None
        z = z0 if alpha is None else alpha.sqrt() * z0 + (1 - alpha).sqrt() * noise
        changed = on_step(number, t, z) if on_step is not None else None
        z = z if changed is None else changed
    return z
