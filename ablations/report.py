"""Study result -> the printed table, results.csv, results.md, results.json and the contact sheet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ablations.conclusions import Comparison, Report, make_report
from ablations.registry import Study
from ablations.results import StudyResult, write_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_LEAST_WIDTH = 130  # columns of text the table needs with intervals


def write_report(result: StudyResult, output: Path, console: Console | None = None) -> Report:
    """Print the report and write results.csv, results.md, results.json and contact_sheet.png into `output`.

    Raises:
        MegaSRError: a file cannot be written, or a picture of a run is missing.
        UsageError: see `make_report`.
    """
    from rich.console import Console

    from ablations.contact_sheet import write_contact_sheet

    report = make_report(result)
    write_text(output / "results.csv", _csv(report))
    write_text(output / "results.md", _markdown(result, report))
    write_text(output / "results.json", _json(result, report))
    write_contact_sheet(result, output / "contact_sheet.png")
    console = console or Console()
    if not console.is_terminal:  # a file has no width; rich would take 80
        console.width = max(console.width, _LEAST_WIDTH)
    console.print(_table(result, report, intervals=console.width >= _LEAST_WIDTH))
    for line in (report.trust, *report.findings, *report.notes, f"written to {output}"):
        console.print(line, markup=False, highlight=False)
    return report


def _label(study: Study, row: str) -> str:
    kind = study.controls.get(row)
    return f"{row} ({kind} control)" if kind else row


def _digits(mean: float) -> int:
    """Digits of a mean after the point; differences of large means get one more."""
    return 2 if abs(mean) >= 10 else 4


def _cells(result: StudyResult, report: Report) -> Iterator[tuple[str, list[tuple[float, Comparison | None]]]]:
    """For each row of the table its label and, per metric, the mean and the comparison with the reference."""
    reference = result.study.reference.name
    for row, means in report.means.items():
        cells = [(means[name], report.comparison(row, reference, name)) for name in result.protocol.metric_names]
        yield _label(result.study, row), cells


def _headers(result: StudyResult) -> list[str]:
    return [f"{metric.name} {'↑' if metric.higher_is_better else '↓'}" for metric in result.protocol.metrics]


def _difference(mean: float, comparison: Comparison) -> tuple[str, str]:
    """The difference and its interval as text."""
    interval, digits = comparison.interval, _digits(mean) + (abs(mean) >= 10)
    low, middle, high = (f"{value:+.{digits}f}" for value in (interval.low, interval.mean, interval.high))
    return middle, f"[{low}, {high}]"


def _table(result: StudyResult, report: Report, intervals: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    styles = {"better": "green", "worse": "red", "undecided": "dim"}
    table = Table(
        title=f"{result.study.question}\nmean, and paired difference to {result.study.reference.name}"
        + (" with 95 % interval" if intervals else ""),
        caption=f"protocol {result.protocol.name} ({result.protocol.fingerprint}); "
        "green better, red worse, dim undecided",
        show_lines=True,
    )
    table.add_column("", no_wrap=True)
    for header in _headers(result):
        table.add_column(header, justify="right")
    for label, cells in _cells(result, report):
        texts = []
        for mean, comparison in cells:
            text = Text(f"{mean:.{_digits(mean)}f}")
            if comparison is not None:
                middle, interval = _difference(mean, comparison)
                text.append("\n" + middle + ("\n" + interval if intervals else ""), styles[comparison.verdict])
            texts.append(text)
        table.add_row(label.replace(" (", "\n("), *texts)
    return table


def _markdown(result: StudyResult, report: Report) -> str:
    marks = {"better": " **better**", "worse": " **worse**", "undecided": ""}
    lines = [f"# {result.study.name}", "", result.study.question, "", report.trust, ""]
    lines += [f"| | {' | '.join(_headers(result))} |", "|---" * (1 + len(result.protocol.metrics)) + "|"]
    for label, cells in _cells(result, report):
        texts = [
            f"{mean:.{_digits(mean)}f}" + (f"<br>{' '.join(_difference(mean, c))}{marks[c.verdict]}" if c else "")
            for mean, c in cells
        ]
        lines.append(f"| {label} | {' | '.join(texts)} |")
    lines += ["", f"Differences are to {result.study.reference.name}. Protocol {result.protocol.name} "
              f"({result.protocol.fingerprint}).", ""]  # fmt: skip
    lines += [f"- {line}" for line in (*report.findings, *report.notes)]
    return "\n".join([*lines, "", "![crops](contact_sheet.png)", ""])


def _csv(report: Report) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ["difference", "low", "high", "p", "p_holm", "photographs", "seeds"]
    writer.writerow(["row", "metric", "mean", "reference", *columns, "verdict"])
    for row, means in report.means.items():
        for metric, mean in means.items():
            mine = [c for c in report.comparisons if (c.ablation, c.metric) == (row, metric)]
            for c in mine:
                i = c.interval
                numbers: list[object] = [i.mean, i.low, i.high, i.p_value, c.p_holm, i.photographs, i.seeds]
                writer.writerow([row, metric, mean, c.reference, *numbers, c.verdict])
            if not mine:
                writer.writerow([row, metric, mean, *[""] * 9])
    return text.getvalue()


def _json(result: StudyResult, report: Report) -> str:
    runs = [{name: value for name, value in asdict(run).items() if name != "rows"} for run in result.runs]
    comparisons = [{**asdict(c), "verdict": c.verdict} for c in report.comparisons]
    content = {
        "study": result.study.name,
        "question": result.study.question,
        "protocol": {"name": result.protocol.name, "fingerprint": result.protocol.fingerprint},
        "trust": report.trust,
        "findings": report.findings,
        "notes": report.notes,
        "means": report.means,
        "comparisons": comparisons,
        "runs": runs,
    }
    return json.dumps(content, indent=1)
