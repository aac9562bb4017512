"""The `device` back end of the degradations on a GPU: the same lq as on the CPU, and nothing waits for the GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_pipelines.degradations.device import sharpen_batched
from data_pipelines.degradations.presets import get_degradation
from data_pipelines.photos import load_photo
from megasr.images import from_uint8

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("preset", ["realesrgan_strong", "stablesr_mild", "first_order"])
def test_a_gpu_makes_the_lq_of_the_cpu_without_waiting(preset: str) -> None:
    hq = from_uint8(np.stack([load_photo("chelsea")[:256, 16 * i : 16 * i + 256] for i in range(12)]))
    degradation = get_degradation(preset, 4)
    params = degradation.sample_params(0, [f"{i}" for i in range(12)])
    on_cpu, on_gpu = degradation.apply(hq, params), hq.cuda()
    degradation.apply(on_gpu, params)  # tables travel once
    torch.cuda.set_sync_debug_mode("error")
    try:
        lq = degradation.apply(on_gpu, params)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert lq.device == on_gpu.device
    levels = (lq.cpu() - on_cpu).abs().flatten(1) * 255
    psnr = 20 * torch.log10(255 / levels.square().mean(1).sqrt().clamp(min=1e-3))
    assert psnr.min() > 35, "as far apart as the two back ends on one processor"
    assert torch.equal(degradation.apply(on_gpu, params), lq), "the same parameters, the same bits"


def test_a_gpu_sharpens_as_the_cpu_does() -> None:
    hq = from_uint8(np.ascontiguousarray(load_photo("coffee")[:256, :256]))[None]
    assert (sharpen_batched(hq.cuda()).cpu() - sharpen_batched(hq)).abs().max() * 255 < 1.01
