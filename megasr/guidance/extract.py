"""Guidance maps of a batch: taken from the data where it brings them, extracted otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megasr.batch import SRBatch
from megasr.errors import UsageError
from megasr.guidance.registry import GuidanceType
from megasr.images import upsample_lq


@torch.no_grad()
def extract_guidance(batch: SRBatch, types: Sequence[GuidanceType], scale_factor: int) -> dict[str, torch.Tensor]:
    """Maps of every type, name -> (B, C, H, W) float32 in [0, 1] at the size of hq.

    Args:
        batch: needs lq, hq for the positive controls, and the maps that only the data can know.
        types: resolved guidance types.
        scale_factor: size of hq over size of lq.

    Raises:
        UsageError: a map or image that a type needs is missing, or a map has a wrong shape or range.
    """
    given = batch.get("maps") or {}
    height, width = (side * scale_factor for side in batch["lq"].shape[-2:])
    lq_up = None
    maps = {}
    for guidance in types:
        if guidance.name in given:
            image = given[guidance.name]
        elif guidance.source == "lq" and guidance.extractor is not None:
            lq_up = upsample_lq(batch["lq"], scale_factor) if lq_up is None else lq_up
            image = guidance.extractor(lq_up, batch["keys"])
        else:
            image = _from_ground_truth(batch, guidance)
        maps[guidance.name] = image.to(batch["lq"].device).float()
        _check_map(maps[guidance.name], guidance.name, (len(batch["keys"]), guidance.channels, height, width))
    return maps


def _check_map(image: torch.Tensor, name: str, expected: tuple[int, ...]) -> None:
    if tuple(image.shape) != expected:
        raise UsageError(f"map {name}: expected (B, C, H, W) = {expected}, got {tuple(image.shape)}")
    low, high = image.aminmax()
    if not (low >= 0 and high <= 1):  # also when a value is not a number
        raise UsageError(f"map {name}: values must be in [0, 1], got [{low:.3g}, {high:.3g}]")


def _from_ground_truth(batch: SRBatch, guidance: GuidanceType) -> torch.Tensor:
    if guidance.extractor is None:
        raise UsageError(
            f"guidance {guidance.name} comes with the data: only rendered scenes (SceneDataModule) have it"
        )
    if "hq" not in batch:
        raise UsageError(f"guidance {guidance.name} is a control made from hq, and this batch has none")
    return guidance.extractor(batch["hq"], batch["keys"])
