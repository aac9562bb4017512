"""MSFM: guidance maps grouped in two stages and fused into the features of every block (2503.08096 v2)."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

from megasr.guidance.registry import GuidanceType
from megasr.networks.config import Fusion, FusionInit, Version
from megasr.plugins import Registry

Group = tuple[GuidanceType, ...]  # maps that are stacked along their channels
Modulation = tuple[torch.Tensor, torch.Tensor]  # scale and shift in the layout of F


class MapGroups(NamedTuple):
    """Groups with a SAFT of their own each, and the group that stage 1 aggregates first (empty for none)."""

    separate: tuple[Group, ...]
    aggregated: Group

    @property
    def names(self) -> list[str]:
        """Names of the separate groups: "canny", or "canny+depth" for maps that share a SAFT."""
        return ["+".join(guidance.name for guidance in group) for group in self.separate]

    def stack(self, maps: Mapping[str, torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Maps name -> (B, C, h, w), the stack of every separate group, and that of the aggregated one or None."""
        separate, aggregated = (
            [torch.cat([maps[guidance.name] for guidance in group], dim=1) for group in groups if group]
            for groups in (self.separate, [self.aggregated])
        )
        return separate, aggregated[0] if aggregated else None


def group_maps(guidance: Sequence[GuidanceType], fusion: Fusion | None) -> MapGroups:
    """Group the types of an adapter, edges before regions; see AdapterConfig.fusion."""
    edges = tuple(g for g in guidance if g.role == "edge")
    regions = tuple(g for g in guidance if g.role == "region")
    if fusion == "concat":
        return MapGroups((edges + regions,) if guidance else (), ())
    if fusion == "sum":
        return MapGroups(tuple((g,) for g in edges + regions), ())
    return MapGroups(tuple((g,) for g in edges), regions)


def count_channels(group: Group) -> int:
    """Channels of the stack of a group."""
    return sum(guidance.channels for guidance in group)


