"""Noise: the negative control of the study. It has a map's statistics and knows nothing of the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from megasr.rng import keyed_normal

_CELL_PX = 16  # as coarse as the superpixels: white noise would average to grey at the sites of the network


def extract_noise(image: torch.Tensor, keys: Sequence[str]) -> torch.Tensor:
    """A smooth random map (B, 1, H, W) in [0, 1], a function of the key and the size alone."""
    height, width = image.shape[-2:]
    cells = (1, -(-height // _CELL_PX) + 1, -(-width // _CELL_PX) + 1)
    coarse = torch.special.ndtr(keyed_normal(0, keys, cells, "guidance_noise"))  # uniform in (0, 1)
    smooth = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    return smooth.clamp(0, 1).to(image.device)
