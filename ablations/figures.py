"""A study's figures, drawn by matplotlib: SVG for the page, whose colours it follows, and pictures for W&B.

Each figure comes in two widths, because text that shrinks with a figure cannot be read on a narrow screen: the wide one
has names beside the plot, the narrow one above each line. Lengths are pixels.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from cycler import cycler
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ablations.tables import decimals, interval_text, kind, signed

WIDE_PX, NARROW_PX = 1080, 358
# Names of the page's style sheet -> colours on white; on the page each stands for the style sheet's own.
COLORS = {"ink": "#1c1d1f", "quiet": "#62656b", "rule": "#dcdcd8", "shade": "#f1f1ee", "paper": "#fcfcfb",
          "accent": "#1f5fbf", "better": "#1d6b4f", "worse": "#a3402b", "hue-1": "#b4552a", "hue-2": "#8a4a9c",
          "hue-3": "#7a6a12", "hue-4": "#5b6470"}  # fmt: skip
_CURVES = [COLORS[name] for name in ("accent", "hue-1", "better", "hue-2", "hue-3", "hue-4")]
_STYLE = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "text.parse_math": False,  # names may hold any character
    "font.size": 12,
    "text.color": COLORS["ink"],
    "axes.edgecolor": COLORS["quiet"],
    "axes.labelcolor": COLORS["quiet"],
    "axes.prop_cycle": cycler(linestyle=["-", "--", ":"]) * cycler(color=_CURVES),
    "grid.color": COLORS["rule"],
    "xtick.color": COLORS["quiet"],
    "ytick.color": COLORS["quiet"],
    "hatch.color": COLORS["rule"],
    "hatch.linewidth": 1.2,
    "lines.linewidth": 1.4,
}
_LABEL_PX, _VALUE_PX, _DOT_STEP_PX, _INSET_PX, _AXIS_PX = 230, 425, 24, 8, 46
_MARKERS = {"reference": ("D", 8), "control": ("s", 9)}
_BEGINNING = 0.1  # share of the steps whose losses may be cut off
_STRONGEST = 0.55  # opacity of the largest cell; text stays readable on it


@dataclass(frozen=True)
class _Rows:
    """A figure with one line per value: `plot` has values along x, `words` pixels; both have pixels along y."""

    figure: Figure
    plot: Axes
    words: Axes
    y: np.ndarray
    top: float


@rc_context(_STYLE)
def ranking_figure(ranking: pd.DataFrame, metric: str, least: float = 0.0, wide: bool = True) -> Figure:
    """Every combination's difference to the reference with its interval, best first; right is better.

    Args:
        ranking: see ablations.tables.ranking_frame.
        metric: what the differences are in.
        least: differences up to it are shaded: another machine may make them.
        wide: for a wide screen.
    """
    parts = [set(combination.split("+")) - {""} for combination in ranking["combination"]]
    types = sorted(set().union(*parts)) if wide else []
    values = ranking.rename(columns={"difference": "mean"})
    rows = _rows(values, f"difference in {metric} → better", wide, types, least)
    if least:
        rows.plot.axvspan(-least, least, color=COLORS["shade"], linewidth=0, zorder=0)
    for y, row in zip(rows.y, values.itertuples(), strict=True):
        which = kind(row.verdict)
        color = COLORS.get(which, COLORS["ink" if which == "reference" else "quiet"])
        marker, size = _MARKERS.get(which, ("o", 9))
        rows.plot.hlines(y, row.low, row.high, color, linewidth=1.5)
        filled = color if which in ("better", "worse", "reference") else COLORS["paper"]
        rows.plot.plot(row.mean, y, marker=marker, markersize=size, color=color, markerfacecolor=filled, linestyle="")
    grid = np.array([[name in part for name in types] for part in parts], bool).reshape(len(parts), len(types))
    for on in (False, True):
        line, column = np.nonzero(grid == on)
        x, y = _LABEL_PX + 8 + _DOT_STEP_PX * column, rows.y[line]
        rows.words.plot(x, y, "o", markersize=7, color=COLORS["ink" if on else "rule"], markeredgewidth=0)
    for place, name in enumerate(types):
        left = _LABEL_PX + 5 + _DOT_STEP_PX * place
        rows.words.text(left, rows.top - 4, name, rotation=45, rotation_mode="anchor", color=COLORS["quiet"])
    return rows.figure


@rc_context(_STYLE)
def shapley_figure(worth: pd.DataFrame, metric: str, wide: bool = True) -> Figure:
    """The share of every guidance type in the gain, with its interval; columns label, mean, low, high."""
    rows = _rows(worth, f"Shapley value in {metric} → better", wide)
    for y, row in zip(rows.y, worth.itertuples(), strict=True):
        color = COLORS["accent" if row.mean >= 0 else "worse"]
        rows.plot.barh(y, row.mean, height=12, color=color, alpha=0.5, linewidth=0)
        error = [[row.mean - row.low], [row.high - row.mean]]
        rows.plot.errorbar(row.mean, y, xerr=error, color=COLORS["ink"], capsize=4, elinewidth=1.5, fmt="none")
    return rows.figure


def _rows(values: pd.DataFrame, axis: str, wide: bool, types: Sequence[str] = (), least: float = 0.0) -> _Rows:
    """Lay out one line per value, with its name and its numbers beside the plot or above it."""
    width, step = (WIDE_PX, 27) if wide else (NARROW_PX, 42)
    left = _LABEL_PX + (len(types) * _DOT_STEP_PX + 24 if types else 0) if wide else 0
    right = WIDE_PX - _VALUE_PX if wide else NARROW_PX
    top = max(map(len, types), default=0) * 5.2 + 14 if types else 4
    bottom = top + step * len(values) + 4
    y = top + step * (np.arange(len(values)) + (0.5 if wide else 0.68))
    height = bottom + _AXIS_PX
    figure, words = _canvas(width, height)
    low, high = min(-least, *values["low"], *values["mean"]), max(least, *values["high"], *values["mean"])
    room = (high - low) * 0.04 or 1.0
    across = (left + _INSET_PX) / width, (right - left - 2 * _INSET_PX) / width
    place = (across[0], _AXIS_PX / height, across[1], (bottom - top) / height)
    plot = figure.add_axes(place, frame_on=False, xlim=(low - room, high + room), ylim=(bottom, top), yticks=[])
    plot.set_xlabel(axis)
    plot.tick_params(axis="x", length=0)
    plot.locator_params(axis="x", nbins=6 if wide else 4)
    plot.ticklabel_format(axis="x", style="plain", useOffset=False)
    plot.grid(axis="x")
    plot.set_axisbelow(True)
    plot.axvline(0, color=COLORS["quiet"], linewidth=1)
    texts = interval_text(values["mean"], values["low"], values["high"])
    verdicts = values["verdict"] if "verdict" in values else [""] * len(values)
    after = right + 38 + max(map(len, texts), default=0) * 6.8
    for at, label, text, verdict in zip(y, values["label"], texts, verdicts, strict=True):
        which = kind(verdict)
        if wide:
            words.text(0, at, _fit(label, _LABEL_PX - 24), va="center_baseline")
            words.text(right + 22, at, text, va="center_baseline")
            tone = COLORS.get(which, COLORS["quiet"])
            words.text(after, at, _fit(verdict, WIDE_PX - after), va="center_baseline", color=tone)
        else:
            named = f"{label} ({which})" if which in ("control", "reference") else label
            words.text(0, at - 13, _fit(named, NARROW_PX - 7.4 * len(text) - 9))
            words.text(NARROW_PX, at - 13, text, ha="right")
    return _Rows(figure, plot, words, y, top)


@rc_context(_STYLE)
def synergy_figure(synergies: pd.DataFrame, wide: bool = True) -> Figure:
    """What two types do together beyond the sum of both: a cell per pair, hatched where its interval contains zero.

    Args:
        synergies: columns first, second, mean, low, high.
        wide: for a wide screen.
    """
    labels = sorted({*synergies["first"], *synergies["second"]})
    label_px = min(7.4 * max(map(len, labels)) + 10, 150 if wide else 78)
    cell_w = min(104.0, ((720 if wide else NARROW_PX) - label_px) / max(len(labels) - 1, 1))
    cell_h = 46 if wide else 38
    tilted = any(7 * len(name) > cell_w for name in labels[:-1])
    height = (len(labels) - 1) * cell_h
    width = WIDE_PX if wide else NARROW_PX
    figure, words = _canvas(width, height + (6 * max(map(len, labels)) + 22 if tilted else 26))
    digits = decimals(synergies["mean"], 2)
    sure = synergies[(synergies["low"] > 0) | (synergies["high"] < 0)]
    pairs = {frozenset((row.first, row.second)): row for row in synergies.itertuples()}
    for down, row in enumerate(labels[1:]):
        words.text(label_px - 8, (down + 0.5) * cell_h, _fit(row, label_px - 14), ha="right", va="center_baseline")
        for across, column in enumerate(labels[: down + 1]):
            x, y, one = label_px + across * cell_w, down * cell_h, pairs.get(frozenset((row, column)))
            strong = one is not None and one.Index in sure.index
            cell = Rectangle((x, y), cell_w - 2, cell_h - 2, linewidth=0)
            words.add_patch(cell)
            if one is None:
                cell.set(facecolor="none", edgecolor=COLORS["rule"], linewidth=1, linestyle="--")
            elif strong:
                share = abs(one.mean) / sure["mean"].abs().max()
                color = COLORS["accent" if one.mean > 0 else "worse"]
                cell.set(facecolor=color, alpha=0.12 + share * (_STRONGEST - 0.12))
            else:
                cell.set(facecolor="none", edgecolor=COLORS["rule"], hatch="////")
            text, color = "–" if one is None else signed(one.mean, digits), COLORS["ink" if strong else "quiet"]
            weight = "bold" if strong else "normal"
            middle = x + cell_w / 2, y + cell_h / 2 + 4
            words.text(*middle, text, ha="center", color=color, fontweight=weight)
    for across, column in enumerate(labels[:-1]):
        turn = {"rotation": 45, "ha": "right", "va": "top"} if tilted else {"ha": "center", "va": "top"}
        words.text(label_px + (across + 0.5) * cell_w, height + 4, column, color=COLORS["quiet"], **turn)
    return figure


@rc_context(_STYLE)
def curves_figure(curves: pd.DataFrame, axis: str, wide: bool = True) -> Figure:
    """Learning curves, one column each over the steps of the index; the legend has their last values in their order.

    A steep beginning that is far above all that follows is cut off.
    """
    last = curves.apply(lambda curve: curve.dropna().iloc[-1]).sort_values(ascending=False)
    width, left, right = (WIDE_PX, 56, 250) if wide else (NARROW_PX, 46, 6)
    below = 46 if wide else 54 + 17 * len(last)
    height = max(300, 18 * len(last)) + below
    figure, words = _canvas(width, height)
    place = (left / width, below / height, (width - left - right) / width, (height - below - 22) / height)
    plot = figure.add_axes(place, xlabel=f"{axis} over steps")
    plot.spines[["top", "left", "right"]].set_visible(False)
    plot.grid(axis="y")
    plot.tick_params(length=0)
    plot.locator_params(axis="x", nbins=6 if wide else 3)
    digits = decimals(last)
    for name, value in last.items():
        plot.plot(curves[name].dropna(), label=f"{signed(value, digits, plus=False)}  {_fit(str(name), 170)}")
    beginning = curves.index.min() + _BEGINNING * (curves.index.max() - curves.index.min())
    late, everything = curves[curves.index >= beginning].stack(), curves.stack()
    if len(late) and everything.max() - everything.min() > 1.5 * (late.max() - late.min()) > 0:
        room = 0.04 * (late.max() - everything.min())
        plot.set_ylim(everything.min() - room, late.max() + room)
        words.text(left, 12, f"Cut off at the top: losses above {late.max() + room:.{digits}f}", color=COLORS["quiet"])
    anchor = ("center left", (1.01, 0.5)) if wide else ("upper left", (-0.1, -44 / (height - below - 22)))
    plot.legend(frameon=False, borderaxespad=0, labelspacing=0.25, loc=anchor[0], bbox_to_anchor=anchor[1])
    return figure


def inline_svg(figure: Figure, name: str, title: str, description: str) -> Markup:
    """A figure as an element of a page, without a style of its own: colours are the page's, text its font.

    Args:
        figure: one of the above.
        name: distinct on the page; also a class.
        title: one line that a screen reader says.
        description: what is to be seen, for the same.
    """
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata=nothing, transparent=True)
    body = file.getvalue().partition("<svg")[2].partition(">")[2]
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r"<[^>]*>", _follow_page, body)  # text has no < or >
    width, height = (round(float(side) * 72) for side in figure.get_size_inches())
    words = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
    return Markup(
        f'<svg class="plot {name.rpartition("-")[2]}" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-labelledby="{name}-title" aria-describedby="{name}-desc">{words}{body}'
    )


def _follow_page(tag: re.Match[str]) -> str:
    """Attributes instead of a style, which the page's Content-Security-Policy forbids, and names of colours."""

    def attributes(style: re.Match[str]) -> str:
        pairs = [part.partition(":")[::2] for part in style[1].split(";") if part.strip()]
        named = {name.strip(): value.strip() for name, value in pairs}
        if "font" in named:
            *weight, size = named.pop("font").split("px")[0].split()
            named |= {"font-size": f"{size}px"} | ({"font-weight": "600"} if weight else {})
        return " ".join(f'{name}="{value}"' for name, value in named.items())

    text = re.sub(r'style="([^"]*)"', attributes, tag[0])
    text = re.sub(r' id="[a-z]+\w*_\d+"', "", text)
    for name, color in COLORS.items():
        text = text.replace(color, f"var(--{name})")
    return text


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of so many pixels, and axes over all of it that count them from the left upper corner."""
    figure = Figure((width / 72, height / 72), dpi=72)
    words = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), zorder=2)
    words.set_axis_off()
    return figure, words


def _fit(text: str, room_px: float) -> str:
    """The text, shortened to about so many pixels."""
    most = max(2, math.floor(room_px / 6.8))
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
