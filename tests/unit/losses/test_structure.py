"""Losses without weights: against other libraries, and what they do and do not react to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from data_pipelines.photos import EVAL_PHOTOS, load_photo
from megasr.evaluation.periodicity import spectral_peaks
from megasr.images import from_uint8
from megasr.losses.structure import edge, frequency, latent_mean, sobel
from megasr.prior import load_prior
from megasr.rng import torch_generator

LOSSES = [edge, frequency]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _images() -> tuple[torch.Tensor, torch.Tensor]:
    hq, noise = torch.rand(2, 2, 3, 24, 31, generator=torch_generator(0, "structure"))
    return 2 * (hq + 0.1 * noise) - 0.5, 2 * hq - 0.5


@pytest.mark.parametrize("loss", LOSSES)
def test_one_number_per_image_with_a_gradient_beyond_the_range(loss: Loss) -> None:
    sr, hq = _images()
    found = loss(sr.requires_grad_(), hq)
    assert found.shape == (2,) and (found > 0).all() and torch.equal(loss(hq, hq), torch.zeros(2))
    assert torch.equal(loss(sr[1:], hq[1:]), found[1:])
    found.sum().backward()
    assert sr.grad is not None and sr.grad.isfinite().all()
    for outside in (sr < 0, sr > 1):
        assert (sr.grad[outside] != 0).double().mean() > 0.8  # signs of neighbours may cancel


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_images_and_autocast_are_no_trouble(loss: Loss) -> None:
    sr, hq = _images()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(sr, hq), loss(sr.float(), hq.float()))
    same = hq.clone().requires_grad_()
    loss(same, hq).sum().backward()
    assert same.grad is not None and same.grad.isfinite().all()
    assert torch.equal(loss(sr.bfloat16(), hq.bfloat16()), loss(sr.bfloat16().float(), hq.bfloat16().float()))


def test_sobel_is_opencvs() -> None:
    import cv2

    image = _images()[0].double()
    for found, order in zip(sobel(image), ((1, 0), (0, 1)), strict=True):
        expected = cv2.Sobel(image[0, 1].numpy(), cv2.CV_64F, *order, ksize=3)[1:-1, 1:-1] / 8
        assert np.allclose(found[0, 1].numpy(), expected, atol=1e-12)


def test_edges_of_one_hue_count_and_brightness_does_not() -> None:
    hq = torch.full((1, 3, 16, 16), 0.5)
    assert edge(hq + 0.25, hq).item() == 0
    sr = hq.clone()
    sr[..., 8:] += torch.tensor([0.2, -0.2, 0.0])[:, None, None]
    assert edge(sr, hq).item() == pytest.approx(2 / 3 * 0.2 / 14, rel=1e-5)  # half of it at two of 14 columns


def test_frequency_is_numpys_spectrum_and_sees_phase() -> None:
    sr, hq = _images()
    expected = np.abs(np.fft.rfft2((sr - hq).double().numpy(), norm="ortho")).mean((1, 2, 3))
    assert np.allclose(frequency(sr, hq).numpy(), expected, rtol=1e-5)
    assert frequency(hq.roll(3, -1), hq).min() > 0.1, "amplitudes alone are equal"


def test_the_latents_means_are_compared_over_the_batch() -> None:
    z_hq = torch.randn(3, 4, 8, 8, generator=torch_generator(0, "latents"))
    offsets = torch.tensor([0.0, 0.3, 0.0, -0.1])
    z0 = (z_hq + offsets[:, None, None]).requires_grad_()
    found = latent_mean(z0, z_hq)
    torch.testing.assert_close(found, torch.full((3,), 0.1))
    found.sum().backward()
    assert z0.grad is not None
    signs = z0.grad.sign().mean((0, 2, 3))
    assert signs[1] == 1 and signs[3] == -1
    mirrored = z_hq + torch.tensor([0.5, -0.5, 0.0])[:, None, None, None]  # errors that cancel are no constant
    assert latent_mean(mirrored, z_hq).abs().max() < 1e-6


def test_a_constant_error_of_a_latent_channel_is_a_grid() -> None:
    prior, photograph = load_prior("tiny"), from_uint8(load_photo(EVAL_PHOTOS[0].name))[None, :, :128, :128]
    with torch.no_grad():
        z = prior.encode(photograph)
        error = torch.zeros(prior.vae.config.latent_channels, 1, 1)
        error[7] = 0.2
        constant, elsewhere = (prior.decode(z + change) for change in (error, error * torch.randn_like(z).sign()))
    assert spectral_peaks(constant, photograph) > 5 > spectral_peaks(elsewhere, photograph)
