"""Guidance maps of a batch: taken from the data where it brings them, extracted otherwise.

One pass per network, however many of its maps are wanted; each size of the image is made once for all networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megasr.batch import SRBatch, check_range
from megasr.errors import UsageError
from megasr.guidance.cache import MapCache
from megasr.guidance.network import MapNetwork, Views
from megasr.guidance.networks import Networks
from megasr.guidance.registry import GuidanceType
from megasr.images import upsample_lq


@torch.no_grad()
def extract_guidance(
    batch: SRBatch,
    types: Sequence[GuidanceType],
    scale_factor: int,
    networks: Networks | None = None,
    fixed_images: bool = False,
) -> dict[str, torch.Tensor]:
    """Maps of every type, name -> (B, C, H, W) float32 in [0, 1] at the size of hq.

    Args:
        batch: needs lq, hq for the positive controls, and the maps that only the data can know.
        types: resolved guidance types.
        scale_factor: size of hq over size of lq.
        networks: what the types need; None loads the default ones for this call.
        fixed_images: the same images will come again: their maps are kept when the networks have a cache.

    Raises:
        UsageError: a map or image that a type needs is missing, or a map has a wrong shape or range.
        MegaSRError: weights that a type needs are missing or damaged.
    """
    networks = networks or Networks()
    given = batch.get("maps") or {}
    height, width = (side * scale_factor for side in batch["lq"].shape[-2:])
    maps = {g.name: given[g.name] for g in types if g.name in given}
    views: dict[str, Views] = {}
    groups: dict[tuple[str, str, MapNetwork], list[GuidanceType]] = {}
    for guidance in types:
        if guidance.name in maps:
            continue
        if guidance.source not in views:
            views[guidance.source] = Views(_image(batch, guidance, scale_factor))
        image = views[guidance.source].image
        if guidance.formula is not None:
            maps[guidance.name] = guidance.formula(image, batch["keys"])
        else:
            network, fingerprint = networks.get(guidance, image.device)
            groups.setdefault((guidance.source, fingerprint, network), []).append(guidance)
    cache = networks.cache if fixed_images else None
    for (source, fingerprint, network), group in groups.items():
        made = _run(network, fingerprint, views[source], tuple(g.base for g in group), cache)
        maps |= {guidance.name: made[guidance.base] for guidance in group}
    maps = {g.name: maps[g.name].to(batch["lq"].device).float() for g in types}
    for guidance in types:
        _check_shape(maps[guidance.name], guidance.name, (len(batch["keys"]), guidance.channels, height, width))
    _check_range(maps)
    return maps


def _run(
    network: MapNetwork, fingerprint: str, views: Views, names: tuple[str, ...], cache: MapCache | None
) -> dict[str, torch.Tensor]:
    if cache is None:
        return network(views, names)

    def make(name: str) -> torch.Tensor:
        return cache.get_or_make(views.image, name, fingerprint, lambda images: network(Views(images), (name,))[name])

    return {name: make(name) for name in names}


def _check_shape(image: torch.Tensor, name: str, expected: tuple[int, ...]) -> None:
    if tuple(image.shape) != expected:
        raise UsageError(f"map {name}: expected (B, C, H, W) = {expected}, got {tuple(image.shape)}")


def _check_range(maps: dict[str, torch.Tensor]) -> None:
    if not maps:
        return
    # All at once: on a GPU every look at a value waits for the device.
    found = torch.stack([torch.stack(image.aminmax()) for image in maps.values()]).tolist()
    for name, (low, high) in zip(maps, found, strict=True):
        check_range((low, high), f"map {name}")


def _image(batch: SRBatch, guidance: GuidanceType, scale_factor: int) -> torch.Tensor:
    if guidance.source == "batch":
        raise UsageError(
            f"guidance {guidance.name} comes with the data: only rendered scenes (SceneDataModule) have it"
        )
    if guidance.source == "lq":
        return upsample_lq(batch["lq"], scale_factor)
    if "hq" not in batch:
        raise UsageError(f"guidance {guidance.name} is a control made from hq, and this batch has none")
    return batch["hq"]
