"""Order of samples: shuffled, mixed, resumable."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate, count

import numpy as np

from data_pipelines.samples import NamedSource, Sample, Source, UnusableSampleError, names_fingerprint
from megasr.errors import UsageError
from megasr.rng import Key, derive_seed, numpy_generator

_ROUNDS = 4  # what Luby and Rackoff (1988) need for a pseudo-random permutation
_MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # splitmix64's constants
_MASK = 2**64 - 1


def _mix(value: int) -> int:
    """splitmix64's finaliser: 64 bits in, 64 well mixed bits out."""
    value = (value + _MIX[0]) & _MASK
    value = ((value ^ (value >> 30)) * _MIX[1]) & _MASK
    value = ((value ^ (value >> 27)) * _MIX[2]) & _MASK
    return value ^ (value >> 31)


def permuted(position: int, length: int, seed: int, *key: Key) -> int:
    """Element `position` of a random permutation of range(length), of (seed, key), without building it.

    A Feistel network over the next power of four, iterated until it lands inside: constant time and no memory, where a
    shuffled list of fifteen million images takes 120 MB in every worker.
    """
    half_bits = max(1, (max(length - 1, 1).bit_length() + 1) // 2)
    low = (1 << half_bits) - 1
    round_seed = derive_seed(seed, "permutation", *key)
    value = position
    while True:
        left, right = value >> half_bits, value & low
        for turn in range(_ROUNDS):
            left, right = right, left ^ (_mix(round_seed ^ (turn << 56) ^ right) & low)
        value = left << half_bits | right
        if value < length:
            return value


def shuffled(draw: int, length: int, seed: int) -> int:
    """The image of training draw `draw`: each of `length` images once per epoch, every epoch in a new order."""
    epoch, position = divmod(draw, length)
    return permuted(position, length, seed, "order", epoch)


class QuotaOrder:
    """Distributes draws over several sources in fixed shares; each source goes through its own draws 0, 1, 2...

    Every block of draws holds the same quota of each source in a new random order, so the shares hold over any stretch
    of training and not only on average.

    Args:
        weights: relative shares, positive.
        seed: of the order.
        block: draws per block; shares are rounded to multiples of 1 / block, and each source has at least one draw.
    """

    def __init__(self, weights: Sequence[float], seed: int, block: int = 1000) -> None:
        total = sum(weights)
        self.quotas = tuple(max(1, round(weight / total * block)) for weight in weights)
        self.seed = seed
        self.block = sum(self.quotas)

    def __call__(self, draw: int) -> tuple[int, int]:
        """(source, draw of that source) of training draw `draw`."""
        number, position = divmod(draw, self.block)
        source, rank = _block_order(self.quotas, self.seed, number)[position]
        return source, number * self.quotas[source] + rank


@lru_cache(4)
def _block_order(quotas: tuple[int, ...], seed: int, number: int) -> list[tuple[int, int]]:
    """(source, how many draws of it came before) at every position of block `number`."""
    sources = numpy_generator(seed, "mixture", number).permutation(np.repeat(np.arange(len(quotas)), quotas)).tolist()
    counters = [count() for _ in quotas]
    return [(source, next(counters[source])) for source in sources]


class MixtureSource:
    """Sources in sequence, each with its own order, drawn in fixed shares (see QuotaOrder).

    Args:
        sources: what is mixed; the number of the source is the prefix of its keys.
        weights: relative share of each, positive, whatever the sizes of the sources.

    Raises:
        UsageError: the numbers of sources and weights differ, a weight is not positive, or a source is empty.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float]) -> None:
        if not 1 <= len(sources) == len(weights):
            raise UsageError(f"a mixture needs as many weights as sources, got {len(weights)} for {len(sources)}")
        for number, (weight, source) in enumerate(zip(weights, sources, strict=True)):
            if not (math.isfinite(weight) and weight > 0):
                raise UsageError(f"the weight of source {number} must be positive, got {weight}")
            if len(source) == 0:
                raise UsageError(f"source {number} of a mixture is empty")
        self.sources, self.weights = list(sources), list(weights)
        self.offsets = [0, *accumulate(len(source) for source in sources)]

    @property
    def fingerprint(self) -> str:
        """Of all sources and their weights."""
        parts = enumerate(zip(self.weights, self.sources, strict=True))
        return names_fingerprint(f"{number} {weight} {source.fingerprint}" for number, (weight, source) in parts)

    def __len__(self) -> int:
        return self.offsets[-1]

    def locate(self, index: int) -> tuple[int, int]:
        """(source, image of that source) of image `index`, counted through all sources."""
        number = bisect_right(self.offsets, index) - 1
        return number, index - self.offsets[number]

    def read(self, index: int) -> Sample:
        """Image `index`. Raises UnusableSampleError when its source cannot read it."""
        number, own = self.locate(index)
        try:
            sample = self.sources[number].read(own)
        except UnusableSampleError as error:
            raise UnusableSampleError(f"{number}:{error.key}", error.reason, error.detail, error.damaged) from error
        return replace(sample, key=f"{number}:{sample.key}")

    def tags(self, index: int) -> str:
        """The tags of read(index), without its image. Raises as its source does."""
        number, own = self.locate(index)
        return self.sources[number].tags(own)

    def order(self, draw: int, seed: int) -> int:
        """The image of training draw `draw`."""
        number, own_draw = QuotaOrder(self.weights, seed)(draw)
        return self.offsets[number] + self.sources[number].order(own_draw, seed)


class EvalMixture(MixtureSource):
    """A mixture to evaluate on: its sources name their images."""

    def __init__(self, sources: Sequence[NamedSource]) -> None:
        super().__init__(sources, [1.0] * len(sources))
        self.named = list(sources)

    def key(self, index: int) -> str:
        """Key of image `index`."""
        number, own = self.locate(index)
        return f"{number}:{self.named[number].key(own)}"
