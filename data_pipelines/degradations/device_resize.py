"""OpenCV's resizing on tensors: bilinear and bicubic without antialiasing, and `area`."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from data_pipelines.degradations.cpu import scaled
from data_pipelines.degradations.device_context import upload
from data_pipelines.degradations.sampling import Op


def resize(image: torch.Tensor, op: Op, hq_height: int, hq_width: int) -> torch.Tensor:
    """Resize (3, H, W) to op's scale of hq; see cpu.resize."""
    height, width = scaled(hq_height, op["scale"]), scaled(hq_width, op["scale"])
    if image.shape[-2:] == (height, width):
        return image
    return resize_to(image, height, width, op["mode"])


def resize_to(image: torch.Tensor, height: int, width: int, mode: str) -> torch.Tensor:
    """Resize (C, H, W) float32 in the mode area, bilinear or bicubic (a = -0.75)."""
    if mode != "area":
        return F.interpolate(image[None], (height, width), mode=mode, align_corners=False)[0]
    rows, columns = image.shape[-2:]
    # OpenCV averages areas when both sides shrink or stay; else it has one linear rule for both.
    if height <= rows and width <= columns:
        across = image @ _overlaps(columns, width, image.device).T
        return _overlaps(rows, height, image.device) @ across
    return _repeat_and_mix(_repeat_and_mix(image, 2, width), 1, height)


def _overlaps(size_in: int, size_out: int, device: torch.device) -> torch.Tensor:
    """(size_out, size_in): the share of each input pixel in each output pixel, made on the device."""
    edge = torch.arange(size_out + 1, device=device)[:, None] * size_in  # in units of 1 / size_out: exact integers
    start = torch.arange(size_in, device=device) * size_out
    covered = (edge - start).clamp_(0, size_out).float()
    return (covered[1:] - covered[:-1]) / size_in


def _repeat_and_mix(image: torch.Tensor, dim: int, size_out: int) -> torch.Tensor:
    """INTER_AREA when an axis grows: a pixel is repeated, and where two meet inside an output pixel they are mixed.

    In OpenCV's own arithmetic, for its rounding down decides which pixel is repeated.
    """
    size_in = image.shape[dim]
    growth = size_out / size_in
    place = np.arange(size_out)
    first = np.floor(place * (1 / growth))
    share = (place + 1 - (first + 1) * growth).clip(min=0).astype(np.float32)
    share = np.where(first < size_in - 1, share - np.floor(share), 0)
    first = first.clip(max=size_in - 1)
    numbers = upload(np.stack([first, (first + 1).clip(max=size_in - 1), share]).astype(np.float32), image.device)
    index = numbers[:2].int()
    shape = [-1 if axis == dim else 1 for axis in range(3)]
    return torch.lerp(image.index_select(dim, index[0]), image.index_select(dim, index[1]), numbers[2].view(shape))
