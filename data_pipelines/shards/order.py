"""The order of training over shards: shuffled across shards and inside windows of shards, known at every draw."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

from data_pipelines.order import permuted


class ShardOrder:
    """Draw -> image. Every epoch puts the shards in a new order and permutes the samples inside every `window` shards.

    Nearby draws so come from few shards, which keeps indices and copies few, and a shard meets other neighbours in
    every epoch. A draw costs O(log shards); the shard order of two epochs is kept.

    Args:
        samples: number of samples of every shard.
        window: number of consecutive shards between which samples are shuffled.
    """

    def __init__(self, samples: Sequence[int], window: int) -> None:
        self.samples = tuple(samples)
        self.window = window
        self.firsts = (0, *accumulate(samples))  # the index of every shard's first sample, and the number of all
        self._epoch = lru_cache(2)(self._shuffle_shards)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.samples, self.window)

    def __call__(self, draw: int, seed: int) -> int:
        """The image of training draw `draw`: each once per epoch, a function of (seed, draw)."""
        epoch, position = divmod(draw, self.firsts[-1])
        shards, starts = self._epoch(epoch, seed)
        window = (bisect_right(starts, position) - 1) // self.window * self.window
        begin, end = starts[window], starts[min(window + self.window, len(shards))]
        place = begin + permuted(position - begin, end - begin, seed, "window", epoch, window)
        slot = bisect_right(starts, place) - 1
        return self.firsts[shards[slot]] + place - starts[slot]

    def locate(self, index: int) -> tuple[int, int]:
        """(shard, position in it) of image `index`."""
        if not 0 <= index < self.firsts[-1]:
            raise IndexError(f"image {index} of {self.firsts[-1]}")
        shard = bisect_right(self.firsts, index) - 1
        return shard, index - self.firsts[shard]

    def _shuffle_shards(self, epoch: int, seed: int) -> tuple[list[int], list[int]]:
        """The shards in the order of an epoch, and the position at which each begins, then the end."""
        count = len(self.samples)
        shards = [permuted(slot, count, seed, "shards", epoch) for slot in range(count)]
        return shards, [0, *accumulate(self.samples[shard] for shard in shards)]
