"""One picture of a study: rows are held-out crops, columns are lq, baselines, the sr of every combination, and hq."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from ablations.evaluation import EvaluationSet, study_name
from ablations.results import StudyResult, values
from megasr.evaluation.intervals import photograph
from megasr.evaluation.protocol import MetricSpec
from megasr.files import write_whole
from megasr.images import read_image

ROWS = 6
_CELL_PX = 256  # pictures are enlarged to about this by whole factors, so that their pixels stay visible
_GAP_PX, _MARGIN_PX, _HEADER_PX, _CAPTION_PX = 12, 36, 150, 36
_INK, _GREY, _BEST = "#181a1f", "#787c85", "#007a4e"
_FRAME = 200  # grey level


class Row(NamedTuple):
    """An image of the sheet: its pictures, captions (and whether each is the best), and maps, None where none is."""

    pictures: Sequence[np.ndarray]
    captions: Sequence[tuple[str, bool]]
    maps: Sequence[np.ndarray | None]


def write_contact_sheet(result: StudyResult, path: Path, rows: int = ROWS) -> None:
    """Draw the sheet from the pictures of the runs (first seed that all have) and write it as PNG.

    The rows are shared out evenly among the evaluation sets. Below each picture is its primary metric (of a set that
    does not measure it, the set's first); the best of a row among the combinations is drawn in green. Where a
    combination is one guidance type, its map is below.

    Raises:
        MegaSRError: a picture is missing or the file cannot be written.
    """
    study, bare = result.study, result.primary.name.rpartition("/")[2]
    names = [study.reference.name, *(ablation.name for ablation in study.ablations)]
    sets = [(one, next((m for m in one.metrics if m.name == bare), one.metrics[0])) for one in result.sets]
    sets = [(one, metric) for one, metric in sets if result.seeds_of(study_name(result.sets, one, metric.name))]
    counts = [rows // len(sets) + (number < rows % len(sets)) for number in range(len(sets))]
    drawn = [
        row
        for (one, metric), count in zip(sets, counts, strict=True)
        for row in _rows(result, one, metric, (*result.baselines, *names), count)
    ]
    kinds = {name: f"{name}\n{kind} control" for name, kind in study.controls.items()}
    labels = ["lq (nearest)", *result.baselines, *(kinds.get(name, name.replace("+", " +\n")) for name in names), "hq"]
    shown = result.of(names[-1])[0]
    settings = f"{study.name} · {shown.steps} steps · seed {shown.seed}"
    below = f"{settings} · {bare} of the row's set below, best of the combinations in green"
    figure = _draw((study.question, below), labels, drawn)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    write_whole(path, file.getvalue())


def _rows(result: StudyResult, one: EvaluationSet, metric: MetricSpec, columns: Sequence[str], count: int) -> list[Row]:
    """At most `count` rows of a set, with a metric of it; without hq their last picture is white."""
    name, baselines = study_name(result.sets, one, metric.name), len(result.baselines)
    runs = [result.of(column, name)[0] for column in columns]
    scores = [values(run, name) for run in runs]
    folders = [one.folder(result.output / run.run_id) for run in runs]
    truth = [(folders[0] / "hq", ("ground truth", False))] * one.has_hq
    drawn = []
    for key in _spread(list(scores[0]), count):
        sources = [folders[0] / "lq", *(folder / "sr" for folder in folders), *(source for source, _ in truth)]
        pictures = [read_image(source / f"{key}.png") for source in sources]
        captions = [
            (key if len(result.sets) == 1 else f"{one.name}: {key}", False),
            *_captions([of[key] for of in scores], metric, baselines),
            *(text for _, text in truth),
        ]
        maps = [folder / "maps" / f"{key}.png" for folder in folders]
        shown = [None, *(read_image(file) if file.is_file() else None for file in maps), None]
        if not one.has_hq:
            pictures, captions = [*pictures, np.full_like(pictures[-1], 255)], [*captions, ("", False)]
        drawn.append(Row(pictures, captions, shown))
    return drawn


def _captions(scores: Sequence[float], metric: MetricSpec, baselines: int) -> list[tuple[str, bool]]:
    """Text, and whether it is the best of all but the first ones, which are the baselines'."""
    digits = max(0, 4 - len(f"{abs(scores[0]):.0f}"))
    best = (max if metric.higher_is_better else min)(scores[baselines:])
    return [(f"{score:.{digits}f}", number >= baselines and score == best) for number, score in enumerate(scores)]


def _spread(keys: list[str], count: int) -> list[str]:
    """At most `count` keys evenly over the set: one of each photograph where there are enough."""
    first = sorted({photograph(key): key for key in sorted(keys, reverse=True)}.values())
    chosen = first if len(first) >= count else sorted(keys)
    return [chosen[i] for i in np.linspace(0, len(chosen) - 1, min(count, len(chosen))).round().astype(int)]


@rc_context({"text.parse_math": False})
def _draw(title: tuple[str, str], labels: Sequence[str], rows: Sequence[Row]) -> Figure:
    """Place the pictures pixel by pixel, with text around them."""
    height, width = rows[0].pictures[-1].shape[:2]
    factor = max(1, _CELL_PX // max(height, width))
    size = (width * factor, height * factor)
    has_maps = any(image is not None for row in rows for image in row.maps)
    map_size = (size[0] // 2, size[1] // 2)
    row_h = size[1] + _CAPTION_PX + (map_size[1] + _GAP_PX) * has_maps
    sheet_w = 2 * _MARGIN_PX + len(labels) * (size[0] + _GAP_PX) - _GAP_PX
    sheet_h = 2 * _MARGIN_PX + _HEADER_PX + len(rows) * (row_h + _GAP_PX) - _GAP_PX
    figure = Figure((sheet_w / 72, sheet_h / 72), dpi=72, facecolor="white")  # a point is a pixel

    def write(x: int, y: int, text: str, size_px: int, color: str) -> None:
        figure.text(x / sheet_w, 1 - y / sheet_h, text, fontsize=size_px, color=color)

    def place(x: int, y: int, image: np.ndarray, within: tuple[int, int], framed: bool = False) -> None:
        scale = min(within[0] / image.shape[1], within[1] / image.shape[0])
        to = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        how = Image.Resampling.NEAREST if to[0] % image.shape[1] == 0 else Image.Resampling.LANCZOS
        pixels = np.array(Image.fromarray(image).resize(to, how))
        if framed:  # an empty map is white, as the page
            pixels[[0, -1]] = pixels[:, [0, -1]] = _FRAME
        figure.figimage(pixels, x, sheet_h - y - to[1], origin="upper")

    write(_MARGIN_PX, _MARGIN_PX + 12, title[0], 30, _INK)
    write(_MARGIN_PX, _MARGIN_PX + 46, title[1], 18, _GREY)
    for column, label in enumerate(labels):
        x = _MARGIN_PX + column * (size[0] + _GAP_PX)
        write(x, _MARGIN_PX + _HEADER_PX - 12, label, 20, _INK)
        for number, row in enumerate(rows):
            y = _MARGIN_PX + _HEADER_PX + number * (row_h + _GAP_PX)
            place(x, y, row.pictures[column], size)
            text, is_best = row.captions[column]
            most = int(size[0] / 11)
            shown = text if len(text) <= most else f"…{text[1 - most :]}"
            write(x, y + size[1] + 25, shown, 18, _BEST if is_best else _GREY)
            if (guidance_map := row.maps[column]) is not None:
                place(x, y + size[1] + _CAPTION_PX, guidance_map, map_size, framed=True)
    return figure
