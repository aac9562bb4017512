"""What a study's numbers say: means, paired comparisons, and sentences that claim no more than the intervals allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ablations.attribution import Attribution, Ranked, Subset, ranking, shapley, synergy
from ablations.evaluation import find_metric, study_metrics
from ablations.plan import baseline_name
from ablations.power import what_would_decide
from ablations.registry import Study
from ablations.results import StudyResult, values
from ablations.shares import shares_kept
from ablations.statistics import holm, paired_differences, pool_of_pairs, score_table
from ablations.where import where_it_helps
from megasr.errors import MegaSRError
from megasr.evaluation.intervals import Interval, SeedPool, paired_bootstrap
from megasr.evaluation.protocol import MetricSpec
from megasr.rng import numpy_generator

ALPHA = 0.05
_UNDECIDED = " (undecided)"


@dataclass(frozen=True)
class Comparison:
    """One ablation against one reference (the study's, or a baseline) in one metric.

    Attributes:
        ablation: what is compared.
        reference: with what.
        metric: name of the metric.
        interval: of the difference ablation - reference; 95 %, not corrected.
        better_sign: +1 when a positive difference is an improvement, else -1.
        p_holm: p-value corrected for the family of the primary question; None for an exploratory comparison.
        least: smallest difference that is called one: another machine may move a difference by so much.
    """

    ablation: str
    reference: str
    metric: str
    interval: Interval
    better_sign: int
    p_holm: float | None = None
    least: float = 0.0

    @property
    def verdict(self) -> str:
        """better or worse (interval beyond `least` and corrected p below 0.05), undecided, or exploratory."""
        if self.p_holm is None:
            return "exploratory"
        if not self.interval.beyond(self.least) or self.p_holm >= ALPHA:
            return "undecided"
        return "better" if self.interval.mean * self.better_sign > 0 else "worse"

    @property
    def leans_better(self) -> bool:
        """The uncorrected interval lies wholly on the side of improvement, beyond `least`: the reading of controls."""
        return self.interval.beyond(self.least) and self.interval.mean * self.better_sign > 0

    def agrees_with(self, other: Comparison) -> bool:
        """Whether both means are improvements, or both are not; how sure either is makes no difference."""
        return (self.interval.mean * self.better_sign > 0) == (other.interval.mean * other.better_sign > 0)

    def doubts(self, other: Comparison) -> bool:
        """Whether the sign of one of both may be chance."""
        return not (self.interval.excludes_zero and other.interval.excludes_zero)

    @property
    def direction(self) -> str:
        """What the numbers did, without judging: "higher gmsd" or "lower gmsd"."""
        return f"{'higher' if self.interval.mean > 0 else 'lower'} {self.metric}"


@dataclass(frozen=True)
class Report:
    """The answer of a study.

    Attributes:
        means: row (baselines, reference, ablations) -> metric -> mean over images and seeds.
        comparisons: every paired comparison, those of the primary question first.
        trust: one sentence on whether the study may be trusted.
        findings: sentences, one per ablation.
        notes: what limits the answer.
        worth: guidance type -> Shapley value in the primary metric, positive being better; empty when not computed.
        synergies: two types -> what they add together beyond what each adds alone, as `worth`.
        ranks: the combinations, best first.
    """

    means: dict[str, dict[str, float]]
    comparisons: tuple[Comparison, ...]
    trust: str
    findings: tuple[str, ...]
    notes: tuple[str, ...]
    worth: Mapping[str, Attribution] = field(default_factory=dict)
    synergies: Mapping[tuple[str, str], Attribution] = field(default_factory=dict)
    ranks: tuple[Ranked, ...] = ()

    @property
    def trusted(self) -> bool | None:
        """Did all controls behave? None when a kind of control is missing."""
        return {"May": True, "Not": False}.get(self.trust.split()[0])

    def comparison(self, ablation: str, reference: str, metric: str) -> Comparison | None:
        """The comparison, None when the pair was not compared."""
        key = (ablation, reference, metric)
        return next((c for c in self.comparisons if (c.ablation, c.reference, c.metric) == key), None)


def make_report(result: StudyResult) -> Report:
    """Compute means, paired comparisons and sentences, over the seeds that every ablation has finished.

    The primary question is each ablation against the study's reference in the primary metric; Holm's correction is over
    these comparisons and no others. All other comparisons are exploratory and decide nothing.

    Raises:
        MegaSRError: no seed is finished for every ablation.
        UsageError: the runs did not measure the same images, there are fewer than two photographs, or no protocol
            measures the primary metric.
    """
    study, reference = result.study, result.study.reference.name
    find_metric(result.sets, study.primary_metric)
    require_seeds(result)
    primary, metrics = result.primary, result.metrics
    names = [ablation.name for ablation in study.ablations]
    pools = {metric.name: _pool(result, metric) for metric in metrics}
    family = [_compare(result, name, reference, primary, pools[primary.name], study.least_difference) for name in names]
    corrected = holm([comparison.interval.p_value for comparison in family])
    comparisons = [replace(c, p_holm=p) for c, p in zip(family, corrected, strict=True)]
    others = [(name, metric) for name in names for metric in metrics if metric != primary]
    comparisons += [_compare(result, name, reference, metric, pools[metric.name]) for name, metric in others]
    for baseline in result.baselines:
        pairs = [(baseline, reference), *((name, baseline) for name in names)]
        comparisons += [_compare(result, *pair, metric) for pair in pairs for metric in metrics]
    means = {row: _means(result, row) for row in (*result.baselines, reference, *names)}
    judged = trust(study, comparisons), _findings(study, comparisons), _notes(result, comparisons, pools[primary.name])
    return Report(means, tuple(comparisons), *judged, *_attribution(result))


def require_seeds(result: StudyResult) -> StudyResult:
    """The result as it is. Raises MegaSRError when no seed is finished for every ablation: nothing can be compared."""
    if not result.seeds:
        name = result.study.name
        raise MegaSRError(f"study {name}: no seed is finished for every ablation, so nothing can be compared")
    return result


def scores_of(result: StudyResult) -> tuple[dict[Subset, np.ndarray], list[str]]:
    """Combination -> (S, I) values of the primary metric, larger being better, and the I images.

    Ablations that are not a combination of guidance types (an oracle, say) are left out.
    """
    study = result.study
    primary = result.primary
    sign = 1 if primary.higher_is_better else -1
    scores: dict[Subset, np.ndarray] = {}
    keys: list[str] = []
    for ablation in (study.reference, *study.ablations):
        if ablation.combination is not None:
            table, keys = score_table([values(run, primary.name) for run in result.of(ablation.name)])
            scores[Subset(ablation.combination)] = sign * table
    return scores, keys


def _attribution(
    result: StudyResult,
) -> tuple[dict[str, Attribution], dict[tuple[str, str], Attribution], tuple[Ranked, ...]]:
    """Worth, synergies and ranks over the combinations that were run."""
    scores, keys = scores_of(result)
    if len(scores) < 2 or Subset() not in scores:
        return {}, {}, ()
    draws = (numpy_generator(0, "bootstrap", result.study.name, part) for part in ("worth", "synergies", "ranks"))
    return (
        shapley(scores, keys, next(draws)),
        synergy(scores, keys, next(draws)),
        tuple(ranking(scores, keys, next(draws))),
    )


def trust(study: Study, comparisons: Sequence[Comparison]) -> str:
    """Do the controls behave in the primary metric? Read strictly, on uncorrected intervals: they must not even lean.

    A negative control that leans towards better in another metric does not spoil the study, but is named.
    """
    reference, primary = study.reference.name, study.primary_metric
    of_controls = [c for c in comparisons if c.reference == reference and c.leans_better]
    helped = {control: [c.metric for c in of_controls if c.ablation == control] for control in study.controls}
    negative = [control for control, kind in study.controls.items() if kind == "negative"]
    positive = [control for control, kind in study.controls.items() if kind == "positive"]
    wrong = [f"the negative control {c} helps" for c in negative if primary in helped[c]]
    wrong += [f"the positive control {c} does not help" for c in positive if primary not in helped[c]]
    if wrong:
        return f"Not trustworthy: {' and '.join(wrong)} in {primary}."
    good = []
    for control in negative:
        seen = f"not seen to help in {primary}"
        if helped[control]:
            seen += f" (but its interval lies on the good side of zero in {', '.join(helped[control])})"
        good.append(f"the negative control {control} is {seen}")
    good += [f"the positive control {c} helps in {primary}" for c in positive]
    missing = [kind for kind, names in (("negative", negative), ("positive (oracle)", positive)) if not names]
    if missing:
        lack = f"this study has no {' and no '.join(missing)} control, so a difference it does not find may still exist"
        return f"Trust with care: {'; '.join([*good, lack])}."
    return f"May be trusted: {' and '.join(good)}."


def _means(result: StudyResult, row: str) -> dict[str, float]:
    runs = {metric.name: result.of(row, metric.name) for metric in result.metrics}
    return {name: sum(run.summary[name] for run in of) / len(of) for name, of in runs.items()}


def _pool(result: StudyResult, metric: MetricSpec) -> SeedPool | None:
    """What seeds do to the difference between any two ablations of the study."""
    names = [ablation.name for ablation in (result.study.reference, *result.study.ablations)]
    return pool_of_pairs(
        [score_table([values(run, metric.name) for run in result.of(name, metric.name)])[0] for name in names]
    )


def _compare(
    result: StudyResult,
    ablation: str,
    reference: str,
    metric: MetricSpec,
    pool: SeedPool | None = None,
    least: float = 0.0,
) -> Comparison:
    mine, other = (result.of(name, metric.name) for name in (ablation, reference))
    if mine[0].seed is None:  # a baseline: the same values stand against every seed
        mine = mine * len(other)
    differences, keys = paired_differences(*([values(run, metric.name) for run in of] for of in (mine, other)))
    generator = numpy_generator(0, "bootstrap", result.study.name, ablation, reference, metric.name)
    interval = paired_bootstrap(differences, keys, generator, pool=pool, least=least)
    return Comparison(ablation, reference, metric.name, interval, 1 if metric.higher_is_better else -1, None, least)


def _findings(study: Study, comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    lines = []
    for ablation in study.ablations:
        mine = [c for c in comparisons if (c.ablation, c.reference) == (ablation.name, study.reference.name)]
        decided = {c.verdict for c in mine} & {"better", "worse"}
        than = f"{study.reference.name} in {study.primary_metric}"
        leans = any(c.leans_better for c in mine if c.p_holm is not None)
        if decided:
            line = f"{decided.pop()} than {than}"
        elif leans and ablation.name in study.controls:
            line = f"a gain over {than} before the correction, which is how a control is read"
        else:
            line = f"no difference to {than} is shown"
        hints = [c.direction for c in mine if c.p_holm is None and c.interval.excludes_zero]
        primary = next(c for c in mine if c.metric == study.primary_metric)
        if held_out := next((c for c in mine if c.metric == study.holdout_metric), None):
            sign = "agrees" if held_out.agrees_with(primary) else "disagrees"
            line += f"; the hold-out metric {held_out.metric} {sign} in sign{_UNDECIDED * primary.doubts(held_out)}"
        lines.append(f"{ablation.name}: {line}{'; exploratory: ' * bool(hints)}{', '.join(hints)}.")
    return tuple(lines)


def _notes(result: StudyResult, comparisons: Sequence[Comparison], pool: SeedPool | None) -> tuple[str, ...]:
    interval, study, known = comparisons[0].interval, result.study, study_metrics(result.sets)
    by_set: dict[str, Interval] = {}  # those of one set are over the same photographs and seeds
    for comparison in comparisons:
        by_set.setdefault(known[comparison.metric][0].name, comparison.interval)
    of = {name: f" of {name}" if len(result.sets) > 1 else "" for name in by_set}
    photographs = f"photographs{of[result.primary_set.name]}"
    sizes = [f"{i.photographs} photographs{of[name]} and {i.seeds} seed(s)" for name, i in by_set.items()]
    family = sum(c.p_holm is not None for c in comparisons)
    beyond = f"lies beyond {study.least_difference:g}" if study.least_difference else "excludes zero"
    notes = [
        f"Only {study.primary_metric}, named before the runs, is judged: better/worse means that the interval "
        f"{beyond} and p < {ALPHA} after Holm's correction over {family} comparisons (each ablation with "
        f"{study.reference.name}). All else is exploratory: it decides nothing.",
        _other_machines(study),
        f"Intervals: 95 %, paired bootstrap over {', '.join(sizes)}, not corrected. How far seeds move a difference is "
        "estimated from all ablations together.",
    ]
    notes += [*shares_kept(result, pool), *where_it_helps(result)]
    open_ones = {c.ablation: c.interval for c in comparisons if c.verdict == "undecided"}
    if undecided := {name: left for name, left in open_ones.items() if name not in study.controls}:
        least = study.least_difference
        notes.append(what_would_decide(undecided, study.primary_metric, least, ALPHA / family, photographs))
    if family * 2.0 ** (1 - interval.photographs) >= ALPHA:
        notes.append(
            f"{interval.photographs} {photographs} are too few for {family} comparisons: whatever the numbers, "
            "nothing can be called better or worse. More photographs are needed, not more crops of them."
        )
    if interval.seeds == 1:
        notes.append("One seed only: the intervals say nothing about what another seed would give.")
    if any(one.photographs < 30 or 1 < one.seeds < 5 for one in by_set.values()):
        notes.append(
            "Few photographs or seeds: the intervals are as wide as Student's t makes them for so few. Where seeds "
            "differ, only more seeds narrow them."
        )
    for baseline in result.baselines:
        of_baseline = [c for c in comparisons if (c.ablation, c.reference) == (baseline, study.reference.name)]
        if ahead := [c.direction for c in of_baseline if c.leans_better]:
            notes.append(f"At this budget {baseline} has {', '.join(ahead)} than {study.reference.name} (exploratory).")
    return (*notes, *_contradictions(study, comparisons), *_incomplete(result))


def holdout_summary(study: Study, comparisons: Sequence[Comparison]) -> str:
    """Does the hold-out metric say the same as the primary one? A sentence; "" without a hold-out metric."""
    if study.holdout_metric is None:
        return ""
    of = {(c.ablation, c.metric): c for c in comparisons if c.reference == study.reference.name}
    pairs = [(of.get((a.name, study.primary_metric)), of.get((a.name, study.holdout_metric))) for a in study.ablations]
    both = [(one, other) for one, other in pairs if one is not None and other is not None]
    if not both:
        return f"The hold-out metric {study.holdout_metric} is not measured of every ablation yet."
    against = [one.ablation + _UNDECIDED * one.doubts(other) for one, other in both if not other.agrees_with(one)]
    tail = f"; it disagrees in {', '.join(against)}" if against else ""
    return (
        f"The hold-out metric {study.holdout_metric} agrees with {study.primary_metric} in the sign of "
        f"{len(both) - len(against)} of {len(both)} differences{tail}."
    )


def _contradictions(study: Study, comparisons: Sequence[Comparison]) -> list[str]:
    """Warnings where another metric has the other sign than the primary one, and both intervals exclude zero."""
    mine = [c for c in comparisons if c.reference == study.reference.name]
    primary = {c.ablation: c for c in mine if c.metric == study.primary_metric}
    against = [c for c in mine if (one := primary.get(c.ablation)) and not c.agrees_with(one) and not one.doubts(c)]
    lines = []
    if held := [c.ablation for c in against if c.metric == study.holdout_metric]:
        lines.append(
            f"Warning: the hold-out metric {study.holdout_metric} has the other sign than {study.primary_metric} for "
            f"{', '.join(held)}: look at the images before relying on either."
        )
    if told := [f"{c.ablation} ({c.metric})" for c in against if c.metric != study.holdout_metric]:
        lines.append(
            f"Warning: metrics disagree in sign with {study.primary_metric}, and both intervals exclude zero: "
            f"{', '.join(told)}."
        )
    return lines


def _other_machines(study: Study) -> str:
    """What the verdicts are worth elsewhere: rounding differs between machines, and training amplifies it."""
    if study.least_difference:
        return (
            f"The same trainings on another machine may move a difference by {study.least_difference:g} "
            f"{study.primary_metric} (measured; the recipe's study.least_difference): only what lies beyond it is "
            "called a difference."
        )
    return (
        "How far another machine (CPU, GPU, libraries) would move these differences is not known: a verdict whose "
        "interval ends near zero may not hold there. Run the study again elsewhere, compare both with `megasr study "
        "agree`, and write what it says into the recipe's study.least_difference."
    )


def _incomplete(result: StudyResult) -> list[str]:
    """What is missing from the answer, or does not fit together."""
    notes = []
    if result.reworded:
        notes.append(f"Reworded since the study was begun (no run depends on it): {'; '.join(result.reworded)}.")
    if left_out := [run.run_id for run in result.runs if run.seed not in (None, *result.seeds)]:
        seeds = ", ".join(map(str, result.seeds))
        notes.append(
            f"Only seed(s) {seeds} are compared. Left out, for not every ablation has finished their seed: "
            f"{', '.join(left_out)}."
        )
    if absent := [name for name in map(baseline_name, result.study.baselines) if name not in result.baselines]:
        notes.append(f"Not measured on every set, so left out: the baselines {', '.join(absent)}.")
    notes += [f"Failed: {run_id} ({reason})." for run_id, reason in result.failed.items()]
    if lacking := [f"{run_id} of {name}" for run_id, name in result.missing]:
        notes.append(f"Not measured, so that metrics of these sets lack a seed or are left out: {', '.join(lacking)}.")
    if absent := list(dict.fromkeys(name for one in result.sets for name in one.absent)):
        notes.append(
            f"Their weights are not on this machine, so not measured: {', '.join(absent)} (megasr weights list)."
        )
    commits = {run.commit for run in result.runs}
    if len(commits) > 1:
        notes.append(f"The runs were made by different code: {', '.join(sorted(map(str, commits)))}.")
    return notes
