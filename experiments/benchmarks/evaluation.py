"""How long an evaluation takes, against pyiqa's own calls in a loop.

    python -m experiments.benchmarks.evaluation --sr DIR --hq DIR --output evaluation.json

The metrics are those of weight-free-v1. The contenders take turns in every round, with torch's default threads:

    pyiqa      every metric of pyiqa called on every pair, the pairs in memory; its own result per metric is timed too
    one        Evaluator.vectors, one pair per call
    batch      Evaluator.vectors, all pairs in one call
    files      evaluate_folder: reading and measuring
    pyiqa_files  every metric of pyiqa called with the two paths

`ratio` is the time of one, batch and files over pyiqa's (files over pyiqa_files), of the medians of all rounds.
`largest_difference` is between the numbers of pyiqa and of `batch`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks.record import publish
from megasr.evaluation.evaluator import Evaluator
from megasr.evaluation.folders import evaluate_folder, load_pair
from megasr.evaluation.metrics import quiet_pyiqa
from megasr.evaluation.pairing import pair_by_name
from megasr.evaluation.protocol import WEIGHT_FREE_V1


def pyiqa_metrics() -> dict[str, Callable[..., torch.Tensor]]:
    """pyiqa's metrics as the protocol means them."""
    import pyiqa

    found = {}
    for spec in WEIGHT_FREE_V1.metrics:
        on_y = {"test_y_channel": True, "color_space": WEIGHT_FREE_V1.color_space} if spec.on_y else {}
        found[spec.name] = pyiqa.create_metric(spec.pyiqa_name, device="cpu", **on_y, **dict(spec.arguments))
    return found


def measure(sr: Path, hq: Path, rounds: int) -> dict[str, Any]:
    """All results."""
    with quiet_pyiqa():
        theirs = pyiqa_metrics()
    evaluator = Evaluator(WEIGHT_FREE_V1)
    pairs = pair_by_name(sr, hq)
    images = [load_pair(pair) for pair in pairs]
    keys = [image.key for image in images]
    sr_all, hq_all = torch.cat([image.sr for image in images]), torch.cat([i.hq for i in images if i.hq is not None])

    def loop() -> list[list[float]]:
        return [[float(metric(i.sr, i.hq)) for metric in theirs.values()] for i in images]

    contenders: dict[str, Callable[[], Any]] = {
        "pyiqa": loop,
        "one": lambda: [evaluator.vectors(i.sr, i.hq, [i.key]) for i in images],
        "batch": lambda: evaluator.vectors(sr_all, hq_all, keys),
        "files": lambda: evaluate_folder(sr, hq, evaluator),
        "pyiqa_files": lambda: [[float(m(str(p.sr), str(p.hq))) for m in theirs.values()] for p in pairs],
    }
    gap = (torch.tensor(loop(), dtype=torch.float64) - evaluator.vectors(sr_all, hq_all, keys)).abs().amax(0)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        names = [*contenders][number % len(contenders) :] + [*contenders][: number % len(contenders)]
        for name in names:
            seconds[name].append(_seconds(contenders[name]))
    median = {name: statistics.median(found) for name, found in seconds.items()}
    against = {"one": "pyiqa", "batch": "pyiqa", "files": "pyiqa_files"}
    return {
        "pairs": len(pairs),
        "size_px": list(sr_all.shape[-2:]),
        "torch_threads": torch.get_num_threads(),
        "seconds": {name: round(value, 2) for name, value in median.items()},
        "seconds_of_rounds": {name: [round(value, 2) for value in found] for name, found in seconds.items()},
        "ratio": {name: round(median[name] / median[other], 3) for name, other in against.items()},
        "pyiqa_ms_per_pair": {
            name: round(1000 / len(images) * _seconds(lambda m=metric: [m(i.sr, i.hq) for i in images]), 1)
            for name, metric in theirs.items()
        },
        "largest_difference": dict(zip(theirs, gap.tolist(), strict=True)),
    }


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sr", type=Path, required=True, help="folder of restored images of one size")
    parser.add_argument("--hq", type=Path, required=True, help="folder of ground truth with the same names")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    publish(
        "evaluation",
        {"rounds": arguments.rounds, "protocol": WEIGHT_FREE_V1.name},
        measure(arguments.sr, arguments.hq, arguments.rounds),
        arguments.output,
    )


if __name__ == "__main__":
    main()
