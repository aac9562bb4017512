"""The text, figures and tables of the page as HTML. Every name is escaped here, and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from ablations.page.content import RankedRow, StudyPage
from ablations.page.curves import curves_plot
from ablations.page.heat import synergy_plot
from ablations.page.plots import interval_text, legend, ranking_plot, shapley_plot
from ablations.page.svg import number
from ablations.page.tables import best_mean, mean_digits

_SHAPLEY = "What each type adds, averaged over all orders in which the types can be switched on. Lines: 95 % interval."
_SYNERGY = (
    "What two types do together beyond the sum of both: blue and + more, red and \u2212 less. "
    "Hatched: the 95 % interval contains zero."
)
_EXPECTED = "Written before the runs; in bold what was found."
_ABSENT = '<td class="number quiet">\u2013</td>'


def header(page: StudyPage) -> str:
    """The question, the answer and whether it may be trusted."""
    lead, *others = page.answer or ("There is no answer yet: nothing has been compared.",)
    state = {True: "passed", False: "failed", None: "none"}[page.trusted]
    word = {True: "Controls passed.", False: "Controls failed.", None: "No controls."}[page.trusted]
    lines = [
        f"<h1>{escape(page.title)}</h1>",
        f'<p class="question">{escape(page.question)}</p>',
        f'<div class="answer"><p class="lead">{escape(lead)}</p>',
        *(f"<p>{escape(sentence)}</p>" for sentence in others),
        f'<p class="trust {state}"><strong>{word}</strong> {escape(page.trust)}</p></div>',
    ]
    return "\n".join(lines)


def findings(page: StudyPage, sources: Mapping[str, int]) -> str:
    """The ranking as figure and table, hypotheses, Shapley values, synergy and learning curves: those that there are.

    Args:
        page: the content.
        sources: label -> number of its pictures, for the buttons that show them.
    """
    metric = page.primary[0]
    found = []
    if page.rows:
        both = _both(ranking_plot(page, True), ranking_plot(page, False))
        found.append(
            _section(
                "ranking",
                "Ranking",
                f'{both}<ul class="legend">{legend(page.least_difference)}</ul>{_table(page, sources)}',
            )
        )
    if any(row.hypothesis for row in page.rows):
        found.append(_section("expected", "What was expected", _hypotheses(page), _EXPECTED))
    if page.shapley:
        both = _both(shapley_plot(page.shapley, metric, True), shapley_plot(page.shapley, metric, False))
        found.append(_section("shapley", "What each type is worth", both, _SHAPLEY))
    if page.synergy and page.synergy.cells:
        both = _both(synergy_plot(page.synergy, metric, True), synergy_plot(page.synergy, metric, False))
        found.append(_section("synergy", "Pairs of types", both, _SYNERGY))
    axis, note = page.curves_show
    if curves := [curve for curve in page.curves if any(map(math.isfinite, curve.losses))]:
        found.append(
            _section(
                "curves",
                "Learning curves",
                _both(curves_plot(curves, True, axis), curves_plot(curves, False, axis)),
                note,
            )
        )
    return "\n".join(found)


def record(page: StudyPage) -> str:
    """What failed, what limits the answer, and where the numbers come from."""
    failed = "".join(f"<dt>{escape(one.run_id)}</dt><dd>{escape(one.reason)}</dd>" for one in page.failures)
    found = [
        _section("failed", "What failed", f"<dl class='pairs'>{failed}</dl>" if failed else "<p>No run failed.</p>")
    ]
    if page.notes:
        found.append(
            _section("notes", "Limits", f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in page.notes)}</ul>")
        )
    if page.provenance:
        pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in page.provenance)
        found.append(_section("provenance", "Where the numbers come from", f"<dl class='pairs'>{pairs}</dl>"))
    return "\n".join(found)


def duration(seconds: float) -> str:
    """Seconds in the largest unit of which there is at least one and a half."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def _section(name: str, title: str, body: str, note: str = "") -> str:
    after = f'<p class="note">{escape(note)}</p>' if note else ""
    heading = f'<h2 id="{name}-heading">{title}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-heading">{heading}{body}{after}</section>'


