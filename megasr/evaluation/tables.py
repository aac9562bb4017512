"""The table of an evaluation as Markdown, CSV and LaTeX, beside published numbers (megasr.evaluation.protocol)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from megasr.errors import UsageError
from megasr.evaluation.evaluator import BENCHMARK_IMAGES, Evaluation, check_weights, version_note
from megasr.evaluation.protocol import PublishedRow

Labelled = tuple[str, Evaluation]
_DECIMALS = {"psnr": 2, "psnr_y": 2, "psnr_rgb": 2, "fid": 2, "musiq": 2, "paq2piq": 2}
_NAMES_SHOWN = 5
_ENDS = ("low", "high")  # of an interval
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "Δ": r"$\Delta$",
    "−": "$-$",
    # At the start of a row, these two would belong to the \\ before it.
    "[": "{[}",
    "*": "{*}",
} | {character: f"\\{character}" for character in "&%$#_{}"}


@dataclass(frozen=True)
class TextTable:
    """A table as text without markup.

    Attributes:
        caption: one sentence.
        cells: text, None where there is no number. The first column holds labels, which are escaped; the others hold
            numbers and words of this program, of one line or several.
        ranks: of `cells`: 1 is the best of its column (bold), 2 the second (underlined), 0 neither.
        notes: what a reader must know, a sentence each.
    """

    caption: str
    cells: pd.DataFrame
    ranks: pd.DataFrame | None = None
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        """The table for GitHub and the like, the caption above and the notes below."""
        cells = self._marked({1: "**{}**", 2: "<u>{}</u>"}, "–", markdown_text, lambda text: text.replace("\n", "<br>"))
        alignment = ("left", *["right"] * (cells.shape[1] - 1))
        table = cells.to_markdown(index=False, disable_numparse=True, colalign=alignment)
        notes = [f"- {markdown_text(note)}" for note in self.notes]
        return "\n".join([f"**{markdown_text(self.caption)}**", "", table, "", *notes]).rstrip() + "\n"

    def latex(self) -> str:
        r"""A `table` environment with booktabs rules, the caption above and the notes below."""
        cells = self._marked({1: r"\textbf{{{}}}", 2: r"\underline{{{}}}"}, "--", latex_text, latex_text)
        body = cells.to_latex(index=False, escape=False, column_format="l" + "r" * (cells.shape[1] - 1)).rstrip()
        lines = ["% needs \\usepackage{booktabs}", r"\begin{table}", r"\centering"]
        lines += [f"\\caption{{{latex_text(self.caption)}}}", body]
        if self.notes:
            lines += [r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize"]
            lines += [*(f"{latex_text(note)}\\par" for note in self.notes), r"\end{minipage}"]
        return "\n".join([*lines, r"\end{table}"]) + "\n"

    def _marked(
        self, marks: Mapping[int, str], absent: str, name: Callable[[str], str], cell: Callable[[str], str]
    ) -> pd.DataFrame:
        """The cells with their marks; `name` escapes labels and headers, `cell` all else."""
        cells = self.cells.map(lambda text: absent if pd.isna(text) else cell(text))
        for rank, mark in marks.items() if self.ranks is not None else ():
            cells = cells.mask(self.ranks == rank, cells.map(mark.format))
        cells[cells.columns[0]] = self.cells.iloc[:, 0].map(name)
        return cells.set_axis(map(name, cells.columns), axis=1)


def markdown_text(text: str) -> str:
    """Text of which nothing is markup (also HTML and line ends)."""
    return re.sub(r"([\\|*_`<>\[\]#~])", r"\\\1", " ".join(text.split()))


def latex_text(text: str) -> str:
    """Text of which nothing is markup, on one line."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def rank_column(values: pd.Series, higher_is_better: bool) -> pd.Series:
    """1 for the best values, 2 for the second best, 0 for all others, and for all when all are equal."""
    ranks = values.rank(method="dense", ascending=not higher_is_better)
    return ranks.where((ranks <= 2) & (values.nunique() > 1), 0).fillna(0).astype(int)


def rows_csv(evaluation: Evaluation) -> str:
    """One line per image, unrounded, in the order of the set; every line names the protocol it was taken under."""
    common = {"protocol": evaluation.protocol, "fingerprint": evaluation.fingerprint, "data": evaluation.data}
    return pd.DataFrame(evaluation.rows, dtype=object).assign(**common).to_csv(index=False)


