"""The extractors that need no weights, on images whose right answer is known."""

from __future__ import annotations

import pytest
import torch

from megasr.guidance.edges import extract_canny
from megasr.guidance.regions import extract_noise, extract_superpixel

SIZE_PX = 64


def step(dark: float, bright: float) -> torch.Tensor:
    """Dark left half, bright right half."""
    image = torch.full((1, 3, SIZE_PX, SIZE_PX), dark)
    image[..., SIZE_PX // 2 :] = bright
    return image


@pytest.mark.parametrize(("dark", "bright"), [(0.0, 1.0), (0.45, 0.55), (0.0, 0.06)])
def test_canny_finds_the_one_edge_at_any_contrast(dark: float, bright: float) -> None:
    edges = extract_canny(step(dark, bright), ["a"])[0, 0]
    assert set(edges.unique().tolist()) == {0.0, 1.0}
    columns = edges.nonzero()[:, 1].unique()
    assert (columns - SIZE_PX // 2).abs().max() <= 1
    assert edges.sum() >= SIZE_PX - 2, "the line is not broken"


def test_canny_keeps_the_weaker_of_two_edges() -> None:
    image = step(0.0, 0.6)
    image[..., 3 * SIZE_PX // 4 :] = 1.0
    columns = extract_canny(image, ["a"])[0, 0].nonzero()[:, 1]
    for border in (SIZE_PX // 2, 3 * SIZE_PX // 4):
        assert ((columns - border).abs() <= 1).sum() >= SIZE_PX - 2


def test_canny_of_nothing_is_nothing() -> None:
    assert extract_canny(torch.full((1, 3, SIZE_PX, SIZE_PX), 0.5), ["a"]).sum() == 0


def test_superpixels_are_flat_regions_in_their_mean_colour() -> None:
    generator = torch.Generator().manual_seed(0)
    image = (step(0.2, 0.8) + 0.05 * torch.randn(1, 3, SIZE_PX, SIZE_PX, generator=generator)).clamp(0, 1)
    regions = extract_superpixel(image, ["a"])
    colours = regions[0].flatten(1).unique(dim=1).shape[1]
    assert 2 <= colours <= 2 * SIZE_PX**2 // 256
    half = SIZE_PX // 2
    assert regions[..., :half].mean().item() == pytest.approx(image[..., :half].mean().item(), abs=0.01)
    assert regions[..., half:].mean().item() == pytest.approx(image[..., half:].mean().item(), abs=0.01)
    assert (regions - step(0.2, 0.8)).abs().max() < 0.06, "no region reaches over the border"


def test_noise_knows_the_key_and_not_the_pixels() -> None:
    keys = ["a", "b"]
    dark, bright = torch.zeros(2, 3, 48, 40), torch.ones(2, 3, 48, 40)
    noise = extract_noise(dark, keys)
    assert torch.equal(noise, extract_noise(bright, keys))
    assert torch.equal(noise[:1], extract_noise(dark[:1], ["a"]))
    assert not torch.equal(noise[0], noise[1])


def test_noise_is_as_coarse_as_a_real_map() -> None:
    """It survives the resize to the network's sites: white noise would come out as flat grey."""
    noise = extract_noise(torch.zeros(64, 3, 128, 128), [str(i) for i in range(64)])
    coarse = torch.nn.functional.interpolate(noise, (16, 16), mode="area")
    assert coarse.std() > 0.8 * noise.std()
    assert noise.mean().item() == pytest.approx(0.5, abs=0.03)
