"""Tiles: a partition of unity, the same picture as without them, no seams, any size."""

import math

import pytest
import torch

from megasr.errors import UsageError
from megasr.inference.pipeline import MegaSRPipeline
from megasr.inference.tiling import Axis, Grid, Tiling, decode_tiles, encode_tiles
from megasr.prior import load_prior
from tests.helpers.inference import loud_pipeline, photograph


@pytest.mark.parametrize("sides", [(64, 64), (80, 208), (16, 512), (96, 112)])
@pytest.mark.parametrize("overlap", [None, 1, 32])
def test_weights_sum_to_1_everywhere_and_tiles_lie_inside(sides, overlap):
    grid = Tiling(64, overlap).grid(*sides, 16)
    total = torch.zeros(sides)
    across, along = grid.rows.weights(), grid.columns.weights()
    for row, column in (box for group in grid.groups for box in group):
        rows, columns = grid.place((row, column))
        assert rows.stop <= sides[0] and columns.stop <= sides[1]
        assert rows.start % 16 == 0 and columns.start % 16 == 0
        weight = torch.outer(across[row], along[column])
        assert (weight > 0).all()
        total[rows, columns] += weight
    torch.testing.assert_close(total, torch.ones(sides))


def test_blending_what_was_cropped_gives_the_image_back():
    image = torch.rand(2, 3, 96, 80)
    grid = Tiling(48, 16, batch=3).grid(96, 80, 16)
    torch.testing.assert_close(grid.blend(lambda boxes: grid.crop(image, boxes)), image)


def test_the_grid_of_the_latents_has_the_same_tiles():
    grid = Tiling(64, 16).grid(208, 144, 16)
    assert [4 * start for start in grid.divided(4).rows.starts] == grid.rows.starts == [0, 48, 96, 144]


def test_an_image_that_fits_one_tile_is_not_cut():
    assert Tiling(64).grid(64, 32, 16).is_whole and Grid.whole(64, 32).is_whole
    assert Axis(32, 64, 16).starts == [0] and Axis(32, 64, 16).extent == 32


def test_tiles_that_are_refused():
    for size, overlap in ((0, None), (64, 0), (64, 33), (-8, None)):
        with pytest.raises(UsageError, match="tile"):
            Tiling(size, overlap)


@pytest.fixture(scope="module")
def shipped():
    return MegaSRPipeline.from_checkpoint("tiny")


def psnr(a, b):
    return float(-10 * (a - b).square().mean().log10())


def test_the_vae_in_tiles_is_the_vae():
    prior = load_prior("tiny")
    image = photograph(128, 160)[None]
    grid = Tiling(96, 32).grid(128, 160, 16)
    with torch.no_grad():
        whole, z = Grid.whole(128, 160), encode_tiles(prior, image, grid)
        torch.testing.assert_close(z, encode_tiles(prior, image, whole), atol=0.05, rtol=0.05)
        assert psnr(decode_tiles(prior, z, grid), decode_tiles(prior, z, whole)) > 45


def test_tiled_is_like_untiled_without_seams(shipped):
    lq = photograph(24, 48)
    whole, other_noise = (shipped(lq, tile=0, output_type="pt", seed=seed).images for seed in (0, 1))
    tiled = shipped(lq, tile=96, tile_overlap=32, output_type="pt").images
    assert psnr(whole, tiled) > psnr(whole, other_noise) + 3 and not torch.equal(whole, tiled)
    grid = Tiling(96, 32).grid(96, 192, 16)
    borders = torch.zeros(192, dtype=torch.bool)
    for start in grid.columns.starts:
        for edge in (start, start + 96):
            borders[max(0, edge - 2) : edge + 2] = 0 < edge < 192
    energy = (tiled - whole).diff(dim=-1).square().mean(dim=(0, 1, 2))
    detail = whole.diff(dim=-1).square().mean()
    assert abs(energy[borders[1:]].mean() - energy[~borders[1:]].mean()) < 0.02 * detail


def test_what_is_larger_than_what_the_prior_was_trained_on_is_in_tiles_of_that_size(shipped):
    small, large = photograph(24, 32), photograph(24, 48)  # 128 px of sr, and 192
    whole, tiled = (shipped(large, tile=tile, output_type="pt").images for tile in (0, 128))
    assert not torch.equal(whole, tiled)
    first, second = shipped([small, large], keys=["a", "image"], output_type="pt").images
    assert torch.equal(second, tiled[0])
    assert torch.equal(first, shipped(small, tile=0, keys=["a"], output_type="pt").images[0])


@pytest.fixture(scope="module")
def loud():
    return loud_pipeline()


@pytest.mark.parametrize("sides", [(9, 40), (50, 7)])
def test_any_size_and_aspect_in_tiles_with_guidance(loud, sides):
    restored = loud(photograph(*sides), tile=64, output_type="pt", num_inference_steps=1, scale_factor=2.7)
    assert restored.images.shape[-2:] == tuple(round(2.7 * side) for side in sides)
    assert restored.images.isfinite().all()


def test_maps_of_a_large_image_are_made_of_a_small_copy(loud, monkeypatch):
    monkeypatch.setattr("megasr.system._MAPS_PX", 32 * 32)
    restored = loud(photograph(24, 24), tile=64, num_inference_steps=1)
    assert restored.maps["canny"].shape[-2:] == (32, 32) and restored.images[0].size == (96, 96)
    assert math.prod(loud(photograph(24, 24), num_inference_steps=1).maps["canny"].shape[-2:]) == 96 * 96
