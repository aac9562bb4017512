"""Time and losses between two rows of the log."""

from __future__ import annotations

import torch

from megasr.training.monitor import LossBins, Stopwatch
from tests.helpers.training import Clock


def test_the_stopwatch_counts_neither_pauses_nor_earlier_laps() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    assert not watch.pause()
    clock.now += 5
    assert watch.lap() == 0  # not started
    watch.start()
    clock.now += 1
    watch.start()  # runs already
    clock.now += 2
    assert watch.pause()
    clock.now += 10
    assert watch.lap() == 3
    clock.now += 10
    watch.start()
    clock.now += 4
    assert watch.lap() == 4
    clock.now += 0.5
    assert watch.lap() == 0.5  # a lap does not stop it


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
