"""Evaluations and pictures -> one HTML file that needs no network: text, styles, script, numbers and pictures.

Every name and number reaches the page as JSON and is set as text by its script; none is ever parsed as HTML.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megasr.errors import UsageError
from megasr.evaluation.against import paired_differences
from megasr.evaluation.comparison.frame import ASSETS, VIEWER_SCRIPTS, make_frame, viewer_html
from megasr.evaluation.comparison.pictures import Source, blocks, sizes
from megasr.evaluation.evaluator import check_keys
from megasr.evaluation.resampling import photograph
from megasr.evaluation.result import Evaluation
from megasr.files import open_whole

LQ, HQ = "lq", "hq"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Method:
    """One folder of sr.

    Attributes:
        label: its name on the page.
        evaluation: its scores; an Evaluation without metrics where none can be taken.
        pictures: key of the image -> file, for every key of the evaluation.
    """

    label: str
    evaluation: Evaluation
    pictures: Mapping[str, Path]


def write_page(
    out: Path,
    methods: Sequence[Method],
    *,
    hq: Mapping[str, Path] | None = None,
    lq: Mapping[str, Path] | None = None,
    webp_quality: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> int:
    """Write the page, whole or not at all.

    Args:
        out: the HTML file.
        methods: the first is the one that the others are compared with.
        hq: key -> file, None when there are none.
        lq: key -> file, None when they are not to be shown.
        webp_quality: 0 to 100 embeds lossy pictures, and the page says so; None embeds every pixel as it is.
        progress: called with what is done, how many of how many.

    Returns:
        Bytes written.

    Raises:
        UsageError: labels are not distinct, or the methods differ in images, protocol or sizes.
        MegaSRError: a picture cannot be read, or the page cannot be written.
    """
    keys = check_methods(methods, hq, lq)
    sources = make_sources({method.label: method.pictures for method in methods}, hq, lq)
    facts = page_data(methods, keys, sources, sizes(sources, keys), webp_quality)
    scripts = (*VIEWER_SCRIPTS, ASSETS / "page.js")
    head, tail = make_frame(ASSETS / "page.html", [ASSETS / "page.css"], scripts, facts, viewer=viewer_html())
    with open_whole(out) as file:
        written = file.write(head)
        for block in blocks(sources, keys, webp_quality, progress):
            written += file.write(block)
        return written + file.write(tail)


def make_sources(
    sr: Mapping[str, Mapping[str, Path]],
    hq: Mapping[str, Path] | None = None,
    lq: Mapping[str, Path] | None = None,
) -> list[Source]:
    """The columns of pictures: lq, the sr of every label, hq.

    Args:
        sr: label -> key -> file.
        hq: key -> file, None when there are none.
        lq: key -> file, None when they are not to be shown.
    """
    sources = [Source(LQ, lq, is_lq=True)] if lq is not None else []
    sources += [Source(label, paths, number) for number, (label, paths) in enumerate(sr.items())]
    return sources + ([Source(HQ, hq)] if hq is not None else [])


def check_methods(
    methods: Sequence[Method], hq: Mapping[str, Path] | None = None, lq: Mapping[str, Path] | None = None
) -> tuple[str, ...]:
    """The keys that all methods share, in the order of the first.

    Raises:
        UsageError: no method, labels that are not distinct, or methods that cannot be compared.
    """
    if not methods:
        raise UsageError("nothing to compare: give at least one folder")
    check_labels([method.label for method in methods])
    first = methods[0].evaluation
    for method in methods:
        check_keys(method.evaluation.keys, first.keys)
        check_keys(list(method.pictures), first.keys)
        if method.evaluation.fingerprint != first.fingerprint:
            raise UsageError(
                f"{method.label} was measured under {method.evaluation.protocol} {method.evaluation.fingerprint}, "
                f"{methods[0].label} under {first.protocol} {first.fingerprint}: they cannot be compared"
            )
    for others in (hq, lq):
        if others is not None:
            check_keys(list(others), first.keys)
    return first.keys


def check_labels(labels: Sequence[str]) -> None:
    """Raise UsageError when two methods share a name, or one has that of other pictures or none at all."""
    taken = [*labels, LQ, HQ]
    if wrong := sorted({label for label in taken if taken.count(label) > 1 or not label.strip()}):
        raise UsageError(
            f"labels must be distinct, not empty and not {LQ} or {HQ}; change {', '.join(map(repr, wrong))}"
        )


def page_data(
    methods: Sequence[Method],
    keys: Sequence[str],
    sources: Sequence[Source],
    image_sizes: Sequence[tuple[int, int]],
    webp_quality: int | None,
) -> dict[str, Any]:
    """Everything the page's script shows, as JSON takes it."""
    first = methods[0].evaluation
    protocol = first.get_protocol()
    measured = [name for name in protocol.metric_names if all(name in method.evaluation.means for method in methods)]
    of_set = [name for name in protocol.metric_names if all(name in m.evaluation.set_values for m in methods)]
    skipped = {name: why for method in methods for name, why in method.evaluation.skipped.items()}
    return {
        "protocol": {"name": first.protocol, "fingerprint": first.fingerprint},
        "facts": _facts(first),
        "skipped": [[name, why] for name, why in skipped.items()],
        "webpQuality": webp_quality,
        "metrics": [{"name": name, "higher": protocol.metric(name).higher_is_better} for name in measured],
        "setMetrics": [{"name": name, "higher": protocol.metric(name).higher_is_better} for name in of_set],
        "methods": _methods(methods, keys, measured, of_set),
        "sources": [{"label": s.label, "method": s.method, "isLq": s.is_lq} for s in sources],
        "images": [
            {"key": key, "width": width, "height": height}
            for key, (height, width) in zip(keys, image_sizes, strict=True)
        ],
    }


