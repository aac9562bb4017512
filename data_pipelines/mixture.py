"""Several sources as one, drawn in fixed shares."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from data_pipelines.order import QuotaOrder
from data_pipelines.samples import Sample, Source, UnusableSampleError, names_fingerprint
from megasr.errors import UsageError


class MixtureSource:
    """Sources one after another, each going through its own order, drawn in shares that hold over any 1000 draws.

    Args:
        sources: what is mixed.
        weights: relative share of each, positive, whatever the sizes of the sources.
        names: prefix of each source's keys, so that they stay unique; None numbers them.

    Raises:
        UsageError: the numbers of sources, weights and names differ, a weight is not positive, a source is empty, or a
            name comes twice or holds a colon.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float], names: Sequence[str] | None = None) -> None:
        names = [str(number) for number in range(len(sources))] if names is None else names
        if not 1 <= len(sources) == len(weights) == len(names):
            counts = f"{len(sources)} sources, {len(weights)} weights and {len(names)} names"
            raise UsageError(f"a mixture needs as many weights and names as sources, got {counts}")
        if len(set(names)) < len(names) or any(":" in name for name in names):
            raise UsageError(f"names of a mixture must differ and hold no colon, got {', '.join(names)}")
        for name, weight, source in zip(names, weights, sources, strict=True):
            if not (math.isfinite(weight) and weight > 0):
                raise UsageError(f"the weight of source {name!r} must be positive, got {weight}")
            if len(source) == 0:
                raise UsageError(f"source {name!r} of a mixture is empty")
        self.sources, self.weights, self.names = list(sources), list(weights), list(names)
        self.offsets = [0, *accumulate(len(source) for source in sources)]

    @property
    def fingerprint(self) -> str:
        """Of all sources and their weights."""
        parts = zip(self.names, self.weights, self.sources, strict=True)
        return names_fingerprint(f"{name} {weight} {source.fingerprint}" for name, weight, source in parts)

    def __len__(self) -> int:
        return self.offsets[-1]

    def read(self, index: int) -> Sample:
        """Image `index`, counted through all sources.

        Raises:
            UnusableSampleError: its source cannot give it.
        """
        number = bisect_right(self.offsets, index) - 1
        name = self.names[number]
        try:
            sample = self.sources[number].read(index - self.offsets[number])
        except UnusableSampleError as error:
            error.key, error.args = f"{name}:{error.key}", (f"{name}:{error}",)
            raise
        return replace(sample, key=f"{name}:{sample.key}")

    def order(self, draw: int, seed: int) -> int:
        """The image of training draw `draw`. Each source keeps its own order."""
        number, own_draw = QuotaOrder(self.weights, seed)(draw)
        return self.offsets[number] + self.sources[number].order(own_draw, seed)
