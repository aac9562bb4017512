"""How much of the gain of perfect maps survives degradation: `python -m experiments.guidance.survival`.

The arms are recipes that start from one trained ControlNet and train on for equal steps with the same seeds: without
guidance, with exact maps of hq (oracle), and with maps of lq by extractors before (plain) and after fine-tuning (pgft).
The gain of an arm is its paired difference to the first; what survives is its gain over the oracle's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ablations.statistics import paired_differences
from experiments.reference.records import REFERENCES, Reference, by_key, read_reference
from megasr.errors import UsageError
from megasr.evaluation.intervals import paired_bootstrap
from megasr.evaluation.protocol import get_protocol
from megasr.rng import numpy_generator

ARMS = ("oracle", "plain", "pgft")
_RESAMPLES = 10_000


def gains(arm: Reference, none: Reference, metric: str) -> tuple[np.ndarray, list[str]]:
    """(S, I) paired differences of an arm to no guidance, a gain being positive, and the I images.

    Raises:
        UsageError: they have other seeds or images.
    """
    if arm.seeds != none.seeds:
        raise UsageError(
            f"{arm.recipe} has seeds {arm.seeds}, {none.recipe} has {none.seeds}: measure the missing ones"
        )
    mine, theirs = ([by_key(run.rows, metric) for run in reference.runs] for reference in (arm, none))
    differences, keys = paired_differences(mine, theirs)
    better = get_protocol(arm.protocol).metric(metric).higher_is_better
    return differences if better else -differences, keys


def survival(arm: np.ndarray, oracle: np.ndarray, generator: np.random.Generator) -> tuple[float, float, float]:
    """Share of the oracle's gain that an arm keeps, with its 95 % interval over seeds and images, resampled together.

    A share of a gain that may be nothing has no finite interval: the ends are then infinite or far apart, which is the
    right thing to say.
    """
    seeds, images = arm.shape
    of_seeds = generator.multinomial(max(seeds - 1, 1), np.full(seeds, 1 / seeds), size=_RESAMPLES)
    of_images = generator.multinomial(images - 1, np.full(images, 1 / images), size=_RESAMPLES)
    kept, whole = (((of_seeds @ values) * of_images).sum(1) for values in (arm, oracle))
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(whole > 0, kept / whole, np.inf * np.sign(kept))
    low, high = np.nanquantile(shares, [0.025, 0.975])
    return float(arm.mean() / oracle.mean()), float(low), float(high)


def table(folder: Path) -> str:
    """Markdown: the gain of every arm in every metric, and what survives of the oracle's."""
    none, *arms = (read_reference(folder / "survival" / f"{name}.json") for name in ("none", *ARMS))
    lines = [f"| metric | {' | '.join(f'gain of {a}' for a in ARMS)} | plain keeps | pgft keeps |"]
    lines.append("|" + " --- |" * 6)
    for metric in none.metrics:
        values = [gains(arm, none, metric) for arm in arms]
        cells = []
        for name, (differences, keys) in zip(ARMS, values, strict=True):
            i = paired_bootstrap(differences, keys, numpy_generator(0, "survival", name, metric))
            cells.append(f"{i.mean:+.4f} [{i.low:+.4f}, {i.high:+.4f}]")
        for name, (differences, _) in list(zip(ARMS, values, strict=True))[1:]:
            share, low, high = survival(differences, values[0][0], numpy_generator(0, "share", name, metric))
            cells.append(
                f"{share:.0%} [{low:.0%}, {high:.0%}]" if values[0][0].mean() > 0 else "the oracle gains nothing"
            )
        lines.append(f"| {metric} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table of the measured arms."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--references", type=Path, default=REFERENCES, help="folder (default: the repository's)")
    print(table(parser.parse_args().references))


if __name__ == "__main__":
    main()
