"""Dropout of the conditions: what each training sample is not told, so that the adapter can also do without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from megasr.batch import SRBatch
from megasr.rng import keyed_uniform
from megasr.training.config import ObjectiveConfig


def draw_dropout(batch: SRBatch, objective: ObjectiveConfig, types: Sequence[str], seed: int, step: int) -> SRBatch:
    """The batch with what each sample loses in this step. What a batch already says is kept: it is replayed.

    Args:
        batch: needs keys.
        objective: how often.
        types: names of the guidance types.
        seed: of the draws.
        step: of the optimizer; each has draws of its own.
    """

    def drawn(purpose: str, share: float) -> torch.Tensor:
        return keyed_uniform(seed, batch["keys"], purpose, step) < share

    lost = {
        "text_dropped": drawn("text_dropout", objective.text_dropout),
        "guidance_dropped": drawn("guidance_dropout", objective.guidance_dropout),
        "types_dropped": {name: drawn(f"type_dropout/{name}", objective.type_dropout or 0.0) for name in types},
    }
    return SRBatch(**{**lost, **batch})  # type: ignore[typeddict-item]


def without_dropped(batch: SRBatch, maps: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The maps, zero where a sample loses all of them or this one."""
    alone = batch["types_dropped"]
    kept = {name: ~(batch["guidance_dropped"] | alone[name]) for name in maps}
    return {name: value * kept[name].view(-1, 1, 1, 1).to(value) for name, value in maps.items()}
