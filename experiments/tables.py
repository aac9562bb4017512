"""The tables of measured adapters, from the results of studies that are kept in experiments/reference.

    python -m experiments.tables --write docs/results.md

A folder there holds scores.csv and results.json as `megasr study run` wrote them: copy both to add a study.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ablations.statistics import paired_differences
from megasr.errors import UsageError
from megasr.evaluation.intervals import Interval, paired_bootstrap
from megasr.evaluation.protocol import get_protocol
from megasr.files import write_whole
from megasr.rng import numpy_generator

REFERENCE = Path(__file__).parent / "reference"
BLOCK = "reference"
BICUBIC = "bicubic"
SHOWN = {"survival": "none", "parts": "controlnet_only"}  # folder -> ablation that all others are compared with
COMPARED = ("ssim_y", "fsim")  # fidelity of pixels and of structure


@dataclass(frozen=True)
class Scores:
    """The scores of a study.

    Attributes:
        name: of the folder.
        rows: a row per ablation, seed (NaN for bicubic) and image `key`, with a column per metric.
        runs: of results.json: ablation, seed, steps, train_s, commit, device, ..
        protocol: name of the protocol.
    """

    name: str
    rows: pd.DataFrame
    runs: list[dict[str, Any]]
    protocol: str

    @property
    def metrics(self) -> list[str]:
        """In the order of the protocol."""
        return [name for name in self.rows if name not in ("ablation", "seed", "key")]

    def seeds(self, ablation: str) -> list[float]:
        """Seeds of an ablation."""
        return sorted(self.rows.seed[self.rows.ablation == ablation].unique())

    def values(self, ablation: str, metric: str, seeds: Sequence[float] = ()) -> list[dict[str, float]]:
        """{key: value} for every seed; the one of bicubic has none."""
        mine = self.rows[self.rows.ablation == ablation]
        parts = [mine] if ablation == BICUBIC else [mine[mine.seed == s] for s in seeds or self.seeds(ablation)]
        return [dict(zip(part.key, part[metric], strict=True)) for part in parts]

    def differences(self, ablation: str, other: str | None, metric: str) -> tuple[np.ndarray, list[str]]:
        """(S, I) values of an ablation minus those of another one with the same seeds (None: zero), and the I keys.

        Raises:
            UsageError: they have other images, or no seed in common.
        """
        if other is None:
            mine = self.values(ablation, metric)
            return paired_differences(mine, [dict.fromkeys(mine[0], 0.0)])
        common = [seed for seed in self.seeds(ablation) if other == BICUBIC or seed in self.seeds(other)]
        if not common:
            raise UsageError(f"{self.name}: {ablation} and {other} have no seed in common")
        return paired_differences(self.values(ablation, metric, common), self.values(other, metric, common))

    def interval(self, ablation: str, other: str | None, metric: str) -> Interval:
        """Mean and 95 % interval of these differences over images and seeds."""
        prefix = "tiny/" if self.name == "parts" else f"{self.name}/"  # as the first measurements were called
        names = [name if name == BICUBIC else prefix + name for name in (ablation, other) if name is not None]
        generator = numpy_generator(0, "reference", *names, metric)
        return paired_bootstrap(*self.differences(ablation, other, metric), generator)


def read_scores(folder: Path) -> Scores:
    """The results of a study, as its report has written them. Raises UsageError when a file cannot be read."""
    try:
        results = json.loads((folder / "results.json").read_text())
        rows = pd.read_csv(folder / "scores.csv")
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder}: no results of a study ({error})") from error
    return Scores(folder.name, rows, results["runs"], results["protocol"]["name"])


def make_tables(folder: Path = REFERENCE) -> str:
    """Two tables for each of SHOWN: means, and paired differences of COMPARED, with intervals."""
    return "\n\n".join(_tables(read_scores(folder / name), against) for name, against in SHOWN.items())


def _tables(scores: Scores, against: str) -> str:
    protocol = get_protocol(scores.protocol)
    arrows = [f"{name} {'↑' if protocol.metric(name).higher_is_better else '↓'}" for name in scores.metrics]
    ablations = [name for name in scores.rows.ablation.unique() if name not in (BICUBIC, against)]
    means, differences = [], []
    for name in (BICUBIC, against, *sorted(ablations)):
        runs = [run for run in scores.runs if run["ablation"] == name]
        cells = [_text(scores.interval(name, None, metric)) for metric in scores.metrics]
        minutes = f"{np.mean([run['train_s'] for run in runs]) / 60:.1f} min" if runs else "-"
        seeds = ", ".join(str(run["seed"]) for run in runs) or "-"
        means.append([name, *cells, minutes, seeds, runs[0]["steps"] if runs else "-"])
        if name != BICUBIC:
            pairs = [(metric, other) for metric in COMPARED for other in (BICUBIC, against)]
            cells = [
                "-" if other == name else _text(scores.interval(name, other, metric), "+") for metric, other in pairs
            ]
            differences.append([name, *cells])
    columns = [f"{metric} - {other}" for metric in COMPARED for other in (BICUBIC, against)]
    commits = ", ".join(sorted({str(run["commit"]) for run in scores.runs}))
    caption = (
        f"Protocol {scores.protocol}, {scores.rows.key.nunique()} images; means with 95 % intervals over images and "
        f"seeds, differences paired over both and not corrected for their number. Code: {commits}."
    )
    frames = (
        pd.DataFrame(means, columns=["adapter", *arrows, "training", "seeds", "steps"]),
        pd.DataFrame(differences, columns=["adapter", *columns]),
    )
    return "\n\n".join([*(frame.to_markdown(index=False, disable_numparse=True) for frame in frames), caption])


def _text(interval: Interval, sign: str = "") -> str:
    places = 2 if abs(interval.mean) >= 10 else 4
    mean, low, high = (f"{value:{sign}.{places}f}" for value in (interval.mean, interval.low, interval.high))
    return f"{mean} [{low}, {high}]"


def replace_block(text: str, block: str, name: str = BLOCK) -> str:
    """The text with what stands between the marks `name` replaced. Raises UsageError when the marks are missing."""
    begin, end = marks(name)
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise UsageError(f"no {begin} followed by {end}: nowhere to write the tables")
    return f"{before}{begin}\n{block}\n{end}{after}"


def marks(name: str) -> tuple[str, str]:
    """The lines between which a document holds generated tables."""
    return f"<!-- {name} -->", f"<!-- /{name} -->"


def main() -> None:
    """Print the tables, or write them into a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace what stands between the marks in this file")
    path = parser.parse_args().write
    if path is None:
        print(make_tables())
    else:
        write_whole(path, replace_block(path.read_text(), make_tables()).encode())


if __name__ == "__main__":
    main()