def means_frame(evaluations: Sequence[Labelled], published: Sequence[PublishedRow] = ()) -> pd.DataFrame:
    """One row per method, unrounded: where it is from, every metric, the ends of its interval, what was skipped.

    Args:
        evaluations: (label, evaluation), in the order of the rows.
        published: rows of megasr.evaluation.protocol.

    Raises:
        UsageError: these numbers cannot be compared; see check_comparable.
        MegaSRError: the protocol has changed since they were taken.
    """
    check_comparable(evaluations, published)
    names, first = metric_names(evaluations), evaluations[0][1]
    common = {"protocol": first.protocol, "fingerprint": first.fingerprint, "data": data_name(evaluations)}
    images, whole = _images_of_set(evaluations)
    rows: list[dict[str, Any]] = []
    for label, evaluation in evaluations:
        row: dict[str, Any] = {"method": label, "source": "measured", "images": images, "set_images": whole, **common}
        row |= {**evaluation.means, **evaluation.set_values}
        for name, (low, high) in evaluation.intervals.items():
            row |= {f"{name}_low": low, f"{name}_high": high}
        rows.append(row | {"skipped": "; ".join(f"{name}: {why}" for name, why in evaluation.skipped.items())})
    for other in published:
        row = {"method": other.method, "source": other.source, "steps": other.steps, "images": other.images}
        rows.append({**row, **common, "fingerprint": None, **other.values})
    ends = [f"{name}_{end}" for name in names for end in _ENDS if any(f"{name}_low" in row for row in rows)]
    columns = ["method", "source", "steps", "images", "set_images", *common, *names, *ends, "skipped"]
    return pd.DataFrame(rows, columns=columns, dtype=object)


def text_table(
    evaluations: Sequence[Labelled], published: Sequence[PublishedRow] = (), intervals: bool = False
) -> TextTable:
    """Evaluations of one set under one protocol, ranked, and published rows of the same, which are not.

    Args:
        evaluations: (label, evaluation), in the order of the rows.
        published: rows of megasr.evaluation.protocol; those without any of the metrics measured are left out.
        intervals: write the 95 % interval of the mean behind it.

    Raises:
        UsageError, MegaSRError: as means_frame.
    """
    names = metric_names(evaluations) if evaluations else []
    published = [row for row in published if any(name in row.values for name in names)]
    frame = means_frame(evaluations, published)
    protocol, measured = evaluations[0][1].get_protocol(), (frame["source"] == "measured").to_numpy()
    sources = list(dict.fromkeys(row.source for row in published))
    images, whole = _images_of_set(evaluations)
    count = str(images) if whole == images else f"{images} of {whole}"
    cells = pd.DataFrame({"Method": [label for label, _ in evaluations]
                          + [f"{row.label} [{sources.index(row.source) + 1}]" for row in published],
                          "Images": [count] * len(evaluations)
                          + ["?" if row.images is None else str(row.images) for row in published]})  # fmt: skip
    ranks = pd.DataFrame(0, cells.index, cells.columns)
    for name in names:
        higher = protocol.metric(name).higher_is_better
        column = f"{_title(name)} {'↑' if higher else '↓'}"
        text = frame[name].map(lambda value, name=name: _number(value, name))
        ranks[column] = rank_column(text.where(measured).astype(float), higher)  # what is printed counts
        if intervals and f"{name}_low" in frame:
            low, high = (frame[f"{name}_{end}"].map(lambda value, name=name: _number(value, name)) for end in _ENDS)
            text = text.where(low.isna(), text + " [" + low + ", " + high + "]")
        cells[column] = text
    data = data_name(evaluations) or "images of no named set"
    caption = f"{protocol.name} ({protocol.fingerprint}), {data}, {count} images"
    return TextTable(caption, cells, ranks, tuple(_notes(evaluations, published, sources, intervals)))


