"""Bootstrap intervals over images and seeds. Pure NumPy; the generator is an argument.

What is resampled: photographs and seeds, not crops. Crops of one photograph share its content and its noise, so they
are not independent. A key "<photograph>/<top>-<left>" names a crop of a photograph, as does "<photograph>_pch_<number>"
in StableSR's DIV2K-Val; any other key is an image of its own. Runs of one seed share their noise across all
photographs, so seeds are resampled whole as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megasr.errors import UsageError

_CROP = re.compile(r"(?<=.)(/\d+-\d+|_pch_\d+)$")
_CHUNK = 1000


@dataclass(frozen=True)
class Interval:
    """A mean paired difference with its confidence interval.

    Attributes:
        mean: over all images and seeds.
        low: lower end of the interval.
        high: upper end.
        p_value: two-sided, from the same bootstrap; at least 2 / (resamples + 1), and at least 2 / 2**photographs, the
            smallest p-value of a sign-flip test: a bootstrap of few photographs is surer than it may be.
        photographs: independent photographs behind it.
        seeds: seeds behind it; with one seed the interval says nothing about other seeds.
    """

    mean: float
    low: float
    high: float
    p_value: float
    photographs: int
    seeds: int

    @property
    def excludes_zero(self) -> bool:
        """The whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def photograph(key: str) -> str:
    """The photograph a key belongs to: "lake/0-128" and "lake_pch_7" (crops) -> "lake", "eval-scene/3" is one."""
    return _CROP.sub("", key)


def paired_bootstrap(
    differences: np.ndarray,
    keys: Sequence[str],
    generator: np.random.Generator,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> Interval:
    """Percentile bootstrap of the mean difference, over photographs as clusters and over seeds.

    Each resample draws P - 1 of the P photographs and S - 1 of the S seeds, with replacement: drawing n of n makes the
    bootstrap variance too small by (n - 1) / n, which matters for the few photographs and seeds of a study (Efron 1982,
    The Jackknife, the Bootstrap and Other Resampling Plans, sec. 6.2; McCarthy and Snowden 1985). Seeds and photographs
    are crossed and drawn independently, which errs on the wide side (Owen 2007, the pigeonhole bootstrap). Measured
    coverage of 95 % intervals of normal data: 87 % with 5 photographs, 90 % with 8, 94 % with 16 (92 % when the runs of
    2 seeds differ as well).

    Args:
        differences: (S, I), seeds by images.
        keys: I keys; see `photograph`.
        generator: from `megasr.rng`.
        confidence: of the interval, in (0, 1).
        resamples: bootstrap resamples.

    Raises:
        UsageError: fewer than two photographs, from which no interval can be had, or shapes do not fit.
    """
    if differences.ndim != 2 or differences.shape[1] != len(keys):
        raise UsageError(f"differences of shape {differences.shape} do not fit {len(keys)} keys")
    names, cluster = np.unique([photograph(key) for key in keys], return_inverse=True)
    seeds, count = len(differences), len(names)
    if count < 2:
        raise UsageError(f"{count} photograph(s): an interval needs at least two")
    sums = np.stack([np.bincount(cluster, row, minlength=count) for row in differences])  # (S, P)
    sizes = np.bincount(cluster, minlength=count)
    seed_weights = _multinomial(generator, seeds, resamples)
    photo_weights = _multinomial(generator, count, resamples)
    totals = ((seed_weights @ sums) * photo_weights).sum(1)
    means = totals / (seed_weights.sum(1) * (photo_weights @ sizes))
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    sides = [(1 + int((means <= 0).sum())), (1 + int((means >= 0).sum()))]
    p_value = min(1.0, max(2 * min(sides) / (resamples + 1), 2.0 ** (1 - count)))
    return Interval(float(differences.mean()), float(low), float(high), p_value, count, seeds)


def mean_intervals(
    values: np.ndarray, keys: Sequence[str], generator: np.random.Generator, resamples: int = 10_000
) -> list[tuple[float, float]]:
    """95 % percentile bootstrap intervals of the means over images, over photographs as in paired_bootstrap.

    The same resamples serve every metric. They say how far a mean may move with other photographs of the same kind,
    not with other noise of the sampler.

    Args:
        values: (I, M), images by metrics.
        keys: I keys.
        generator: from `megasr.rng`.
        resamples: bootstrap resamples.

    Returns:
        M pairs (low, high); none for fewer than two photographs, from which no interval can be had.
    """
    names, cluster = np.unique([photograph(key) for key in keys], return_inverse=True)
    count = len(names)
    if count < 2:
        return []
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, cluster, values)
    sizes = np.bincount(cluster, minlength=count)
    means = []
    for start in range(0, resamples, _CHUNK):  # thousands of photographs would need gigabytes at once
        weights = _multinomial(generator, count, min(_CHUNK, resamples - start))
        means.append((weights @ sums) / (weights @ sizes)[:, None])
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975], axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def _multinomial(generator: np.random.Generator, count: int, resamples: int) -> np.ndarray:
    """(resamples, count) how often each unit is drawn when count - 1 (at least one) of count are drawn."""
    return generator.multinomial(max(count - 1, 1), np.full(count, 1 / count), size=resamples)
