"""The page of a study that never ran: real pictures, invented numbers, and names that try to break it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image

from ablations.page.content import Bar, Curve, Failure, Heat, PictureRow, RankedRow, StudyPage
from data_pipelines.photos import EVAL_PHOTOS, load_photo
from data_pipelines.scenes.rendering import render_scene
from megasr.images import write_png
from megasr.rng import numpy_generator

TYPES = ("canny", "depth", "hed", "normal", "segmentation")
HOSTILE = "</script><img src=x onerror=\"document.title='broken'\">&amp;<!-- pictures -->"
REFERENCE, CONTROL, BEST = "none", "shuffled maps", "depth + hed"
SIZE_PX, SCALE = 128, 4
_WORTH = dict(zip(TYPES, (0.004, 0.011, 0.013, -0.002, 0.001), strict=True))  # invented
_PAIRS: dict[tuple[str, str], float] = {("depth", "hed"): 0.006, ("canny", "hed"): -0.007, ("depth", "normal"): -0.004}


def study_page(rows: int = 18) -> StudyPage:
    """A study without pictures. Every number of it is invented."""
    return StudyPage(
        title="prior_selection",
        question="Which types of guidance help, alone and together?",
        answer=(
            "Invented numbers: depth + hed is better than no guidance by 0.030 LPIPS (95 % interval 0.024 to 0.036).",
            "Three other combinations cannot be told apart from it; canny adds nothing once hed is there.",
            "It costs 1.4 times the time of a run without guidance.",
        ),
        trust="The negative control shuffled maps is not seen to help in lpips.",
        trusted=True,
        primary=("lpips", False),
        rows=tuple(_rows(rows)),
        shapley=tuple(Bar(name, worth, worth - 0.003, worth + 0.003) for name, worth in _WORTH.items()),
        synergy=Heat(TYPES, {(a, b): _pair(a, b) for a, b in combinations(TYPES, 2) if (a, b) != ("canny", "depth")}),
        curves=tuple(_curve(label) for label in (REFERENCE, CONTROL, *TYPES, BEST)),
        failures=(Failure("normal+segmentation-s2", f"CUDA out of memory {HOSTILE}"),),
        notes=("One prior and 4000 steps: longer training may change the order.",),
        provenance=(("protocol", "rgb-v1"), ("commit", "0123456789ab"), ("seeds", "0, 1, 2"), (HOSTILE, "escaped")),
    )


def _rows(count: int) -> Iterator[RankedRow]:
    sets = [subset for size in range(len(TYPES) + 1) for subset in combinations(TYPES, size)]
    wanted = [(), *((name,) for name in TYPES), ("depth", "hed")]
    wanted += [subset for subset in sets if subset not in wanted]
    for subset in wanted[: count - 1]:
        gain = sum(_WORTH[name] for name in subset) + sum(
            value for pair, value in _PAIRS.items() if set(pair) <= set(subset)
        )
        half = 0.003 + 0.0008 * len(subset) if subset else 0.0
        verdict = "reference" if not subset else "undecided" if gain - half <= 0 <= gain + half else "better"
        verdict = "worse" if verdict == "better" and gain < 0 else verdict
        yield _row(subset, " + ".join(subset) or REFERENCE, gain, half, verdict)
    yield _row(TYPES[:1], CONTROL, -0.002, 0.004, "control behaved")


def _row(subset: Sequence[str], label: str, gain: float, half: float, verdict: str) -> RankedRow:
    wins = None if verdict == "reference" else min(1.0, max(0.0, 0.5 + gain * 14))
    means = {"lpips": 0.31 - gain, "psnr_rgb": 24.1 + 20 * gain}
    return RankedRow(tuple(subset), label, gain, gain - half, gain + half, verdict, wins, 610 + 80 * len(subset), means)


def _pair(a: str, b: str) -> Bar:
    value = _PAIRS.get((a, b), 0.0006)
    return Bar(f"{a} with {b}", value, value - 0.0024, value + 0.0024)


def _curve(label: str) -> Curve:
    steps = np.arange(0, 4000, 20)
    noise = numpy_generator(0, label).normal(0, 0.012, len(steps))
    level = 0.16 + 0.02 * numpy_generator(1, label).random()
    return Curve(label, steps.tolist(), (level + 0.9 * np.exp(-steps / 120) + noise).tolist())


def with_pictures(page: StudyPage, folder: Path, count: int) -> StudyPage:
    """The page with so many images: photographs and rendered scenes, "restored" by more or less of a blur."""
    return replace(page, pictures=tuple(_picture(page, folder, number) for number in range(count)))


def _picture(page: StudyPage, folder: Path, number: int) -> PictureRow:
    key, hq = _original(number)
    image = Image.fromarray(hq)
    small = image.resize((SIZE_PX // SCALE,) * 2, Image.Resampling.BICUBIC)
    bicubic = np.asarray(small.resize(image.size, Image.Resampling.BICUBIC))
    paths = {name: folder / name / f"{number}.png" for name in ("lq", "hq", "bicubic")}
    for name, pixels in (("lq", np.asarray(small)), ("hq", hq), ("bicubic", bicubic)):
        write_png(pixels, paths[name])
    restorations, scores = {}, {"bicubic": {"lpips": 0.45, "psnr_rgb": 23.0}}
    for place, row in enumerate(page.rows):
        share = float(np.clip(0.35 + 14 * row.mean, 0, 1))
        draw = numpy_generator(0, key, row.label)
        grain = draw.normal(0, 5, hq.shape)
        restorations[row.label] = folder / str(place) / f"{number}.png"
        write_png(np.clip(share * hq + (1 - share) * bicubic + grain, 0, 255).astype(np.uint8), restorations[row.label])
        scores[row.label] = {name: mean * (1 + 0.1 * draw.random()) for name, mean in row.means.items()}
    return PictureRow(key, paths["lq"], paths["hq"], paths["bicubic"], restorations, scores)


def _original(number: int) -> tuple[str, np.ndarray]:
    """A photograph's middle, then scenes; the second image has a name that tries to break the page."""
    if number % 2 == 0 and number // 2 < len(EVAL_PHOTOS):
        name = EVAL_PHOTOS[number // 2].name
        photo = load_photo(name)
        top, left = ((side - 2 * SIZE_PX) // 2 for side in photo.shape[:2])
        crop = Image.fromarray(photo[top : top + 2 * SIZE_PX, left : left + 2 * SIZE_PX])
        return name, np.asarray(crop.resize((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS))
    scene = (render_scene(number, seed=3, size_px=SIZE_PX).hq * 255).round().astype(np.uint8)
    return (HOSTILE if number == 1 else f"scene {number}"), scene
