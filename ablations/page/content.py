"""What the page of a study shows. The numbers are computed elsewhere; here they are only held and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megasr.errors import UsageError
from megasr.evaluation.protocol import PROTOCOLS

BICUBIC, LQ, HQ = "bicubic", "lq", "hq"


def _check_finite(name: str, *values: float) -> None:
    if not all(map(math.isfinite, values)):
        raise UsageError(f"{name}: {', '.join(map(str, values))} cannot be drawn; leave out what was not measured")


def _check_interval(name: str, low: float, mean: float, high: float) -> None:
    _check_finite(name, low, mean, high)
    if low > high:
        raise UsageError(f"{name}: the interval from {low} to {high} is the wrong way round")


@dataclass(frozen=True)
class Bar:
    """A value with its 95 % interval.

    Attributes:
        label: what the value belongs to.
        mean: the value.
        low: lower end of the interval.
        high: upper end of the interval.
        note: a few words behind the label.

    Raises:
        UsageError: a number is not finite, or the interval is the wrong way round.
    """

    label: str
    mean: float
    low: float
    high: float
    note: str = ""

    def __post_init__(self) -> None:
        _check_interval(self.label, self.low, self.mean, self.high)

    @property
    def excludes_zero(self) -> bool:
        """Zero lies outside the interval."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class RankedRow:
    """One combination of types against the reference.

    Attributes:
        combination: the types that are on; empty for none.
        label: its name on the page, the same as in the pictures.
        mean: difference to the reference in the primary metric, its sign turned so that more is better.
        low: lower end of its 95 % interval.
        high: upper end of its 95 % interval.
        verdict: better, worse, undecided, reference, or control and a word on how it behaved.
        wins: share of the images on which it is better than the reference, in [0, 1]; None when unknown.
        cost_s: seconds per run; None when unknown.
        means: metric -> mean, as measured, no sign turned.
        hypothesis: what was expected before the runs; "" for the reference.

    Raises:
        UsageError: a number is not finite, the interval is the wrong way round, or wins is not a share.
    """

    combination: tuple[str, ...]
    label: str
    mean: float
    low: float
    high: float
    verdict: str
    wins: float | None
    cost_s: float | None
    means: Mapping[str, float]
    hypothesis: str = ""

    def __post_init__(self) -> None:
        _check_interval(self.label, self.low, self.mean, self.high)
        _check_finite(self.label, *(v for v in (self.wins, self.cost_s, *self.means.values()) if v is not None))
        if self.wins is not None and not 0 <= self.wins <= 1:
            raise UsageError(f"{self.label}: wins is {self.wins}, but a share of images lies in [0, 1]")

    @property
    def kind(self) -> str:
        """The first word of the verdict: better, worse, undecided, reference or control."""
        return self.verdict.partition(" ")[0].rstrip(":,;")

    @property
    def difference(self) -> Bar:
        """The difference to the reference, to be drawn."""
        return Bar(self.label, self.mean, self.low, self.high)


@dataclass(frozen=True)
class Heat:
    """Pairwise synergy: what two types do together beyond the sum of both.

    Attributes:
        labels: the types, in their order on both axes.
        cells: (a, b) -> value with interval; a pair stands once, in either order.

    Raises:
        UsageError: a cell names a type that is no label, a type with itself, or a pair twice.
    """

    labels: tuple[str, ...]
    cells: Mapping[tuple[str, str], Bar]

    def __post_init__(self) -> None:
        for a, b in self.cells:
            if a == b or {a, b} - set(self.labels) or (b, a) in self.cells:
                raise UsageError(f"synergy of {a} and {b}: each pair of {', '.join(self.labels)} may stand once")

    def cell(self, a: str, b: str) -> Bar | None:
        """The cell of a pair in either order, None when it was not measured."""
        return self.cells.get((a, b), self.cells.get((b, a)))


