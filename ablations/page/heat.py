"""The synergy of pairs of types as a lower triangle of cells, inline SVG."""

from __future__ import annotations

from html import escape

from ablations.page.content import Bar, Heat
from ablations.page.plots import NARROW_PX, WIDE_PX, interval_text
from ablations.page.svg import decimals, element, figure, number, text, width_of

_STRONGEST = 0.55  # opacity of the largest cell; text stays readable on it
_GAP_PX = 2


def synergy_plot(heat: Heat, metric: str, wide: bool) -> str:
    """A cell per pair with its value; hatched where its interval contains zero."""
    size = "wide" if wide else "narrow"
    rows, columns = heat.labels[1:], heat.labels[:-1]
    label_px = min(max(map(width_of, rows), default=0) + 10, 150 if wide else 78)
    cell_w = min(104.0, ((720 if wide else NARROW_PX) - label_px) / max(len(columns), 1))
    cell_h = 46.0 if wide else 38.0
    children = [_hatching(f"hatching-{size}")]
    bars = list(heat.cells.values())
    for down, row in enumerate(rows):
        y = down * cell_h
        children.append(text(row, label_px - 8, y + cell_h / 2 + 4, "label end", label_px - 8))
        for across, column in enumerate(columns[: down + 1]):
            place = (label_px + across * cell_w, y, cell_w - _GAP_PX, cell_h - _GAP_PX)
            children.append(_cell(heat.cell(row, column), f"{column} with {row}", place, bars, size))
    height = len(rows) * cell_h
    tilted = any(width_of(name) > cell_w for name in columns)
    for across, column in enumerate(columns):
        children.append(_column_name(column, label_px + across * cell_w + cell_w / 2, height + 16, tilted))
    below = max(map(width_of, columns), default=0) * 0.72 + 22 if tilted else 26
    width = WIDE_PX if wide else NARROW_PX
    described = "; ".join(f"{a} with {b} {interval_text(bar, bars)}" for (a, b), bar in heat.cells.items())
    return figure(f"synergy-{size}", size, width, height + below, f"Pairwise synergy in {metric}", described, *children)


def _column_name(name: str, x: float, y: float, tilted: bool) -> str:
    if not tilted:
        return text(name, x, y, "tick")
    return element("g", text(name, 0, 0, "tick end"), transform=f"translate({x + 4:.1f} {y - 4:.1f}) rotate(-45)")


def strength(bar: Bar, bars: list[Bar]) -> float:
    """Opacity of a cell: its share of the largest absolute value that excludes zero."""
    largest = max((abs(one.mean) for one in bars if one.excludes_zero), default=0.0)
    return 0.12 + (_STRONGEST - 0.12) * abs(bar.mean) / largest if largest else 0.12


def _cell(bar: Bar | None, name: str, place: tuple[float, float, float, float], bars: list[Bar], size: str) -> str:
    x, y, width, height = place
    box = {"x": x, "y": y, "width": width, "height": height}
    middle = x + width / 2
    if bar is None:
        return element("rect", **box, class_="cell absent") + text("\u2013", middle, y + height / 2 + 4, "tick")
    digits = decimals([one.mean for one in bars], 2)
    ends = f"[{number(bar.low, digits, True)}, {number(bar.high, digits, True)}]"
    hint = element("title", escape(f"{name}: {interval_text(bar, bars)}{', ' + bar.note if bar.note else ''}"))
    if bar.excludes_zero:
        sign = "positive" if bar.mean > 0 else "negative"
        shape = element("rect", **box, class_=f"cell {sign}", fill_opacity=strength(bar, bars))
        weight = "sure"
    else:
        shape = element("rect", **box, class_="cell unsure", fill=f"url(#hatching-{size})")
        weight = "unsure"
    wide_enough = width_of(ends, 10) < width - 4
    words = text(
        number(bar.mean, digits, signed=True), middle, y + height / 2 + (-1 if wide_enough else 4), f"in-cell {weight}"
    )
    if wide_enough:
        words += text(ends, middle, y + height / 2 + 14, "ends")
    return element("g", hint, shape, words)


def _hatching(name: str) -> str:
    stroke = element("path", d="M0 6L6 0", class_="hatch")
    return element("defs", element("pattern", stroke, id=name, width=6, height=6, patternUnits="userSpaceOnUse"))
