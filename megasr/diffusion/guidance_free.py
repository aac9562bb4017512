"""Classifier-free guidance: towards the prompt, away from the negative prompt (2207.12598)."""

from __future__ import annotations

import torch

from megasr.errors import UsageError

Interval = tuple[float, float]


def guided(conditional: torch.Tensor, unconditional: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    """Classifier-free guidance (2207.12598, eq. 6 with w + 1 = guidance_scale)."""
    return unconditional + guidance_scale * (conditional - unconditional)


def check_interval(interval: Interval) -> Interval:
    """The interval of the noise schedule in which there is guidance (2404.07724), as fractions from its clean end.

    Raises:
        UsageError: it is not two fractions in ascending order.
    """
    if len(interval) != 2 or not 0 <= interval[0] < interval[1] <= 1:
        raise UsageError(f"sampler.guidance_interval must be two ascending fractions in [0, 1], got {interval}")
    return interval[0], interval[1]


def is_guided(timestep: int, num_train_timesteps: int, guidance_scale: float, interval: Interval | None) -> bool:
    """Whether a step needs both halves."""
    low, high = interval or (0.0, 1.0)
    return guidance_scale != 1 and low <= (timestep + 1) / num_train_timesteps <= high
