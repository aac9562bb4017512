"""The mean over a set that processes cannot share evenly, as Lightning takes it: over batches, by their sizes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from megasr.training.module import mean_without_repeated


@pytest.mark.parametrize(("images", "batch_size", "ranks"), [(3, 2, 2), (7, 2, 3), (8, 2, 2), (1, 4, 3), (5, 1, 4)])
@pytest.mark.parametrize("limit", [1, 100])
def test_every_image_counts_once(images: int, batch_size: int, ranks: int, limit: int) -> None:
    total, sizes, seen = 0.0, 0, set()
    for rank in range(ranks):
        sampler = DistributedSampler(range(images), ranks, rank, shuffle=False)
        loader = DataLoader(range(images), batch_size, sampler=sampler)
        batches = list(loader)[:limit]
        trainer = SimpleNamespace(val_dataloaders=loader, num_val_batches=[len(batches)])
        for index, batch in enumerate(batches):
            losses = batch.double().expand(2, -1)  # the loss of an image is its number
            total += float(mean_without_repeated(trainer, index, losses)) * len(batch)  # type: ignore[arg-type]
            sizes += len(batch)
            seen |= set(batch.tolist())
    assert total / sizes == pytest.approx(sum(seen) / len(seen))


def test_one_process_counts_all() -> None:
    losses = torch.arange(6.0).reshape(2, 3)
    assert mean_without_repeated(None, 0, losses) == losses.mean()
