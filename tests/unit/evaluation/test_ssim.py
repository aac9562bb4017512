"""SSIM in two passes against pyiqa's own."""

from __future__ import annotations

import pytest
import torch

from megasr.evaluation.metrics import SeparableSSIM, quiet_pyiqa
from megasr.rng import torch_generator


@pytest.mark.parametrize("color_space", ["ycbcr", "yiq"])
@pytest.mark.parametrize("on_y", [True, False])
def test_it_is_pyiqas(on_y: bool, color_space: str) -> None:
    import pyiqa

    hq = torch.rand(2, 3, 40, 57, generator=torch_generator(0, "hq"))
    sr = (hq + 0.2 * torch.randn(hq.shape, generator=torch_generator(0, "noise"))).clamp(0, 1)
    with quiet_pyiqa():
        theirs = pyiqa.create_metric("ssim", device="cpu", test_y_channel=on_y, color_space=color_space)
    ours = SeparableSSIM(on_y, color_space)
    assert torch.allclose(ours(sr, hq), theirs(sr, hq), rtol=0, atol=1e-7)
    assert torch.equal(ours(hq, hq), torch.ones(2, dtype=torch.float64))
    assert torch.allclose(ours(1 - hq, hq), theirs(1 - hq, hq), rtol=0, atol=1e-7)  # negative structure counts as none
