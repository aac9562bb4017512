"""Which guidance maps are stacked before MSFM: in the two stages of the figure (2503.08096 v2), or more simply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from megasr.guidance.registry import GuidanceType
from megasr.networks.config import Fusion

Group = tuple[GuidanceType, ...]  # maps that are stacked along their channels


class MapGroups(NamedTuple):
    """Groups with a SAFT of their own each, and the group that stage 1 aggregates first (empty for none)."""

    separate: tuple[Group, ...]
    aggregated: Group

    @property
    def names(self) -> list[str]:
        """What each separate group is called."""
        return ["+".join(guidance.name for guidance in group) for group in self.separate]

    def stack(self, maps: Mapping[str, torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Maps name -> (B, C, h, w), the stack of every separate group, and that of the aggregated one or None."""
        separate = [_stack(maps, group) for group in self.separate]
        return separate, _stack(maps, self.aggregated) if self.aggregated else None


def group_maps(guidance: Sequence[GuidanceType], fusion: Fusion | None) -> MapGroups:
    """Group the types of an adapter, edges before regions.

    Args:
        guidance: the resolved types.
        fusion: see AdapterConfig.
    """
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


def _stack(maps: Mapping[str, torch.Tensor], group: Group) -> torch.Tensor:
    return torch.cat([maps[guidance.name] for guidance in group], dim=1)
