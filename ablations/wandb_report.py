"""A study in W&B: what its own run holds, and a W&B Report with the answer in words beside the runs it rests on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from ablations.page import StudyPage
from ablations.tables import ranking_table
from megasr.evaluation.tables import markdown_text
from megasr.files import write_whole

REPORT_FILE = "wandb_report.json"  # which report is the study's: the next one replaces its text
_LONGEST_TITLE = 128  # W&B refuses longer ones


def study_media(page: StudyPage, sheet: Path, index: Path) -> dict[str, Any]:
    """Key -> W&B object: the page's tables, its figures (W&B's bars have no intervals) and pictures side by side.

    Args:
        page: the study's answer.
        sheet: the contact sheet.
        index: the page's file.
    """
    import wandb

    from ablations import figures

    metric = page.metrics[0].name
    tables = {"results": page.results, "ranking": page.ranking, "shapley": page.worth, "synergy": page.synergies}
    drawn = {"ranking": lambda: figures.ranking_figure(page.ranking, metric, page.least_difference)}
    if len(page.worth):
        drawn["shapley"] = lambda: figures.shapley_figure(page.worth, metric)
    if len(page.synergies):
        drawn["synergy"] = lambda: figures.synergy_figure(page.synergies)
    return {
        "contact_sheet": wandb.Image(str(sheet)),
        "page": wandb.Html(index.read_text(), inject=False),
        **{name: _table(frame) for name, frame in tables.items() if len(frame)},
        **{f"figures/{name}": wandb.Image(draw()) for name, draw in drawn.items()},
        **{f"pictures/{key}": _pictures(page, key) for key in page.pictures.get("lq", ())},
    }


def study_summary(page: StudyPage) -> dict[str, Any]:
    """What W&B's table of runs shows of a study: whether to believe it, the best combination and by how much."""
    summary: dict[str, Any] = {"trust": page.trust, "trusted": page.trusted, "answer": " ".join(page.answer)}
    if len(page.competing):
        best = page.competing.iloc[0]
        summary |= {"best": best["label"]}
        summary |= {f"best/{name}": best[name] for name in ("verdict", "difference", "low", "high")}
    return summary


def _table(frame: pd.DataFrame) -> Any:
    import wandb

    cells = frame.astype(object).where(frame.notna(), None)
    return wandb.Table(list(frame.columns), cells.values.tolist(), allow_mixed_types=True)


def _pictures(page: StudyPage, key: str) -> list[Any]:
    """Pictures side by side, of one size as W&B shows them: what is smaller (lq) gets larger pixels."""
    import wandb
    from PIL import Image

    metric = page.metrics[0].name
    images = {label: Image.open(files[key]) for label, files in page.pictures.items()}
    size = max(image.size for image in images.values())
    captions = {label: f"{label} · {metric} {scores.loc[key, metric]:.4g}" for label, scores in page.scores.items()}
    return [
        wandb.Image(image.resize(size, Image.Resampling.NEAREST), caption=captions.get(label, label))
        for label, image in images.items()
    ]


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
    report = _report(page, group, {"entity": entity, "project": project})
    path = folder / REPORT_FILE
    if path.is_file():
        known = json.loads(path.read_text())
        if (known["entity"], known["project"]) == (entity, project):
            report.id = known["id"]
    report.save()
    known = {"id": report.id, "entity": entity, "project": project, "url": report.url}
    write_whole(path, json.dumps(known).encode())
    return str(report.url)


def _report(page: StudyPage, group: str, place: dict[str, str]) -> Any:
    import wandb_workspaces.reports.v2 as wr

    trained = wr.Runset(**place, name="runs", filters=f"Group = '{group}' and JobType != 'study'")
    answer = wr.Runset(**place, name="answer", filters=f"Group = '{group}' and JobType = 'study'")
    means = [
        wr.BarPlot(title=f"{metric.name}, mean over seeds", metrics=[f"test/{metric.name}"], groupby="JobType")
        for metric in page.metrics
    ]
    figures = {"ranking": True, "shapley": len(page.worth) > 0, "synergy": len(page.synergies) > 0}
    keys = [f"figures/{name}" for name, there in figures.items() if there]
    panels = [wr.MediaBrowser(title="ranking, worth, pairs", media_keys=keys)]
    if page.pictures:
        pictures = [f"pictures/{key}" for key in page.pictures["lq"]]
        panels.append(wr.MediaBrowser(title="same image, all combinations", media_keys=pictures))
    reference = f"Difference to {page.reference}" if page.reference else "Difference"
    table = ranking_table(page.ranking, page.metrics, f"{reference} in {page.metrics[0].name}").markdown()
    return wr.Report(
        **place,
        title=f"{page.title}: {page.question}"[:_LONGEST_TITLE],
        description=page.answer[0] if page.answer else "",
        blocks=[
            wr.MarkdownBlock(
                "\n\n".join([*map(markdown_text, page.answer), f"**Controls.** {markdown_text(page.trust)}"])
            ),
            wr.H2("Ranking"),
            wr.MarkdownBlock(table),
            wr.PanelGrid(runsets=[answer], panels=panels),
            wr.H2("Every run"),
            wr.PanelGrid(runsets=[trained], panels=[*means, wr.LinePlot(title="training loss", y=["train/loss"])]),
            wr.H2("What failed"),
            wr.MarkdownBlock(_list(f"{run}: {reason}" for run, reason in page.failures.items()) or "No run failed."),
            wr.H2("Limits"),
            wr.MarkdownBlock(_list(page.notes)),
            wr.H2("Where the numbers come from"),
            wr.MarkdownBlock(_list(f"{name}: {value}" for name, value in page.provenance.items())),
        ],
        width="fixed",
    )


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {markdown_text(line)}" for line in lines)
