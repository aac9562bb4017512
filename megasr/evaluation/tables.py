"""The table of an evaluation as Markdown, CSV and LaTeX, beside published numbers."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megasr.errors import UsageError
from megasr.evaluation.reference import PublishedRow
from megasr.evaluation.result import Evaluation, check_weights, version_note

Labelled = tuple[str, Evaluation]
# provenance key: [images evaluated, images of the whole set], where the images are of a benchmark set.
BENCHMARK_IMAGES = "benchmark_images"
_DECIMALS = {"psnr": 2, "psnr_y": 2, "psnr_rgb": 2, "fid": 2, "musiq": 2, "paq2piq": 2}
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Cell:
    """A number as text, None when it was not taken; rank 1 is the best of its column, 2 the second, 0 neither."""

    text: str | None
    rank: int = 0


@dataclass(frozen=True)
class Line:
    """A row of a table; `source` is the number of its published table, None for what was measured."""

    label: str
    images: str
    cells: tuple[Cell, ...]
    source: int | None = None


@dataclass(frozen=True)
class Table:
    """A table as text without markup.

    Attributes:
        title: protocol, fingerprint, set, number of images.
        columns: (name, higher is better) of every metric.
        measured: lines of the evaluations, ranked among each other.
        published: lines of published rows, not ranked: their images cannot be compared one by one.
        notes: what a reader must know, a sentence each.
    """

    title: str
    columns: tuple[tuple[str, bool], ...]
    measured: tuple[Line, ...]
    published: tuple[Line, ...]
    notes: tuple[str, ...]


def build_table(
    evaluations: Sequence[Labelled], published: Sequence[PublishedRow] = (), intervals: bool = False
) -> Table:
    """Lay out evaluations of one set under one protocol, and published rows of the same.

    Args:
        evaluations: (label, evaluation), in the order of the lines.
        published: rows of megasr.evaluation.reference; those without any of the metrics measured are left out.
        intervals: write the 95 % interval of the mean behind it.

    Raises:
        UsageError: see check_comparable.
        MegaSRError: the protocol has changed since the numbers were taken.
    """
    check_comparable(evaluations, published)
    names = metric_names(evaluations)
    protocol = evaluations[0][1].get_protocol()
    published = [row for row in published if any(name in row.values for name in names)]
    ranks = {name: _ranks(evaluations, name, protocol.metric(name).higher_is_better) for name in names}
    sources = list(dict.fromkeys(row.source for row in published))
    found, whole = images_of_set(evaluations)
    images = str(found) if whole == found else f"{found} of {whole}"
    return Table(
        title=f"{protocol.name} ({protocol.fingerprint}), {data_name(evaluations) or 'images of no named set'}, "
        f"{images} images",
        columns=tuple((_column(name), protocol.metric(name).higher_is_better) for name in names),
        measured=tuple(
            Line(label, images, tuple(_cell(evaluation, name, ranks[name].get(label, 0), intervals) for name in names))
            for label, evaluation in evaluations
        ),
        published=tuple(
            Line(
                row.label,
                "?" if row.images is None else str(row.images),
                tuple(Cell(_number(row.values.get(name), name)) for name in names),
                sources.index(row.source) + 1,
            )
            for row in published
        ),
        notes=tuple(_notes(evaluations, published, sources, intervals)),
    )


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
        if (row.protocol, row.data) != (first.protocol, data):
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


def mean(evaluation: Evaluation, name: str) -> float | None:
    """A metric of a set of images, None when it was not taken."""
    return evaluation.means.get(name, evaluation.set_values.get(name))


def images_of_set(evaluations: Sequence[Labelled]) -> tuple[int, int]:
    """(images measured, images of the whole set), which differ where part of a benchmark set is missing."""
    found = len(evaluations[0][1].rows)
    known = [evaluation.provenance.get(BENCHMARK_IMAGES) for _, evaluation in evaluations]
    return found, next((int(images[1]) for images in known if images), found)


def _column(name: str) -> str:
    return name.upper().replace("_", "-")


def _number(value: float | None, name: str) -> str | None:
    return None if value is None else f"{value:.{_DECIMALS.get(name, 4)}f}"


def _cell(evaluation: Evaluation, name: str, rank: int, intervals: bool) -> Cell:
    text = _number(mean(evaluation, name), name)
    if text is not None and intervals and name in evaluation.intervals:
        low, high = evaluation.intervals[name]
        text += f" [{_number(low, name)}, {_number(high, name)}]"
    return Cell(text, rank)


def _ranks(evaluations: Sequence[Labelled], name: str, higher_is_better: bool) -> dict[str, int]:
    """Label -> 1 or 2. What is printed counts: equal numbers have equal ranks, and where all are equal none is best."""
    printed = {label: text for label, e in evaluations if (text := _number(mean(e, name), name)) is not None}
    order = sorted({float(text) for text in printed.values()}, reverse=higher_is_better)
    if len(order) < 2:
        return {}
    return {label: rank for label, text in printed.items() for rank in (1, 2) if float(text) == order[rank - 1]}


def _notes(
    evaluations: Sequence[Labelled], published: Sequence[PublishedRow], sources: Sequence[str], intervals: bool
) -> list[str]:
    notes = []
    if len(evaluations) > 1:
        notes.append("Best bold, second underlined, among the methods measured here.")
    if intervals and any(evaluation.intervals for _, evaluation in evaluations):
        notes.append("In brackets: 95 % bootstrap interval of the mean over photographs.")
    if note := version_note([evaluation for _, evaluation in evaluations]):
        notes.append(f"WARNING: {note}.")
    skipped: dict[tuple[str, str], list[str]] = {}  # (whose, why) -> metrics
    for name in dict.fromkeys(name for _, evaluation in evaluations for name in evaluation.skipped):
        reasons: dict[str, list[str]] = {}
        for label, evaluation in evaluations:
            if name in evaluation.skipped:
                reasons.setdefault(evaluation.skipped[name], []).append(label)
        for why, labels in reasons.items():
            whose = f" for {', '.join(labels)}" if len(labels) < len(evaluations) else ""
            skipped.setdefault((whose, why), []).append(_column(name))
    notes += [f"Not taken{whose}: {', '.join(names)} ({why})." for (whose, why), names in skipped.items()]
    notes += [f"[{number}] {source}: as published, not measured here." for number, source in enumerate(sources, 1)]
    found = len(evaluations[0][1].rows)
    if others := sorted({row.images for row in published if row.images not in (None, found)}):
        notes.append(f"WARNING: these numbers are of {found} images, published ones of {', '.join(map(str, others))}.")
    if any(row.images is None for row in published):
        notes.append("WARNING: ? marks published numbers of an unknown number of images.")
    return notes


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # At the start of a row, these two would belong to the \\ before it.
    "[": "{[}",
    "*": "{*}",
} | {character: f"\\{character}" for character in "&%$#_{}"}


def markdown(evaluations: Sequence[Labelled], published: Sequence[PublishedRow] = (), intervals: bool = False) -> str:
    """A table for GitHub and the like, its caption above and its notes below. See build_table.

    Raises:
        UsageError: these numbers cannot be compared.
        MegaSRError: the protocol has changed since they were taken.
    """
    table = build_table(evaluations, published, intervals)
    marks: list[Callable[[str], str]] = [str, "**{}**".format, "<u>{}</u>".format]

    def row(line: Line) -> list[str]:
        source = "" if line.source is None else f" [{line.source}]"
        return [markdown_text(line.label + source), line.images, *(_mark(cell, marks, "–") for cell in line.cells)]

    header = ["Method", "Images", *(f"{name} {'↑' if higher else '↓'}" for name, higher in table.columns)]
    alignment = [":--", *["--:"] * (len(header) - 1)]
    rows = [header, alignment, *map(row, table.measured)]
    if table.published:
        rows += [["*Published*", *[""] * (len(header) - 1)], *map(row, table.published)]
    lines = [f"**{markdown_text(table.title)}**", "", *("| " + " | ".join(cells) + " |" for cells in rows), ""]
    return "\n".join([*lines, *(f"- {markdown_text(note)}" for note in table.notes)]).rstrip() + "\n"


def latex(evaluations: Sequence[Labelled], published: Sequence[PublishedRow] = (), intervals: bool = False) -> str:
    r"""A `table` environment with booktabs rules, its caption above and its notes below. See build_table.

    Raises:
        UsageError: these numbers cannot be compared.
        MegaSRError: the protocol has changed since they were taken.
    """
    table = build_table(evaluations, published, intervals)
    marks: list[Callable[[str], str]] = [str, r"\textbf{{{}}}".format, r"\underline{{{}}}".format]

    def row(line: Line) -> str:
        source = "" if line.source is None else f" [{line.source}]"
        cells = [latex_text(line.label + source), line.images, *(_mark(cell, marks, "--") for cell in line.cells)]
        return " & ".join(cells) + r" \\"

    columns = [f"{latex_text(name)} $\\{'up' if higher else 'down'}arrow$" for name, higher in table.columns]
    lines = ["% needs \\usepackage{booktabs}", r"\begin{table}", r"\centering"]
    lines += [f"\\caption{{{latex_text(table.title)}}}", f"\\begin{{tabular}}{{l{'r' * (len(columns) + 1)}}}"]
    lines += [r"\toprule", " & ".join(["Method", "Images", *columns]) + r" \\", r"\midrule", *map(row, table.measured)]
    if table.published:
        lines += [r"\midrule", f"\\multicolumn{{{len(columns) + 2}}}{{l}}{{\\emph{{Published}}}} \\\\"]
        lines += map(row, table.published)
    lines += [r"\bottomrule", r"\end{tabular}"]
    if table.notes:
        lines += [r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize"]
        lines += [f"{latex_text(note)}\\par" for note in table.notes]
        lines += [r"\end{minipage}"]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def means_csv(evaluations: Sequence[Labelled], published: Sequence[PublishedRow] = ()) -> str:
    """One line per method, unrounded: where it is from, every metric, the ends of its interval, what was skipped.

    Raises:
        UsageError: these numbers cannot be compared.
        MegaSRError: the protocol has changed since they were taken.
    """
    check_comparable(evaluations, published)
    names, first = metric_names(evaluations), evaluations[0][1]
    common = {"protocol": first.protocol, "fingerprint": first.fingerprint, "data": data_name(evaluations)}
    with_interval = [name for name in names if any(name in evaluation.intervals for _, evaluation in evaluations)]
    ends = [f"{name}_{end}" for name in with_interval for end in ("low", "high")]
    columns = ["method", "source", "steps", "images", "set_images", *common, *names, *ends, "skipped"]
    found, whole = images_of_set(evaluations)
    lines: list[dict[str, Any]] = []
    line: dict[str, Any]
    for label, evaluation in evaluations:
        line = {"method": label, "source": "measured", "images": found, "set_images": whole} | common
        line |= {name: mean(evaluation, name) for name in names}
        for name in with_interval:
            line |= zip((f"{name}_low", f"{name}_high"), evaluation.intervals.get(name, ()), strict=False)
        lines.append(line | {"skipped": "; ".join(f"{name}: {why}" for name, why in evaluation.skipped.items())})
    for row in published:
        line = {"method": row.method, "source": row.source, "steps": row.steps, "images": row.images}
        lines.append(line | common | {"fingerprint": None} | {name: row.values.get(name) for name in names})
    return csv_text(columns, lines)


def rows_csv(evaluation: Evaluation) -> str:
    """One line per image, unrounded, in the order of the set; every line names the protocol it was taken under."""
    names = [name for name in evaluation.rows[0] if name != "key"] if evaluation.rows else []
    common = {"protocol": evaluation.protocol, "fingerprint": evaluation.fingerprint, "data": evaluation.data}
    return csv_text(["key", *names, *common], [{**row, **common} for row in evaluation.rows])


def _mark(cell: Cell, marks: Sequence[Callable[[str], str]], absent: str) -> str:
    return absent if cell.text is None else marks[cell.rank](cell.text)


def markdown_text(text: str) -> str:
    """Text of which nothing is markup: also HTML and line ends."""
    return re.sub(r"([\\|*_`<>\[\]#~])", r"\\\1", " ".join(text.split()))


def latex_text(text: str) -> str:
    """Text of which nothing is markup, on one line."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def csv_text(columns: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> str:
    """A header and one line per mapping; what a mapping lacks stays empty."""
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()
