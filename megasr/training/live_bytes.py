"""Live bytes of storages, by what they are and in which phase of a training step; with values or without.

A storage is counted from the operation that returned it until its last owner lets go of it, autograd's saved tensors
included. What happens inside one operation (a convolution's workspace) is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

KINDS = ("frozen", "trained", "optimizer", "gradients", "activations")
PHASES = ("between", "extracting guidance", "image tokens", "text", "encoding hq", "forward", "backward", "optimizer")


@dataclass(frozen=True)
class MemoryTrace:
    """Live bytes after every operation that made a new storage.

    Attributes:
        phases: (N,) index into PHASES.
        live: (N, 5) bytes, in the order of KINDS.
        trained: number of trained values.
        largest_group: bytes of the largest block of trained parameters, which FSDP gathers at a time.
    """

    phases: np.ndarray
    live: np.ndarray
    trained: int
    largest_group: int

    def peak(self, shares: Mapping[str, float]) -> tuple[str, dict[str, float]]:
        """The phase of the largest sum, and its bytes per kind.

        Args:
            shares: kind -> the share of its bytes that is on one device, 1 where nothing is said; "step" is that of
                the optimizer's temporary tensors.
        """
        weighted = self._weighted(shares)
        place = int(np.argmax(weighted.sum(1)))
        return PHASES[self.phases[place]], dict(zip(KINDS, map(float, weighted[place]), strict=True))

    def peak_of_phases(self, shares: Mapping[str, float]) -> dict[str, float]:
        """Phase -> bytes at its own peak, of every phase that occurred."""
        sums = self._weighted(shares).sum(1)
        return {name: float(sums[self.phases == i].max()) for i, name in enumerate(PHASES) if i in self.phases}

    def bytes_of(self, kind: str) -> int:
        """The most that a kind ever takes."""
        return int(self.live[:, KINDS.index(kind)].max())

    def _weighted(self, shares: Mapping[str, float]) -> np.ndarray:
        weighted = self.live * np.array([shares.get(kind, 1.0) for kind in KINDS])
        weighted[self.phases == PHASES.index("optimizer"), KINDS.index("activations")] *= shares.get("step", 1.0)
        return weighted


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations return.

    Args:
        block_bytes: every storage takes a multiple of so many bytes.
    """

    def __init__(self, block_bytes: int = 1) -> None:
        super().__init__()
        self.block_bytes = block_bytes
        self.phase = "between"
        self.totals = dict.fromkeys(KINDS, 0)
        self.rows: list[tuple[int, ...]] = []
        self._known: dict[int, tuple[str, int, weakref.ref[Any]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        new = [self.see(leaf, "activations") for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if any(new):
            self.record()
        return result

    def see(self, tensor: torch.Tensor, kind: str) -> bool:
        """Count a tensor's storage unless it is known. True when it was new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return False
        size = -(-storage.nbytes() // self.block_bytes) * self.block_bytes
        self._known[key] = (kind, size, weakref.ref(storage, lambda _: self._forget(key)))
        self.totals[kind] += size
        return True

    def call(self, tensor: torch.Tensor, kind: str) -> None:
        """Say what a storage is from now on."""
        if not self.see(tensor, kind):
            old, size, reference = self._known[tensor.untyped_storage()._cdata]
            self._known[tensor.untyped_storage()._cdata] = (kind, size, reference)
            self.totals[old] -= size
            self.totals[kind] += size

    def record(self) -> None:
        """Note what is alive."""
        self.rows.append((PHASES.index(self.phase), *self.totals.values()))

    def _forget(self, key: int) -> None:
        kind, size, _ = self._known.pop(key)
        self.totals[kind] -= size

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Inside, bytes belong to a phase."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before


class FakeAnswers(TorchDispatchMode):
    """Answers the looks at values that fake tensors do not hold.

    Args:
        truth: the answer to every question. A step asks whether its loss is finite (yes); an initialiser whether a draw
            must be repeated (no). Numbers are 1/2, which is in the range of every map.
    """

    def __init__(self, truth: bool) -> None:
        super().__init__()
        self.truth = truth

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            kind = args[0].dtype
            return self.truth if kind == torch.bool else 0.5 if kind.is_floating_point else 1
        return func(*args, **(kwargs or {}))
