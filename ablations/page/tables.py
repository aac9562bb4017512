"""The ranking of a study as CSV and as LaTeX."""

from __future__ import annotations

from ablations.page.content import RankedRow, StudyPage
from ablations.page.svg import decimals
from megasr.evaluation.tables import csv_text, latex_text


def csv_table(content: StudyPage) -> str:
    """One line per combination, best first, unrounded; its types are joined by "+", unknown values are empty."""
    columns = ["combination", "label", "verdict", "difference", "low", "high", "wins", "cost_s", *content.metrics]
    lines = [
        {"combination": "+".join(row.combination), "label": row.label, "verdict": row.verdict, "difference": row.mean,
         "low": row.low, "high": row.high, "wins": row.wins, "cost_s": row.cost_s, **row.means}
        for row in content.ranked
    ]  # fmt: skip
    return csv_text(columns, lines)


def latex_table(content: StudyPage) -> str:
    r"""A `table` environment with booktabs rules, best first; the best mean of each metric is bold.

    Controls do not compete: they are there to be worse.
    """
    metric, higher = content.primary
    heads = ["Combination", rf"$\Delta$ {latex_text(metric)}", r"95\,\% interval", "Verdict", "Wins", "Cost (s)"]
    heads += [_head(name, content.higher_is_better(name)) for name in content.metrics]
    turned = "" if higher else ", its sign turned so that more is better"
    reference = f" to {content.reference.label}" if content.reference else ""
    caption = f"{content.question} Difference{reference} in {metric}{turned}."
    lines = ["% needs \\usepackage{booktabs}", r"\begin{table}", r"\centering", f"\\caption{{{latex_text(caption)}}}"]
    lines += [f"\\begin{{tabular}}{{lrrl{'r' * (2 + len(content.metrics))}}}", r"\toprule"]
    lines += [" & ".join(heads) + r" \\", r"\midrule", *(_line(content, row) for row in content.ranked)]
    lines += [r"\bottomrule", r"\end{tabular}"]
    if words := [content.trust, *content.notes]:
        lines += [r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize"]
        lines += [f"{latex_text(word)}\\par" for word in words if word] + [r"\end{minipage}"]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _head(metric: str, higher: bool) -> str:
    return f"{latex_text(metric)} $\\{'up' if higher else 'down'}arrow$"


def _line(content: StudyPage, row: RankedRow) -> str:
    digits = decimals([one.mean for one in content.rows])
    low, high = (f"{value:+.{digits}f}" for value in (row.low, row.high))
    cells = [latex_text(row.label), f"${row.mean:+.{digits}f}$", f"$[{low}, {high}]$", latex_text(row.verdict)]
    cells += ["--" if row.wins is None else f"{row.wins * 100:.0f}\\,\\%"]
    cells += ["--" if row.cost_s is None else f"{row.cost_s:.3g}"]
    return " & ".join([*cells, *(_mean(content, row, metric) for metric in content.metrics)]) + r" \\"


def _mean(content: StudyPage, row: RankedRow, metric: str) -> str:
    if metric not in row.means:
        return "--"
    value = f"{row.means[metric]:.{mean_digits(content, metric)}f}"
    return rf"\textbf{{{value}}}" if row.means[metric] == best_mean(content, metric) else value


def mean_digits(content: StudyPage, metric: str) -> int:
    """As papers print them: PSNR 28.03, SSIM 0.7967. All numbers of one metric have the same digits."""
    return 2 if max(abs(row.means.get(metric, 0)) for row in content.rows) >= 10 else 4


def best_mean(content: StudyPage, metric: str) -> float | None:
    """The best mean among the rows that are no controls; None when there are fewer than two to compare."""
    values = [row.means[metric] for row in content.rows if metric in row.means and row.kind != "control"]
    choose = max if content.higher_is_better(metric) else min
    return choose(values) if len(values) > 1 else None
