"""Do two studies rank the combinations of guidance types alike, as an amortised one and one of separate runs?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ablations.attribution import Estimate, Subset, kendall, seed_agreement
from ablations.conclusions import scores_of
from ablations.results import StudyResult
from ablations.tables import protocol_lines
from megasr.errors import UsageError
from megasr.rng import numpy_generator


@dataclass(frozen=True)
class Agreement:
    """How well one study predicts another.

    Attributes:
        studies: names of the one that predicts and of the one that is predicted.
        metric: the primary metric of both.
        gains: combination -> (gain over no guidance in the first, in the other), larger being better, the first's best
            first.
        tau: Kendall's tau-b of the two rankings, in [-1, 1].
        regret: what is lost in the other study by taking the first's best combination, in the metric's unit, 0 or more.
        moved: root mean square of the differences between the gains, in the metric's unit: of one study on two machines
            it is what the machine does.
        own: mean tau between single seeds of the other study, the scale of `tau`; None with one seed.
    """

    studies: tuple[str, str]
    metric: str
    gains: dict[str, tuple[float, ...]]
    tau: Estimate
    regret: float
    moved: float
    own: float | None = None

    @property
    def verdict(self) -> str:
        """One sentence for people that claims no more than the interval."""
        first, other = self.studies
        if self.tau.low > 0:
            return f"{first} predicts the ranking of {other}."
        if self.tau.high < 0:
            return f"{first} ranks the other way round than {other}: do not use it in its place."
        return f"Whether {first} predicts the ranking of {other} is not shown: do not use it in its place."

    def as_markdown(self) -> str:
        """Tau, the sentence, the regret, and the two gains of every combination."""
        first, other = self.studies
        tau = f"{self.tau.mean:+.2f} [{self.tau.low:+.2f}, {self.tau.high:+.2f}]"
        scale = f"{other} has one seed: whether it predicts itself is not known."
        if self.own is not None:
            scale = f"For scale: single seeds of {other} predict one another with a tau of {self.own:+.2f}."
        rows = [(name, f"{a:+.4f}", f"{b:+.4f}") for name, (a, b) in self.gains.items()]
        table = pd.DataFrame(rows, columns=["gain over no guidance", first, other])
        lines = [
            f"Kendall's tau over {len(rows)} combinations in {self.metric}: {tau}. {self.verdict}",
            scale,
            f"Taking {rows[0][0]}, the best of {first}, loses {self.regret:.4f} in {other}.",
            f"A gain in one differs from that in the other by {self.moved:.2g} (root mean square). Where both are one "
            f"study on two machines, twice that is its study.least_difference: {2 * self.moved:.2g}.",
            "",
            table.to_markdown(index=False, disable_numparse=True),
        ]
        return "\n".join(lines)


def compare_studies(first: StudyResult, other: StudyResult) -> Agreement:
    """How well `first` predicts `other`, over the combinations that both have finished.

    Raises:
        UsageError: they were judged by other metrics, on other images, or have fewer than two combinations in common.
    """
    names = first.study.name, other.study.name
    metric, judged_by = first.study.primary_metric, other.study.primary_metric
    if metric != judged_by or first.primary_set.protocol.fingerprint != other.primary_set.protocol.fingerprint:
        mine, their = (", ".join(protocol_lines(result)) for result in (first, other))
        raise UsageError(
            f"{names[0]} is judged by {metric} ({mine}), {names[1]} by {judged_by} ({their}): only studies of one "
            "metric and protocol are compared"
        )
    (scores, keys), (theirs, other_keys) = scores_of(first), scores_of(other)
    if keys != other_keys:
        raise UsageError(f"{names[0]} has {len(keys)} images, {names[1]} has others: only the same images are compared")
    tau = kendall(scores, theirs, keys, numpy_generator(0, "bootstrap", *names, "kendall"))
    common = sorted(scores.keys() & theirs.keys(), key=lambda subset: -scores[subset].mean())
    none = Subset()
    gains = {
        "+".join(sorted(subset)) or "none": tuple(float(s[subset].mean() - s[none].mean()) for s in (scores, theirs))
        for subset in common
    }
    regret = max(theirs[subset].mean() for subset in common) - theirs[common[0]].mean()
    moved = np.sqrt(np.mean([(mine - other) ** 2 for name, (mine, other) in gains.items() if name != "none"]))
    return Agreement(names, metric, gains, tau, float(regret), float(moved), seed_agreement(theirs, common))
