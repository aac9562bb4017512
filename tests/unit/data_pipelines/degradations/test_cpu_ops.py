"""Every operation of the cpu back end against an independent reference: SciPy, Pillow, torch, or its definition."""

from __future__ import annotations

import functools
import io

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import correlate
from scipy.stats import kstest, norm, poisson

from data_pipelines.degradations import cpu
from data_pipelines.degradations.cpu import (
    BANK_SIZE,
    NUM_QUANTILES,
    normal_bank,
    quantile_bank,
    sharpen,
    stretch,
    wide_gaussian,
)
from data_pipelines.degradations.sampling import make_kernel
from data_pipelines.photos import load_photo


@functools.cache
def photo(height: int = 120, width: int = 150) -> np.ndarray:
    """A piece of a photograph, BGR float32 in [0, 1]."""
    return (load_photo("coffee")[100 : 100 + height, 200 : 200 + width, ::-1] / np.float32(255)).astype(np.float32)


@pytest.mark.parametrize(
    "op",
    [
        {"kernel": "iso", "size": 21, "sigma_x": 2.7, "sigma_y": 2.7, "theta": 0.0},
        {"kernel": "aniso", "size": 9, "sigma_x": 2.7, "sigma_y": 0.6, "theta": 0.8},
        {"kernel": "aniso", "size": 21, "sigma_x": 2.9, "sigma_y": 0.4, "theta": 0.8},
        {"kernel": "plateau_iso", "size": 17, "sigma_x": 2.0, "sigma_y": 2.0, "theta": 0.0, "beta": 1.6},
        {"kernel": "sinc", "size": 21, "cutoff": 0.9},
        {"kernel": "sinc", "size": 7, "cutoff": 2.0},
    ],
)
@pytest.mark.parametrize("size", [(120, 150), (9, 5)])
def test_blur(op: dict, size: tuple[int, int]) -> None:
    image = photo(*size)
    expected = correlate(image.astype(float), make_kernel(op)[..., None], mode="mirror")
    assert np.abs(cpu.blur(image, op) - expected).max() * 255 < 0.2


@pytest.mark.parametrize("scale", [0.15, 0.37, 0.5, 1.0, 1.31])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resize_is_torchs(mode: str, scale: float) -> None:
    image = photo()
    result = cpu.resize(image, {"scale": scale, "mode": mode}, *image.shape[:2])
    size = (round(120 * scale), round(150 * scale))
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(tensor, size, mode=mode, align_corners=False)[0].permute(1, 2, 0)
    assert result.shape[:2] == size
    assert np.abs(result - expected.numpy()).max() * 255 < 0.05


def test_shrinking_by_area_is_the_mean_over_each_pixels_footprint() -> None:
    def footprint(n_in: int, n_out: int) -> np.ndarray:
        edges = np.arange(n_out + 1) * n_in / n_out
        pixels = np.arange(n_in)
        overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
        return overlap.clip(0) / (n_in / n_out)

    image = photo()
    result = cpu.resize(image, {"scale": 0.31, "mode": "area"}, 120, 150)
    expected = np.einsum("ih,hwc,jw->ijc", footprint(120, 37), image.astype(float), footprint(150, 46))
    assert np.abs(result - expected).max() * 255 < 0.01


def test_sizes_are_relative_to_hq() -> None:
    image = cpu.resize(photo(), {"scale": 0.5, "mode": "area"}, 200, 400)
    assert image.shape[:2] == (100, 200)
    assert cpu.resize(photo(), {"scale": 0.001, "mode": "bilinear"}, 200, 400).shape[:2] == (2, 2)


@pytest.mark.parametrize("quality", [30, 60, 95])
@pytest.mark.parametrize("size", [(120, 150), (31, 17)])
def test_jpeg_is_pillows(quality: int, size: tuple[int, int]) -> None:
    image = photo(*size)
    encoded = io.BytesIO()
    Image.fromarray(cpu.to_uint8(image)[..., ::-1]).save(encoded, "JPEG", quality=quality, subsampling="4:2:0")
    expected = np.asarray(Image.open(encoded))[..., ::-1]
    difference = np.abs(cpu.jpeg(image, {"quality": quality}) * 255 - expected)
    assert difference.max() <= 1.01, "both are libjpeg-turbo; one level is the choice of its colour routines"
    assert (difference > 0.5).mean() < 0.01


@pytest.mark.parametrize("grey", [False, True])
def test_gaussian_noise(grey: bool) -> None:
    flat = np.full((256, 256, 3), 0.5, np.float32)
    noise = (cpu.gaussian_noise(flat, {"sigma": 12.0, "grey": grey, "offset": 77}) - 0.5) * 255
    assert kstest(noise[..., 0].ravel() / 12, "norm").pvalue > 1e-3
    assert np.array_equal(noise[..., 0], noise[..., 2]) == grey
    for step in (1, 256, 257):  # neighbours, and the rows of a stretch
        z = noise[..., 0].ravel()
        assert abs(np.corrcoef(z[:-step], z[step:])[0, 1]) < 4 / 256
    if not grey:
        assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 4 / 256
    other = cpu.gaussian_noise(flat, {"sigma": 12.0, "grey": grey, "offset": 78})
    assert not np.array_equal(other, noise)
    clipped = cpu.gaussian_noise(np.zeros_like(flat), {"sigma": 30.0, "grey": grey, "offset": 0})
    assert clipped.min() == 0


