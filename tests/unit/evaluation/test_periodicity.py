"""spectral_peaks: reacts to grids of every period, phase and hue, and to nothing else that sr may be."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from skimage import data

from megasr.errors import MegaSRError
from megasr.evaluation.evaluator import Evaluator
from megasr.evaluation.periodicity import PEAK_DB, peaks_db, spectral_peaks
from megasr.evaluation.protocol import PROTOCOLS
from megasr.images import from_uint8, quantise, read_image, resize, to_uint8
from megasr.rng import torch_generator
from tests.helpers.shared import shared

PHOTOGRAPHS = {"astronaut": data.astronaut()[:, :500], "coffee": data.coffee()[:333]}  # 512x500 and 333x600


@pytest.fixture(params=PHOTOGRAPHS)
def hq(request: pytest.FixtureRequest) -> torch.Tensor:
    """Between the 256 levels, so that an added grid is rounded as that of a network is."""
    return from_uint8(PHOTOGRAPHS[request.param])[None] * 0.93 + 0.03


def grid(image: torch.Tensor, period_px: int, level: float, phase: tuple[int, int] = (0, 0)) -> torch.Tensor:
    """Lines of one pixel, `level` of 255 brighter."""
    rows, columns = (torch.arange(size) for size in image.shape[-2:])
    lines = ((rows - phase[0]) % period_px == 0)[:, None] | ((columns - phase[1]) % period_px == 0)
    return quantise(image + level / 255 * lines)


def _pillow(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(to_uint8(image[0]))


def _jpeg(image: torch.Tensor, quality: int) -> torch.Tensor:
    file = io.BytesIO()
    _pillow(image).save(file, "JPEG", quality=quality)
    return from_uint8(np.asarray(Image.open(file)))[None]


@pytest.mark.parametrize("period_px", [2, 4, 8, 16])
def test_a_grid_is_seen_at_any_phase_and_grows(hq: torch.Tensor, period_px: int) -> None:
    for phase in ((0, 0), (1, period_px // 2)):
        found = [spectral_peaks(grid(hq, period_px, level, phase), quantise(hq)) for level in (1, 2, 4, 8)]
        assert found[1] > 4 and (np.diff(found) > 3).all(), found


def test_a_grid_in_one_channel_or_one_direction_is_seen(hq: torch.Tensor) -> None:
    one = quantise(hq)
    one[:, 2] = grid(hq, 4, 4)[:, 2]
    assert spectral_peaks(one, quantise(hq)) > 10
    rows = hq.clone()
    rows[..., ::2, :] += 2 / 255
    assert spectral_peaks(quantise(rows), quantise(hq)) > 10


def test_other_changes_are_no_grid(hq: torch.Tensor) -> None:
    hq = quantise(hq)
    noise = torch.randn(hq.shape, generator=torch_generator(0, "noise"))
    changed = {
        "nothing": hq,
        "blur": from_uint8(np.asarray(_pillow(hq).filter(ImageFilter.GaussianBlur(1.5))))[None],
        "noise": quantise(hq + 8 / 255 * noise),
        "contrast": quantise((hq - 0.5) * 0.6 + 0.5),
        "gamma": quantise(hq**1.4),
        "shift": hq.roll((3, 5), (-2, -1)),
    }
    found = {name: spectral_peaks(sr, hq) for name, sr in changed.items()}
    assert found["nothing"] == 0 and max(found.values()) < 1, found
    # Its blocks are a grid of 8 px, weaker than one of 2 levels.
    assert spectral_peaks(_jpeg(hq, 75), hq) < spectral_peaks(grid(hq, 8, 2), hq)


def test_what_hq_has_too_is_no_fault(hq: torch.Tensor) -> None:
    both = grid(hq, 8, 4)
    assert spectral_peaks(both, both) == spectral_peaks(quantise(hq), both) == 0
    assert spectral_peaks(grid(hq, 8, 8), both) == pytest.approx(6, abs=1.5)  # twice the amplitude
    assert spectral_peaks(grid(grid(hq, 8, 4), 2, 4), both) > 10, "another one is"


def test_a_cosine_on_a_flat_image_has_the_power_of_the_formula() -> None:
    height, width, amplitude = 64, 96, 1e-3
    wave = amplitude * torch.cos(2 * torch.pi * torch.arange(width, dtype=torch.float64) / 4 + 0.7)
    found = peaks_db((0.5 + wave).expand(1, 3, height, width))
    window = np.outer(*(np.hanning(size + 1)[:-1] for size in (height, width)))
    power = (amplitude / 2 * window.sum()) ** 2 / (np.square(window).sum() / (12 * 255**2))
    assert found[0, 4].item() == pytest.approx(10 * np.log10(power + 1), abs=1e-6)
    found[0, 4] = 0
    assert found.abs().max() < 1e-6


def test_flat_and_small_images() -> None:
    flat = torch.zeros(1, 3, 64, 70)
    assert spectral_peaks(flat, flat) == 0
    assert spectral_peaks(grid(flat, 16, 1), flat) > 6
    assert peaks_db(grid(flat, 16, 1)).max() > PEAK_DB
    evaluator = Evaluator(PROTOCOLS["weight-free-v2"], metrics=["spectral_peaks"])
    assert evaluator.rows(grid(flat, 4, 2), flat, ["a"])[0]["spectral_peaks"] == spectral_peaks(grid(flat, 4, 2), flat)
    small = torch.zeros(1, 3, 64, 63)
    with pytest.raises(MegaSRError, match=r"spectral_peaks cannot be taken of 'a' \(63x64 px\): .* 64x64 px"):
        evaluator.rows(small, small, ["a"])


def _changed(kind: str, folder: Path, name: str) -> torch.Tensor:
    def read(part: str) -> torch.Tensor:
        return from_uint8(read_image(folder / part / name))[None]

    hq, (what, number) = read("hq"), kind.split()
    if what == "osediff":
        return read("osediff_sr")
    if what == "bicubic":
        return quantise(resize(read("lq"), *hq.shape[-2:]))
    if what == "jpeg":
        return _jpeg(hq, int(number))
    if what == "blur":
        return from_uint8(np.asarray(_pillow(hq).filter(ImageFilter.GaussianBlur(int(number)))))[None]
    if what == "noise":
        return quantise(hq + int(number) / 255 * torch.randn(hq.shape, generator=torch_generator(0, name)))
    return grid(hq * 0.97 + 0.01, int(number), 1, (1, 1))


@pytest.mark.golden
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "mean", "ninth"),
    [
        ("osediff 1", 3.2, 8.7),
        ("bicubic 4", 0.0, 0.0),
        ("blur 2", 0.0, 0.0),
        ("noise 8", 0.0, 0.0),
        ("jpeg 95", 4.9, 10.3),
        ("jpeg 75", 3.0, 5.2),
        ("jpeg 50", 3.7, 7.9),
        ("lines 2", 29.7, 31.5),
        ("lines 4", 24.3, 26.8),
        ("lines 8", 19.8, 22.9),
        ("lines 16", 15.0, 17.6),
    ],
)
def test_the_numbers_of_the_documents(kind: str, mean: float, ninth: float) -> None:
    """Mean and ninth decile over 40 DRealSR crops, as docs/evaluation.md has them."""
    folder = shared("data", "drealsr")
    found = [
        spectral_peaks(_changed(kind, folder, file.name), from_uint8(read_image(file))[None])
        for file in sorted((folder / "hq").iterdir())
    ]
    assert (np.mean(found), np.quantile(found, 0.9)) == pytest.approx((mean, ninth), abs=0.06)
