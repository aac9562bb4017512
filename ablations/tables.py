"""A study's results as DataFrames, from which its tables, its page and its W&B run come."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from ablations.conclusions import Comparison, Report
from ablations.evaluation import EvaluationSet, study_metrics
from ablations.results import StudyResult, values
from ablations.statistics import score_table
from megasr.evaluation.protocol import MetricSpec
from megasr.evaluation.tables import TextTable, rank_column

MINUS = "\u2212"
HINT = "*"  # marks exploratory intervals that exclude zero


def comparison_frame(report: Report) -> pd.DataFrame:
    """One row per paired comparison, and one for every mean that is compared with nothing."""
    rows = []
    for name, means in report.means.items():
        for metric, mean in means.items():
            row = {"row": name, "metric": metric, "mean": mean}
            mine = [c for c in report.comparisons if (c.ablation, c.metric) == (name, metric)]
            rows += [row | _numbers(comparison) for comparison in mine] or [row]
    columns = ["row", "metric", "mean", "reference", "difference", "low", "high", "p", "p_holm", "photographs", "seeds"]
    return pd.DataFrame(rows, columns=[*columns, "excludes_zero", "verdict"], dtype=object)


def _numbers(comparison: Comparison) -> dict[str, object]:
    i = comparison.interval
    return {"reference": comparison.reference, "difference": i.mean, "low": i.low, "high": i.high, "p": i.p_value,
            "p_holm": comparison.p_holm, "photographs": i.photographs, "seeds": i.seeds,
            "excludes_zero": i.excludes_zero, "verdict": comparison.verdict}  # fmt: skip


def ranking_frame(result: StudyResult, report: Report) -> pd.DataFrame:
    """One row per combination, best first, differences in the primary metric turned so that more is better.

    Columns:
        combination: its guidance types joined by "+", empty for none.
        label: name of the ablation.
        verdict: better, worse, undecided, reference, "control: gain" or "control: no gain", or baseline.
        difference, low, high: to the reference, with the 95 % interval.
        wins: share of the images, over all seeds, on which it is better than the reference; NaN for the reference.
        cost_s: seconds of training, restoring and measuring per run.
        one per metric: its mean, as measured; the primary one first.
    """
    study = result.study
    combinations = {one.name: "+".join(one.combination or ()) for one in (study.reference, *study.ablations)}
    frame = _ranked(result, report, combinations)
    return frame.sort_values("difference", ascending=False, kind="stable", ignore_index=True)


def baseline_frame(result: StudyResult, report: Report) -> pd.DataFrame:
    """The columns of `ranking_frame` for the baselines, bicubic first; nothing of them is judged."""
    return _ranked(result, report, dict.fromkeys(result.baselines, ""))


def _ranked(result: StudyResult, report: Report, combinations: Mapping[str, str]) -> pd.DataFrame:
    """A row per name of a run, with the combination that it stands for."""
    study, reference = result.study, result.study.reference.name
    metrics = ordered_metrics(result)
    sign = 1 if metrics[0].higher_is_better else -1
    scores = {name: score_table([values(run, metrics[0].name) for run in result.of(name)])[0]
              for name in (reference, *combinations)}  # fmt: skip
    rows = []
    for name, combination in combinations.items():
        runs = result.of(name)
        comparison = report.comparison(name, reference, study.primary_metric)
        interval = None if comparison is None else comparison.interval
        low, high = (0.0, 0.0) if interval is None else sorted(sign * end for end in (interval.low, interval.high))
        rows.append(
            {
                "combination": combination,
                "label": name,
                "verdict": "reference" if comparison is None else _verdict(result, comparison),
                "difference": 0.0 if interval is None else sign * interval.mean,
                "low": low,
                "high": high,
                "wins": None if interval is None else float((sign * (scores[name] - scores[reference]) > 0).mean()),
                "cost_s": sum(run.train_s + run.evaluate_s for run in runs) / len(runs),
                **{metric.name: report.means[name][metric.name] for metric in metrics},
            }
        )
    return pd.DataFrame(rows)


def _verdict(result: StudyResult, comparison: Comparison) -> str:
    """A control's is read from its uncorrected interval, as in `trust`; a baseline has none."""
    if comparison.ablation in result.baselines:
        return "baseline"
    if comparison.ablation not in result.study.controls:
        return comparison.verdict
    return f"control: {'gain' if comparison.leans_better else 'no gain'}"


def kind(verdict: str) -> str:
    """The first word of a verdict: better, worse, undecided, reference, control or baseline."""
    return verdict.partition(" ")[0].rstrip(":")


def ordered_metrics(result: StudyResult) -> list[MetricSpec]:
    """The metrics of a study, the primary one first, then the hold-out."""
    first = [result.study.primary_metric, result.study.holdout_metric]
    return sorted(result.metrics, key=lambda m: first.index(m.name) if m.name in first else len(first))


def protocol_lines(result: StudyResult, sets: Sequence[EvaluationSet] | None = None) -> list[str]:
    """How the numbers of each set were taken: "NAME (fingerprint)", of a study of several sets with " of SET"."""
    several, shown = len(result.sets) > 1, result.sets if sets is None else sets
    return [f"{s.protocol.name} ({s.protocol.fingerprint}){f' of {s.name}' * several}" for s in shown]


