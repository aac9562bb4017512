"""The training loss at low, middle and high noise: the mean over all timesteps hides where a network learns."""

from __future__ import annotations

from itertools import pairwise

import torch


class LossBins:
    """Sums the loss of samples in equal ranges of timesteps until they are asked for. Stays on the device.

    Args:
        bins: how many ranges.
        num_timesteps: T of the noise schedule; timesteps are 0 ... T - 1.
        device: where losses lie.
    """

    def __init__(self, bins: int, num_timesteps: int, device: torch.device | str = "cpu") -> None:
        self.bins, self._num_timesteps = bins, num_timesteps
        first = [-(-index * num_timesteps // bins) for index in range(bins + 1)]
        self.names = [f"train/loss_t{a:03d}-{b - 1:03d}" for a, b in pairwise(first)]
        self._totals = torch.zeros(2, bins, device=device)

    def add(self, losses: torch.Tensor, timesteps: torch.Tensor) -> None:
        """Add the losses (B,) of samples at `timesteps` (B,)."""
        bins = timesteps * self.bins // self._num_timesteps
        self._totals[0].index_add_(0, bins, losses.detach().float())
        self._totals[1].index_add_(0, bins, torch.ones_like(losses, dtype=torch.float32))

    def take(self) -> torch.Tensor:
        """(2, bins): sums of the losses and numbers of samples since the last call."""
        totals, self._totals = self._totals, torch.zeros_like(self._totals)
        return totals

    def means(self, totals: torch.Tensor) -> dict[str, float]:
        """Mean loss of every range that had samples, from `take` (summed over processes)."""
        sums, counts = totals.tolist()
        return {name: total / count for name, total, count in zip(self.names, sums, counts, strict=True) if count > 0}