def _facts(evaluation: Evaluation) -> list[list[str]]:
    """Where the numbers come from, as pairs of a word and a value."""
    known = evaluation.provenance
    versions = known.get("versions", {})
    pairs = [
        ("set", evaluation.data),
        ("measured", str(known.get("time", ""))[:10]),
        ("commit", known.get("commit")),
        *((package, versions.get(package)) for package in ("pyiqa", "torch")),
        ("device", known.get("device")),
    ]
    return [[name, str(value)] for name, value in pairs if value]


def _methods(
    methods: Sequence[Method], keys: Sequence[str], measured: Sequence[str], of_set: Sequence[str]
) -> list[dict[str, Any]]:
    by_key = [{row["key"]: row for row in method.evaluation.rows} for method in methods]
    scores = [np.array([[rows[key][name] for name in measured] for key in keys], float) for rows in by_key]
    return [
        {
            "label": method.label,
            "scores": dict(zip(measured, values.T.tolist(), strict=True)),
            "means": {name: method.evaluation.means[name] for name in measured},
            "intervals": {name: method.evaluation.intervals[name] for name in measured}
            if method.evaluation.intervals
            else {},
            "setValues": {name: method.evaluation.set_values[name] for name in of_set},
            "differences": _differences(method.evaluation, methods[0].evaluation, values - scores[0], measured),
        }
        for method, values in zip(methods, scores, strict=True)
    ]


def _differences(
    evaluation: Evaluation, first: Evaluation, gaps: np.ndarray, measured: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """metric -> mean, ends of the interval and verdict of the paired difference; one photograph has a mean only."""
    if not measured:
        return {}
    means = dict(zip(measured, gaps.mean(0).tolist(), strict=True))
    if len({photograph(key) for key in first.keys}) < 2:
        return {name: {"mean": mean, "ends": [], "verdict": ""} for name, mean in means.items()}
    return {
        found.metric: {
            "mean": means[found.metric],
            "ends": [found.interval.low, found.interval.high],
            "verdict": found.verdict if found.verdict in ("better", "worse") else "",
        }
        for found in paired_differences(evaluation, first)
    }
