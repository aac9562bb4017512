"""Methods compared image by image: paired differences, and one HTML page with pictures."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from PIL import Image

from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.agreement import conflict, rank_correlations
from megasr.evaluation.evaluator import Evaluation, check_keys, check_weights
from megasr.evaluation.intervals import Interval, paired_bootstrap, photograph
from megasr.evaluation.protocol import MetricSpec
from megasr.files import open_whole
from megasr.image_decoding import IMAGE_SUFFIXES
from megasr.images import read_image, read_size
from megasr.rng import numpy_generator

ALPHA = 0.05


@dataclass(frozen=True)
class Difference:
    """A metric of one evaluation minus that of another, image by image.

    Attributes:
        metric: its name.
        interval: of the mean difference.
        verdict: "better", "worse", "no difference shown" when the interval holds zero, or "too few photographs" when
            it does not, but p is not below ALPHA: so few never show anything.
    """

    metric: str
    interval: Interval
    verdict: str


def paired_differences(evaluation: Evaluation, other: Evaluation) -> list[Difference]:
    """Compare two methods on the same images, by the metrics both have.

    Raises:
        UsageError: the protocols, the images or the weights of metrics differ, no metric is in both, or there is a
            single photograph.
        MegaSRError: the protocol has changed since the numbers were taken.
    """
    if evaluation.fingerprint != other.fingerprint:
        raise UsageError(
            f"{evaluation.protocol} {evaluation.fingerprint} and {other.protocol} {other.fingerprint} are two "
            "protocols: their numbers cannot be compared"
        )
    check_keys(other.keys, evaluation.keys)
    check_weights(evaluation, other)
    protocol = evaluation.get_protocol()
    names = [name for name in evaluation.means if name in other.means]
    if not names:
        raise UsageError(f"no metric in common: {', '.join(evaluation.means)}; {', '.join(other.means)}")
    mine, theirs = (pd.DataFrame(one.rows).set_index("key")[names] for one in (evaluation, other))
    gaps = mine - theirs.loc[mine.index]
    differences = []
    for name in names:
        interval = paired_bootstrap(gaps[name].to_numpy()[None], evaluation.keys, numpy_generator(0, "against"))
        better = (interval.mean > 0) == protocol.metric(name).higher_is_better
        shown = interval.excludes_zero and interval.p_value < ALPHA  # few photographs never show anything
        verdict = ("better" if better else "worse") if shown else "no difference shown"
        if interval.excludes_zero and not shown:
            verdict = "too few photographs"
        differences.append(Difference(name, interval, verdict))
    return differences


def conflict_between(evaluation: Evaluation, first: Evaluation) -> str:
    """A warning where metrics disagree on which of two is better; empty for a single photograph, which shows nothing.

    Raises:
        UsageError, MegaSRError: as paired_differences.
    """
    if len({photograph(key) for key in first.keys}) < 2 or not first.means.keys() & evaluation.means.keys():
        return ""
    return conflict({one.metric: one.verdict for one in paired_differences(evaluation, first)})


def deviations(evaluation: Evaluation, scores: Path) -> pd.DataFrame:
    """How far the scores of single images lie from published ones.

    Args:
        evaluation: what was measured here.
        scores: CSV with a column of file names, with or without their ending, then one column per metric, named as
            here.

    Returns:
        One row per metric (the index) with the largest and the median absolute deviation, and the image (key) of the
        largest.

    Raises:
        UsageError: the file lacks images that were measured (they are listed), or has no metric in common.
        MegaSRError: the file cannot be read.
    """
    try:
        published = pd.read_csv(scores, index_col=False, dtype=str)  # False: a comma too many at a line's end
        published = published.set_index(published.columns[0])
    except (OSError, ValueError) as error:
        raise MegaSRError(f"{scores} is not a table of scores that can be read: {error}") from error
    published.index = published.index.astype(str).map(_without_ending)
    if missing := [key for key in evaluation.keys if key not in published.index]:
        raise UsageError(f"{scores} has no scores of {', '.join(missing[:20])}{' ...' * (len(missing) > 20)}")
    names = [name for name in evaluation.means if name in published]
    if not names:
        columns = ", ".join(sorted(published))
        raise UsageError(f"{scores} has no column {' or '.join(evaluation.means)}; it has {columns}")
    rows = {}
    for name in names:
        try:
            values = np.array([float(published.loc[key, name]) for key in evaluation.keys])
        except (ValueError, TypeError) as error:
            raise MegaSRError(f"{scores}, column {name}: {error}") from error
        if np.isnan(values).any():
            raise MegaSRError(
                f"{scores}, column {name}: {evaluation.keys[int(np.isnan(values).argmax())]} has no value"
            )
        gaps = np.abs(np.array([row[name] for row in evaluation.rows]) - values)
        rows[name] = {"largest": gaps.max(), "median": np.median(gaps), "key": evaluation.keys[int(gaps.argmax())]}
    return pd.DataFrame.from_dict(rows, orient="index")


def _without_ending(name: str) -> str:
    ending = Path(name).suffix
    return name.removesuffix(ending) if ending.lower() in IMAGE_SUFFIXES else name


LQ, HQ = "lq", "hq"
Progress = Callable[[str, int, int], None]  # what is done, how many, of how many
_ASPECT_TOLERANCE = 0.05  # lq of odd sizes is rounded; more than that is another crop
_LOSSLESS_EFFORT = {"method": 3, "quality": 50}  # 1 % larger than the best, in a quarter of its time


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


@dataclass(frozen=True)
class Source:
    """One column of pictures: lq, the sr of a method, or hq.

    Attributes:
        label: its name on the page.
        paths: key of the image -> file.
        method: number of the method, None for what has no scores.
        is_lq: shown enlarged to the size of the others.
    """

    label: str
    paths: Mapping[str, Path]
    method: int | None = None
    is_lq: bool = False


def load_template(name: str, *folders: tuple[str, str]) -> Template:
    """A template that may extend base.html; text that is put into it is escaped.

    Args:
        name: of the file.
        folders: (package, folder) to look in before megasr's own.
    """
    loaders = [PackageLoader(*place) for place in (*folders, ("megasr", "assets/comparison"))]
    environment = Environment(
        loader=ChoiceLoader(loaders), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    environment.filters["csp"] = _csp_hash
    return environment.get_template(name)


def _csp_hash(text: str) -> Markup:
    """The hash by which a Content-Security-Policy permits one inline element (CSP level 3, 2.3.1)."""
    return Markup(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8', 'surrogateescape')).digest()).decode()}'"
    )


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
    keys = _check_methods(methods, hq, lq)
    sources = make_sources({method.label: method.pictures for method in methods}, hq, lq)
    data = _page_data(methods, keys, sources, webp_quality)
    return write_html(out, load_template("compare.html"), data, pictures(sources, keys, webp_quality, progress))


def write_html(out: Path, template: Template, data: Mapping[str, Any], elements: Iterator[Markup], **text: Any) -> int:
    """Write a page with pictures, whole or not at all; one image is in memory at a time.

    Args:
        out: the HTML file.
        template: see load_template.
        data: what the scripts read, as JSON takes it.
        elements: see pictures.
        text: what else the template shows.

    Returns:
        Bytes written.

    Raises:
        MegaSRError: a picture cannot be read, or the page cannot be written.
    """
    with open_whole(out) as file:
        pieces = template.generate(data=data, pictures=elements, **text)
        return sum(file.write(piece.encode("utf-8", "surrogateescape")) for piece in pieces)


def viewer_data(
    sources: Sequence[Source],
    keys: Sequence[str],
    scores: Mapping[str, pd.DataFrame],
    metrics: Sequence[MetricSpec],
    webp_quality: int | None = None,
) -> dict[str, Any]:
    """What the viewer's scripts read.

    Args:
        sources: the columns of pictures.
        keys: the images.
        scores: label of each method, in their order -> its scores, keys by metrics.
        metrics: what is shown of them.
        webp_quality: see write_page.

    Raises:
        UsageError, MegaSRError: see sizes.
    """
    images = zip(keys, sizes(sources, keys), strict=True)
    tables = {label: table.loc[list(keys), [m.name for m in metrics]].astype(float) for label, table in scores.items()}
    return {
        "webpQuality": webp_quality,
        "metrics": _directions(metrics),
        "setMetrics": [],
        "methods": [
            {"label": label, "scores": table.to_dict("list"), "means": table.mean().to_dict(), "setValues": {}}
            for label, table in tables.items()
        ],
        "sources": [{"label": s.label, "method": s.method, "isLq": s.is_lq} for s in sources],
        "images": [{"key": key, "width": width, "height": height} for key, (height, width) in images],
    }


def _directions(metrics: Sequence[MetricSpec]) -> list[dict[str, Any]]:
    return [{"name": metric.name, "higher": metric.higher_is_better} for metric in metrics]


def sizes(sources: Sequence[Source], keys: Sequence[str]) -> list[tuple[int, int]]:
    """(height, width) of every image, from the headers of its files.

    Raises:
        UsageError: pictures of one image differ in size, or its lq is larger or of another shape.
        MegaSRError: a file is missing or not an image.
    """
    full = [source for source in sources if not source.is_lq]
    return [_size(key, full, [source for source in sources if source.is_lq]) for key in keys]


def _size(key: str, full: Sequence[Source], small: Sequence[Source]) -> tuple[int, int]:
    def words(size: tuple[int, int]) -> str:
        return f"{size[1]}x{size[0]} px"

    size = read_size(full[0].paths[key])
    for source in full[1:]:
        if (other := read_size(source.paths[key])) != size:
            raise UsageError(
                f"{key!r} is {words(size)} in {full[0].label} but {words(other)} in {source.label}: "
                "only pictures of one size can be laid over each other"
            )
    for lq in (read_size(source.paths[key]) for source in small):
        if lq[0] > size[0] or lq[1] > size[1]:
            raise UsageError(
                f"lq of {key!r} is {words(lq)}, larger than its sr of {words(size)}: is --lq the right folder?"
            )
        if abs(lq[0] * size[1] / (lq[1] * size[0]) - 1) > _ASPECT_TOLERANCE:
            raise UsageError(f"lq of {key!r} is {words(lq)}, its sr {words(size)}: another shape, so not the same crop")
    return size


def encode(pixels: np.ndarray, webp_quality: int | None = None) -> tuple[str, bytes]:
    """(H, W, 3) uint8 RGB -> (media type, file): lossless WebP, or lossy of a quality; PNG of what WebP cannot hold."""
    lossless = {"lossless": True, **_LOSSLESS_EFFORT}
    form, options = ("WEBP", lossless if webp_quality is None else {"quality": webp_quality})
    if max(pixels.shape) > 16383:
        form, options = "PNG", {}
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format=form, **options)
    return f"image/{form.lower()}", encoded.getvalue()


def pictures(
    sources: Sequence[Source],
    keys: Sequence[str],
    webp_quality: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Iterator[Markup]:
    """Every picture as an inert element of HTML, those of one image after another.

    Raises:
        MegaSRError: a file cannot be decoded.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, key in enumerate(keys):
            # Reading stays in this thread: the decoder changes a global setting of Pillow for its time.
            pixels = [read_image(source.paths[key]) for source in sources]
            encoded = pool.map(partial(encode, webp_quality=webp_quality), pixels)
            for column, (media_type, content) in enumerate(encoded):
                opening = f'<script type="text/plain" id="picture-{number}-{column}" data-type="{media_type}">'
                yield Markup(f"{opening}{base64.b64encode(content).decode()}</script>")
            progress("pictures", number + 1, len(keys))


