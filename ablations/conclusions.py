"""What a study's numbers say: means, paired comparisons, and sentences that claim no more than the intervals allow."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ablations.plan import BICUBIC
from ablations.registry import Study
from ablations.results import StudyResult, values
from ablations.statistics import Interval, holm, paired_bootstrap, paired_differences
from megasr.evaluation.protocol import MetricSpec
from megasr.rng import numpy_generator

ALPHA = 0.05


@dataclass(frozen=True)
class Comparison:
    """One ablation against one reference in one metric.

    Attributes:
        ablation: what is compared.
        reference: with what: the study's reference or bicubic.
        metric: name of the metric.
        interval: of the difference ablation - reference; 95 %, not corrected.
        better_sign: +1 when a positive difference is an improvement, else -1.
        p_holm: p-value corrected for all comparisons of the report.
    """

    ablation: str
    reference: str
    metric: str
    interval: Interval
    better_sign: int
    p_holm: float

    @property
    def verdict(self) -> str:
        """better, worse or undecided: decided only when the interval excludes 0 and the corrected p is below 0.05."""
        if not self.interval.excludes_zero or self.p_holm >= ALPHA:
            return "undecided"
        return "better" if self.interval.mean * self.better_sign > 0 else "worse"

    @property
    def leans_better(self) -> bool:
        """The uncorrected interval lies wholly on the side of improvement: the strict reading, for controls."""
        return self.interval.excludes_zero and self.interval.mean * self.better_sign > 0


@dataclass(frozen=True)
class Report:
    """The answer of a study.

    Attributes:
        means: row (bicubic, reference, ablations) -> metric -> mean over images and seeds.
        comparisons: every paired comparison.
        trust: one sentence on whether the study may be trusted.
        findings: sentences, one per ablation.
        notes: what limits the answer.
    """

    means: dict[str, dict[str, float]]
    comparisons: tuple[Comparison, ...]
    trust: str
    findings: tuple[str, ...]
    notes: tuple[str, ...]

    def comparison(self, ablation: str, reference: str, metric: str) -> Comparison | None:
        """The comparison, None when the pair was not compared."""
        wanted = (ablation, reference, metric)
        return next((c for c in self.comparisons if (c.ablation, c.reference, c.metric) == wanted), None)


def make_report(result: StudyResult) -> Report:
    """Compute means, paired comparisons (Holm over all of them) and sentences.

    Raises:
        UsageError: the runs did not measure the same images, or there are fewer than two photographs.
    """
    study = result.study
    rows = (BICUBIC, study.reference.name, *(ablation.name for ablation in study.ablations))
    means = {row: _means(result, row) for row in rows}
    pairs = [(row, study.reference.name) for row in rows if row != study.reference.name]
    pairs += [(row, BICUBIC) for row in rows if row not in (BICUBIC, study.reference.name)]
    raw = [_compare(result, *pair, metric) for pair in pairs for metric in result.protocol.metrics]
    corrected = holm([comparison.interval.p_value for comparison in raw])
    comparisons = tuple(replace(c, p_holm=p) for c, p in zip(raw, corrected, strict=True))
    return Report(
        means, comparisons, trust(study, comparisons), _findings(study, comparisons), _notes(result, comparisons)
    )


def trust(study: Study, comparisons: tuple[Comparison, ...]) -> str:
    """One sentence: do the controls behave? Read strictly, on uncorrected intervals: a control must not even lean."""
    reference = study.reference.name
    helped = {
        control: [c.metric for c in comparisons if (c.ablation, c.reference) == (control, reference) and c.leans_better]
        for control in study.controls
    }
    negative = [control for control, kind in study.controls.items() if kind == "negative"]
    positive = [control for control, kind in study.controls.items() if kind == "positive"]
    wrong = [f"the negative control {c} helps ({', '.join(helped[c])})" for c in negative if helped[c]]
    wrong += [f"the positive control {c} does not help" for c in positive if not helped[c]]
    missing = [kind for kind, names in (("negative", negative), ("positive (oracle)", positive)) if not names]
    if wrong:
        return f"Not trustworthy: {' and '.join(wrong)}."
    good = [f"the negative control {c} is not seen to help" for c in negative]
    good += [f"the positive control {c} helps" for c in positive]
    if missing:
        lack = f"this study has no {' and no '.join(missing)} control, so a difference it does not find may still exist"
        return f"Trust with care: {'; '.join([*good, lack])}."
    return f"May be trusted: {' and '.join(good)}."


def _means(result: StudyResult, row: str) -> dict[str, float]:
    runs = result.of(row)
    return {name: sum(run.summary[name] for run in runs) / len(runs) for name in result.protocol.metric_names}


def _compare(result: StudyResult, ablation: str, reference: str, metric: MetricSpec) -> Comparison:
    treatment, baseline = ([values(run, metric.name) for run in result.of(name)] for name in (ablation, reference))
    if ablation == BICUBIC:  # it has no seed: the same values stand against every seed
        treatment = treatment * len(baseline)
    differences, keys = paired_differences(treatment, baseline)
    generator = numpy_generator(0, "bootstrap", result.study.name, ablation, reference, metric.name)
    interval = paired_bootstrap(differences, keys, generator)
    return Comparison(ablation, reference, metric.name, interval, 1 if metric.higher_is_better else -1, 1.0)


def _findings(study: Study, comparisons: tuple[Comparison, ...]) -> tuple[str, ...]:
    lines = []
    for ablation in study.ablations:
        mine = [c for c in comparisons if (c.ablation, c.reference) == (ablation.name, study.reference.name)]
        parts = [
            f"{verdict} than {study.reference.name} in {', '.join(names)}"
            for verdict in ("better", "worse")
            if (names := [c.metric for c in mine if c.verdict == verdict])
        ]
        lines.append(f"{ablation.name}: {'; '.join(parts) or f'no difference to {study.reference.name} is shown'}.")
    return tuple(lines)


def _notes(result: StudyResult, comparisons: tuple[Comparison, ...]) -> tuple[str, ...]:
    interval = comparisons[0].interval
    notes = [
        f"Intervals: 95 %, paired bootstrap over {interval.photographs} photographs and {interval.seeds} seed(s), not "
        f"corrected; better/worse: Holm over {len(comparisons)} comparisons."
    ]
    if len(comparisons) * 2.0 ** (1 - interval.photographs) >= ALPHA:
        notes.append(
            f"{interval.photographs} photographs are too few for {len(comparisons)} comparisons: whatever the numbers, "
            "nothing can be called better or worse. More photographs are needed, not more crops of them."
        )
    if interval.seeds == 1:
        notes.append("One seed only: the intervals say nothing about what another seed would give.")
    if interval.photographs < 30 or 1 < interval.seeds < 5:
        notes.append(
            "Few photographs or seeds: such intervals hold the truth less often than 95 % (87 % measured with 5)."
        )
    reference = result.study.reference.name
    wanted = (BICUBIC, reference, "better")
    if ahead := [c.metric for c in comparisons if (c.ablation, c.reference, c.verdict) == wanted]:
        notes.append(f"At this budget {reference} is worse than bicubic in {', '.join(ahead)}.")
    commits = {run.commit for run in result.runs}
    if len(commits) > 1:
        notes.append(f"The runs were made by different code: {', '.join(sorted(map(str, commits)))}.")
    return tuple(notes)
