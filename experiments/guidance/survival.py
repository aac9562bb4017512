"""How much of the gain of perfect maps survives degradation: `python -m experiments.guidance.survival`.

The arms are recipes that start from one trained ControlNet and train on for equal steps with the same seeds: without
guidance, with exact maps of hq (oracle), and with maps of lq by extractors before (plain) and after fine-tuning (pgft).
The gain of an arm is its paired difference to the first; what survives is its gain over the oracle's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from experiments.tables import REFERENCE, Scores, read_scores
from megasr.errors import UsageError
from megasr.evaluation.intervals import paired_bootstrap
from megasr.evaluation.protocol import get_protocol
from megasr.rng import numpy_generator

ARMS = ("oracle", "plain", "pgft")
_RESAMPLES = 4_000
_FARTHEST = 10.0


def gains(scores: Scores, arm: str, metric: str) -> tuple[np.ndarray, list[str]]:
    """(S, I) paired differences of an arm to no guidance, a gain being positive, and the I images.

    Raises:
        UsageError: they have other seeds or images.
    """
    if scores.seeds(arm) != scores.seeds("none"):
        raise UsageError(f"{arm} has seeds {scores.seeds(arm)}, none has {scores.seeds('none')}: run the missing ones")
    differences, keys = scores.differences(arm, "none", metric)
    return differences if get_protocol(scores.protocol).metric(metric).higher_is_better else -differences, keys


def survival(arm: np.ndarray, oracle: np.ndarray, keys: Sequence[str]) -> tuple[float, float, float]:
    """Share of the oracle's gain that an arm keeps, with its 95 % interval.

    Fieller's: the shares s at which arm - s * oracle, paired, is not told apart from zero. So it holds 0 exactly when
    the arm's own gain is not shown. A share of a gain that is hardly shown itself reaches far, or to infinity.

    Args:
        arm: (S, I) gains, seeds by images.
        oracle: (S, I) gains of the same seeds and images, positive on the whole.
        keys: I images.
    """

    def possible(share: float) -> bool:
        rest = paired_bootstrap(arm - share * oracle, keys, numpy_generator(0, "share"), resamples=_RESAMPLES)
        return not rest.excludes_zero

    share = float(arm.mean() / oracle.mean())
    low, high = (_last(lambda distance, side=side: possible(share + side * distance)) for side in (-1, 1))
    return share, share - low, share + high


def _last(possible: Callable[[float], bool]) -> float:
    """The distance from 0 up to which a thing is possible, to a thousandth; infinite beyond _FARTHEST."""
    inside, outside = 0.0, 0.05
    while possible(outside):
        inside, outside = outside, outside * 2
        if inside > _FARTHEST:
            return float("inf")
    while outside - inside > 1e-3:
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if possible(middle) else (inside, middle)
    return inside


def table(folder: Path) -> str:
    """Markdown: the gain of every arm in every metric, and what survives of the oracle's."""
    scores = read_scores(folder)
    lines = [f"| metric | {' | '.join(f'gain of {a}' for a in ARMS)} | plain keeps | pgft keeps |", "|" + " --- |" * 6]
    for metric in scores.metrics:
        values = [gains(scores, arm, metric) for arm in ARMS]
        cells = []
        for name, (differences, keys) in zip(ARMS, values, strict=True):
            i = paired_bootstrap(differences, keys, numpy_generator(0, "survival", name, metric))
            cells.append(f"{i.mean:+.4f} [{i.low:+.4f}, {i.high:+.4f}]")
        oracle = values[0][0]
        for differences, keys in values[1:]:
            share, low, high = survival(differences, oracle, keys) if oracle.mean() > 0 else (0.0, 0.0, 0.0)
            cells.append(f"{share:.0%} [{low:.0%}, {high:.0%}]" if oracle.mean() > 0 else "nothing to keep")
        lines.append(f"| {metric} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table of the measured arms."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=REFERENCE / "survival", help="default: the repository's")
    print(table(parser.parse_args().results))


if __name__ == "__main__":
    main()
