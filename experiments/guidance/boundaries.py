"""How well edge maps agree with people, on photographs and on what degradation leaves of them (BSDS500).

    python -m experiments.guidance.boundaries --bsds FOLDER --methods canny hed hed=tiny --out table.json

A method is a guidance type of role `edge`, or TYPE=SOURCE with the source of its weights (see ExtractorConfig). It sees
hq, and lq_up; the drawings are the same for both. Intervals are over images; other methods are compared with the first,
on the same images. A binary map such as canny has one operating point: its ODS is the F-measure of the map as it
stands, and it has no area.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from data_pipelines.data_module import EVAL_SEED
from data_pipelines.degradations.presets import Degradation, get_degradation
from data_pipelines.samples import Sample, degrade
from experiments.guidance.bsds import DrawnImage, list_bsds, read_drawn
from experiments.guidance.ods import (
    TOLERANCE,
    boundary_counts,
    ods_intervals,
    score,
    spread_thresholds,
    suppress_non_maxima,
)
from megasr.cli import Parser
from megasr.errors import MegaSRError, UsageError
from megasr.files import write_whole
from megasr.guidance.extract import ExtractorConfig, Networks, extract_guidance
from megasr.guidance.registry import get_guidance
from megasr.images import from_uint8, upsample_lq
from megasr.rng import numpy_generator

_MULTIPLE = 4  # sides of lq: what networks take at least
Counts = dict[tuple[str, str], np.ndarray]  # (method, view) -> (I, T, 4)


class EdgeMethod:
    """One way to make an edge map of an image: a guidance type, or TYPE=SOURCE.

    Raises:
        UsageError: there is no such type, or it makes no edges of an image.
    """

    def __init__(self, name: str) -> None:
        kind, _, source = name.partition("=")
        self.name, self.guidance = name, get_guidance(kind)
        if self.guidance.role != "edge" or self.guidance.source != "lq":
            raise UsageError(f"method {name!r}: {kind} does not make edges of an image; take one such as canny")
        self.networks = Networks(ExtractorConfig({kind: source} if source else {}))

    def edge_map(self, image: torch.Tensor) -> np.ndarray:
        """(1, 3, H, W) in [0, 1] -> (H, W) float64 in [0, 1]."""
        maps = extract_guidance({"lq": image, "keys": ["0"]}, [self.guidance], 1, self.networks)
        return maps[self.guidance.name][0, 0].double().numpy()


def views(image: DrawnImage, degradation: Degradation) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, (1, 3, H, W) in [0, 1]) of hq and of lq at the size of hq; the degradation is keyed by the image."""
    yield "hq", from_uint8(image.hq)[None]
    lq = degrade(Sample(image.key, image.hq), degradation, EVAL_SEED).lq
    assert lq is not None
    yield "lq", upsample_lq(lq[None], degradation.scale_factor)


def measure(
    methods: Sequence[EdgeMethod], paths: Sequence[Path], degradation: Degradation, thresholds: Sequence[float]
) -> Counts:
    """Counts of every method on every view, with a progress bar.

    Raises:
        MegaSRError: an image or the weights of a method cannot be read.
    """
    counts: dict[tuple[str, str], list[np.ndarray]] = {(m.name, view): [] for m in methods for view in ("hq", "lq")}
    for path in track(paths, "boundaries"):
        image = read_drawn(path, _MULTIPLE * degradation.scale_factor)
        for view, pixels in views(image, degradation):
            for method in methods:
                edges = suppress_non_maxima(method.edge_map(pixels))
                counts[method.name, view].append(boundary_counts(edges, image.truths, thresholds))
    return {key: np.stack(of_images) for key, of_images in counts.items()}


def summarise(counts: Counts, thresholds: Sequence[float]) -> list[dict[str, Any]]:
    """One row for each method and view: scores, interval of ODS, and ODS minus the first method's."""
    first = next(iter(counts))[0]
    rows = []
    for (method, view), mine in counts.items():
        row: dict[str, Any] = {"method": method, "view": view, "images": len(mine), **asdict(score(mine, thresholds))}
        if len(mine) > 1:
            others = [] if method == first else [counts[first, view]]
            row["ods_interval"], *gaps = ods_intervals([mine, *others], numpy_generator(0, "boundaries", view))
            for other, (low, high) in zip(others, gaps, strict=True):
                mean = row["ods"] - score(other, thresholds).ods
                row["minus_first"] = {"mean": mean, "low": low, "high": high}
        rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [f"| method | on | ODS | threshold | OIS | AP | ODS - {rows[0]['method']} |\n|{' --- |' * 7}"]
    for row in rows:
        low_high = row.get("ods_interval")
        ods = f"{row['ods']:.3f}" + (f" [{low_high[0]:.3f}, {low_high[1]:.3f}]" if low_high else "")
        at, area = ("-", "-") if row["ap"] is None else (f"{row['ods_threshold']:.3f}", f"{row['ap']:.3f}")
        gap = row.get("minus_first")
        difference = f"{gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]" if gap else "-"
        lines.append(f"| {row['method']} | {row['view']} | {ods} | {at} | {row['ois']:.3f} | {area} | {difference} |")
    return "\n".join(lines)


def run(argv: Sequence[str]) -> None:
    """Measure, print the table, write JSON. Errors travel up as exceptions."""
    parser = Parser(
        prog="python -m experiments.guidance.boundaries",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bsds", type=Path, required=True, metavar="FOLDER", help="folder that holds val, train, test")
    parser.add_argument("--split", default="val", help="default: %(default)s")
    parser.add_argument("--methods", nargs="+", required=True, metavar="TYPE[=SOURCE]", help="such as canny")
    parser.add_argument("--images", type=int, help="take so many in equal steps (default: all)")
    parser.add_argument("--thresholds", type=int, default=24, help="number of them (default: %(default)s)")
    parser.add_argument("--degradation", default="realesrgan_strong", help="what makes lq (default: %(default)s)")
    parser.add_argument("--scale-factor", type=int, default=4, help="hq over lq (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the rows as JSON as well")
    options = parser.parse_args(argv)
    degradation = get_degradation(options.degradation, options.scale_factor)
    methods = [EdgeMethod(name) for name in dict.fromkeys(options.methods)]
    thresholds = spread_thresholds(options.thresholds)
    paths = list_bsds(options.bsds, options.split, options.images)
    rows = summarise(measure(methods, paths, degradation, thresholds), thresholds)
    print(table(rows))
    if options.out:
        settings = {name: getattr(options, name) for name in ("split", "degradation", "scale_factor", "thresholds")}
        document = {"settings": settings | {"tolerance": TOLERANCE}, "rows": rows}
        write_whole(options.out, (json.dumps(document, indent=1) + "\n").encode())


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; one line on stderr says what went wrong."""
    try:
        run(sys.argv[1:] if argv is None else argv)
    except (UsageError, MegaSRError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
