"""Values with their intervals, one per line: the ranking of a study and the Shapley values, as inline SVG.

Each figure comes in two widths, because text that shrinks with a figure cannot be read on a narrow screen: the wide
one has the names beside the plot, the narrow one has them above each line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ablations.page.content import Bar, RankedRow, StudyPage
from ablations.page.svg import Scale, decimals, element, figure, line, number, scale_over, text, width_of

WIDE_PX, NARROW_PX = 1080, 358
_LABEL_PX, _VALUE_PX = 230, 425  # beside the plot, wide
_DOT_STEP_PX = 24  # between two types in the matrix of dots
_AXIS_PX = 46
_INSET_PX = 8  # a mark at the end of the scale is still whole


@dataclass(frozen=True)
class Line:
    """One line of a figure: a value, and how it is marked."""

    bar: Bar
    kind: str  # better, worse, undecided, reference, control, or bar
    verdict: str
    types: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Layout:
    """Where things are, in px."""

    wide: bool
    plot: tuple[float, float]  # left and right end
    top: float
    step: float  # between two lines

    @property
    def width(self) -> int:
        """Of the whole figure."""
        return WIDE_PX if self.wide else NARROW_PX

    def middle(self, number: int) -> float:
        """The height at which line `number` has its mark."""
        return self.top + self.step * (number + (0.5 if self.wide else 0.68))

    def bottom(self, count: int) -> float:
        """Where the axis is below `count` lines."""
        return self.top + self.step * count + 4


def lay_out(types: int, header: float, wide: bool) -> Layout:
    """The places of a figure whose matrix shows so many types below names of this height."""
    if not wide:
        return Layout(False, (_INSET_PX, NARROW_PX - _INSET_PX), 4, 42)
    left = _LABEL_PX + (types * _DOT_STEP_PX + 24 if types else 0)
    return Layout(True, (left + _INSET_PX, WIDE_PX - _VALUE_PX - _INSET_PX), header, 27)


def value_scale(bars: Sequence[Bar], plot: tuple[float, float]) -> Scale:
    """A scale over all intervals and zero."""
    return scale_over([0, *(end for bar in bars for end in (bar.low, bar.mean, bar.high))], *plot)


def ranking_plot(page: StudyPage, wide: bool) -> str:
    """Every combination's difference to the reference with its interval, best first; right is better."""
    rows = page.ranked
    types = page.types if wide else ()
    lines = [_ranked(row) for row in rows]
    header = max(map(width_of, types), default=0) * 0.72 + 14 if types else 4
    layout = lay_out(len(types), header, wide)
    reference = page.reference.label if page.reference else "the reference"
    metric = page.primary[0]
    turned = "" if page.primary[1] else ", sign turned"
    axis = (
        f"{metric}{turned}: difference to {reference} \u2192 better"
        if wide
        else f"difference in {metric} \u2192 better"
    )
    matrix = [_type_names(types, layout)] + [_dots(types, line, layout.middle(i)) for i, line in enumerate(lines)]
    return _plot(
        "ranking",
        f"Ranking in {metric}",
        f"Difference to {reference} in {metric}, with 95 % intervals, of {len(rows)} combinations; right is better. "
        "The table below has the numbers.",
        lines,
        layout,
        axis,
        *(matrix if types else ()),
        least=page.least_difference,
    )


def _ranked(row: RankedRow) -> Line:
    return Line(row.difference, row.kind, row.verdict, frozenset(row.combination))


def shapley_plot(bars: Sequence[Bar], metric: str, wide: bool) -> str:
    """The share of every type in the gain, with its interval."""
    lines = [Line(bar, "bar", bar.note) for bar in bars]
    description = "; ".join(f"{bar.label} {interval_text(bar, bars)}" for bar in bars)
    return _plot("shapley", f"Shapley values in {metric}", description, lines, lay_out(0, 4, wide),
                 f"Shapley value in {metric} \u2192 better")  # fmt: skip


def interval_text(bar: Bar, bars: Sequence[Bar]) -> str:
    """The value and its interval, with the digits that the largest of `bars` needs."""
    digits = decimals([one.mean for one in bars] + [(one.high - one.low) / 2 for one in bars])
    mean, low, high = (number(value, digits, signed=True) for value in (bar.mean, bar.low, bar.high))
    return f"{mean} [{low}, {high}]"


def _plot(
    name: str,
    title: str,
    description: str,
    lines: Sequence[Line],
    layout: Layout,
    axis: str,
    *more: str,
    least: float = 0,
) -> str:
    bars = [one.bar for one in lines]
    scale = value_scale([*bars, Bar("", 0, -least, least)], layout.plot)
    bottom = layout.bottom(len(lines))
    children = [*_axis(scale, layout, bottom, bars, axis), *more]
    if least:
        left, right = scale.at(-least), scale.at(least)
        band = element("rect", x=left, y=layout.top, width=right - left, height=bottom - layout.top, class_="least")
        children.insert(0, band)
    for place, one in enumerate(lines):
        children += [*_words(one, bars, layout, place), *_mark(one, scale, layout.middle(place))]
    size = "wide" if layout.wide else "narrow"
    return figure(f"{name}-{size}", size, layout.width, bottom + _AXIS_PX, title, description, *children)


