"""A pipeline on a random prior whose adapter does something everywhere, and photographs for it."""

from __future__ import annotations

from typing import TypeVar

import torch

from megasr.inference.pipeline import MegaSRPipeline
from megasr.networks.config import AdapterConfig
from megasr.training.config import SamplerConfig
from megasr.training.module import MegaSRModule
from tests.helpers.training import make_module

Moved = TypeVar("Moved", bound=torch.nn.Module)
GUIDANCE = ("canny", "saliency", "superpixel")  # an edge, and two regions that stage 1 mixes


def loud_module(**changes: object) -> MegaSRModule:
    """A module whose trained weights are all moved: nothing of it is zero any more."""
    adapter = AdapterConfig(guidance=GUIDANCE, saft_width=8)
    settings = {"adapter": adapter, "sampler": SamplerConfig(num_steps=2, guidance_scale=2.0)}
    return move_weights(make_module(**{**settings, **changes})).eval()


@torch.no_grad()
def move_weights(module: Moved) -> Moved:
    """Move every trained weight, in place."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return module


def loud_pipeline(**changes: object) -> MegaSRPipeline:
    """A pipeline of such a module."""
    return MegaSRPipeline(loud_module(**changes))


def photograph(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """(3, height, width) in [0, 1]: smooth, with edges."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    return (smooth + 0.3 * (smooth.mean(0) > 0.5)).clamp(0, 1)
