"""The page that compares folders of restorations: one HTML file."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from megasr.errors import UsageError
from megasr.evaluation.against import paired_differences
from megasr.evaluation.evaluator import check_keys
from megasr.evaluation.intervals import photograph
from megasr.evaluation.result import Evaluation
from megasr.files import open_whole
from megasr.images import read_image, read_size

if TYPE_CHECKING:
    from PIL import Image


ASSETS = files("megasr") / "assets" / "comparison"
# Pictures, tables, divider with crops, and the keys: what every page with pictures is browsed with, in this order.
VIEWER_SCRIPTS = tuple(ASSETS / name for name in ("pictures.js", "tables.js", "viewer.js", "browse.js"))


def make_frame(
    template: Traversable,
    styles: Sequence[Traversable],
    scripts: Sequence[Traversable],
    facts: Mapping[str, Any],
    **parts: str,
) -> tuple[bytes, bytes]:
    """The page before and after its pictures.

    Args:
        template: HTML with $style, $script, their hashes, $data, and <!-- pictures --> where the pictures come.
        styles: style sheets, one after another.
        scripts: scripts in their order; they share one scope.
        facts: what the scripts read, as JSON takes it.
        parts: other names of the template -> HTML, whose texts are escaped.
    """
    style = "\n".join(_text(sheet) for sheet in styles)
    script = "\n".join(['"use strict";', *map(_text, scripts)])
    page = Template(_text(template)).substitute(
        parts,
        style=style,
        script=script,
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
        # "<" could end the element it is in; JSON can write it as an escape.
        data=json.dumps(facts, allow_nan=False).replace("<", "\\u003c"),
    )
    head, mark, tail = page.partition("<!-- pictures -->")
    assert mark
    return head.encode(), tail.encode()


def viewer_html() -> str:
    """The picture with its divider and crops, the table of images, and the list of keys."""
    return _text(ASSETS / "viewer.html")


def _text(asset: Traversable) -> str:
    return asset.read_text(encoding="utf-8")


def _csp_hash(text: str) -> str:
    """The hash by which a Content-Security-Policy permits one inline element (CSP level 3, 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_ASPECT_TOLERANCE = 0.05  # lq of odd sizes is rounded; more than that is another crop
_LOSSLESS_EFFORT = {"method": 3, "quality": 50}  # 1 % larger than the best, in a quarter of its time


@dataclass(frozen=True)
class Source:
    """One column of pictures: lq, the sr of a method, or hq.

    Attributes:
        label: its name on the page.
        paths: key of the image -> file.
        method: number of the method, None for lq and hq.
        is_lq: shown enlarged to the size of the others.
    """

    label: str
    paths: Mapping[str, Path]
    method: int | None = None
    is_lq: bool = False


def sizes(sources: Sequence[Source], keys: Sequence[str]) -> list[tuple[int, int]]:
    """(height, width) of every image, from the headers of its files.

    Raises:
        UsageError: pictures of one image differ in size, or its lq is larger or of another shape.
        MegaSRError: a file is missing or not an image.
    """
    found = []
    full = [source for source in sources if not source.is_lq]
    for key in keys:
        size = read_size(full[0].paths[key])
        for source in full[1:]:
            if (other := read_size(source.paths[key])) != size:
                raise UsageError(
                    f"{key!r} is {_caption(size)} in {full[0].label} but {_caption(other)} in {source.label}: "
                    "only pictures of one size can be laid over each other"
                )
        for source in (source for source in sources if source.is_lq):
            _check_lq(key, read_size(source.paths[key]), size)
        found.append(size)
    return found


def _check_lq(key: str, lq: tuple[int, int], size: tuple[int, int]) -> None:
    if lq[0] > size[0] or lq[1] > size[1]:
        raise UsageError(
            f"lq of {key!r} is {_caption(lq)}, larger than its sr of {_caption(size)}: is --lq the right folder?"
        )
    if abs(lq[0] * size[1] / (lq[1] * size[0]) - 1) > _ASPECT_TOLERANCE:
        raise UsageError(
            f"lq of {key!r} is {_caption(lq)}, its sr {_caption(size)}: another shape, so not the same crop"
        )


def _caption(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]} px"


def encode(pixels: np.ndarray, webp_quality: int | None = None) -> tuple[str, bytes]:
    """(H, W, 3) uint8 RGB -> (media type, file): the smaller of lossless WebP and PNG, or lossy WebP of a quality."""
    from PIL import Image

    image = Image.fromarray(pixels)
    if max(pixels.shape) > 16383:  # what WebP can hold
        return "image/png", _save(image, "PNG")
    if webp_quality is not None:
        return "image/webp", _save(image, "WEBP", quality=webp_quality)
    webp = _save(image, "WEBP", lossless=True, **_LOSSLESS_EFFORT)
    png = _save(image, "PNG")
    return ("image/webp", webp) if len(webp) <= len(png) else ("image/png", png)


def _save(image: Image.Image, form: str, **options: Any) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, format=form, **options)
    return encoded.getvalue()


def blocks(
    sources: Sequence[Source],
    keys: Sequence[str],
    webp_quality: int | None,
    progress: Callable[[str, int, int], None],
) -> Iterator[bytes]:
    """Every picture as an inert element of HTML, those of one image after another. One image is in memory at a time.

    Args:
        sources: the columns.
        keys: the images.
        webp_quality: 0 to 100 for lossy pictures, None for lossless ones.
        progress: called with what is done, how many of how many.

    Raises:
        MegaSRError: a file cannot be decoded.
    """
    with ThreadPoolExecutor(min(len(sources), os.cpu_count() or 1)) as pool:
        for number, key in enumerate(keys):
            # Reading stays in this thread: the decoder changes a global setting of Pillow for its time.
            pixels = [read_image(source.paths[key]) for source in sources]
            encoded = pool.map(partial(encode, webp_quality=webp_quality), pixels)
            for column, (media_type, content) in enumerate(encoded):
                opening = f'<script type="text/plain" id="picture-{number}-{column}" data-type="{media_type}">'
                yield opening.encode() + base64.b64encode(content) + b"</script>\n"
            progress("pictures", number + 1, len(keys))


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
