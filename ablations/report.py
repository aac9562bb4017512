"""Study result -> the printed table, results.csv, .md and .json, scores.csv, the ranking, the page and W&B."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.conclusions import Report, make_report
from ablations.page import StudyPage, write_page
from ablations.results import StudyResult, tidy, write_text
from ablations.tables import ranking_table, summary_table
from megasr.errors import MegaSRError
from megasr.evaluation.tables import TextTable, markdown_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_LEAST_WIDTH = 130  # columns of text the table needs with intervals
_STYLES = {"better": "bold green", "worse": "bold red", "undecided": "bold"}


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
    from ablations.study_page import study_page

    by_reason: dict[str, list[str]] = {}  # runs that share a training fail together
    for run_id, reason in result.failed.items():
        by_reason.setdefault(reason, []).append(run_id)
    failures = "; ".join(f"{', '.join(run_ids)}: {reason}" for reason, run_ids in by_reason.items())
    again = "what finished is kept, the same command runs the rest"
    if result.failed and not result.seeds:
        raise MegaSRError(f"no report, for no seed is finished for every ablation. Failed: {failures} ({again})")
    report = make_report(result)
    page = study_page(result, report)
    for name, text in _files(result, report, page).items():
        write_text(output / name, text)
    write_contact_sheet(result, output / "contact_sheet.png")
    write_page(page, output / "index.html")
    console = console or Console()
    if not console.is_terminal:  # a file has no width; rich would take 80
        console.width = max(console.width, _LEAST_WIDTH)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    for line in (page.answer[0], report.trust):
        say(line)
    for one in result.sets:
        table = summary_table(result, report, console.width >= _LEAST_WIDTH, one)
        console.print(_printed(result.study.question, table))
    for line in (*report.findings, *report.notes, f"written to {output}"):
        say(line)
    if len(result.reused) < len(result.runs):
        _track(result, page, output, say)
    if result.failed:
        raise MegaSRError(f"{len(result.failed)} run(s) failed: {failures} ({again})")
    return report


def _track(result: StudyResult, page: StudyPage, output: Path, say: Callable[[str], None]) -> None:
    from ablations.tracking import Tracker

    study = result.study
    config = {"study": study.name, "primary_metric": study.primary_metric, "protocol": _protocols(result)}
    Tracker(result.group, say).report(page, output, config)


def _protocols(result: StudyResult) -> dict[str, Any]:
    """Name and fingerprint of the protocol; of several sets by the set."""
    about = {one.name: {"name": one.protocol.name, "fingerprint": one.protocol.fingerprint} for one in result.sets}
    return about if len(about) > 1 else next(iter(about.values()))


def _files(result: StudyResult, report: Report, page: StudyPage) -> dict[str, str]:
    """Name of a file -> its text."""
    scores = tidy(result).pivot(index=["ablation", "seed", "key"], columns="metric", values="value")
    primary, turned = (
        page.metrics[0],
        "" if page.metrics[0].higher_is_better else ", its sign turned so that more is better",
    )
    caption = f"{page.question} Difference to {page.reference} in {primary.name}{turned}."
    ranking = ranking_table(page.ranking, page.metrics, caption, (page.trust, *page.notes))
    return {
        "results.csv": page.results.to_csv(index=False),
        "scores.csv": scores[[metric.name for metric in result.metrics]].reset_index().to_csv(index=False),
        "results.md": _markdown(result, report),
        "results.json": _json(result, report),
        "ranking.csv": page.ranking.to_csv(index=False),
        "ranking.tex": ranking.latex(),
    }


def _printed(question: str, table: TextTable) -> Table:
    """The table for a terminal."""
    from rich.table import Table
    from rich.text import Text

    printed = Table(title=f"{question}\n{table.caption}", caption=table.notes[0], show_lines=True)
    for number, header in enumerate(table.cells.columns):
        printed.add_column(header, justify="right" if number else "left", no_wrap=not number)
    for label, *cells in table.cells.itertuples(index=False):
        texts = [Text(cell) for cell in cells]
        for text in texts:
            for word, style in _STYLES.items():
                text.highlight_words([word], style)
        printed.add_row(label.replace(" (", "\n("), *texts)
    return printed


def _markdown(result: StudyResult, report: Report) -> str:
    table = "\n".join(summary_table(result, report, of=one).markdown() for one in result.sets)
    lines = [f"- {markdown_text(line)}" for line in (*report.findings, *report.notes)]
    return "\n".join(
        [f"# {result.study.name}", "", result.study.question, "", report.trust, "", table, *lines, "",
         "![crops](contact_sheet.png)", ""]
    )  # fmt: skip


def _json(result: StudyResult, report: Report) -> str:
    runs = [{name: value for name, value in asdict(run).items() if name != "rows"} for run in result.runs]
    comparisons = [
        {**asdict(c), "excludes_zero": c.interval.excludes_zero, "verdict": c.verdict} for c in report.comparisons
    ]
    content = {
        "study": result.study.name,
        "question": result.study.question,
        "protocol": _protocols(result),
        "primary_metric": result.study.primary_metric,
        "holdout_metric": result.study.holdout_metric,
        "seeds": result.seeds,
        "failed": dict(result.failed),
        "missing": result.missing,
        "trust": report.trust,
        "findings": report.findings,
        "notes": report.notes,
        "means": report.means,
        "comparisons": comparisons,
        "runs": runs,
    }
    return json.dumps(content, indent=1)
