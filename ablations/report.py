"""Study result -> the printed table, results.csv, .md and .json, scores.csv, the contact sheet and W&B."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ablations.conclusions import Comparison, Report, make_report
from ablations.registry import Study
from ablations.results import StudyResult, write_text
from megasr.errors import MegaSRError
from megasr.evaluation.protocol import MetricSpec
from megasr.evaluation.tables import csv_text, markdown_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ablations.page.content import StudyPage

_LEAST_WIDTH = 130  # columns of text the table needs with intervals
_HINT = "*"  # marks exploratory intervals that exclude zero
_COLUMNS = ("row", "metric", "mean", "reference", "difference", "low", "high", "p", "p_holm", "photographs", "seeds",
            "excludes_zero", "verdict")  # fmt: skip


def write_report(result: StudyResult, output: Path, console: Console | None = None) -> Report:
    """Print the report; write index.html, the ranking, results and scores as files, and contact_sheet.png.

    W&B gets the report too, unless no run is new.

    Raises:
        MegaSRError: a file cannot be written, a picture of a run is missing, no seed is finished for every ablation;
            or, when all else is done, runs of the study failed.
        UsageError: see `make_report`.
    """
    from rich.console import Console

    from ablations.contact_sheet import write_contact_sheet
    from ablations.page.page import write_page
    from ablations.page.tables import csv_table, latex_table
    from ablations.study_page import study_page

    failures = "; ".join(f"{run_id}: {reason}" for run_id, reason in result.failed.items())
    again = "what finished is kept, the same command runs the rest"
    if result.failed and not result.seeds:
        raise MegaSRError(f"no report, for no seed is finished for every ablation. Failed: {failures} ({again})")
    report = make_report(result)
    write_text(output / "results.csv", _csv(report))
    write_text(output / "scores.csv", _scores(result))
    write_text(output / "results.md", _markdown(result, report))
    write_text(output / "results.json", _json(result, report))
    write_contact_sheet(result, output / "contact_sheet.png")
    page = study_page(result, report)
    write_page(page, output / "index.html")
    write_text(output / "ranking.csv", csv_table(page))
    write_text(output / "ranking.tex", latex_table(page))
    console = console or Console()
    if not console.is_terminal:  # a file has no width; rich would take 80
        console.width = max(console.width, _LEAST_WIDTH)
    console.print(_table(result, report, intervals=console.width >= _LEAST_WIDTH))
    for line in (report.trust, *report.findings, *report.notes, f"written to {output}"):
        console.print(line, markup=False, highlight=False)
    if len(result.reused) < len(result.runs):
        _track(result, report, page, output, lambda line: console.print(line, markup=False, highlight=False))
    if result.failed:
        raise MegaSRError(f"{len(result.failed)} run(s) failed: {failures} ({again})")
    return report


def _track(result: StudyResult, report: Report, page: StudyPage, output: Path, tell: Callable[[str], None]) -> None:
    from ablations.tracking import Tracker

    protocol = {"name": result.protocol.name, "fingerprint": result.protocol.fingerprint}
    config = {"study": result.study.name, "primary_metric": result.study.primary_metric, "protocol": protocol}
    Tracker(result.group, tell).report(_COLUMNS, _rows(report), page, output, config)


def _label(study: Study, row: str) -> str:
    kind = study.controls.get(row)
    return f"{row} ({kind} control)" if kind else row


def _digits(mean: float) -> int:
    """Digits of a mean after the point; differences of large means get one more."""
    return 2 if abs(mean) >= 10 else 4


def _metrics(result: StudyResult) -> list[MetricSpec]:
    """The columns: the primary metric first."""
    return sorted(result.protocol.metrics, key=lambda metric: metric.name != result.study.primary_metric)


def _cells(result: StudyResult, report: Report) -> Iterator[tuple[str, list[tuple[float, Comparison | None]]]]:
    """For each row of the table its label and, per metric, the mean and the comparison with the reference."""
    reference = result.study.reference.name
    for row, means in report.means.items():
        cells = [(means[m.name], report.comparison(row, reference, m.name)) for m in _metrics(result)]
        yield _label(result.study, row), cells


def _headers(result: StudyResult) -> list[str]:
    arrows = [f"{metric.name} {'↑' if metric.higher_is_better else '↓'}" for metric in _metrics(result)]
    return [f"{arrows[0]} primary", *arrows[1:]]


def _difference(mean: float, comparison: Comparison) -> tuple[str, str]:
    """The difference with its mark, and its interval, as text."""
    interval, digits = comparison.interval, _digits(mean) + (abs(mean) >= 10)
    low, middle, high = (f"{value:+.{digits}f}" for value in (interval.low, interval.mean, interval.high))
    return f"{middle} {_mark(comparison)}".rstrip(), f"[{low}, {high}]"


def _mark(comparison: Comparison) -> str:
    """The verdict of the primary question; of an exploratory comparison only whether its interval excludes zero."""
    if comparison.p_holm is not None:
        return comparison.verdict
    return _HINT if comparison.interval.excludes_zero else ""


def _legend(result: StudyResult) -> str:
    return (
        f"Protocol {result.protocol.name} ({result.protocol.fingerprint}). Only {result.study.primary_metric} is "
        f"judged; {_HINT} marks exploratory intervals, not corrected, that exclude zero: hints, not results."
    )


def _table(result: StudyResult, report: Report, intervals: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    styles = {"better": "bold green", "worse": "bold red", "undecided": "bold", "exploratory": "dim"}
    table = Table(
        title=f"{result.study.question}\nmean, and paired difference to {result.study.reference.name}"
        + (" with 95 % interval" if intervals else ""),
        caption=_legend(result),
        show_lines=True,
    )
    table.add_column("", no_wrap=True)
    for header in _headers(result):
        table.add_column(header.replace(" primary", "\nprimary"), justify="right")
    for label, cells in _cells(result, report):
        texts = []
        for mean, comparison in cells:
            text = Text(f"{mean:.{_digits(mean)}f}")
            if comparison is not None:
                lines = _difference(mean, comparison)[: 2 if intervals else 1]
                text.append("\n" + "\n".join(lines), styles[comparison.verdict])
            texts.append(text)
        table.add_row(label.replace(" (", "\n("), *texts)
    return table


def _markdown(result: StudyResult, report: Report) -> str:
    lines = [f"# {result.study.name}", "", result.study.question, "", report.trust, ""]
    lines += [f"| | {' | '.join(_headers(result))} |", "|---" * (1 + len(result.protocol.metrics)) + "|"]
    for label, cells in _cells(result, report):
        texts = [
            f"{mean:.{_digits(mean)}f}" + (f"<br>{'<br>'.join(_difference(mean, c))}" if c else "") for mean, c in cells
        ]
        lines.append(f"| {markdown_text(label)} | {' | '.join(texts)} |")
    lines += ["", f"Differences are to {result.study.reference.name}. {_legend(result)}", ""]
    lines += [f"- {markdown_text(line)}" for line in (*report.findings, *report.notes)]
    return "\n".join([*lines, "", "![crops](contact_sheet.png)", ""])


def _rows(report: Report) -> list[list[object]]:
    """The values of `_COLUMNS` for every comparison, and for every row that is compared with nothing its means."""
    rows: list[list[object]] = []
    for row, means in report.means.items():
        for metric, mean in means.items():
            mine = [c for c in report.comparisons if (c.ablation, c.metric) == (row, metric)]
            for c in mine:
                i = c.interval
                numbers = [i.mean, i.low, i.high, i.p_value, c.p_holm, i.photographs, i.seeds]
                rows.append([row, metric, mean, c.reference, *numbers, i.excludes_zero, c.verdict])
            if not mine:
                rows.append([row, metric, mean, *[None] * (len(_COLUMNS) - 3)])
    return rows


def _csv(report: Report) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_COLUMNS, *_rows(report)])
    return text.getvalue()


def _scores(result: StudyResult) -> str:
    """Every image of every run: what all else is worked out from, for other statistics than ours."""
    metrics = [metric.name for metric in result.protocol.metrics]
    rows = [
        {"ablation": run.ablation, "seed": run.seed, "key": row["key"], **{name: row[name] for name in metrics}}
        for run in result.runs
        for row in run.rows
    ]
    return csv_text(["ablation", "seed", "key", *metrics], rows)


def _json(result: StudyResult, report: Report) -> str:
    runs = [{name: value for name, value in asdict(run).items() if name != "rows"} for run in result.runs]
    comparisons = [
        {**asdict(c), "excludes_zero": c.interval.excludes_zero, "verdict": c.verdict} for c in report.comparisons
    ]
    content = {
        "study": result.study.name,
        "question": result.study.question,
        "protocol": {"name": result.protocol.name, "fingerprint": result.protocol.fingerprint},
        "primary_metric": result.study.primary_metric,
        "seeds": result.seeds,
        "failed": dict(result.failed),
        "trust": report.trust,
        "findings": report.findings,
        "notes": report.notes,
        "means": report.means,
        "comparisons": comparisons,
        "runs": runs,
    }
    return json.dumps(content, indent=1)
