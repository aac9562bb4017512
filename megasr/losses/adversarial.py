"""GAN: a discriminator on the features of a frozen network, with the relativistic average loss (1807.00734)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from megasr.losses.terms import Estimate, mean
from megasr.rng import seeded_initialisation

_WIDTH = 64


class GAN(nn.Module):
    """Heads on every level of the features; an Estimate to (B,), whose gradient reaches sr and not the heads.

    The averages of the relativistic loss are over the batch of a process.

    Args:
        features: frozen network, images (B, 3, H, W) to a list of feature maps (B, C, h, w); `channels` are their C.
        seed: of the initial weights.
    """

    draws = True

    def __init__(self, features: nn.Module, seed: int) -> None:
        super().__init__()
        self.features = features.requires_grad_(False).eval()
        with seeded_initialisation(seed, "gan"):
            self.heads = Heads(features.channels)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> GAN:
        """The features stay in evaluation mode."""
        super().train(mode)
        self.features.eval()
        return self

    def forward(self, estimate: Estimate) -> torch.Tensor:
        """What the adapter minimises: restorations look more real than photographs do."""
        fixed = {name: parameter.detach() for name, parameter in self.heads.named_parameters()}
        fake, real = (functional_call(self.heads, fixed, (levels,)) for levels in estimate.levels(self.features))
        return _relativistic(fake, real)

    def critic_loss(self, estimate: Estimate) -> torch.Tensor:
        """What the discriminator minimises: photographs look more real than restorations do."""
        fake, real = (self.heads([x.detach() for x in levels]) for levels in estimate.levels(self.features))
        return _relativistic(real, fake)


class Heads(nn.Module):
    """One logit per place of every level of features.

    Args:
        channels: of the levels.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(_head(count) for count in channels)

    def forward(self, levels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Features (B, C, h, w) of the levels to logits (B, 1, h, w)."""
        return [head(level) for head, level in zip(self.levels, levels, strict=True)]


def _head(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, _WIDTH, 1), nn.LeakyReLU(0.2), nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1), nn.LeakyReLU(0.2),
        nn.Conv2d(_WIDTH, 1, 1, bias=False),  # the relativistic loss sees differences of logits alone
    )  # fmt: skip


def _relativistic(up: list[torch.Tensor], down: list[torch.Tensor]) -> torch.Tensor:
    """Loss (B,) that falls when the logits `up` rise above the mean of `down`, and `down` fall below that of `up`."""
    losses = [
        mean(F.softplus(-(high.float() - low.float().mean()))) + mean(F.softplus(low.float() - high.float().mean()))
        for high, low in zip(up, down, strict=True)
    ]
    return torch.stack(losses).mean(0) / 2