class ChannelAttention(nn.Module):
    """One weight in (0, 1) per channel, from the channel means: (B, R, h, w) -> (B, R, 1, 1) (SE, 1709.01507)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeeze = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 4 * channels, 1), nn.SiLU()]
        self.layers = nn.Sequential(*squeeze, nn.Conv2d(4 * channels, channels, 1), nn.Sigmoid())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers(features)


class RegionAggregation(nn.Module):
    """Stage 1. v2: the maps times the attention. v1 (no activation, no skip): the convolved maps times it."""

    def __init__(self, channels: int, version: Version) -> None:
        super().__init__()
        self.version = version
        # GroupNorm over all channels at once: per-channel norm would erase the means that the attention looks at.
        layers = [nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(1, channels)]
        self.features = nn.Sequential(*layers, *([nn.SiLU()] if version == "v2" else []))
        self.attention = ChannelAttention(channels)

    def forward(self, regions: torch.Tensor) -> torch.Tensor:
        features = self.features(regions)
        return (regions if self.version == "v2" else features) * self.attention(features)


class SAFT(nn.Module):
    """Map -> (gamma, beta): h = MLP(G), gamma = Conv(h), beta = Conv(h), all convolutions 1x1.

    The MLP has He's initialisation (1502.01852), which keeps a map's variation. With torch's own a fiftieth of it came
    through (of depth 0.005 of 0.23, standard deviation over pixels), and guidance had no effect for hundreds of steps.
    With zero_init gamma = beta = 0 at first.
    """

    def __init__(self, map_channels: int, channels: int, width: int, zero_init: bool) -> None:
        super().__init__()
        layers = [(nn.Conv2d(a, b, 1), nn.SiLU()) for a, b in pairwise((map_channels, width, width, width))]
        self.mlp = nn.Sequential(*(module for pair in layers for module in pair))
        self.gamma = nn.Conv2d(width, channels, 1)
        self.beta = nn.Conv2d(width, channels, 1)
        for convolution, _ in layers:
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            nn.init.zeros_(convolution.bias)
        if zero_init:
            for parameter in (*self.gamma.parameters(), *self.beta.parameters()):
                nn.init.zeros_(parameter)

    def forward(self, guidance: torch.Tensor) -> Modulation:
        hidden = self.mlp(guidance)
        return self.gamma(hidden), self.beta(hidden)


class MSFM(nn.Module):
    """Fuse all guidance maps into one site.

    Args:
        channels: C of the site.
        groups: groups of the GroupNorm on F (the prior's own number); None: F are tokens (B, h * w, C), and normalised
            by LayerNorm, as in a DiT.
        edge_channels: channels of each edge map; every edge map has its own SAFT.
        region_channels: channels of all region maps together, 0 for none.
        width: hidden channels of each SAFT.
        fusion_init: `as_drawn`: F' = F_n * sum(1 + gamma) + sum(beta). `residual`: F' = F + F_n * sum(gamma) +
            sum(beta) with gamma = beta = 0 at step 0, hence the identity.
        stage1: version of the region aggregation.
    """

    def __init__(
        self,
        channels: int,
        groups: int | None,
        edge_channels: Sequence[int],
        region_channels: int,
        width: int,
        fusion_init: FusionInit,
        stage1: Version,
    ) -> None:
        super().__init__()
        self.residual = fusion_init == "residual"
        # No affine parameters of its own: the SAFTs supply scale and shift.
        self.norm = (
            nn.LayerNorm(channels, eps=1e-6, elementwise_affine=False)
            if groups is None
            else nn.GroupNorm(groups, channels, affine=False)
        )
        maps = [*edge_channels, *([region_channels] if region_channels else [])]
        self.safts = nn.ModuleList(SAFT(c, channels, width, zero_init=self.residual) for c in maps)
        self.aggregation = RegionAggregation(region_channels, stage1) if region_channels else None

    def saft_maps(self, edges: Sequence[torch.Tensor], regions: torch.Tensor | None) -> list[torch.Tensor]:
        """Input of each SAFT: the edge maps, and the region maps aggregated over the whole image."""
        return [*edges, *([self.aggregation(regions)] if self.aggregation is not None else [])]

    def modulate(self, maps: Sequence[torch.Tensor]) -> Modulation:
        """Inputs of the SAFTs -> (scale, shift). Pointwise: maps may be cropped before or after it."""
        gammas, betas = zip(*(saft(guidance) for saft, guidance in zip(self.safts, maps, strict=True)), strict=True)
        scales = gammas if self.residual else [1 + gamma for gamma in gammas]
        # reduce, because sum() begins at 0 and would add that as a tensor
        return self.arrange(reduce(operator.add, scales)), self.arrange(reduce(operator.add, betas))

    def arrange(self, part: torch.Tensor) -> torch.Tensor:
        """A scale or shift (B, C, h, w) in the layout of F."""
        return part.flatten(2).transpose(1, 2).contiguous() if isinstance(self.norm, nn.LayerNorm) else part

    def forward(self, features: torch.Tensor, modulation: Modulation) -> torch.Tensor:
        """F -> F'. The scale and shift of b images serve any multiple B of b (both halves of CFG)."""
        scale, shift = modulation
        normalised = self.norm(features)
        if torch.is_grad_enabled():
            fused = (normalised.unflatten(0, (-1, len(scale))) * scale + shift).flatten(0, 1)
            return features + fused if self.residual else fused
        # In place: the same numbers, without the allocations that take most of this module's time on a CPU.
        normalised.unflatten(0, (-1, len(scale))).mul_(scale).add_(shift)
        return normalised.add_(features) if self.residual else normalised


MSFMS: Registry[type[nn.Module]] = Registry("adapter.msfm")
"""Classes for `adapter.msfm`: constructor, `saft_maps`, `modulate` and `forward` as MSFM's.
`MSFMS.register("mine", MyMSFM)` in a user's package adds one; FSDP2 and the monitor also read its SAFTs."""
MSFMS.register("megasr", MSFM)
