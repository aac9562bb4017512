"""How much prior-guided fine-tuning repairs: `python -m experiments.guidance.repair --help`.

Of every image, what the network before tuning makes of hq is right. Measured is how far from it the same network is on
lq, and how far the tuned one is. Intervals are over images (a bootstrap of both errors together).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from data_pipelines.samples import SampleSet
from experiments.guidance.pictures import SCALE_FACTOR, batches, photographs, scenes
from megasr.files import write_whole
from megasr.images import upsample_lq
from megasr.rng import numpy_generator
from megasr.training.distillation import Student, answer_error, load_student

_RESAMPLES = 10_000


@dataclass(frozen=True)
class Repair:
    """One output of a network on one set of images: mean errors on lq (units: see answer_error) before and after.

    `removed` is the share of the error that is gone, from `low` to `high` its 95 % interval.
    """

    images: str
    output: str
    before: float
    after: float
    removed: float
    low: float
    high: float
    count: int


@torch.no_grad()
def measure(before: Student, after: Student, images: str, data: SampleSet) -> Iterator[Repair]:
    """Compare two networks on every image of a set, output by output."""
    errors: dict[str, list[list[float]]] = {}
    for batch in batches(data, images):
        lq_up = upsample_lq(batch["lq"], SCALE_FACTOR)
        right, old, new = before.answers(batch["hq"]), before.answers(lq_up), after.answers(lq_up)
        for name in right:
            pair = [answer_error(name, answers[name], right[name]).item() for answers in (old, new)]
            errors.setdefault(name, []).append(pair)
    for name, pairs in errors.items():
        count = len(pairs)
        weights = numpy_generator(0, "repair", name).multinomial(count - 1, np.full(count, 1 / count), size=_RESAMPLES)
        resampled = weights @ np.array(pairs)
        low, high = np.quantile(1 - resampled[:, 1] / resampled[:, 0], [0.025, 0.975])
        old_error, new_error = np.mean(pairs, 0)
        removed = 1 - new_error / old_error
        yield Repair(images, name, old_error, new_error, removed, float(low), float(high), count)


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="hed", help="`clip`, or a guidance type that names the loader")
    parser.add_argument("--before", default="tiny", help="source of the weights before tuning")
    parser.add_argument("--after", default="tiny_lq", help="source of the tuned weights")
    parser.add_argument("--photographs", type=Path, help="folder (default: the shipped ones)")
    parser.add_argument("--size", type=int, default=128, help="of the photographs' centre crops, in px (default: 128)")
    parser.add_argument("--images", type=int, default=100, help="of each set at most (default: 100)")
    parser.add_argument("--degradation", default="realesrgan_strong", help="what makes lq (default: realesrgan_strong)")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    before, after = (load_student(options.network, source, "") for source in (options.before, options.after))
    name = options.photographs.parent.name if options.photographs else "shipped"
    sets = {
        "held-out scenes": scenes(options.images, options.degradation),
        f"photographs ({name})": photographs(options.photographs, options.images, options.degradation, options.size),
    }
    rows = [row for images, data in sets.items() for row in measure(before, after, images, data)]
    print("| images | output | error before | after | removed |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        removed = f"{row.removed:.0%} [{row.low:.0%}, {row.high:.0%}]"
        print(f"| {row.images} ({row.count}) | {row.output} | {row.before:.4f} | {row.after:.4f} | {removed} |")
    if options.out:
        write_whole(options.out, (json.dumps([asdict(row) for row in rows], indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
