"""What a study answers, and its page: one HTML file that needs no network, with text, figures, numbers and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from ablations.tables import best_means, decimals, heading, interval_text, kind, mean_digits, signed
from megasr.evaluation.comparison import HQ, LQ, Source, load_template, pictures, viewer_data, write_html
from megasr.evaluation.protocol import MetricSpec


@dataclass(frozen=True)
class StudyPage:
    """The answer of a study, as its page and its W&B run show it.

    Attributes:
        title: name of the study.
        question: what it asks, one sentence.
        answer: sentences: which combination, how sure, at what cost.
        trust: one sentence on whether the controls behaved.
        trusted: True, False, or None when the negative or the positive control is missing.
        metrics: what was measured, the primary metric first.
        ranking: see ablations.tables.ranking_frame.
        baselines: the same columns of what is not trained, for the table alone; see ablations.tables.baseline_frame.
        results: see ablations.tables.comparison_frame.
        hypotheses: label of a row -> what was expected before the runs.
        worth: Shapley values of the guidance types: label, mean, low, high; empty when not computed.
        synergies: of pairs of types: first, second, mean, low, high; empty when not computed.
        curves: learning curves, one column each over the steps; empty when there are none.
        curves_axis: what they are, for their axis.
        curves_note: what they show, a sentence.
        pictures: "lq", labels of rows, "hq" where there is one -> key of the image -> file.
        scores: labels of rows -> scores of these images, keys by those metrics that they have.
        failures: run without numbers -> reason in one line.
        notes: what limits the answer.
        least_difference: smallest difference that is called one, in the primary metric; 0 is any.
        provenance: what -> value: commit, protocol, seeds, device.
    """

    title: str
    question: str
    answer: Sequence[str]
    trust: str
    trusted: bool | None
    metrics: Sequence[MetricSpec]
    ranking: pd.DataFrame
    baselines: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"label": []}))
    results: pd.DataFrame = field(default_factory=pd.DataFrame)
    hypotheses: Mapping[str, str] = field(default_factory=dict)
    worth: pd.DataFrame = field(default_factory=pd.DataFrame)
    synergies: pd.DataFrame = field(default_factory=pd.DataFrame)
    curves: pd.DataFrame = field(default_factory=pd.DataFrame)
    curves_axis: str = "training loss"
    curves_note: str = ""
    pictures: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    scores: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    least_difference: float = 0.0
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def reference(self) -> str | None:
        """Label of the row that the others are compared with."""
        return next((row.label for row in self.ranking.itertuples() if row.verdict == "reference"), None)

    @property
    def competing(self) -> pd.DataFrame:
        """The rows that are neither the reference nor a control, best first."""
        return self.ranking[~self.ranking["verdict"].map(kind).isin(["reference", "control"])]


def write_page(page: StudyPage, path: Path, webp_quality: int | None = None) -> None:
    """Write the page, whole or not at all.

    Args:
        page: what it shows.
        path: the HTML file.
        webp_quality: 0 to 100 embeds lossy pictures, and the page says so; None embeds every pixel as it is.

    Raises:
        UsageError: the pictures of one image differ in size.
        MegaSRError: a picture cannot be read, or the page cannot be written.
    """
    sources = _sources(page)
    keys = list(page.pictures.get(LQ, ()))
    labels = [source.label for source in sources]
    measured = [s.label for s in sorted((s for s in sources if s.method is not None), key=lambda s: s.method or 0)]
    scores = {label: page.scores[label] for label in measured}
    metrics = [metric for metric in page.metrics if all(metric.name in table for table in scores.values())]
    data = viewer_data(sources, keys, scores, metrics if measured else (), webp_quality)
    data |= {"pairwise": True, "start": _start(page, labels)}
    places = {label: number for number, label in enumerate(labels)}
    template = load_template("study.html", ("ablations", "templates"))
    elements = pictures(sources, keys, webp_quality)
    write_html(
        path,
        template,
        data,
        elements,
        page=page,
        rows=_rows(page, places),
        figures=_figures(page),
        heads=[heading(metric) for metric in page.metrics],
    )


def _sources(page: StudyPage) -> list[Source]:
    """The columns of pictures: lq, baselines, restorations with the best ranked first, hq; none without pictures."""
    ranked = [label for label in page.ranking["label"] if label in page.pictures]
    order = [label for label in (LQ, *page.baselines["label"], *ranked, HQ) if label in page.pictures]
    measured = [label for label in (*ranked, *page.baselines["label"]) if label in page.scores]
    return [
        Source(label, page.pictures[label], measured.index(label) if label in measured else None, label == LQ)
        for label in order
    ]


def _start(page: StudyPage, labels: Sequence[str]) -> list[int]:
    """The two pictures that are shown first: the reference, and the best that is neither it nor a control."""
    if not labels:
        return []
    best = [label for label in page.competing["label"] if label in labels]
    return [
        labels.index(page.reference if page.reference in labels else LQ),
        labels.index(best[0]) if best else len(labels) - 1,
    ]


def _rows(page: StudyPage, places: Mapping[str, int]) -> list[dict[str, Any]]:
    """The rows of the ranking's table, baselines among them: what is shown, and the value that the script sorts by."""
    rows = [*_rows_of(page.ranking, page, places), *_rows_of(page.baselines, page, places)]
    return sorted(rows, key=lambda row: -row["difference"])


