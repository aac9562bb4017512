"""How many more photographs or seeds would decide what a study leaves open."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist

from megasr.evaluation.intervals import Interval

_MOST = 10_000  # more is not a plan


def photographs_needed(interval: Interval, least: float, alpha: float) -> int | None:
    """Photographs with which the interval at level 1 - alpha would lie beyond `least`, were the mean the true one.

    Errors fall with the root of the number of photographs; that of the seeds stays. More than there are, for these have
    not decided it. None when no number would do.
    """
    needed = _needed(interval.photographs, interval.photo_error, interval.seed_error, interval.mean, least, alpha)
    return None if needed is None else max(needed, _fewest(alpha))


def _fewest(alpha: float) -> int:
    """Photographs whose smallest p-value, 2 / 2**photographs (see Interval), is below alpha."""
    return math.floor(1 - math.log2(alpha)) + 1


def seeds_needed(interval: Interval, least: float, alpha: float) -> int | None:
    """As photographs_needed, of seeds. None also with one seed, which says nothing of others, or few photographs."""
    if interval.seeds == 1 or interval.photographs < _fewest(alpha):
        return None
    return _needed(interval.seeds, interval.seed_error, interval.photo_error, interval.mean, least, alpha)


def _needed(count: int, error: float, other: float, mean: float, least: float, alpha: float) -> int | None:
    reach = max(0.0, abs(mean) - least) / NormalDist().inv_cdf(1 - alpha / 2)
    room = reach**2 - other**2
    return None if room <= 0 else max(count + 1, math.ceil(count * error**2 / room))


def what_would_decide(
    undecided: Mapping[str, Interval], metric: str, least: float, alpha: float, photographs: str = "photographs"
) -> str:
    """What would decide each comparison that is left open, at the difference that was seen.

    Args:
        undecided: ablation -> interval of its difference to the reference, at least one.
        metric: of the differences.
        least: smallest difference that counts.
        alpha: level of one comparison.
        photographs: what they are called, with their set where there are several.
    """
    lines = []
    for name, interval in undecided.items():
        numbers = {
            photographs: photographs_needed(interval, least, alpha), "seeds": seeds_needed(interval, least, alpha),
        }  # fmt: skip
        ways = [f"{number:,} {kind}" for kind, number in numbers.items() if number is not None and number <= _MOST]
        lines.append(f"{name} ({interval.mean:+.2g}): {' or '.join(ways) or 'no number of either alone'}")
    return (
        f"What would decide, were the differences in {metric} as large as they were seen (half as large takes four "
        f"times as many): {'; '.join(lines)}."
    )
