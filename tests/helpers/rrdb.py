"""An RRDBNet of random weights in the format of Real-ESRGAN's files."""

from __future__ import annotations

import torch

State = dict[str, torch.Tensor]


def rrdb_state(width: int = 8, growth: int = 4, blocks: int = 2) -> State:
    """Random weights in the names of RealESRGAN_x4plus.pth (64, 32 and 23 there)."""
    shapes = {"conv_first": (width, 3), "conv_last": (3, width)}
    shapes |= dict.fromkeys(("conv_body", "conv_up1", "conv_up2", "conv_hr"), (width, width))
    for block in range(blocks):
        for dense in (1, 2, 3):
            for conv in range(1, 6):
                to = width if conv == 5 else growth
                shapes[f"body.{block}.rdb{dense}.conv{conv}"] = to, width + (conv - 1) * growth
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, (to, width_in) in shapes.items():
        spread = (2 / (9 * width_in)) ** 0.5
        state[f"{name}.weight"] = spread * torch.randn(to, width_in, 3, 3, generator=generator)
        state[f"{name}.bias"] = 0.1 * torch.randn(to, generator=generator)
    return state