def _both(wide: str, narrow: str) -> str:
    return f'<div class="figure">{wide}{narrow}</div>'


def _hypotheses(page: StudyPage) -> str:
    """Every hypothesis, best row first, with the verdict on its ablation."""
    pairs = [
        f"<dt>{escape(row.label)}</dt><dd>{escape(row.hypothesis)} <strong>{escape(row.verdict)}</strong></dd>"
        for row in page.ranked
        if row.hypothesis
    ]
    return f"<dl class='pairs'>{''.join(pairs)}</dl>"


def _table(page: StudyPage, sources: Mapping[str, int]) -> str:
    """The ranking's numbers, to be sorted by any column."""
    names = [
        ("Combination", "text"),
        (f"\u0394 {page.primary[0]}", "number"),
        ("Verdict", "text"),
        ("Wins", "number"),
        ("Cost", "number"),
    ]
    arrows = {True: "\u2191", False: "\u2193"}
    names += [(f"{name} {arrows[page.higher_is_better(name)]}", "number") for name in page.metrics]
    heads = []
    for place, (name, kind) in enumerate(names):
        sort = "descending" if place == 1 else "none"
        class_ = "number" if kind == "number" else ""
        button = f'<button type="button"><span>{escape(name)}</span></button>'
        heads.append(f'<th scope="col" class="{class_}" aria-sort="{sort}">{button}</th>')
    rows = "".join(_row(page, row, sources) for row in page.ranked)
    higher = "" if page.primary[1] else ", sign turned: more is better"
    reference = f" to {page.reference.label}" if page.reference else ""
    note = (
        f"\u0394: paired difference{reference}{higher}, with its 95 % interval. Wins: share of images better than the "
        "reference. Cost: per run. Bold: best of those that are no controls."
    )
    table = f'<table id="rows" class="sortable"><thead><tr>{"".join(heads)}</tr></thead><tbody>{rows}</tbody></table>'
    region = f'<div class="scroll tall" tabindex="0" role="region" aria-labelledby="ranking-heading">{table}</div>'
    return f'{region}<p class="note">{escape(note)}</p>'


def _row(page: StudyPage, row: RankedRow, sources: Mapping[str, int]) -> str:
    name = escape(row.label)
    if row.label in sources:
        place = f'data-source="{sources[row.label]}" title="{escape(f"Show the pictures of {row.label}")}"'
        name = f'<button type="button" class="name" {place}>{name}</button>'
    value, _, ends = interval_text(row.difference, [one.difference for one in page.rows]).partition(" ")
    tone = row.kind if row.kind in ("better", "worse") else ""
    cells = [
        f'<th scope="row" data-value="{escape(row.label)}">{name}</th>',
        f'<td class="number {tone}" data-value="{row.mean!r}">{value}<span class="interval">{ends}</span></td>',
        f'<td class="{tone}" data-value="{escape(row.verdict)}">{escape(row.verdict)}</td>',
        _ABSENT if row.wins is None else _number(row.wins, f"{row.wins * 100:.0f} %"),
        _ABSENT if row.cost_s is None else _number(row.cost_s, duration(row.cost_s)),
    ]
    return f"<tr>{''.join([*cells, *_means(page, row, page.metrics)])}</tr>"


def _means(page: StudyPage, row: RankedRow, metrics: Sequence[str]) -> list[str]:
    found = []
    for metric in metrics:
        if metric not in row.means:
            found.append(_ABSENT)
            continue
        words = number(row.means[metric], mean_digits(page, metric))
        best = row.means[metric] == best_mean(page, metric)
        found.append(_number(row.means[metric], f"<strong>{words}</strong>" if best else words))
    return found


def _number(value: float, words: str) -> str:
    return f'<td class="number" data-value="{value!r}">{words}</td>'
