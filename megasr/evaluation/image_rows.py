"""What several processes have measured, brought together: every image counts once, in the order of the set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchmetrics
from torchmetrics.utilities import dim_zero_cat

from megasr.errors import MegaSRError
from megasr.evaluation.evaluator import check_keys


class ImageRows(torchmetrics.Metric):
    """Collects the vectors of images on every process; `gather` gives all of them on every process.

    Needs nothing of Lightning: without a process group, or in a group of one, it is a list that checks itself. In a
    group, every process must call `gather`, whether it measured anything or not, and the metric must lie on a
    device that the group sends from (`.to(device)`).

    Args:
        keys: names of the images of the whole set, in its order.
        width: length of a vector (Evaluator.width).
        metric_names: what the first elements of a vector are called in messages.

    Raises:
        UsageError: a key is repeated.
    """

    full_state_update = False
    indices: list[torch.Tensor]  # (n,) int64, places in `keys`
    # (n, width) int64, the bits of float64: the `module.to(dtype)` of precision plugins casts what is floating point.
    values: list[torch.Tensor]

    def __init__(self, keys: Sequence[str], width: int, metric_names: Sequence[str] = ()) -> None:
        super().__init__()
        check_keys(keys, keys)
        self.keys, self.width, self.metric_names = tuple(keys), width, tuple(metric_names)
        self._index = {key: index for index, key in enumerate(keys)}
        self.add_state("indices", [], dist_reduce_fx="cat")
        self.add_state("values", [], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all. What is left are tensors of no images: a process without images is gathered from as well."""
        super().reset()
        self.update([], torch.empty(0, self.width))

    def update(self, keys: Sequence[str], vectors: torch.Tensor) -> None:
        """Add the (n, width) vectors of n images, measured in this process.

        Raises:
            MegaSRError: an image is not of the set.
        """
        if strangers := [key for key in keys if key not in self._index]:
            raise MegaSRError(f"measured, but not of the evaluation set: {', '.join(strangers)}")
        indices = torch.tensor([self._index[key] for key in keys], dtype=torch.int64)
        values = vectors.double().cpu().contiguous().view(torch.int64).reshape(len(keys), self.width)
        self.indices.append(indices.to(self.device))
        self.values.append(values.to(self.device))

    def gather(self) -> torch.Tensor:
        """All vectors of all processes in the order of the set: (N, width) float64 on the CPU.

        An image may have been measured more than once, as when a sampler repeats some to fill up the last batch. It
        counts once.

        Raises:
            MegaSRError: an image was measured twice with different results, or not at all; the names are listed.
        """
        return self.compute().reshape(len(self.keys), self.width)

    def compute(self) -> torch.Tensor:
        """`gather`; torchmetrics makes a scalar of a single number."""
        indices, order = dim_zero_cat(self.indices).cpu().sort(stable=True)
        values = dim_zero_cat(self.values).cpu()[order]
        repeated = indices[1:] == indices[:-1]
        for place in (repeated & (values[1:] != values[:-1]).any(1)).nonzero().flatten().tolist():
            difference = self._difference(*values[place : place + 2].view(torch.float64).tolist())
            raise MegaSRError(f"{self.keys[indices[place]]!r} was measured twice: {difference}")
        measured = set(indices.tolist())
        if missing := [key for index, key in enumerate(self.keys) if index not in measured]:
            raise MegaSRError(f"{len(missing)} of {len(self.keys)} images were not measured: {', '.join(missing)}")
        first = torch.cat([torch.ones(1, dtype=torch.bool), ~repeated])
        return values[first].view(torch.float64)

    def _difference(self, first: Sequence[float], second: Sequence[float]) -> str:
        pairs = zip(self.metric_names, first, second, strict=False)
        named = [f"{name} is {a!r} and {b!r}" for name, a, b in pairs if a != b]
        return ", ".join(named) or "its features differ"
