"""Colour fixes against their definitions."""

import torch

from megasr.images import adain, blur, fix_color
from tests.helpers.inference import photograph


def test_none_changes_nothing():
    sr = torch.rand(1, 3, 8, 8)
    assert fix_color(sr, torch.rand(1, 3, 8, 8), "none") is sr


def test_adain_has_mean_and_deviation_of_lq():
    sr, lq_up = torch.rand(2, 3, 16, 20), 0.3 + 0.2 * torch.rand(2, 3, 16, 20)
    fixed = adain(sr, lq_up)
    for of in (torch.mean, torch.std):
        torch.testing.assert_close(of(fixed, (-2, -1)), of(lq_up, (-2, -1)))
    torch.testing.assert_close(fix_color(sr, lq_up, "adain"), fixed.clamp(0, 1))
    grey = torch.full((1, 3, 8, 8), 0.5)
    assert fix_color(grey, lq_up[:1, :, :8, :8], "adain").isfinite().all()


def test_wavelet_takes_the_coarse_part_of_lq_and_the_detail_of_sr():
    lq_up = photograph(96, 96)[None]
    cast = torch.tensor([0.1, -0.1, 0.05]).view(1, 3, 1, 1)
    detail = 0.02 * torch.sin(torch.arange(96) * 2.0).expand(1, 3, 96, 96)
    sr = (0.25 + lq_up / 2 + cast + detail).clamp(0, 1)
    fixed = fix_color(sr, 0.25 + lq_up / 2, "wavelet")
    torch.testing.assert_close(fixed, 0.25 + lq_up / 2 + detail, atol=4e-3, rtol=0)


def test_blur_keeps_flat_pictures_and_what_is_coarse():
    flat = torch.full((1, 3, 5, 7), 0.3)
    torch.testing.assert_close(blur(flat), flat)
    stripes = torch.arange(96).remainder(2).float().expand(1, 3, 8, 96)
    torch.testing.assert_close(blur(stripes)[..., 32:-32], torch.full((1, 3, 8, 32), 0.5))
