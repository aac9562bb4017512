"""An evaluation beside other numbers of the same images: another evaluation, or scores that someone published."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.evaluator import check_keys
from megasr.evaluation.intervals import Interval, paired_bootstrap
from megasr.evaluation.result import Evaluation, check_weights
from megasr.image_decoding import IMAGE_SUFFIXES
from megasr.rng import numpy_generator

ALPHA = 0.05


@dataclass(frozen=True)
class Difference:
    """A metric of one evaluation minus that of another, image by image.

    Attributes:
        metric: its name.
        interval: of the mean difference.
        verdict: "better", "worse", or "no difference shown" when the interval holds zero or p is not below ALPHA.
    """

    metric: str
    interval: Interval
    verdict: str


@dataclass(frozen=True)
class Deviation:
    """How far the scores of single images lie from published ones.

    Attributes:
        metric: its name.
        largest: absolute.
        median: absolute.
        key: the image of the largest.
    """

    metric: str
    largest: float
    median: float
    key: str


def paired_differences(evaluation: Evaluation, other: Evaluation) -> list[Difference]:
    """Compare two methods on the same images, by the metrics both have.

    Raises:
        UsageError: the protocols, the images or the weights of metrics differ, no metric is in both, or there is a
            single photograph.
        MegaSRError: the protocol has changed since the numbers were taken.
    """
    if evaluation.fingerprint != other.fingerprint:
        raise UsageError(
            f"{evaluation.protocol} {evaluation.fingerprint} and {other.protocol} {other.fingerprint} are two "
            "protocols: their numbers cannot be compared"
        )
    check_keys(other.keys, evaluation.keys)
    check_weights(evaluation, other)
    protocol = evaluation.get_protocol()
    theirs = {row["key"]: row for row in other.rows}
    names = [name for name in evaluation.means if name in other.means]
    if not names:
        raise UsageError(f"no metric in common: {', '.join(evaluation.means)}; {', '.join(other.means)}")
    found = []
    for name in names:
        gaps = np.array([[row[name] - theirs[row["key"]][name] for row in evaluation.rows]])
        interval = paired_bootstrap(gaps, evaluation.keys, numpy_generator(0, "against"))
        better = (interval.mean > 0) == protocol.metric(name).higher_is_better
        shown = interval.excludes_zero and interval.p_value < ALPHA  # few photographs never show anything
        verdict = ("better" if better else "worse") if shown else "no difference shown"
        found.append(Difference(name, interval, verdict))
    return found


def deviations(evaluation: Evaluation, scores: Path) -> list[Deviation]:
    """Compare with a CSV of published scores: a column of file names, then one column per metric, named as here.

    Raises:
        UsageError: the file lacks images that were measured (they are listed), or has no metric in common.
        MegaSRError: the file cannot be read.
    """
    published = _read_scores(scores)
    if missing := [key for key in evaluation.keys if key not in published]:
        raise UsageError(f"{scores} has no scores of {', '.join(missing[:20])}{' ...' * (len(missing) > 20)}")
    columns = set.intersection(*(set(row) for row in published.values()))
    names = [name for name in evaluation.means if name in columns]
    if not names:
        raise UsageError(f"{scores} has no column {' or '.join(evaluation.means)}; it has {', '.join(sorted(columns))}")
    found = []
    for name in names:
        try:
            gaps = [abs(row[name] - float(published[row["key"]][name])) for row in evaluation.rows]
        except (ValueError, TypeError) as error:
            raise MegaSRError(f"{scores}, column {name}: {error}") from error
        worst = int(np.argmax(gaps))
        found.append(Deviation(name, gaps[worst], float(np.median(gaps)), evaluation.keys[worst]))
    return found


def _read_scores(path: Path) -> dict[str, dict[str, str]]:
    """Key -> column -> text; the first column is the name of the file, with or without its ending."""
    try:
        with path.open(newline="") as file:
            rows = [list(row.items()) for row in csv.DictReader(file, strict=True)]
        return {_without_ending(first[1]): {name: text for name, text in rest if name} for first, *rest in rows}
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise MegaSRError(f"{path} is not a table of scores that can be read: {error}") from error


def _without_ending(name: str) -> str:
    ending = Path(name).suffix
    return name.removesuffix(ending) if ending.lower() in IMAGE_SUFFIXES else name