def make_sources(
    sr: Mapping[str, Mapping[str, Path]],
    hq: Mapping[str, Path] | None = None,
    lq: Mapping[str, Path] | None = None,
) -> list[Source]:
    """The columns of pictures: lq, the sr of every label, hq; each as key -> file, None when it is not shown."""
    sources = [Source(LQ, lq, is_lq=True)] if lq is not None else []
    sources += [Source(label, paths, number) for number, (label, paths) in enumerate(sr.items())]
    return sources + ([Source(HQ, hq)] if hq is not None else [])


def _check_methods(
    methods: Sequence[Method], hq: Mapping[str, Path] | None, lq: Mapping[str, Path] | None
) -> tuple[str, ...]:
    """The keys that all methods share, in the order of the first."""
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


def _page_data(
    methods: Sequence[Method], keys: Sequence[str], sources: Sequence[Source], webp_quality: int | None
) -> dict[str, Any]:
    """What the scripts read: pictures, numbers, and where the numbers come from."""
    first = methods[0].evaluation
    protocol, known = first.get_protocol(), first.provenance
    metrics = [m for m in protocol.metrics if all(m.name in method.evaluation.means for method in methods)]
    of_set = [m for m in protocol.metrics if all(m.name in method.evaluation.set_values for method in methods)]
    names = [metric.name for metric in metrics]
    scores = {method.label: pd.DataFrame(method.evaluation.rows).set_index("key") for method in methods}
    data = viewer_data(sources, keys, scores, metrics, webp_quality)
    for entry, evaluation in zip(data["methods"], (method.evaluation for method in methods), strict=True):
        entry["means"] = {name: evaluation.means[name] for name in names}
        entry["intervals"] = {name: evaluation.intervals[name] for name in names if name in evaluation.intervals}
        entry["setValues"] = {metric.name: evaluation.set_values[metric.name] for metric in of_set}
        entry["differences"] = _differences(evaluation, first, names)
    said = {entry["label"]: {n: d["verdict"] for n, d in entry["differences"].items()} for entry in data["methods"]}
    correlations = rank_correlations(first, [method.evaluation for method in methods[1:]])
    versions = known.get("versions", {})
    facts = {
        "set": first.data,
        "measured": str(known.get("time", ""))[:10],
        "commit": known.get("commit"),
        **{package: versions.get(package) for package in ("pyiqa", "torch")},
        "device": known.get("device"),
    }
    return data | {
        "protocol": {"name": first.protocol, "fingerprint": first.fingerprint},
        "facts": [[name, str(value)] for name, value in facts.items() if value],
        "skipped": list({name: [name, why] for m in methods for name, why in m.evaluation.skipped.items()}.values()),
        "setMetrics": _directions(of_set),
        "conflicts": [[label, note] for label, verdicts in said.items() if (note := conflict(verdicts))],
        "correlations": None if correlations is None else correlations.as_data(),
    }


def _differences(evaluation: Evaluation, first: Evaluation, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """metric -> mean, ends of the interval and verdict of the paired difference; one photograph has a mean only."""
    if not names:
        return {}
    if len({photograph(key) for key in first.keys}) < 2:
        gaps = {name: evaluation.means[name] - first.means[name] for name in names}
        return {name: {"mean": gap, "ends": [], "verdict": ""} for name, gap in gaps.items()}
    return {
        one.metric: {
            "mean": one.interval.mean,
            "ends": [one.interval.low, one.interval.high],
            "verdict": one.verdict if one.verdict in ("better", "worse") else "",
        }
        for one in paired_differences(evaluation, first)
    }
