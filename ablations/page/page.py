"""Content of a study -> one HTML file that needs no network: text, figures, styles, scripts, numbers and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.page.content import BICUBIC, HQ, LQ, PictureRow, StudyPage
from ablations.page.sections import findings, header, record
from megasr.errors import UsageError
from megasr.evaluation.comparison import ASSETS, VIEWER_SCRIPTS, make_frame, viewer_html
from megasr.files import open_whole

if TYPE_CHECKING:
    from megasr.evaluation.comparison import Source

_OWN = files("ablations") / "page" / "assets"
_STYLES = (ASSETS / "page.css", _OWN / "page.css")


def write_page(content: StudyPage, path: Path, webp_quality: int | None = None) -> None:
    """Write the page, whole or not at all.

    Args:
        content: what it shows.
        path: the HTML file.
        webp_quality: 0 to 100 embeds lossy pictures, and the page says so; None embeds every pixel as it is.

    Raises:
        UsageError: the images differ in what was restored, or the pictures of one image differ in size.
        MegaSRError: a picture cannot be read, or the page cannot be written.
    """
    # Reading pictures needs torch, which takes seconds to import.
    from megasr.evaluation.comparison import blocks, sizes

    sources, keys = make_sources(content), [row.key for row in content.pictures]
    facts = viewer_data(content, sources, sizes(sources, keys) if keys else [], webp_quality)
    labels = {source.label: number for number, source in enumerate(sources)}
    head, tail = make_frame(
        _OWN / "page.html",
        _STYLES,
        [*VIEWER_SCRIPTS, _OWN / "page.js"],
        facts,
        title=escape(content.title),
        header=header(content),
        findings=findings(content, labels),
        viewer=viewer_html() if keys else "",
        record=record(content),
    )
    with open_whole(path) as file:
        file.write(head)
        if keys:
            for block in blocks(sources, keys, webp_quality, lambda what, done, total: None):
                file.write(block)
        file.write(tail)


def figure_page(svg: str) -> str:
    """A figure of the page alone, as HTML that needs no network."""
    style = "".join(file.read_text() for file in _STYLES)
    return f"<!doctype html><meta charset=utf-8><style>{style}</style><body>{svg}</body>"


def make_sources(content: StudyPage) -> list[Source]:
    """The columns of pictures: lq, bicubic, the restorations with the best ranked first, hq; none without pictures.

    Raises:
        UsageError: two images share a key, they differ in what was restored, or a label is that of other pictures.
    """
    from megasr.evaluation.comparison import Source

    rows = content.pictures
    if not rows:
        return []
    labels = _labels(content)
    enlarged = {row.key: row.bicubic for row in rows if row.bicubic is not None}
    if enlarged and len(enlarged) < len(rows):
        raise UsageError(f"bicubic is there for {len(enlarged)} of {len(rows)} images: give it for all or for none")
    measured = [label for label in labels if _has_scores(rows, label)]
    found = [Source(LQ, {row.key: row.lq for row in rows}, is_lq=True)]
    if enlarged:
        number = len(measured) if _has_scores(rows, BICUBIC) else None
        found.append(Source(BICUBIC, enlarged, number))
    for label in labels:
        number = measured.index(label) if label in measured else None
        found.append(Source(label, {row.key: row.restorations[label] for row in rows}, number))
    return [*found, Source(HQ, {row.key: row.hq for row in rows})]


def _labels(content: StudyPage) -> list[str]:
    """The labels of the restorations: ranked ones first, in their order."""
    rows = content.pictures
    keys = [row.key for row in rows]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise UsageError(f"images must have distinct keys; change {', '.join(map(repr, twice))}")
    first = rows[0].restorations
    for row in rows:
        if missing := set(first) ^ set(row.restorations):
            names = ", ".join(sorted(missing))
            raise UsageError(
                f"{names} has a restoration of only one of {rows[0].key!r} and {row.key!r}: give all or none"
            )
    if taken := {LQ, HQ, BICUBIC} & set(first):
        raise UsageError(f"a restoration cannot be called {', '.join(sorted(taken))}: other pictures have that name")
    ranked = [row.label for row in content.ranked if row.label in first]
    return [*ranked, *(label for label in first if label not in ranked)]


def _has_scores(rows: Sequence[PictureRow], label: str) -> bool:
    return all(row.scores.get(label) for row in rows)


def viewer_data(
    content: StudyPage, sources: Sequence[Source], sizes: Sequence[tuple[int, int]], webp_quality: int | None
) -> dict[str, Any]:
    """What the viewer's scripts read. A metric is shown when it is there for every image of everything measured."""
    rows = content.pictures
    methods = [s.label for s in sorted((s for s in sources if s.method is not None), key=lambda s: s.method or 0)]
    named = dict.fromkeys(name for row in rows for label in methods for name in row.scores[label])
    names = sorted(
        (name for name in named if all(name in row.scores[label] for row in rows for label in methods)),
        key=lambda name: name != content.primary[0],
    )
    return {
        "webpQuality": webp_quality,
        "pairwise": True,
        "start": _start(content, [source.label for source in sources]),
        "metrics": [{"name": name, "higher": content.higher_is_better(name)} for name in names],
        "setMetrics": [],
        "methods": [_method(label, [row.scores[label] for row in rows], names) for label in methods],
        "sources": [{"label": s.label, "method": s.method, "isLq": s.is_lq} for s in sources],
        "images": [
            {"key": row.key, "width": width, "height": height} for row, (height, width) in zip(rows, sizes, strict=True)
        ],
    }


def _method(label: str, scores: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, Any]:
    columns = {name: [row[name] for row in scores] for name in names}
    for name, values in columns.items():
        if not all(map(math.isfinite, values)):
            raise UsageError(f"{name} of {label} is not finite for some image; leave the metric out")
    means = {name: sum(values) / len(values) for name, values in columns.items()}
    return {"label": label, "scores": columns, "means": means, "setValues": {}}


def _start(content: StudyPage, labels: Sequence[str]) -> list[int]:
    """The two pictures that are shown first: the reference, and the best that is neither it nor a control."""
    if not labels:
        return []
    competing = [
        row.label for row in content.ranked if row.kind not in ("reference", "control") and row.label in labels
    ]
    left = content.reference.label if content.reference and content.reference.label in labels else LQ
    right = competing[0] if competing else HQ
    return [labels.index(left), labels.index(right)]
