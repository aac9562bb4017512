"""Whole degradations on tensors: the cpu back end's lq, for every sample alone and in any batch."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from data_pipelines.degradations.device import apply_ops_batched
from data_pipelines.degradations.presets import get_degradation
from data_pipelines.photos import load_photo
from megasr.errors import UsageError
from megasr.images import from_uint8

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "brick", "motorcycle")
PRESETS = ("realesrgan_strong", "stablesr_mild", "first_order")


def _hq(count: int, height: int, width: int) -> np.ndarray:
    return np.stack([load_photo(PHOTOS[i % len(PHOTOS)])[20 : 20 + height, 30 : 30 + width] for i in range(count)])


@pytest.mark.parametrize("preset", PRESETS)
def test_both_back_ends_make_the_same_lq(preset: str) -> None:
    """Operation by operation they agree within 0.1 level, JPEG aside. JPEG rounds: a coefficient that lies between two
    steps falls to one side or the other, and a second JPEG on a small image multiplies that. Measured over these sets:
    median of the mean difference 0.09, 0.09 and 0.005 levels; PSNR between both 41, 49 and 50 dB at worst.
    """
    degradation, hq = get_degradation(preset, 4), _hq(36, 192, 256)
    params = degradation.sample_params(7, [f"image {i}" for i in range(len(hq))])
    on_device = degradation.apply(from_uint8(hq), params)
    in_worker = torch.stack([degradation.apply_image(image, one) for image, one in zip(hq, params, strict=True)])
    levels = (on_device - in_worker).abs().flatten(1) * 255
    psnr = 20 * torch.log10(255 / levels.square().mean(1).sqrt().clamp(min=1e-3))
    assert levels.mean(1).median() < 0.2
    assert (psnr > 40).float().mean() >= 0.95
    assert psnr.min() > 35


@pytest.mark.parametrize("preset", PRESETS)
def test_a_sample_does_not_depend_on_its_batch(preset: str) -> None:
    degradation, hq = get_degradation(preset, 4), from_uint8(_hq(8, 96, 128))
    params = degradation.sample_params(3, [f"image {i}" for i in range(len(hq))])
    together = degradation.apply(hq, params)
    assert torch.equal(together, degradation.apply(hq, params))
    assert torch.equal(together, degradation.apply(hq.flip(0), params[::-1]).flip(0))
    for i, one in enumerate(params):
        assert torch.equal(degradation.apply(hq[i : i + 1], [one])[0], together[i]), i
    for one, other in pairwise(together):
        assert not torch.equal(one, other)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("scale_factor", "height", "width"), [(2, 16, 16), (2, 34, 62), (3, 99, 51), (4, 16, 60), (8, 16, 16), (8, 120, 64)]
)
def test_lq_has_its_size_and_range(preset: str, scale_factor: int, height: int, width: int) -> None:
    degradation, hq = get_degradation(preset, scale_factor), _hq(4, height, width)
    params = degradation.sample_params(0, [f"image {i}" for i in range(len(hq))])
    lq = degradation.apply(from_uint8(hq), params)
    assert lq.shape == (4, 3, height // scale_factor, width // scale_factor)
    assert lq.dtype == torch.float32
    assert lq.min() >= 0 and lq.max() <= 1
    assert torch.equal((lq * 255).round() / 255, lq)
    reference = torch.stack([degradation.apply_image(image, one) for image, one in zip(hq, params, strict=True)])
    assert (lq - reference).abs().mean() < 2 / 255
    assert torch.equal((reference * 255).round() / 255, reference)
    assert torch.equal(degradation.apply_image(hq[0], params[0]), reference[0]), "replay is bit-equal"


def test_neither_hq_nor_the_kind_of_computing_matters() -> None:
    """hq stays as it is, and lq is the same under autocast, with gradients, and for hq of another layout."""
    degradation, hq = get_degradation("realesrgan_strong", 4), from_uint8(_hq(3, 64, 64))
    params = degradation.sample_params(1, ["a", "b", "c"])
    before, expected = hq.clone(), degradation.apply(hq, params)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(degradation.apply(hq, params), expected)
    wanting = degradation.apply(hq.clone().requires_grad_(), params)
    assert torch.equal(wanting, expected) and not wanting.requires_grad
    assert torch.equal(degradation.apply(hq.contiguous(memory_format=torch.channels_last), params), expected)
    assert torch.equal(hq, before)


def test_samples_with_different_lists_share_a_batch() -> None:
    hq = from_uint8(_hq(3, 48, 48))
    noise = {"op": "gaussian_noise", "sigma": 10.0, "grey": True, "offset": 9}
    shrink = {"op": "resize", "scale": 0.25, "mode": "bicubic"}
    ops = [[None, shrink], [shrink, noise, {"op": "jpeg", "quality": 40}], [noise, shrink, None]]
    lq = apply_ops_batched(hq, ops)
    for i, one in enumerate(ops):
        assert torch.equal(apply_ops_batched(hq[i : i + 1], [one])[0], lq[i])
    untouched = [None, {"op": "resize", "scale": 1.0, "mode": "area"}]
    assert torch.equal(apply_ops_batched(hq, [untouched] * 3), hq)


def test_parameters_that_do_not_fit_are_named() -> None:
    hq = torch.zeros(2, 3, 16, 24)
    with pytest.raises(UsageError, match="2 images need as many lists of operations, got 1"):
        apply_ops_batched(hq, [[]])
    with pytest.raises(UsageError, match="12x8, 24x16 px"):
        apply_ops_batched(hq, [[{"op": "resize", "scale": 0.5, "mode": "area"}], [None]])