def _rows_of(frame: pd.DataFrame, page: StudyPage, places: Mapping[str, int]) -> list[dict[str, Any]]:
    if frame.empty:
        return []
    best = {metric.name: best_means(frame, metric) for metric in page.metrics}
    texts = interval_text(frame["difference"], frame["low"], frame["high"])
    rows: list[dict[str, Any]] = []
    for row, text in zip(frame.to_dict("records"), texts, strict=True):
        number = len(rows)
        means = [
            {"value": row[m.name], "text": signed(row[m.name], mean_digits(frame[m.name]), plus=False),
             "best": bool(best[m.name][number])}
            for m in page.metrics
        ]  # fmt: skip
        wins = None if pd.isna(row["wins"]) else {"value": row["wins"], "text": f"{row['wins']:.0%}".replace("%", " %")}
        cost = None if pd.isna(row["cost_s"]) else {"value": row["cost_s"], "text": _duration(row["cost_s"])}
        difference, _, ends = text.partition(" ")
        rows.append({**row, "kind": kind(row["verdict"]), "source": places.get(row["label"]), "text": difference,
                     "ends": ends, "numbers": [wins, cost, *means]})  # fmt: skip
    return rows


def _figures(page: StudyPage) -> dict[str, Markup]:
    """Name -> the figure for a wide and for a narrow screen; empty where there is none."""
    from ablations import figures as draw

    metric = page.metrics[0].name

    def both(name: str, title: str, description: str, make: Any) -> Markup:
        sizes = {"wide": True, "narrow": False}
        drawn = [draw.inline_svg(make(wide=wide), f"{name}-{size}", title, description) for size, wide in sizes.items()]
        return Markup("").join(drawn)

    made = dict.fromkeys(("ranking", "shapley", "synergy", "curves"), Markup())
    if len(page.ranking):
        made["ranking"] = both(
            "ranking",
            f"Ranking in {metric}",
            f"Difference to {page.reference or 'the reference'} in {metric}, with 95 % intervals, of "
            f"{len(page.ranking)} combinations; right is better. The table below has the numbers.",
            lambda wide: draw.ranking_figure(page.ranking, metric, page.least_difference, wide),
        )
    if len(page.worth):
        described = _described(page.worth["label"], page.worth)
        title = f"Shapley values in {metric}"
        made["shapley"] = both("shapley", title, described, lambda wide: draw.shapley_figure(page.worth, metric, wide))
    if len(page.synergies):
        described = _described(page.synergies["first"] + " with " + page.synergies["second"], page.synergies)
        title = f"Pairwise synergy in {metric}"
        made["synergy"] = both("synergy", title, described, lambda wide: draw.synergy_figure(page.synergies, wide))
    if len(curves := page.curves.dropna(axis=1, how="all").dropna(how="all")):
        last = curves.apply(lambda curve: curve.dropna().iloc[-1])
        described = "; ".join(f"{name} ends at {signed(value, decimals(last))}" for name, value in last.items())
        title = f"{page.curves_axis} over steps"
        made["curves"] = both(
            "curves", title, described, lambda wide: draw.curves_figure(curves, page.curves_axis, wide)
        )
    return made


def _described(names: pd.Series, values: pd.DataFrame) -> str:
    texts = interval_text(values["mean"], values["low"], values["high"])
    return "; ".join(f"{name} {text}" for name, text in zip(names, texts, strict=True))


def _duration(seconds: float) -> str:
    """Seconds in the largest unit of which there is at least one and a half."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
