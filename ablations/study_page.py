"""A study's result and report -> what its page shows."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from ablations.conclusions import Report, holdout_summary
from ablations.evaluation import study_name
from ablations.page import StudyPage
from ablations.results import RunResult, StudyResult, read_losses, values
from ablations.tables import baseline_frame, comparison_frame, ordered_metrics, protocol_lines, ranking_frame

_SHOWN_IMAGES = 12
_WINDOW = 5  # a running mean over this part of the training


def study_page(result: StudyResult, report: Report) -> StudyPage:
    """Everything on the page. The primary metric's differences are turned so that more is better."""
    study, of_set = result.study, result.primary_set
    curves, axis, note = learning_curves(result)
    names = (*result.baselines, study.reference.name, *(ablation.name for ablation in study.ablations))
    runs = [result.of(name)[0] for name in names]
    bicubic = runs[0]
    keys = list(values(bicubic, study.primary_metric))[:_SHOWN_IMAGES]
    files = {"lq": (bicubic, "lq"), **{run.ablation: (run, "sr") for run in runs}}
    files |= {"hq": (bicubic, "hq")} if of_set.has_hq else {}
    worth = [(name, one.mean, one.low, one.high) for name, one in report.worth.items()]
    synergies = [(*pair, one.mean, one.low, one.high) for pair, one in report.synergies.items()]
    return StudyPage(
        title=study.name,
        question=study.question,
        answer=list(_answer(result, report)),
        trust=report.trust,
        trusted=report.trusted,
        metrics=ordered_metrics(result),
        ranking=ranking_frame(result, report),
        baselines=baseline_frame(result, report),
        results=comparison_frame(report),
        hypotheses={ablation.name: ablation.hypothesis for ablation in (study.reference, *study.ablations)},
        worth=pd.DataFrame(worth, columns=["label", "mean", "low", "high"]),
        synergies=pd.DataFrame(synergies, columns=["first", "second", "mean", "low", "high"]),
        curves=curves,
        curves_axis=axis,
        curves_note=note,
        pictures={
            label: {key: of_set.folder(result.output / run.run_id) / folder / f"{key}.png" for key in keys}
            for label, (run, folder) in files.items()
        },
        scores={run.ablation: _scores(run, study.primary_metric) for run in runs},
        failures=result.failed,
        notes=report.notes,
        least_difference=study.least_difference,
        provenance=_provenance(result),
    )


def _scores(run: RunResult, primary: str) -> pd.DataFrame:
    """Scores of the images of the primary metric's set, keys by metrics."""
    return pd.DataFrame([row for row in run.rows if primary in row]).set_index("key")


def _images(result: StudyResult) -> str:
    """How many images were measured, of each set."""
    named = {one.name: study_name(result.sets, one, one.metrics[0].name) for one in result.sets}
    bicubic = next(run for run in result.runs if run.seed is None)
    counts = {name: len(values(bicubic, metric)) for name, metric in named.items()}
    return ", ".join(f"{count} of {name}" if len(counts) > 1 else str(count) for name, count in counts.items())


def _answer(result: StudyResult, report: Report) -> Iterator[str]:
    """Which, how sure, at what cost: sentences that claim no more than the verdicts."""
    study, metric = result.study, result.study.primary_metric
    mine = [c for a in study.ablations if (c := report.comparison(a.name, study.reference.name, metric))]
    candidates = [c for c in mine if c.ablation not in study.controls]
    better = [c for c in candidates if c.verdict == "better"]
    worse = [c.ablation for c in candidates if c.verdict == "worse"]
    if better:
        best = max(better, key=lambda c: abs(c.interval.mean))
        i = best.interval
        yield (
            f"{len(better)} of {len(candidates)} restore better than {study.reference.name}; the largest difference is "
            f"{best.ablation}'s: {i.mean:+.4f} {metric} [{i.low:+.4f}, {i.high:+.4f}]."
        )
    else:
        yield f"None of {len(candidates)} is shown to restore better than {study.reference.name} in {metric}."
    if worse:
        yield f"Worse: {', '.join(worse)}."
    if report.ranks:
        first = max(report.ranks, key=lambda ranked: ranked.wins)
        names = {frozenset(a.combination or ()): a.name for a in (*study.ablations[::-1], study.reference)}
        yield (
            f"Drawn again with other images and seeds, {names.get(first.subset, '+'.join(sorted(first.subset)))} would "
            f"be first in {first.wins:.0%} of the draws."
        )
    if held_out := holdout_summary(study, report.comparisons):
        yield held_out
    trained = {run.train_s for run in result.runs if run.seed is not None}
    evaluated = sum(run.evaluate_s for run in result.runs)
    yield f"It took {sum(trained) / 60:.0f} min of training and {evaluated / 60:.0f} min of restoring and measuring."


def _provenance(result: StudyResult) -> dict[str, str]:
    trained = result.of(result.study.reference.name)[0]
    return {
        "protocol": ", ".join(protocol_lines(result)),
        "images": _images(result),
        **({"pictures": f"of {result.primary_set.name}"} if len(result.sets) > 1 else {}),
        "seeds": ", ".join(map(str, result.seeds)),
        "steps": str(trained.steps),
        "device": trained.device,
        "code": ", ".join(sorted({str(run.commit) for run in result.runs})),
        "versions": ", ".join(f"{name} {version}" for name, version in trained.versions.items()),
        "W&B group": result.group,
    }


def learning_curves(result: StudyResult) -> tuple[pd.DataFrame, str, str]:
    """Learning curves, one column each over the steps, a name for their axis, and a sentence on what they show.

    Where several ablations are trained, there is one curve for each: the training loss minus the reference's of the
    same seed and step, because runs of a seed share batches and noise, of which single losses vary many times more than
    ablations differ; averaged over seeds, as a running mean over a fifth of the training. Else the losses as logged.
    """
    reference = result.study.reference.name
    losses = {(run.ablation, run.seed): read_losses(result.output / run.run_id) for run in result.runs}
    series = {key: pd.Series({int(step): loss for step, loss in rows}) for key, rows in losses.items() if rows}
    curves = {}
    for ablation in result.study.ablations:
        pairs = [(series.get((ablation.name, seed)), series.get((reference, seed))) for seed in result.seeds]
        differences = [mine - other for mine, other in pairs if mine is not None and other is not None]
        if differences:
            difference = pd.concat(differences, axis=1).dropna().mean(axis=1)
            curves[ablation.name] = difference.rolling(max(1, len(difference) // _WINDOW)).mean().dropna()
    if not curves:
        plain = {f"{name} s{seed}": one for (name, seed), one in series.items()}
        note = "Training loss as it was logged, not smoothed; the number is the last value."
        return pd.DataFrame(plain), "training loss", note
    note = (
        f"Training loss minus that of {reference} with the same seed, batches and noise: below zero learns more. Mean "
        "over seeds, running mean over a fifth of the steps; the number is the last value."
    )
    return pd.DataFrame(curves), f"training loss minus {reference}'s", note
