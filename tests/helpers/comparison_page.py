"""A small comparison page with names that try to break it, and what to look for in it."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from megasr.evaluation.comparison import Method, write_page
from megasr.evaluation.evaluator import Evaluation
from megasr.evaluation.protocol import get_protocol
from megasr.images import read_image, write_png
from megasr.rng import numpy_generator

if TYPE_CHECKING:
    from playwright.sync_api import Page

HEIGHT, WIDTH, SCALE = 96, 128, 4
HOSTILE = "<img src=x onerror=\"document.title='broken'\">&amp;'"
KEYS = ("photo 2", HOSTILE, "photo 10")
A, B = "A </script><b>\"'", "B"
LABELS = ("lq", A, B, "hq")
# Of the images in the order of KEYS; psnr_y: higher is better, gmsd: lower is.
SCORES = {A: {"psnr_y": [30.0, 20.0, 25.0], "gmsd": [0.1, 0.3, 0.2]},
          B: {"psnr_y": [28.0, 27.0, 25.5], "gmsd": [0.15, 0.1, 0.25]}}  # fmt: skip
READ_CROPS = """() => [...document.querySelectorAll("#crops canvas")].map((canvas) => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
  return [canvas.ariaLabel, btoa(Array.from(data, (byte) => String.fromCharCode(byte)).join(""))];
})"""
Pixels = dict[tuple[str, str], np.ndarray]  # (label, key) -> (H, W, 3), lq enlarged to the size of the others


@dataclass(frozen=True)
class Made:
    """A page that was written, and the pixels that must be in it."""

    address: str
    pixels: Pixels


def make_page(folder: Path) -> Made:
    """Write a page of three images, two methods, lq and hq."""
    paths: dict[str, dict[str, Path]] = {label: {} for label in LABELS}
    pixels: Pixels = {}
    for number, label in enumerate(LABELS):
        size = (HEIGHT // SCALE, WIDTH // SCALE) if label == "lq" else (HEIGHT, WIDTH)
        for key in KEYS:
            image = numpy_generator(0, label, key).integers(0, 256, (*size, 3), dtype=np.uint8)
            path = folder / str(number) / f"{key}.png"
            write_png(image, path)
            paths[label][key] = path
            factor = SCALE if label == "lq" else 1
            pixels[label, key] = read_image(path).repeat(factor, 0).repeat(factor, 1)
    methods = [Method(label, _evaluation(SCORES[label]), paths[label]) for label in (A, B)]
    write_page(folder / "page.html", methods, hq=paths["hq"], lq=paths["lq"])
    return Made((folder / "page.html").as_uri(), pixels)


def _evaluation(scores: dict[str, list[float]]) -> Evaluation:
    rows = tuple({"key": key, **{name: scores[name][i] for name in scores}} for i, key in enumerate(KEYS))
    return Evaluation(
        protocol="weight-free-v1",
        fingerprint=get_protocol("weight-free-v1").fingerprint,
        rows=rows,
        means={name: float(np.mean(values)) for name, values in scores.items()},
        intervals={name: (min(values), max(values)) for name, values in scores.items()},
        skipped={"fsim": "<i>not asked for</i>"},
        provenance={"commit": "0123456789ab", "time": "2026-11-23T10:00:00+00:00", "versions": {"pyiqa": "0.1.16"}},
    )


def ready(page: Page) -> None:
    page.wait_for_selector("#viewer[aria-busy=false]")


def column(page: Page, number: int) -> list[str]:
    return page.locator(f"#scores tbody tr > :nth-child({number})").all_inner_texts()


def numbers(texts: list[str]) -> list[float]:
    return [float(text.replace("\N{MINUS SIGN}", "-")) for text in texts]


def state(page: Page) -> tuple[str, str, str, str]:
    """Image, left, right and zoom as they are read on the page."""
    return tuple(page.inner_text(f"#{i}") for i in ("image-name", "left-name", "right-name", "zoom"))  # type: ignore[return-value]


def check_crops(page: Page, made: Made, key: str) -> tuple[int, int, int, int]:
    """Every crop shows the same region of its own picture, pixel by pixel. Returns its left, top, width, height."""
    regions = set()
    for label, (says, content) in zip(LABELS, page.evaluate(READ_CROPS), strict=True):
        found = re.fullmatch(r"(.*), (\d+) by (\d+) pixels at (\d+), (\d+)", says)
        assert found is not None
        assert found[1] == label
        width, height, left, top = map(int, found.groups()[1:])
        regions.add((left, top, width, height))
        shown = np.frombuffer(base64.b64decode(content), np.uint8).reshape(height, width, 4)[..., :3]
        np.testing.assert_array_equal(shown, made.pixels[label, key][top : top + height, left : left + width])
    assert len(regions) == 1
    return regions.pop()


def point(page: Page, x: float, y: float) -> tuple[float, float]:
    """Where the pixel (x, y) of the image is in the window."""
    box = page.locator("#stage").bounding_box()
    assert box is not None
    return box["x"] + (x + 0.5) * box["width"] / WIDTH, box["y"] + (y + 0.5) * box["height"] / HEIGHT


def check_split(page: Page, made: Made, key: str, left: str, right: str) -> int:
    """The stage shows `left` before its divider, `right` behind it. Returns the column of pixels where they meet."""
    shot = np.asarray(Image.open(io.BytesIO(page.locator("#stage").screenshot())).convert("RGB"))
    enlarged = shot.shape[1] // WIDTH
    at = round(float(page.get_attribute("#divider", "aria-valuenow") or "nan") / 100 * WIDTH)
    rows, columns = np.arange(HEIGHT * 4 // 5, HEIGHT * 4 // 5 + 4), np.arange(WIDTH)
    # One row of the picture, clear of the names, the box and the divider's handle; each pixel at its middle.
    columns = columns[np.abs(columns - at) * enlarged > 24]
    shown = shot[np.ix_(rows * enlarged + enlarged // 2, columns * enlarged + enlarged // 2)]
    whole = np.where((np.arange(WIDTH) < at)[None, :, None], made.pixels[left, key], made.pixels[right, key])
    np.testing.assert_array_equal(shown, whole[np.ix_(rows, columns)])
    return at


def luminance(color: list[int]) -> float:
    """Relative luminance of 8-bit sRGB (WCAG 2.2)."""
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))
