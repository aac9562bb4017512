"""What a term of the loss sees of a restored batch, what it is built from, and terms without weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from megasr.batch import SRBatch
from megasr.prior import Prior
from megasr.semantics.text import Text
from megasr.training.config import CriticConfig

Features = Callable[[torch.Tensor], list[torch.Tensor]]  # images (B, 3, H, W) to maps (B, C, h, w)


class Estimate:
    """A restored batch beside what it should be. What no term asks for is not computed.

    Args:
        prior: encodes, decodes and embeds the words.
        batch: needs keys and hq.
        z0: (B, C, h, w) float32, the restored latents, with gradients.
        z_hq: makes the latents of hq.
        prompts: B.
        seed: of every draw.
        purpose: beside the images' keys, what draws are made for: the optimizer step.
    """

    def __init__(
        self,
        prior: Prior,
        batch: SRBatch,
        z0: torch.Tensor,
        z_hq: Callable[[SRBatch], torch.Tensor],
        prompts: Sequence[str],
        seed: int,
        purpose: int | str,
    ) -> None:
        self.z0, self.seed, self.purpose = z0, seed, purpose
        self._levels: dict[Features, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        self.keys, self.hq = batch["keys"], batch["hq"]
        self._prior, self._batch, self._z_hq, self._prompts = prior, batch, z_hq, list(prompts)

    @cached_property
    def sr(self) -> torch.Tensor:
        """(B, 3, H, W) float32 around [0, 1], not clipped: a clipped number has no gradient."""
        return self._prior.decode_unclipped(self.z0)

    @cached_property
    def z_hq(self) -> torch.Tensor:
        """Latents of hq (B, C, h, w)."""
        return self._z_hq(self._batch).float()

    @cached_property
    @torch.no_grad()
    def text(self) -> Text:
        """Embedded prompts."""
        return self._prior.text_encoder(self._prompts)

    @cached_property
    @torch.no_grad()
    def no_text(self) -> Text:
        """The embedded empty prompt, B times."""
        return self._prior.text_encoder([""] * len(self._prompts))

    def levels(self, features: Features) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Feature maps of sr, with gradients, and of hq: once for all terms and critics that look through a network."""
        if features not in self._levels:
            with torch.no_grad():
                real = features(self.hq)
            self._levels[features] = features(self.sr), real
        return self._levels[features]


class TermParts(NamedTuple):
    """What a term may be built from.

    Attributes:
        prior: the frozen prior.
        critic: settings of terms that judge.
        network: loads a frozen network for the loss by name: lpips_alex, lpips_vgg, dists, or one of features.
        seed: of initial weights.
    """

    prior: Prior
    critic: CriticConfig
    network: Callable[[str], nn.Module]
    seed: int


class Critic(Protocol):
    """A term that learns beside the adapter what to judge by."""

    def critic_loss(self, estimate: Estimate) -> torch.Tensor:
        """What the critic minimises, (B,). No gradient reaches the adapter."""


def mean(values: torch.Tensor) -> torch.Tensor:
    """Mean over all but the batch: (B, ...) -> (B,) float32."""
    return values.float().flatten(1).mean(1)


class Compared(nn.Module):
    """A term without weights: a distance of two images or latents.

    Args:
        distance: two tensors to (B,).
        latents: compare z0 with z_hq in place of sr with hq.
    """

    def __init__(self, distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], latents: bool = False) -> None:
        super().__init__()
        self.distance, self.latents = distance, latents

    def forward(self, estimate: Estimate) -> torch.Tensor:
        """(B,)."""
        pair = (estimate.z0, estimate.z_hq) if self.latents else (estimate.sr, estimate.hq)
        return self.distance(*pair)


class ComparedFeatures(nn.Module):
    """A term without weights: a distance on feature maps that other terms may use too.

    Args:
        distance: has `features`, a network that gives maps of an image, and `compare`: maps of sr and of hq to (B,).
    """

    def __init__(self, distance: Any) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, estimate: Estimate) -> torch.Tensor:
        """(B,)."""
        found: torch.Tensor = self.distance.compare(*estimate.levels(self.distance.features))
        return found


def l1(sr: torch.Tensor, hq: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference (B,)."""
    return mean((sr - hq).abs())


def l2(sr: torch.Tensor, hq: torch.Tensor) -> torch.Tensor:
    """Mean squared difference (B,)."""
    return mean((sr - hq).square())
