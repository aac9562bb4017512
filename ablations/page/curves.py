"""Learning curves as inline SVG: linear axes, nothing smoothed, every curve named at its last value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ablations.page.content import Curve
from ablations.page.plots import NARROW_PX, WIDE_PX
from ablations.page.svg import Scale, decimals, element, figure, line, number, scale_over, text

_HUES = 6  # in the style sheet; then the line is dashed, then dotted
_NAME_STEP_PX = 16
_BEGINNING = 0.1  # share of the steps whose losses may be cut off


def curves_plot(curves: Sequence[Curve], wide: bool, axis: str = "training loss") -> str:
    """All curves over one pair of axes; `axis` says what they are."""
    width, left, right = (WIDE_PX, 52, 236) if wide else (NARROW_PX, 38, 128)
    height = max(300.0, _NAME_STEP_PX * len(curves) + 24)
    size = "wide" if wide else "narrow"
    steps = [step for curve in curves for step in curve.steps]
    shown = visible_losses(curves)
    across = Scale(min(steps), max(max(steps), min(steps) + 1), left, width - right)
    up = scale_over(shown, height, 22)
    digits = decimals(shown)
    cut = max(filter(math.isfinite, (loss for curve in curves for loss in curve.losses))) > up.high
    children = [*_axes(across, up, 6 if wide else 3, axis), _clip(f"plot-area-{size}", across, up)]
    paths = [element("path", d=path(curve, across, up), class_=f"curve {_look(i)}") for i, curve in enumerate(curves)]
    children.append(element("g", *paths, clip_path=f"url(#plot-area-{size})"))
    lasts = [(curve, next((x for x in reversed(curve.losses) if math.isfinite(x)), None)) for curve in curves]
    ends = [up.at(min(last, up.high)) if last is not None else up.start for _, last in lasts]
    for place, (y, (curve, last)) in enumerate(zip(spread(ends, 28, height), lasts, strict=True)):
        x = across.end
        children.append(
            element("path", d=f"M{x + 3:g} {ends[place]:.1f}L{x + 14:g} {y:.1f}", class_=f"leader {_look(place)}")
        )
        value = number(last, digits) if last is not None else "no finite loss"
        room = right - 22 - len(value) * 7.2
        children += [
            text(value, x + 18, y + 4, "value"),
            text(curve.label, width - room + 4, y + 4, "label", room - 12),
        ]
    note = f"Cut off at the top: losses above {number(up.high, digits)}" if cut else ""
    if note:
        children.append(text(note, left, 12, "tick start", width - left, 12))
    described = "; ".join(f"{c.label} ends at {number(v, digits) if v is not None else '-'}" for c, v in lasts)
    return figure(
        f"curves-{size}", size, width, height + 42, f"{axis[0].upper()}{axis[1:]} over steps", described, *children
    )


def visible_losses(curves: Sequence[Curve]) -> list[float]:
    """The finite losses that set the scale: without the steep beginning, when it is much above all that follows."""
    late, everything = [], []
    for curve in curves:
        first = curve.steps[0] + _BEGINNING * (curve.steps[-1] - curve.steps[0])
        finite = [(step, loss) for step, loss in zip(curve.steps, curve.losses, strict=True) if math.isfinite(loss)]
        everything += [loss for _, loss in finite]
        late += [loss for step, loss in finite if step >= first]
    if not late or max(everything) - min(everything) < 1.5 * (max(late) - min(late)):
        return everything
    return [*late, min(everything)]


def path(curve: Curve, across: Scale, up: Scale) -> str:
    """The curve's points joined by straight lines, with gaps where a loss is not finite."""
    parts, drawing = [], False
    for step, loss in thinned(zip(curve.steps, curve.losses, strict=True), across):
        if math.isfinite(loss):
            parts.append(f"{'L' if drawing else 'M'}{across.at(step):.1f} {up.at(loss):.1f}")
        drawing = math.isfinite(loss)
    return "".join(parts)


def thinned(points: Iterable[tuple[int, float]], across: Scale) -> list[tuple[int, float]]:
    """Of more than four points within one pixel's width, the first, lowest, highest and last: it looks the same."""
    columns: dict[int, list[tuple[int, float]]] = {}
    for point in points:
        columns.setdefault(int(across.at(point[0])), []).append(point)
    kept: list[tuple[int, float]] = []
    for column in columns.values():
        if len(column) <= 4 or not all(math.isfinite(loss) for _, loss in column):
            kept += column
            continue
        extremes = (min(column, key=lambda p: p[1]), max(column, key=lambda p: p[1]))
        kept += sorted({column[0], *extremes, column[-1]})
    return kept


def spread(wanted: Sequence[float], top: float, bottom: float) -> list[float]:
    """Heights for names that want to be at `wanted`, in the same order, a line apart and within top..bottom."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = list(wanted)
    lowest = top - _NAME_STEP_PX
    for i in order:
        placed[i] = lowest = max(wanted[i], lowest + _NAME_STEP_PX)
    highest = bottom + _NAME_STEP_PX
    for i in reversed(order):
        placed[i] = highest = min(placed[i], highest - _NAME_STEP_PX)
    return placed


def _look(place: int) -> str:
    return f"hue-{place % _HUES} dash-{place // _HUES % 3}"


def _axes(across: Scale, up: Scale, count: int, axis: str) -> list[str]:
    levels, stations = up.ticks(5), across.ticks(count)
    digits = decimals([levels[1] - levels[0]], 1) if len(levels) > 1 else decimals(levels)
    found = []
    for level in levels:
        y = up.at(level)
        found += [
            line(across.start, y, across.end, y, "grid"),
            text(number(level, digits), across.start - 6, y + 4, "tick end"),
        ]
    found += [text(f"{station:,.0f}", across.at(station), up.start + 18, "tick") for station in stations]
    found.append(line(across.start, up.start, across.end, up.start, "zero"))
    return [*found, text(f"{axis} over steps", (across.start + across.end) / 2, up.start + 38, "tick title")]


def _clip(name: str, across: Scale, up: Scale) -> str:
    area = element("rect", x=across.start, y=up.end, width=across.end - across.start, height=up.start - up.end)
    return element("defs", element("clipPath", area, id=name))