def ranking_table(
    ranking: pd.DataFrame, metrics: Sequence[MetricSpec], caption: str, notes: Sequence[str] = ()
) -> TextTable:
    """The ranking as text; the best mean of each metric is bold. Controls, there to be worse, do not compete."""
    digits = decimals(ranking["difference"])
    ends = [
        f"[{signed(low, digits)}, {signed(high, digits)}]"
        for low, high in zip(ranking["low"], ranking["high"], strict=True)
    ]
    cells = pd.DataFrame(
        {
            "Combination": ranking["label"],
            f"Δ {metrics[0].name}": [signed(value, digits) for value in ranking["difference"]],
            "95 % interval": ends,
            "Verdict": ranking["verdict"],
            "Wins": [None if pd.isna(wins) else f"{wins:.0%}" for wins in ranking["wins"]],
            "Cost (s)": [None if pd.isna(cost) else f"{cost:.3g}" for cost in ranking["cost_s"]],
        }
    )
    ranks = pd.DataFrame(0, cells.index, cells.columns)
    for metric in metrics:
        values, column = ranking[metric.name], heading(metric)
        cells[column] = [f"{value:.{mean_digits(values)}f}" for value in values]
        ranks[column] = best_means(ranking, metric).astype(int)
    return TextTable(caption, cells, ranks, notes)


def best_means(ranking: pd.DataFrame, metric: MetricSpec) -> pd.Series:
    """Which rows have the best mean of a metric; controls and baselines never have."""
    competing = ranking[metric.name].where(~ranking["verdict"].map(kind).isin(["control", "baseline"]))
    return rank_column(competing, metric.higher_is_better) == 1


def summary_table(
    result: StudyResult, report: Report, intervals: bool = True, of: EvaluationSet | None = None
) -> TextTable:
    """Every row of the study in every metric: the mean, then the difference to the reference and its interval.

    Args:
        result: the study's.
        report: what it says.
        intervals: write them.
        of: the set whose metrics are shown; None shows all.
    """
    sets, known = result.sets if of is None else (of,), study_metrics(result.sets)
    study, reference = result.study, result.study.reference.name
    labels = [f"{row} ({study.controls[row]} control)" if row in study.controls else row for row in report.means]
    cells = pd.DataFrame({"": labels})
    for metric in (metric for metric in ordered_metrics(result) if known[metric.name][0] in sets):
        primary = "\nprimary" if metric.name == study.primary_metric else ""
        cells[heading(metric) + primary] = [
            _summary_cell(means[metric.name], report.comparison(row, reference, metric.name), intervals)
            for row, means in report.means.items()
        ]
    legend = (
        f"Differences are to {reference}. Protocol {', '.join(protocol_lines(result, sets))}. Only "
        f"{study.primary_metric} is judged; {HINT} marks exploratory intervals, not corrected, that exclude zero: "
        "hints, not results."
    )
    caption = f"mean, and paired difference to {reference}{' with 95 % interval' if intervals else ''}"
    return TextTable(caption, cells, notes=(legend,))


def _summary_cell(mean: float, comparison: Comparison | None, intervals: bool) -> str:
    digits = 2 if abs(mean) >= 10 else 4
    lines = [f"{mean:.{digits}f}"]
    if comparison is not None:
        i, digits = comparison.interval, 3 if abs(mean) >= 10 else 4
        hint = HINT if i.excludes_zero else ""
        lines.append(f"{i.mean:+.{digits}f} {hint if comparison.p_holm is None else comparison.verdict}".rstrip())
        lines += [f"[{i.low:+.{digits}f}, {i.high:+.{digits}f}]"] * intervals
    return "\n".join(lines)


def heading(metric: MetricSpec) -> str:
    """A metric's name and direction."""
    return f"{metric.name} {'↑' if metric.higher_is_better else '↓'}"


def mean_digits(values: pd.Series) -> int:
    """As papers print them: PSNR 28.03, SSIM 0.7967. All numbers of one metric have the same digits."""
    return 2 if values.abs().max() >= 10 else 4


def decimals(values: Iterable[float], significant: int = 3) -> int:
    """Digits after the point with which the largest of the values shows so many significant digits."""
    largest = max(map(abs, values), default=0)
    return min(8, max(0, significant - 1 - math.floor(math.log10(largest)))) if largest else 1


def signed(value: float, digits: int, plus: bool = True) -> str:
    """A number with a true minus sign, and with a plus sign; what rounds to zero has none."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return (MINUS if value < 0 else "+" if plus else "") + text


def interval_text(means: pd.Series, lows: pd.Series, highs: pd.Series) -> list[str]:
    """Values with their intervals, with the digits that the largest of them needs."""
    digits = decimals([*means, *((highs - lows) / 2)])
    rows = zip(means, lows, highs, strict=True)
    return [f"{signed(m, digits)} [{signed(low, digits)}, {signed(high, digits)}]" for m, low, high in rows]
