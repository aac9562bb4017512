"""One picture of a study: rows are held-out crops, columns are lq, bicubic, the sr of every combination, and hq."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ablations.plan import BICUBIC
from ablations.results import RunResult, StudyResult, values
from megasr.evaluation.intervals import photograph
from megasr.evaluation.protocol import MetricSpec
from megasr.images import read_image, write_png

ROWS = 6
_CELL_PX = 256  # pictures are enlarged to about this by whole factors, so that their pixels stay visible
_GAP_PX, _MARGIN_PX, _HEADER_PX, _CAPTION_PX = 12, 36, 150, 36
_PAPER, _INK, _GREY, _BEST = (255, 255, 255), (24, 26, 31), (120, 124, 133), (0, 122, 78)


def write_contact_sheet(result: StudyResult, path: Path, rows: int = ROWS) -> None:
    """Draw the sheet from the pictures of the runs (first seed that all have) and write it as PNG.

    Captions are the study's primary metric; the best of a row among the combinations is drawn in green.

    Raises:
        MegaSRError: a picture is missing or the file cannot be written.
    """
    metric = result.protocol.metric(result.study.primary_metric)
    bicubic = result.of(BICUBIC)[0]
    names = [result.study.reference.name, *(ablation.name for ablation in result.study.ablations)]
    runs = [bicubic, *(result.of(name)[0] for name in names)]
    keys = _spread([row["key"] for row in bicubic.rows], rows)
    labels = ["lq (nearest)", "bicubic", *(_label(result, name) for name in names), "hq"]
    pictures = [_row_pictures(result.output, bicubic, runs, key) for key in keys]
    captions = [_captions([values(run, metric.name)[key] for run in runs], metric) for key in keys]
    write_png(np.asarray(_draw(_title(result), labels, keys, pictures, captions)), path)


def _captions(scores: Sequence[float], metric: MetricSpec) -> list[tuple[str, bool]]:
    """Text, and whether it is the best of all but the first, which is bicubic's."""
    digits = max(0, 4 - len(f"{abs(scores[0]):.0f}"))
    best = (max if metric.higher_is_better else min)(scores[1:])
    return [(f"{score:.{digits}f}", number > 0 and score == best) for number, score in enumerate(scores)]


def _spread(keys: list[str], count: int) -> list[str]:
    """At most `count` keys: first one of each photograph, then further crops, evenly over the set."""
    first = {photograph(key): key for key in sorted(keys, reverse=True)}
    chosen = list(first.values())
    chosen += [key for key in sorted(keys) if key not in set(chosen)][: max(0, count - len(chosen))]
    chosen.sort()
    return [chosen[i] for i in np.linspace(0, len(chosen) - 1, min(count, len(chosen))).round().astype(int)]


def _label(result: StudyResult, name: str) -> str:
    kind = result.study.controls.get(name)
    return f"{name}\n{kind} control" if kind else name.replace("+", " +\n")


def _title(result: StudyResult) -> tuple[str, str]:
    trained = result.of(result.study.reference.name)[0]
    settings = f"{result.study.name} · {trained.steps} steps · seed {trained.seed}"
    below = f"{settings} · {result.study.primary_metric} below, best of the combinations in green"
    return result.study.question, below


def _row_pictures(output: Path, bicubic: RunResult, runs: list[RunResult], key: str) -> list[Image.Image]:
    base = output / bicubic.run_id
    paths = [base / "lq" / f"{key}.png", *(output / run.run_id / "sr" / f"{key}.png" for run in runs)]
    arrays = [read_image(path) for path in (*paths, base / "hq" / f"{key}.png")]
    height, width = arrays[-1].shape[:2]
    factor = max(1, _CELL_PX // max(height, width))
    return [Image.fromarray(a).resize((width * factor, height * factor), Image.Resampling.NEAREST) for a in arrays]


def _draw(
    title: tuple[str, str],
    labels: list[str],
    keys: list[str],
    pictures: list[list[Image.Image]],
    scores: list[list[tuple[str, bool]]],
) -> Image.Image:
    width, height = pictures[0][0].size
    size = (
        2 * _MARGIN_PX + len(labels) * (width + _GAP_PX) - _GAP_PX,
        2 * _MARGIN_PX + _HEADER_PX + len(keys) * (height + _CAPTION_PX + _GAP_PX) - _GAP_PX,
    )
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    big, medium, small = (ImageFont.load_default(px) for px in (34, 24, 20))
    draw.text((_MARGIN_PX, _MARGIN_PX + 12), title[0], _INK, big, anchor="ls")
    draw.text((_MARGIN_PX, _MARGIN_PX + 46), title[1], _GREY, small, anchor="ls")
    for column, label in enumerate(labels):
        lines = label.split("\n")
        for line, text in enumerate(lines):
            below = (len(lines) - 1 - line) * 26 + 12
            x = _MARGIN_PX + column * (width + _GAP_PX)
            font, colour = (small, _GREY) if text.endswith("control") else (medium, _INK)
            draw.text((x, _MARGIN_PX + _HEADER_PX - below), text, colour, font, anchor="ls")
    for row, (key, images, numbers) in enumerate(zip(keys, pictures, scores, strict=True)):
        y = _MARGIN_PX + _HEADER_PX + row * (height + _CAPTION_PX + _GAP_PX)
        captions = [(key, False), *numbers, ("ground truth", False)]
        for column, (image, (caption, is_best)) in enumerate(zip(images, captions, strict=True)):
            x = _MARGIN_PX + column * (width + _GAP_PX)
            sheet.paste(image, (x, y))
            draw.text(
                (x, y + height + 25), _fit(draw, caption, small, width), _BEST if is_best else _GREY, small, anchor="ls"
            )
    return sheet


def _fit(
    draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int
) -> str:
    """The text, shortened from the left with an ellipsis until it fits."""
    shown = text
    while draw.textlength(shown, font) > width_px and len(text) > 1:
        text = text[1:]
        shown = "…" + text
    return shown
