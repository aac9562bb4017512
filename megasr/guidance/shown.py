"""What a sampler shows of an adapter's guidance: one adapter restores with any part of it, or with the maps of hq.

A map that is not shown is zero, which is what guidance dropout shows in training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from megasr.batch import SRBatch
from megasr.errors import UsageError
from megasr.guidance.extract import extract_guidance
from megasr.guidance.networks import Networks
from megasr.guidance.registry import ORACLE, GuidanceType, get_guidance

Shown = Mapping[GuidanceType, GuidanceType | None]  # type of the adapter -> whose map it sees, None for zeros


def shown_guidance(types: Sequence[GuidanceType], names: Iterable[str] | None) -> Shown:
    """Whose map each of the adapter's types sees.

    Args:
        types: the adapter's.
        names: of the types that are shown; "oracle_depth" shows the map of hq, in the place of depth where the
            adapter has no such type of its own. None shows all.

    Raises:
        UsageError: a name is none of the adapter's types, or a type is shown twice.
    """
    if names is None:
        return {own: own for own in types}
    shown: dict[GuidanceType, GuidanceType | None] = dict.fromkeys(types)
    for name in names:
        source = get_guidance(name)
        places = [own for own in types if name == own.name] or [own for own in types if name == ORACLE + own.name]
        if not places:
            known = ", ".join(own.name for own in types) or "none"
            raise UsageError(f"sampler.shown_guidance: {name} is not in model.adapter.guidance: {known}")
        if shown[places[0]] is not None:
            raise UsageError(f"sampler.shown_guidance shows {places[0].name} twice")
        shown[places[0]] = source
    return shown


def extract_shown(batch: SRBatch, shown: Shown, scale_factor: int, networks: Networks) -> dict[str, torch.Tensor]:
    """The maps of all of the adapter's types; what is not shown is not extracted either. See extract_guidance."""
    sources = [source for source in shown.values() if source is not None]
    made = extract_guidance(batch, sources, scale_factor, networks, fixed_images=True)
    samples, _, height, width = batch["lq"].shape
    size = height * scale_factor, width * scale_factor

    def zeros(channels: int) -> torch.Tensor:
        return torch.zeros(samples, channels, *size, device=batch["lq"].device)

    return {own.name: made[source.name] if source else zeros(own.channels) for own, source in shown.items()}
