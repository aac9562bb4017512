"""The parts of which figures are made: elements, text that fits, scales and their ticks.

Lengths are in units of the figure's viewBox, which are CSS pixels where it has its natural width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

MINUS = "\u2212"
_CHARACTER_WIDTH = 0.56  # of the font's size: a little more than the mean of the usual sans-serif fonts


@dataclass(frozen=True)
class Scale:
    """A linear scale: values low..high lie at positions start..end.

    Attributes:
        low: value at start.
        high: value at end; greater than low.
        start: position in px.
        end: position in px; less than start on an axis that grows upwards.
    """

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The position of a value in px."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """About `count` round values inside the scale: 1, 2 or 5 times a power of ten apart."""
        raw = (self.high - self.low) / max(count, 1)
        power = 10.0 ** math.floor(math.log10(raw))
        step = power * next(factor for factor in (1, 2, 5, 10) if raw <= factor * power * (1 + 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def scale_over(values: Sequence[float], start: float, end: float, margin: float = 0.04) -> Scale:
    """A scale over all values with a margin (share of their range) on both sides; one value alone gets a range."""
    low, high = min(values), max(values)
    room = (high - low) * margin or abs(high) * 0.1 or 1.0
    return Scale(low - room, high + room, start, end)


def decimals(values: Sequence[float], significant: int = 3) -> int:
    """Digits after the point with which the largest of the values shows so many significant digits."""
    largest = max(map(abs, values), default=0)
    return min(8, max(0, significant - 1 - math.floor(math.log10(largest)))) if largest else 1


def number(value: float, digits: int, signed: bool = False) -> str:
    """A number with a true minus sign, and a plus sign on request; what rounds to zero has none."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return (MINUS if value < 0 else "+" if signed else "") + text


def element(tag: str, *children: str, **attributes: str | float) -> str:
    """An element of SVG. Children are markup, attributes are escaped; class_ means class, stroke_width stroke-width."""
    named = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    written = "".join(f' {name}="{_attribute(value)}"' for name, value in named.items())
    return f"<{tag}{written}>{''.join(children)}</{tag}>" if children else f"<{tag}{written}/>"


def _attribute(value: str | float) -> str:
    return escape(value) if isinstance(value, str) else f"{round(value, 2):g}"


def text(content: str, x: float, y: float, class_: str = "", room: float = math.inf, size: float = 13) -> str:
    """Text of which nothing is markup, shortened to the room it has; its whole length is then shown on hovering."""
    fitting = int(room / (size * _CHARACTER_WIDTH)) if math.isfinite(room) else len(content)
    attributes = {"class_": class_} if class_ else {}
    if len(content) <= fitting:
        return element("text", escape(content), x=x, y=y, **attributes)
    shown = content[: max(fitting - 1, 1)].rstrip() + "\u2026"
    return element("text", element("title", escape(content)), escape(shown), x=x, y=y, **attributes)


def width_of(content: str, size: float = 13) -> float:
    """About how wide a text is, in px."""
    return len(content) * size * _CHARACTER_WIDTH


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def figure(name: str, class_: str, width: float, height: float, title: str, description: str, *children: str) -> str:
    """A whole picture. A screen reader says its title and description; its numbers stand in the text and in tables.

    Args:
        name: distinct on the page.
        class_: of the style sheet.
        width: of the viewBox.
        height: of the viewBox.
        title: one line.
        description: what is to be seen.
        children: markup.
    """
    named = [
        element("title", escape(title), id=f"{name}-title"),
        element("desc", escape(description), id=f"{name}-desc"),
    ]
    return element(
        "svg", *named, *children, class_=f"plot {class_}", viewBox=f"0 0 {width:g} {height:g}", width=width,
        height=height, role="img", aria_labelledby=f"{name}-title", aria_describedby=f"{name}-desc",
    )  # fmt: skip
