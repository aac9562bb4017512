"""A study's result and report -> the content of its page."""

from __future__ import annotations

from collections.abc import Iterator

from ablations.conclusions import Comparison, Report
from ablations.learning import learning_curves
from ablations.page.content import Bar, Failure, Heat, PictureRow, RankedRow, StudyPage
from ablations.plan import BICUBIC
from ablations.registry import Ablation
from ablations.results import RunResult, StudyResult, values

_SHOWN_IMAGES = 12


def study_page(result: StudyResult, report: Report) -> StudyPage:
    """Everything on the page. The primary metric's differences are turned so that more is better."""
    study = result.study
    sign = 1 if result.protocol.metric(study.primary_metric).higher_is_better else -1
    ablations = (study.reference, *study.ablations)
    bars = {name: _bar(name, found) for name, found in report.worth.items()}
    cells = {pair: _bar(" + ".join(pair), found) for pair, found in report.synergies.items()}
    curves, curves_show = learning_curves(result)
    return StudyPage(
        title=study.name,
        question=study.question,
        answer=list(_answer(result, report)),
        trust=report.trust,
        trusted=report.trusted,
        primary=(study.primary_metric, sign > 0),
        rows=[_row(result, report, ablation, sign) for ablation in ablations],
        shapley=list(bars.values()) or None,
        synergy=Heat(tuple(bars), cells) if cells else None,
        curves=curves,
        curves_show=curves_show,
        pictures=list(_pictures(result)),
        failures=[Failure(run_id, reason) for run_id, reason in result.failed.items()],
        notes=report.notes,
        least_difference=study.least_difference,
        provenance=_provenance(result),
    )


def _bar(label: str, found: object) -> Bar:
    return Bar(label, found.mean, found.low, found.high)  # type: ignore[attr-defined]


def _row(result: StudyResult, report: Report, ablation: Ablation, sign: int) -> RankedRow:
    study, name = result.study, ablation.name
    found = report.comparison(name, study.reference.name, study.primary_metric)
    ends = [0.0] * 3 if found is None else sorted(sign * v for v in (found.interval.low, found.interval.high))
    mean = 0.0 if found is None else sign * found.interval.mean
    runs = result.of(name)
    cost = sum(run.train_s + run.evaluate_s for run in runs) / len(runs)
    wins = None if found is None else _share_of_better(result, name, sign)
    verdict = _verdict(result, name, found)
    return RankedRow(
        combination=ablation.combination or (),
        label=name,
        mean=mean,
        low=ends[0],
        high=ends[-1],
        verdict=verdict,
        wins=wins,
        cost_s=cost,
        means=report.means[name],
        hypothesis=ablation.hypothesis,
    )


def _verdict(result: StudyResult, name: str, found: Comparison | None) -> str:
    if found is None:
        return "reference"
    kind = result.study.controls.get(name)
    if kind is None:
        return found.verdict
    return f"control: {'gain' if found.leans_better else 'no gain'}"  # of an uncorrected interval, as in `trust`


def _share_of_better(result: StudyResult, name: str, sign: int) -> float:
    """Share of the images, over all seeds, on which an ablation is better than the reference."""
    metric = result.study.primary_metric
    pairs = zip(result.of(name), result.of(result.study.reference.name), strict=True)
    better = [
        sign * (value - reference[key]) > 0
        for run, other in pairs
        for reference in [values(other, metric)]
        for key, value in values(run, metric).items()
    ]
    return sum(better) / len(better)


def _answer(result: StudyResult, report: Report) -> Iterator[str]:
    """Which, how sure, at what cost: sentences that claim no more than the verdicts."""
    study, metric = result.study, result.study.primary_metric
    mine = [c for a in study.ablations if (c := report.comparison(a.name, study.reference.name, metric))]
    candidates = [c for c in mine if c.ablation not in study.controls]
    better = sorted((c for c in candidates if c.verdict == "better"), key=lambda c: -abs(c.interval.mean))
    worse = [c.ablation for c in candidates if c.verdict == "worse"]
    if better:
        best = better[0]
        yield (
            f"{len(better)} of {len(candidates)} restore better than {study.reference.name}; the largest difference is "
            f"{best.ablation}'s: {best.interval.mean:+.4f} {metric} [{best.interval.low:+.4f}, "
            f"{best.interval.high:+.4f}]."
        )
    else:
        yield f"None of {len(candidates)} is shown to restore better than {study.reference.name} in {metric}."
    if worse:
        yield f"Worse: {', '.join(worse)}."
    if report.ranks:
        first = max(report.ranks, key=lambda ranked: ranked.wins)
        yield (
            f"Drawn again with other images and seeds, {_named(result, first.subset)} would be first in "
            f"{first.wins:.0%} of the draws."
        )
    trained = {run.train_s for run in result.runs if run.seed is not None}
    evaluated = sum(run.evaluate_s for run in result.runs)
    yield f"It took {sum(trained) / 60:.0f} min of training and {evaluated / 60:.0f} min of restoring and measuring."


def _named(result: StudyResult, subset: frozenset[str]) -> str:
    """A combination as the ranking calls it."""
    ablations = (result.study.reference, *result.study.ablations)
    named = (ablation.name for ablation in ablations if set(ablation.combination or ()) == subset)
    return next(named, "+".join(sorted(subset)) or "none")


def _pictures(result: StudyResult) -> Iterator[PictureRow]:
    """The first images of the first seed that all have."""
    study = result.study
    bicubic = result.of(BICUBIC)[0]
    runs = [result.of(ablation.name)[0] for ablation in (study.reference, *study.ablations)]
    folder = result.output / bicubic.run_id
    for row in bicubic.rows[:_SHOWN_IMAGES]:
        key = row["key"]
        yield PictureRow(
            key=key,
            lq=folder / "lq" / f"{key}.png",
            hq=folder / "hq" / f"{key}.png",
            bicubic=folder / "sr" / f"{key}.png",
            restorations={run.ablation: result.output / run.run_id / "sr" / f"{key}.png" for run in runs},
            scores={run.ablation: _scores(run, key) for run in (bicubic, *runs)},
        )


def _scores(run: RunResult, key: str) -> dict[str, float]:
    return next({name: value for name, value in row.items() if name != "key"} for row in run.rows if row["key"] == key)


def _provenance(result: StudyResult) -> list[tuple[str, str]]:
    trained = next(run for run in result.runs if run.seed is not None)
    return [
        ("protocol", f"{result.protocol.name} ({result.protocol.fingerprint})"),
        ("images", str(len(trained.rows))),
        ("seeds", ", ".join(map(str, result.seeds))),
        ("steps", str(trained.steps)),
        ("device", trained.device),
        ("code", ", ".join(sorted({str(run.commit) for run in result.runs}))),
        ("versions", ", ".join(f"{name} {version}" for name, version in trained.versions.items())),
        ("W&B group", result.group),
    ]