@dataclass(frozen=True)
class Curve:
    """The learning curve of a training.

    Attributes:
        label: name of the training.
        steps: optimizer steps, increasing.
        losses: the training loss at each of them; one that is not finite leaves a gap.

    Raises:
        UsageError: there are not as many losses as steps, or the steps do not increase.
    """

    label: str
    steps: Sequence[int]
    losses: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.losses):
            raise UsageError(f"curve of {self.label}: {len(self.losses)} losses at {len(self.steps)} steps")
        if any(later <= earlier for earlier, later in zip(self.steps, self.steps[1:], strict=False)):
            raise UsageError(f"curve of {self.label}: its steps do not increase")


@dataclass(frozen=True)
class PictureRow:
    """The pictures of one image.

    Attributes:
        key: name of the image.
        lq: file of what was restored.
        hq: file of the original.
        bicubic: file of lq enlarged, None when it is not to be shown.
        restorations: label of a ranked row -> file.
        scores: label, or "bicubic" -> metric -> score of this image.
    """

    key: str
    lq: Path
    hq: Path
    bicubic: Path | None
    restorations: Mapping[str, Path]
    scores: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Failure:
    """A run that has no numbers.

    Attributes:
        run_id: the run.
        reason: one line.
    """

    run_id: str
    reason: str


Provenance = Sequence[tuple[str, str]]  # (what, value): commit, protocol, seeds, device


@dataclass(frozen=True)
class StudyPage:
    """Everything on the page of a study.

    Attributes:
        title: name of the study.
        question: what it asks, one sentence.
        answer: sentences, the first thing on the page: which types, how sure, at what cost.
        trust: one sentence on whether the controls behaved.
        trusted: True, False, or None when there are no controls.
        primary: name of the primary metric, and whether higher is better.
        rows: every combination, in any order.
        shapley: share of each type in the gain, None when it was not computed.
        synergy: of pairs of types, None when it was not computed.
        curves: learning curves.
        curves_show: name of their axis, and a sentence on what they show.
        pictures: images to look at.
        failures: runs without numbers.
        notes: what limits the answer.
        least_difference: smallest difference that is called one, in the primary metric; 0 is any.
        provenance: where the numbers come from.

    Raises:
        UsageError: two rows share a label, or the direction of a metric is unknown.
    """

    title: str
    question: str
    answer: Sequence[str]
    trust: str
    trusted: bool | None
    primary: tuple[str, bool]
    rows: Sequence[RankedRow]
    shapley: Sequence[Bar] | None = None
    synergy: Heat | None = None
    curves: Sequence[Curve] = ()
    curves_show: tuple[str, str] = ("training loss", "Training loss as it was logged.")
    pictures: Sequence[PictureRow] = ()
    failures: Sequence[Failure] = ()
    notes: Sequence[str] = ()
    least_difference: float = 0.0
    provenance: Provenance = ()

    def __post_init__(self) -> None:
        labels = [row.label for row in self.rows]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise UsageError(f"ranked rows must have distinct labels; change {', '.join(map(repr, twice))}")
        for metric in self.metrics:
            self.higher_is_better(metric)

    @property
    def ranked(self) -> list[RankedRow]:
        """The rows, best first."""
        return sorted(self.rows, key=lambda row: -row.mean)

    @property
    def reference(self) -> RankedRow | None:
        """The row that the others are compared with, None when it is not among them."""
        return next((row for row in self.rows if row.kind == "reference"), None)

    @property
    def types(self) -> tuple[str, ...]:
        """Every type of a combination, in the order of their first appearance."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.combination))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric that some row has a mean of, the primary one first."""
        return tuple(dict.fromkeys((self.primary[0], *(name for row in self.rows for name in row.means))))

    def higher_is_better(self, metric: str) -> bool:
        """The direction of a metric: the primary one's is given, the others' are those of the protocols.

        Raises:
            UsageError: no protocol has a metric of this name.
        """
        if metric == self.primary[0]:
            return self.primary[1]
        for protocol in PROTOCOLS.values():
            for spec in protocol.metrics:
                if spec.name == metric:
                    return spec.higher_is_better
        raise UsageError(f"no protocol has a metric {metric!r}, so the page cannot say which direction is better")
