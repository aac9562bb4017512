"""A W&B Report of a study: the answer in words and a table, then the runs it rests on, live."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ablations.page.content import StudyPage
from megasr.evaluation.tables import markdown_text
from megasr.files import write_whole

REPORT_FILE = "wandb_report.json"  # which report is the study's: the next one replaces its text
_LONGEST_TITLE = 128  # W&B refuses longer ones


def save_report(page: StudyPage, group: str, entity: str, project: str, folder: Path) -> str:
    """Write the report, or write it anew when the study has one already. W&B must be online.

    Args:
        page: the study's answer.
        group: of its W&B runs.
        entity: whose W&B project.
        project: the project.
        folder: of the study.

    Returns:
        Its address.
    """
    report = build_report(page, group, entity, project)
    path = folder / REPORT_FILE
    if path.is_file():
        known = json.loads(path.read_text())
        if (known["entity"], known["project"]) == (entity, project):
            report.id = known["id"]
    report.save()
    known = {"id": report.id, "entity": entity, "project": project, "url": report.url}
    write_whole(path, json.dumps(known).encode())
    return str(report.url)


def build_report(page: StudyPage, group: str, entity: str, project: str) -> Any:
    """The wandb_workspaces Report; nothing is sent. See save_report."""
    import wandb_workspaces.reports.v2 as wr

    metric = page.primary[0]
    of_study = {"entity": entity, "project": project}
    trained = wr.Runset(**of_study, name="runs", filters=f"Group = '{group}' and JobType != 'study'")
    answer = wr.Runset(**of_study, name="answer", filters=f"Group = '{group}' and JobType = 'study'")
    means = [
        wr.BarPlot(title=f"{name}, mean over seeds", metrics=[f"test/{name}"], groupby="JobType")
        for name in page.metrics
    ]
    figures = ["figures/ranking", *["figures/shapley"] * bool(page.shapley), *["figures/synergy"] * bool(page.synergy)]
    pictures = wr.MediaBrowser(
        title="same image, all combinations", media_keys=[f"pictures/{row.key}" for row in page.pictures]
    )
    panels = [wr.MediaBrowser(title="ranking, worth, pairs", media_keys=figures), *[pictures] * bool(page.pictures)]
    controls = f"**Controls.** {markdown_text(page.trust)}"
    return wr.Report(
        **of_study,
        title=f"{page.title}: {page.question}"[:_LONGEST_TITLE],
        description=page.answer[0] if page.answer else "",
        blocks=[
            wr.MarkdownBlock("\n\n".join([*map(markdown_text, page.answer), controls])),
            wr.H2(f"Ranking in {metric}"),
            wr.MarkdownBlock(_table(page)),
            wr.PanelGrid(runsets=[answer], panels=panels),
            wr.H2("Every run"),
            wr.PanelGrid(runsets=[trained], panels=[*means, wr.LinePlot(title="training loss", y=["train/loss"])]),
            wr.H2("What failed"),
            wr.MarkdownBlock(_list([f"{one.run_id}: {one.reason}" for one in page.failures]) or "No run failed."),
            wr.H2("Limits"),
            wr.MarkdownBlock(_list(page.notes)),
            wr.H2("Where the numbers come from"),
            wr.MarkdownBlock(_list([f"{name}: {value}" for name, value in page.provenance])),
        ],
        width="fixed",
    )


def _table(page: StudyPage) -> str:
    head = [f"| combination | difference in {page.primary[0]} | verdict |", "|---|---|---|"]
    rows = (
        f"| {markdown_text(row.label)} | {row.mean:+.4f} [{row.low:+.4f}, {row.high:+.4f}] | {row.verdict} |"
        for row in page.ranked
    )
    return "\n".join([*head, *rows])


def _list(lines: Any) -> str:
    return "\n".join(f"- {markdown_text(line)}" for line in lines)
