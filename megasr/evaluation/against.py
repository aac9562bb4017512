"""An evaluation beside other numbers of the same images: another evaluation, or scores that someone published."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

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
    names = [name for name in evaluation.means if name in other.means]
    if not names:
        raise UsageError(f"no metric in common: {', '.join(evaluation.means)}; {', '.join(other.means)}")
    mine, theirs = (pd.DataFrame(one.rows).set_index("key")[names] for one in (evaluation, other))
    gaps = mine - theirs.loc[mine.index]
    differences = []
    for name in names:
        interval = paired_bootstrap(gaps[name].to_numpy()[None], evaluation.keys, numpy_generator(0, "against"))
        better = (interval.mean > 0) == protocol.metric(name).higher_is_better
        shown = interval.excludes_zero and interval.p_value < ALPHA  # few photographs never show anything
        verdict = ("better" if better else "worse") if shown else "no difference shown"
        differences.append(Difference(name, interval, verdict))
    return differences


def deviations(evaluation: Evaluation, scores: Path) -> pd.DataFrame:
    """How far the scores of single images lie from published ones.

    Args:
        evaluation: what was measured here.
        scores: CSV with a column of file names, with or without their ending, then one column per metric, named as
            here.

    Returns:
        One row per metric (the index) with the largest and the median absolute deviation, and the image (key) of the
        largest.

    Raises:
        UsageError: the file lacks images that were measured (they are listed), or has no metric in common.
        MegaSRError: the file cannot be read.
    """
    try:
        published = pd.read_csv(scores, index_col=False, dtype=str)  # False: a comma too many at a line's end
        published = published.set_index(published.columns[0])
    except (OSError, ValueError) as error:
        raise MegaSRError(f"{scores} is not a table of scores that can be read: {error}") from error
    published.index = published.index.astype(str).map(_without_ending)
    if missing := [key for key in evaluation.keys if key not in published.index]:
        raise UsageError(f"{scores} has no scores of {', '.join(missing[:20])}{' ...' * (len(missing) > 20)}")
    names = [name for name in evaluation.means if name in published]
    if not names:
        columns = ", ".join(sorted(published))
        raise UsageError(f"{scores} has no column {' or '.join(evaluation.means)}; it has {columns}")
    rows = {}
    for name in names:
        try:
            values = np.array([float(published.loc[key, name]) for key in evaluation.keys])
        except (ValueError, TypeError) as error:
            raise MegaSRError(f"{scores}, column {name}: {error}") from error
        if np.isnan(values).any():
            raise MegaSRError(
                f"{scores}, column {name}: {evaluation.keys[int(np.isnan(values).argmax())]} has no value"
            )
        gaps = np.abs(np.array([row[name] for row in evaluation.rows]) - values)
        rows[name] = {"largest": gaps.max(), "median": np.median(gaps), "key": evaluation.keys[int(gaps.argmax())]}
    return pd.DataFrame.from_dict(rows, orient="index")


def _without_ending(name: str) -> str:
    ending = Path(name).suffix
    return name.removesuffix(ending) if ending.lower() in IMAGE_SUFFIXES else name