def _axis(scale: Scale, layout: Layout, bottom: float, bars: Sequence[Bar], title: str) -> list[str]:
    top = layout.top
    ticks = scale.ticks(6 if layout.wide else 4)
    digits = decimals([tick for tick in ticks if tick] or [1], 1)
    if len(ticks) > 1:
        digits = max(digits, decimals([ticks[1] - ticks[0]], 1))
    found = []
    for tick in ticks:
        x = scale.at(tick)
        found.append(line(x, top, x, bottom, "zero" if abs(tick) < 1e-12 else "grid"))
        found.append(text(number(tick, digits, signed=True), x, bottom + 17, "tick"))
    return [*found, text(title, (scale.start + scale.end) / 2, bottom + 37, "tick title")]


def _words(one: Line, bars: Sequence[Bar], layout: Layout, place: int) -> list[str]:
    """The name and the numbers of a line: beside the plot, or above it."""
    middle, value = layout.middle(place), interval_text(one.bar, bars)
    verdict = one.verdict
    if layout.wide:
        right = layout.plot[1] + _INSET_PX + 14
        found = [text(one.bar.label, 0, middle + 4, "label", _LABEL_PX - 24), text(value, right, middle + 4, "value")]
        after = right + max(width_of(interval_text(bar, bars), 12) for bar in bars) + 16
        return [*found, text(verdict, after, middle + 4, f"verdict {one.kind}", WIDE_PX - after)] if verdict else found
    y = middle - 13
    room = NARROW_PX - width_of(value, 12) - 10
    label = one.bar.label if one.kind not in ("control", "reference") else f"{one.bar.label} ({one.kind})"
    return [text(label, 0, y, "label", room), text(value, NARROW_PX, y, "value end")]


def _mark(one: Line, scale: Scale, y: float) -> list[str]:
    low, x, high = (scale.at(value) for value in (one.bar.low, one.bar.mean, one.bar.high))
    if one.kind == "bar":
        zero = scale.at(0)
        side = "positive" if x >= zero else "negative"
        bar = element("rect", x=min(x, zero), y=y - 6, width=abs(x - zero), height=12, class_=f"bar {side}")
        ends = [line(end, y - 4, end, y + 4, "whisker") for end in (low, high)]
        return [bar, line(low, y, high, y, "whisker"), *ends]
    return [line(low, y, high, y, f"interval {one.kind}"), mark(one.kind, x, y)]


def mark(kind: str, x: float, y: float) -> str:
    """The sign of a verdict, which differs in shape and filling and not in colour alone."""
    if kind == "reference":
        return element("path", d=f"M{x:.2f} {y - 6:g}l6 6l-6 6l-6 -6Z", class_="mark reference")
    if kind == "control":
        return element("rect", x=x - 4.5, y=y - 4.5, width=9, height=9, class_="mark control")
    return element("circle", cx=x, cy=y, r=5, class_=f"mark {kind}")


def _type_names(types: Sequence[str], layout: Layout) -> str:
    """The names above the matrix, rising to the right so that they have room."""
    names = []
    for place, name in enumerate(types):
        x, y = _dot_x(place) - 3, layout.top - 4
        names.append(element("g", text(name, 0, 0, "tick start"), transform=f"translate({x:g} {y:.1f}) rotate(-45)"))
    return "".join(names)


def _dots(types: Sequence[str], one: Line, y: float) -> str:
    """The combination as dots, one per type: filled where the type is on."""
    found = [
        element("circle", cx=_dot_x(place), cy=y, r=4, class_="dot on" if name in one.types else "dot off")
        for place, name in enumerate(types)
    ]
    return "".join(found)


def _dot_x(place: int) -> float:
    return _LABEL_PX + 8 + _DOT_STEP_PX * place


def legend(least: float = 0) -> str:
    """What the marks of the ranking mean, as HTML; differences up to `least` are none."""
    where = f"lies beyond \u00b1{least:g} (shaded: what another machine may do)" if least else "excludes zero"
    words = [("better", f"better or worse: the interval {where}, and p < 0.05 after Holm's correction"),
             ("undecided", "undecided"),
             ("reference", "reference"), ("control", "control: it shows whether the study can be trusted")]  # fmt: skip
    signs = [element("svg", mark(kind, 8, 8), viewBox="0 0 16 16", width=16, height=16, class_="plot sign",
                     aria_hidden="true") for kind, _ in words]  # fmt: skip
    return "".join(f"<li>{sign} {meaning}</li>" for sign, (_, meaning) in zip(signs, words, strict=True))
