"""Photographs and seeds, drawn again with replacement: what the intervals of evaluations and studies are made of.

What is resampled: photographs and seeds, not crops. Crops of one photograph share its content and its noise, so they
are not independent. A key "<photograph>/<top>-<left>" names a crop of a photograph, as does "<photograph>_pch_<number>"
in StableSR's DIV2K-Val; any other key is an image of its own. Runs of one seed share their noise across all
photographs, so seeds are resampled whole as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from megasr.errors import UsageError

_CROP = re.compile(r"(?<=.)(/\d+-\d+|_pch_\d+)$")


def photograph(key: str) -> str:
    """The photograph a key belongs to: "lake/0-128" and "lake_pch_7" (crops) -> "lake", "eval-scene/3" is one."""
    return _CROP.sub("", key)


class Resampler:
    """Resamples of photographs and seeds, drawn once, so that all scores of the same images move together.

    Each resample draws P - 1 of the P photographs and S - 1 of the S seeds, with replacement: drawing n of n makes the
    bootstrap variance too small by (n - 1) / n, which matters for the few photographs and seeds of a study (Efron 1982,
    The Jackknife, the Bootstrap and Other Resampling Plans, sec. 6.2; McCarthy and Snowden 1985). Seeds and photographs
    are crossed and drawn independently, which errs on the wide side (Owen 2007, the pigeonhole bootstrap).
    """

    def __init__(self, keys: Sequence[str], generator: np.random.Generator, resamples: int = 10_000) -> None:
        """Draw the photographs.

        Args:
            keys: I keys; see `photograph`.
            generator: from `megasr.rng`.
            resamples: R.

        Raises:
            UsageError: fewer than two photographs.
        """
        self._cluster, self._sizes = cluster_keys(keys)
        if len(self._sizes) < 2:
            raise UsageError(f"{len(self._sizes)} photograph(s): an interval needs at least two")
        self._generator, self._resamples = generator, resamples
        self._photographs = draw_counts(generator, len(self._sizes), resamples)

    def seeds(self, count: int) -> np.ndarray:
        """(R, S) how often each of S seeds is drawn: one draw for all runs that share their seeds."""
        return draw_counts(self._generator, count, self._resamples)

    def means(self, values: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """(R,) means of values (S, I) on the resamples, the seeds drawn as `seeds` (R, S) says."""
        totals = ((seeds @ sum_clusters(values, self._cluster, len(self._sizes))) * self._photographs).sum(1)
        return totals / (seeds.sum(1) * (self._photographs @ self._sizes))


def cluster_keys(keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Which photograph each key is of (I,), and how many keys each has (P,)."""
    _, cluster, sizes = np.unique([photograph(key) for key in keys], return_inverse=True, return_counts=True)
    return cluster, sizes


def sum_clusters(values: np.ndarray, cluster: np.ndarray, count: int) -> np.ndarray:
    """Sums over the crops of each photograph: (S, I) -> (S, P)."""
    sums = [np.bincount(cluster, row, minlength=count) for row in values]
    return np.reshape(sums, (len(values), count))  # also of no rows: a set may be measured by FID alone


def draw_counts(generator: np.random.Generator, count: int, resamples: int) -> np.ndarray:
    """(resamples, count) how often each unit is drawn when count - 1 (at least one) of count are drawn."""
    drawn = generator.integers(count, size=(resamples, max(count - 1, 1)))
    places = drawn + count * np.arange(resamples)[:, None]  # counting them is five times as fast as binomials
    return np.bincount(places.ravel(), minlength=resamples * count).reshape(resamples, count)
