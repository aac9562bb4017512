"""Damage is passed over the same way by everybody, counted once, and stops the run above the budget."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from data_pipelines.mixture import shuffled
from data_pipelines.samples import Sample, UnusableSampleError
from data_pipelines.workers import ErrorBudget, read_or_next
from megasr.errors import MegaSRError, UsageError


class Numbers:
    """Images 0 ... length - 1, of which some are damaged and some filtered."""

    def __init__(self, length: int, damaged: set[int] = frozenset(), filtered: set[int] = frozenset()) -> None:
        self.length, self.damaged, self.filtered = length, damaged, filtered

    def __len__(self) -> int:
        return self.length

    def order(self, draw: int, seed: int) -> int:
        return shuffled(draw, self.length, seed)

    def read(self, index: int) -> Sample:
        if index in self.damaged:
            raise UnusableSampleError(str(index), "truncated shard", "at byte 7")
        if index in self.filtered:
            raise UnusableSampleError(str(index), "too small", damaged=False)
        return Sample(str(index), np.zeros((1, 1, 3), np.uint8))


@pytest.mark.parametrize("epoch", [0, 3])
def test_the_next_of_the_epoch_stands_in(epoch: int) -> None:
    source = Numbers(10)
    order = [source.order(epoch * 10 + n, 5) for n in range(10)]
    source.damaged, source.filtered = {order[2], order[9]}, {order[3], order[0]}
    samples = [read_or_next(source, epoch * 10 + n, 5) for n in range(10)]
    expected = [1, 1, 4, 4, 4, 5, 6, 7, 8, 1]
    assert [int(sample.key) for sample in samples] == [order[n] for n in expected]
    assert samples[2].skipped == ((str(order[2]), "truncated shard", True), (str(order[3]), "too small", False))
    assert [len(sample.skipped) for sample in samples] == [1, 0, 2, 1, 0, 0, 0, 0, 0, 2]


def test_nothing_usable() -> None:
    with pytest.raises(MegaSRError, match=r"^10 images in a row cannot be used: \d: truncated shard; "):
        read_or_next(Numbers(10, set(range(10))), 3, 0)
    source = Numbers(200, set(range(200)))
    with pytest.raises(MegaSRError, match=r"^30 images in a row.*and 10 more$"):
        read_or_next(source, 3, 0, limit=30)


def test_counts_of_two_epochs() -> None:
    source = Numbers(100, {3, 5}, set(range(50, 90)))
    budget = ErrorBudget(0.02, samples=100)
    assert budget.summary() == ""
    for draw in range(200):
        budget.add(read_or_next(source, draw, 0).skipped)
        if draw == 120:  # the counts are in the checkpoint
            state = json.loads(json.dumps(budget.state_dict()))
            budget = ErrorBudget(0.02, samples=100)
            budget.load_state_dict(state)
    assert budget.summary() == "2 damaged images (truncated shard 2), 80 draws of filtered images (too small 80)"


def test_one_more_than_the_budget_stops() -> None:
    budget = ErrorBudget(0.25, samples=100)
    reasons = Counter({"missing shard": 20, "damaged content": 5})
    damaged = [(str(n), reason, True) for n, reason in enumerate(reasons.elements())]
    budget.add(damaged)
    budget.add([("x", "too small", False)])
    budget.add(damaged)  # drawn again in another epoch
    budget.add([("0", "unreadable", True)])  # another trouble of an image that is counted already
    with pytest.raises(MegaSRError) as error:
        budget.add([("last", "damaged content", True)])
    assert str(error.value).startswith(
        "26 damaged images (damaged content 6, missing shard 20), 1 draws of filtered images (too small 1), "
        "more than max_damaged 0.25 of 100: 0: missing shard; "
    )
    assert "19: missing shard and 6 more; `megasr shards verify` finds all of them" in str(error.value)


def test_each_of_several_processes_has_its_part_of_the_budget() -> None:
    budget = ErrorBudget(0.08, samples=100)
    budget.add([(f"{n}", "unreadable", True) for n in range(2)], processes=4)
    with pytest.raises(MegaSRError, match=r"3 damaged images .* of 100 \(this is one of 4 processes\)"):
        budget.add([("2", "unreadable", True)], processes=4)
    assert budget.counts() == {"data/damaged": 3, "data/filtered_draws": 0, "data/left_out/unreadable": 3}


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_budget_is_a_share(share: float) -> None:
    with pytest.raises(UsageError, match="max_damaged"):
        ErrorBudget(share, samples=10)
