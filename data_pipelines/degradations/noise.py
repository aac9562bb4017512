"""Noise that two back ends can draw alike: a bank of normal numbers and a table of Poisson quantiles.

Random numbers of a GPU are not those of a CPU, and drawing a million of them per image costs more than all else that is
done to it. So 4 million are drawn once, and a noise is a stretch of them that begins where its offset says: within an
image no number comes twice, and two images have the same stretch in the same place once in 4 million draws.
"""

from __future__ import annotations

import functools

import numpy as np

from megasr.rng import numpy_generator

BANK_SIZE = 2**22
NUM_QUANTILES = 2048
_Z_MAX = 5.5  # beyond the largest of 4 million normal numbers, all but surely
POISSON_LEVELS = 256  # photons at white


@functools.cache
def normal_bank() -> np.ndarray:
    """Standard normal numbers, (2 * BANK_SIZE,) float32: the bank twice, so that a stretch never has to wrap around."""
    bank = numpy_generator(0, "noise bank").standard_normal(BANK_SIZE, dtype=np.float32)
    return np.concatenate([bank, bank])


@functools.cache
def quantile_bank() -> np.ndarray:
    """The same numbers as positions among NUM_QUANTILES equal steps of z, (2 * BANK_SIZE,) uint16."""
    steps = np.floor((normal_bank() + _Z_MAX) * (NUM_QUANTILES / (2 * _Z_MAX)))
    return steps.clip(0, NUM_QUANTILES - 1).astype(np.uint16)


@functools.cache
def poisson_table() -> np.ndarray:
    """Poisson noise by inverse transform: (256 * NUM_QUANTILES,) float32, row = 8-bit level, column = step of z.

    An entry is (count - expected count) / POISSON_LEVELS where the expected count is level / 255 * POISSON_LEVELS.
    A step of z is 0.005 wide, which moves no probability of a count by more than 0.0011.
    """
    from scipy.special import ndtr, pdtr

    probabilities = ndtr((np.arange(NUM_QUANTILES) + 0.5) * (2 * _Z_MAX / NUM_QUANTILES) - _Z_MAX)
    expected = np.arange(256) / 255 * POISSON_LEVELS
    counts = np.stack([np.searchsorted(pdtr(np.arange(2 * POISSON_LEVELS), mean), probabilities) for mean in expected])
    return ((counts - expected[:, None]) / POISSON_LEVELS).astype(np.float32).reshape(-1)


def stretch(bank: np.ndarray, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers of a noise of `shape`, a view into the bank.

    Args:
        bank: normal_bank() or quantile_bank().
        offset: any non-negative integer.
        shape: (H, W) or (H, W, C), at most BANK_SIZE numbers; larger ones repeat the bank.
    """
    count, start = int(np.prod(shape)), offset % BANK_SIZE
    if count > BANK_SIZE:
        return np.resize(np.roll(bank[:BANK_SIZE], -start), shape)
    return bank[start : start + count].reshape(shape)