@pytest.mark.parametrize("level", [0, 1, 3, 20, 130, 250])
def test_poisson_noise_counts_photons(level: int) -> None:
    """At scale 1 the image is a photon count at 256 levels: its distribution is Poisson's, count by count."""
    table_noise = cpu.poisson_table().reshape(256, -1)[level]
    expected = level / 255 * 256
    counts = np.round(table_noise * 256 + expected).astype(int)
    assert np.allclose(table_noise * 256 + expected, counts, atol=1e-3)
    flat = np.full((400, 400, 3), level / 255, np.float32)
    noisy = cpu.poisson_noise(flat, {"scale": 1.0, "grey": False, "offset": 5})
    seen = np.round(noisy.ravel() * 256).astype(int)
    values = np.arange(256)  # above 256 the image clips
    cumulative = np.searchsorted(np.sort(seen), values, side="right") / seen.size
    assert np.abs(cumulative - poisson.cdf(values, expected))[:-1].max() < 0.004


def test_poisson_noise_scales_and_may_be_grey() -> None:
    flat = np.full((200, 200, 3), (0.3, 0.5, 0.6), np.float32)
    half, full = (cpu.poisson_noise(flat, {"scale": s, "grey": False, "offset": 5}) - flat for s in (0.5, 1.0))
    np.testing.assert_allclose(half, full / 2, atol=1e-6)
    noise = cpu.poisson_noise(flat, {"scale": 1.0, "grey": True, "offset": 5}) - flat
    np.testing.assert_allclose(noise[..., 0], noise[..., 2], atol=1e-6)
    luma = 0.114 * 0.3 + 0.587 * 0.5 + 0.299 * 0.6
    assert noise.std() == pytest.approx(np.sqrt(luma / 256), rel=0.03)


def test_the_noise_bank() -> None:
    bank = normal_bank()
    assert kstest(bank[:BANK_SIZE], "norm").pvalue > 1e-3
    assert np.array_equal(stretch(bank, BANK_SIZE + 3, (4, 5)).ravel(), bank[3:23])
    assert np.array_equal(stretch(bank, BANK_SIZE - 2, (5,)), np.r_[bank[BANK_SIZE - 2 : BANK_SIZE], bank[:3]])
    large = stretch(bank, 9, (BANK_SIZE // 1000 + 1, 1001))
    assert large.shape == (BANK_SIZE // 1000 + 1, 1001)
    assert large[0, 0] == bank[9]


def test_steps_of_the_poisson_table_stand_for_their_middle() -> None:
    """Neither the table nor the bank that points into it moves the counts to one side."""
    edges = np.linspace(-5.5, 5.5, NUM_QUANTILES + 1)
    z = normal_bank()[:BANK_SIZE]
    steps = quantile_bank()[:BANK_SIZE]
    assert (z >= edges[steps] - 1e-5).all()
    assert (z <= edges[steps + 1] + 1e-5).all()
    mean = cpu.poisson_table().reshape(256, -1)[1:] @ np.diff(norm.cdf(edges))
    spread = np.sqrt(np.arange(1, 256) / 255 / 256)
    assert np.abs(mean / spread).mean() < 1e-3


def test_values_beyond_black_and_white_are_clipped() -> None:
    image = np.array([[[-0.3, -0.001, 0.0], [1.0, 1.3, 0.5]]], np.float32)
    assert cpu.to_uint8(image).tolist() == [[[0, 0, 0], [255, 255, 128]]]


def test_the_wide_gaussian_is_as_near_as_it_says() -> None:
    image = load_photo("astronaut")[:201, 100:351].astype(np.float32) / 255
    difference = np.abs(wide_gaussian(image) - cv2.GaussianBlur(image, (51, 51), 0, borderType=cv2.BORDER_REFLECT_101))
    assert difference.max() * 255 < 0.3
    assert difference.mean() * 255 < 0.04


def test_sharpening_is_the_papers_formula_within_a_level() -> None:
    hq = load_photo("astronaut")[:201, 100:351]
    image = hq.astype(float) / 255
    taps = np.exp(-((np.arange(51) - 25) ** 2) / (2 * 8.0**2))
    taps /= taps.sum()

    def wide(x: np.ndarray) -> np.ndarray:
        return correlate(correlate(x, taps[:, None, None], mode="mirror"), taps[None, :, None], mode="mirror")

    residual = image - wide(image)
    mask = wide((np.abs(residual) * 255 > 10).astype(float))
    expected = (mask * np.clip(image + 0.5 * residual, 0, 1) + (1 - mask) * image) * 255
    difference = np.abs(sharpen(hq) - expected)
    assert difference.max() < 1.5
    assert difference.mean() < 0.3, "rounding to 8 bits alone is 0.25"
    assert np.abs(hq - expected).max() > 20, "it does sharpen"
