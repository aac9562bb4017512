"""What the monitor counts: losses by timestep, images per step."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from megasr.training.monitor import LossBins
from megasr.training.probes import describe_batch


def test_every_loss_goes_into_the_range_of_its_timestep() -> None:
    bins = LossBins(3, 1000)
    assert bins.names == ["train/loss_t000-333", "train/loss_t334-666", "train/loss_t667-999"]
    bins.add(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 333, 334]))
    bins.add(torch.tensor([8.0]), torch.tensor([666]))
    totals = bins.take()
    assert totals.tolist() == [[3.0, 12.0, 0.0], [2.0, 2.0, 0.0]]
    assert bins.means(totals) == {"train/loss_t000-333": 1.5, "train/loss_t334-666": 6.0}, "no sample, no number"
    bins.add(torch.tensor([5.0]), torch.tensor([999]))
    assert bins.means(bins.take()) == {"train/loss_t667-999": 5.0}, "samples since the last time only"


def test_the_arithmetic_of_a_batch_is_said() -> None:
    trainer = SimpleNamespace(accumulate_grad_batches=4, world_size=2, num_training_batches=100)
    batch = {"keys": ["a", "b", "c"], "degradation": [{"name": "bicubic"}] * 3}
    assert describe_batch(trainer, batch) == (  # type: ignore[arg-type]
        "global batch 24 = 3 images x 2 device(s) x 4 accumulated; an epoch is 25 steps; lq by bicubic"
    )
    trainer.num_training_batches = float("inf")
    assert describe_batch(trainer, {"keys": ["a"]}).endswith("4 accumulated")  # type: ignore[arg-type]
