"""Do the metrics of an evaluation agree with one another: over images, and on which of two methods is better?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from megasr.evaluation.evaluator import Evaluation
from megasr.evaluation.intervals import photograph

_FEWEST = 4  # images; of three, two orders out of six are perfect


@dataclass(frozen=True)
class RankCorrelations:
    """Spearman's rank correlations between metrics.

    Attributes:
        table: metric by metric, in [-1, 1]; NaN where a metric is the same everywhere. Metrics that prefer the same
            images correlate positively, whether high or low values are better.
        what: what was ranked, in words.
        noise: correlations smaller than this in size are not significant at 5 %: 1.96 / sqrt(N - 1) of N photographs.
    """

    table: pd.DataFrame
    what: str
    noise: float

    @property
    def caption(self) -> str:
        """What was ranked, and from which size correlations are significant (5 %)."""
        return f"Rank correlations over {self.what}; those below {self.noise:.2f} in size are not significant"

    @property
    def cells(self) -> pd.DataFrame:
        """The table as text."""
        return self.table.map(lambda value: "–" if pd.isna(value) else f"{value:+.2f}")

    def markdown(self) -> str:
        """The caption and the table."""
        text = self.cells.rename_axis("").reset_index().to_markdown(index=False, disable_numparse=True)
        return f"{self.caption}:\n\n{text}"

    def as_data(self) -> dict[str, Any]:
        """For a page: the caption, the metrics, and a row of text for each."""
        return {"caption": self.caption, "metrics": list(self.cells), "rows": self.cells.to_numpy().tolist()}


def can_correlate(metrics: int, images: int) -> bool:
    """Whether so many metrics of so many images are enough for rank correlations."""
    return metrics >= 2 and images >= _FEWEST


def rank_correlations(first: Evaluation, others: Sequence[Evaluation] = ()) -> RankCorrelations | None:
    """Correlate the metrics per image that all evaluations have.

    Of one evaluation its scores are ranked. Of several it is what each other has gained over the first on every image,
    which is free of how hard the image is.

    Returns:
        None when there are fewer than two metrics or four images.

    Raises:
        MegaSRError: the protocol has changed since the numbers were taken.
    """
    names = [name for name in first.means if all(name in other.means for other in others)]
    if not can_correlate(len(names), len(first.rows)):
        return None
    protocol = first.get_protocol()
    signs = pd.Series({name: 1 if protocol.metric(name).higher_is_better else -1 for name in names})
    scores, *theirs = (pd.DataFrame(one.rows).set_index("key")[names] * signs for one in (first, *others))
    what = f"{len(scores)} images"
    if theirs:
        scores = pd.concat([frame.loc[scores.index] - scores for frame in theirs])
        what = f"gains of {len(theirs)} method{'s' * (len(theirs) > 1)} over the first on {what}"
    photographs = len({photograph(key) for key in first.keys})
    return RankCorrelations(scores.corr("spearman"), what, 1.96 / math.sqrt(max(1, photographs - 1)))


def conflict(verdicts: Mapping[str, str]) -> str:
    """A warning where some metrics show that a method is better and others that it is worse; empty where none do.

    Args:
        verdicts: metric -> "better", "worse" or anything else, as of megasr.evaluation.comparison.Difference.
    """
    better, worse = ([name for name, said in verdicts.items() if said == verdict] for verdict in ("better", "worse"))
    if not better or not worse:
        return ""
    return (
        f"metrics disagree: better in {', '.join(better)}, worse in {', '.join(worse)}. Look at the pictures; of all "
        "metrics, PSNR and SSIM follow people's preferences least (2503.13074)"
    )
