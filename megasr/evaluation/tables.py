"""Evaluations as Markdown, LaTeX and CSV text. What may stand in one table is decided by table_content."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from megasr.evaluation.reference import PublishedRow
from megasr.evaluation.result import Evaluation
from megasr.evaluation.table_content import (
    Cell,
    Labelled,
    Line,
    build_table,
    check_comparable,
    data_name,
    images_of_set,
    mean,
    metric_names,
)

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