def check_comparable(evaluations: Sequence[Labelled], published: Sequence[PublishedRow] = ()) -> None:
    """Refuse what may not stand in one table.

    Raises:
        UsageError: there is nothing, labels repeat, or two evaluations, or an evaluation and a published row, differ in
            the protocol, in the images or in the weights of a metric; names both.
    """
    if not evaluations:
        raise UsageError("a table of no evaluations")
    labels = [label for label, _ in evaluations]
    if len(set(labels)) < len(labels):
        raise UsageError(f"labels of a table must differ: {', '.join(labels)}")
    first_label, first = evaluations[0]
    for label, other in evaluations[1:]:
        if (first.protocol, first.fingerprint) != (other.protocol, other.fingerprint):
            raise UsageError(
                f"{first_label} was measured under {first.protocol} {first.fingerprint}, {label} under "
                f"{other.protocol} {other.fingerprint}: these numbers cannot be compared"
            )
        if None not in (first.data, other.data) and first.data != other.data:
            raise UsageError(f"{first_label} is of the set {first.data}, {label} of {other.data}: not one table")
        if differing := sorted(set(first.keys) ^ set(other.keys)):
            raise UsageError(
                f"{first_label} is of {len(first.keys)} images, {label} of {len(other.keys)}, and {len(differing)} are "
                f"in one of them alone: {', '.join(differing[:_NAMES_SHOWN])}{' ...' * (len(differing) > _NAMES_SHOWN)}"
            )
        check_weights(first, other)
    data = data_name(evaluations)
    for row in published:
        if row.data != data or not row.is_under(first.get_protocol()):
            raise UsageError(
                f"{row.label} is published under {row.protocol} on {row.data}, {first_label} was measured under "
                f"{first.protocol} on {data or 'images of no named set'}: these numbers cannot be compared"
            )


def metric_names(evaluations: Sequence[Labelled]) -> list[str]:
    """The metrics that at least one evaluation has, in the order of the protocol."""
    taken = {name for _, evaluation in evaluations for name in (*evaluation.means, *evaluation.set_values)}
    return [name for name in evaluations[0][1].get_protocol().metric_names if name in taken]


def data_name(evaluations: Sequence[Labelled]) -> str | None:
    """The name of the set, from the first evaluation that knows it."""
    return next((evaluation.data for _, evaluation in evaluations if evaluation.data is not None), None)


def _images_of_set(evaluations: Sequence[Labelled]) -> tuple[int, int]:
    """(images measured, images of the whole set), which differ where part of a benchmark set is missing."""
    measured = len(evaluations[0][1].rows)
    known = [evaluation.provenance.get(BENCHMARK_IMAGES) for _, evaluation in evaluations]
    return measured, next((int(images[1]) for images in known if images), measured)


def _title(name: str) -> str:
    return name.upper().replace("_", "-")


def _number(value: float | None, name: str) -> str | None:
    return None if pd.isna(value) else f"{value:.{_DECIMALS.get(name, 4)}f}"


def _notes(
    evaluations: Sequence[Labelled], published: Sequence[PublishedRow], sources: Sequence[str], intervals: bool
) -> list[str]:
    notes = []
    if len(evaluations) > 1:
        notes.append("Best bold, second underlined, among the methods measured here.")
    if intervals and any(evaluation.intervals for _, evaluation in evaluations):
        notes.append("In brackets: 95 % interval of the mean over photographs.")
    if note := version_note([evaluation for _, evaluation in evaluations]):
        notes.append(f"WARNING: {note}.")
    skipped = [(name, why, label) for label, evaluation in evaluations for name, why in evaluation.skipped.items()]
    grouped: dict[tuple[str, str], list[str]] = {}  # (whose, why) -> metrics
    for name, why in dict.fromkeys((name, why) for name, why, _ in skipped):
        labels = [label for *skip, label in skipped if skip == [name, why]]
        whose = f" for {', '.join(labels)}" if len(labels) < len(evaluations) else ""
        grouped.setdefault((whose, why), []).append(_title(name))
    notes += [f"Not taken{whose}: {', '.join(names)} ({why})." for (whose, why), names in grouped.items()]
    second_hand = {row.source for row in published if row.secondary}
    for number, source in enumerate(sources, 1):
        read = ", as notes about the paper have it" if source in second_hand else ""
        notes.append(f"[{number}] {source}: as published{read}, not measured here.")
    measured = len(evaluations[0][1].rows)
    if others := sorted({row.images for row in published if row.images not in (None, measured)}):
        notes.append(
            f"WARNING: these numbers are of {measured} images, published ones of {', '.join(map(str, others))}."
        )
    if any(row.images is None for row in published):
        notes.append("WARNING: ? marks published numbers of an unknown number of images.")
    return notes
