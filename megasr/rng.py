"""Random numbers as a function of (seed, key, ...): the only place where generators are made.

A draw is keyed by its purpose, so it does not depend on batch size, device count, worker or resumes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

Key = int | str


def derive_seed(seed: int, *key: Key) -> int:
    """Hash (seed, key...) to an integer in [0, 2**63). Distinct keys give independent streams (BLAKE2b)."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in (seed, *key))
    content = text.encode("utf-8", "surrogateescape")  # names of files need not be UTF-8
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1


def torch_generator(seed: int, *key: Key, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for (seed, key...). Drawn on the CPU, every device sees the same numbers."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *key))


def numpy_generator(seed: int, *key: Key) -> np.random.Generator:
    """A NumPy generator for (seed, key...)."""
    return np.random.default_rng(derive_seed(seed, *key))


def keyed_normal(seed: int, keys: Sequence[str], shape: Sequence[int], *purpose: Key) -> torch.Tensor:
    """Standard normal noise (B, *shape), one independent draw per sample key: batch size does not matter."""
    return torch.stack([torch.randn(*shape, generator=torch_generator(seed, *purpose, key)) for key in keys])


def keyed_uniform(seed: int, keys: Sequence[str], *purpose: Key) -> torch.Tensor:
    """Uniform numbers in [0, 1), shape (B,), one independent draw per sample key."""
    return torch.stack([torch.rand((), generator=torch_generator(seed, *purpose, key)) for key in keys])


@contextmanager
def seeded_initialisation(seed: int, *key: Key) -> Iterator[None]:
    """Initialise torch's layers as a function of (seed, key...), without a trace in the global generator.

    Keyed by its place, a layer has the same initial weights in every ablation of a seed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init", *key))
        yield
