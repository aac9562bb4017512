"""What a study's own W&B run holds: tables, figures with intervals, pictures side by side, and the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ablations.page.content import Bar, Heat, PictureRow, StudyPage
from ablations.page.heat import synergy_plot
from ablations.page.page import figure_page
from ablations.page.plots import ranking_plot, shapley_plot


def study_media(page: StudyPage, sheet: Path, index: Path) -> dict[str, Any]:
    """Key -> W&B object. Tables repeat the numbers of the page; figures are its own, as HTML, because W&B's bars have
    no intervals.

    Args:
        page: the study's answer.
        sheet: the contact sheet.
        index: the page's file.
    """
    import wandb

    metric = page.primary[0]
    media: dict[str, Any] = {
        "contact_sheet": wandb.Image(str(sheet)),
        "page": wandb.Html(index.read_text(), inject=False),
        "ranking": wandb.Table(*_ranking(page), allow_mixed_types=True),
        "figures/ranking": _figure(ranking_plot(page, wide=True)),
    }
    if page.shapley:
        media["shapley"] = _bars("guidance", page.shapley)
        media["figures/shapley"] = _figure(shapley_plot(page.shapley, metric, wide=True))
    if page.synergy:
        media["synergy"] = _synergy(page.synergy)
        media["figures/synergy"] = _figure(synergy_plot(page.synergy, metric, wide=True))
    for row in page.pictures:
        media[f"pictures/{row.key}"] = _pictures(_panel(row, metric))
    return media


def study_summary(page: StudyPage) -> dict[str, Any]:
    """What W&B's table of runs shows of a study: whether to believe it, the best combination and by how much."""
    summary: dict[str, Any] = {"trust": page.trust, "trusted": page.trusted, "answer": " ".join(page.answer)}
    competing = [row for row in page.ranked if row.kind in ("better", "worse", "undecided")]
    if competing:
        best = competing[0]
        summary |= {"best": best.label, "best/verdict": best.verdict}
        summary |= {"best/difference": best.mean, "best/low": best.low, "best/high": best.high}
    return summary


def _ranking(page: StudyPage) -> tuple[list[str], list[list[Any]]]:
    columns = ["combination", "verdict", "difference", "low", "high", "wins", "cost_s", *page.metrics]
    rows = [
        [row.label, row.verdict, row.mean, row.low, row.high, row.wins, row.cost_s]
        + [row.means.get(metric) for metric in page.metrics]
        for row in page.ranked
    ]
    return columns, rows


def _bars(name: str, bars: Sequence[Bar]) -> Any:
    import wandb

    return wandb.Table([name, "value", "low", "high"], [[bar.label, bar.mean, bar.low, bar.high] for bar in bars])


def _synergy(heat: Heat) -> Any:
    import wandb

    rows = [[first, second, bar.mean, bar.low, bar.high] for (first, second), bar in heat.cells.items()]
    return wandb.Table(["first", "second", "value", "low", "high"], rows)


def _figure(svg: str) -> Any:
    import wandb

    return wandb.Html(figure_page(svg), inject=False)


def _pictures(panel: Sequence[tuple[Path, str]]) -> list[Any]:
    """Pictures side by side, of one size as W&B shows them: what is smaller (lq) gets larger pixels."""
    import wandb
    from PIL import Image

    images = [Image.open(path) for path, _ in panel]
    size = max(image.size for image in images)
    resized = [image if image.size == size else image.resize(size, Image.Resampling.NEAREST) for image in images]
    return [wandb.Image(image, caption=words) for image, (_, words) in zip(resized, panel, strict=True)]


def _panel(row: PictureRow, metric: str) -> list[tuple[Path, str]]:
    """(file, caption), from left to right."""
    files = {"lq": row.lq, **({"bicubic": row.bicubic} if row.bicubic else {}), **row.restorations, "hq": row.hq}

    def caption(name: str) -> str:
        score = row.scores.get(name, {}).get(metric)
        return name if score is None else f"{name} · {metric} {score:.4g}"

    return [(path, caption(name)) for name, path in files.items()]
