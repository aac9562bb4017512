"""One picture of a study: rows are held-out crops, columns are lq, baselines, the sr of every combination, and hq."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from ablations.results import StudyResult, values
from megasr.evaluation.intervals import photograph
from megasr.evaluation.protocol import MetricSpec
from megasr.files import write_whole
from megasr.images import read_image

ROWS = 6
_CELL_PX = 256  # pictures are enlarged to about this by whole factors, so that their pixels stay visible
_GAP_PX, _MARGIN_PX, _HEADER_PX, _CAPTION_PX = 12, 36, 150, 36
_INK, _GREY, _BEST = "#181a1f", "#787c85", "#007a4e"


def write_contact_sheet(result: StudyResult, path: Path, rows: int = ROWS) -> None:
    """Draw the sheet from the pictures of the runs (first seed that all have) and write it as PNG.

    Captions are the study's primary metric; the best of a row among the combinations is drawn in green.

    Raises:
        MegaSRError: a picture is missing or the file cannot be written.
    """
    study, metric, of_set = result.study, result.primary, result.primary_set
    names = [study.reference.name, *(ablation.name for ablation in study.ablations)]
    baselines = result.baselines
    runs = [result.of(name)[0] for name in (*baselines, *names)]
    bicubic = runs[0]
    keys = _spread(list(values(bicubic, metric.name)), rows)
    folders = [(bicubic, "lq"), *((run, "sr") for run in runs), *[(bicubic, "hq")] * of_set.has_hq]
    paths = [of_set.folder(result.output / run.run_id) / folder for run, folder in folders]
    images = [[read_image(path / f"{key}.png") for path in paths] for key in keys]
    scores = [values(run, metric.name) for run in runs]
    truth = [("ground truth", False)] * of_set.has_hq
    marked = [_captions([one[key] for one in scores], metric, len(baselines)) for key in keys]
    captions = [[(key, False), *mine, *truth] for key, mine in zip(keys, marked, strict=True)]
    kinds = {name: f"{name}\n{kind} control" for name, kind in study.controls.items()}
    labels = ["lq (nearest)", *baselines, *(kinds.get(name, name.replace("+", " +\n")) for name in names)]
    labels += ["hq"] * of_set.has_hq
    settings = f"{study.name} · {runs[-1].steps} steps · seed {runs[-1].seed}"
    below = f"{settings} · {metric.name} below, best of the combinations in green"
    figure = _draw((study.question, below), labels, images, captions)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    write_whole(path, file.getvalue())


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
def _draw(
    title: tuple[str, str],
    labels: Sequence[str],
    images: Sequence[Sequence[np.ndarray]],
    captions: Sequence[Sequence[tuple[str, bool]]],
) -> Figure:
    """Place the pictures pixel by pixel, with text around them."""
    height, width = images[0][-1].shape[:2]
    factor = max(1, _CELL_PX // max(height, width))
    size = (width * factor, height * factor)
    sheet_w = 2 * _MARGIN_PX + len(labels) * (size[0] + _GAP_PX) - _GAP_PX
    sheet_h = 2 * _MARGIN_PX + _HEADER_PX + len(images) * (size[1] + _CAPTION_PX + _GAP_PX) - _GAP_PX
    figure = Figure((sheet_w / 72, sheet_h / 72), dpi=72, facecolor="white")  # a point is a pixel

    def write(x: int, y: int, text: str, size_px: int, color: str) -> None:
        figure.text(x / sheet_w, 1 - y / sheet_h, text, fontsize=size_px, color=color)

    write(_MARGIN_PX, _MARGIN_PX + 12, title[0], 30, _INK)
    write(_MARGIN_PX, _MARGIN_PX + 46, title[1], 18, _GREY)
    for column, label in enumerate(labels):
        x = _MARGIN_PX + column * (size[0] + _GAP_PX)
        write(x, _MARGIN_PX + _HEADER_PX - 12, label, 20, _INK)
        for row, (pictures, texts) in enumerate(zip(images, captions, strict=True)):
            y = _MARGIN_PX + _HEADER_PX + row * (size[1] + _CAPTION_PX + _GAP_PX)
            pixels = np.asarray(Image.fromarray(pictures[column]).resize(size, Image.Resampling.NEAREST))
            figure.figimage(pixels, x, sheet_h - y - size[1], origin="upper")
            text, is_best = texts[column]
            most = int(size[0] / 11)
            shown = text if len(text) <= most else f"…{text[1 - most :]}"
            write(x, y + size[1] + 25, shown, 18, _BEST if is_best else _GREY)
    return figure
