"""Pictures of maps for people: (C, H, W) in [0, 1] -> (3, H, W) in [0, 1] on the map's device."""

from __future__ import annotations

import numpy as np
import torch

from megasr.batch import check_range, extremes
from megasr.errors import UsageError


def render_grey(image: torch.Tensor) -> torch.Tensor:
    """(1, H, W) -> the same in grey.

    Raises:
        UsageError: the map has another shape, or values outside [0, 1].
    """
    return _checked(image, 1, "grey").expand(3, -1, -1).clone()


def render_edge(image: torch.Tensor) -> torch.Tensor:
    """(1, H, W), 1 at an edge -> dark lines on white, as one draws them: faint edges stay visible.

    Raises:
        UsageError: the map has another shape, or values outside [0, 1].
    """
    return 1 - render_grey(image)


def render_depth(image: torch.Tensor) -> torch.Tensor:
    """(1, H, W), near = 1 -> the perceptually uniform colours of `inferno`, near = bright.

    Raises:
        UsageError: the map has another shape, or values outside [0, 1].
    """
    levels = (_checked(image, 1, "depth")[0] * 255).round().long()
    return _inferno().to(image.device)[levels].permute(2, 0, 1).contiguous()


def render_colours(image: torch.Tensor) -> torch.Tensor:
    """(3, H, W) whose channels are colours already (segmentation, normals, superpixels) -> the same.

    Raises:
        UsageError: the map has another shape, or values outside [0, 1].
    """
    return _checked(image, 3, "colours").clone()


def _checked(image: torch.Tensor, channels: int, what: str) -> torch.Tensor:
    image = image.detach().float()
    if image.ndim != 3 or image.shape[0] != channels:
        raise UsageError(f"a picture of {what}: expected a map ({channels}, H, W), got {tuple(image.shape)}")
    check_range(extremes(image), f"a picture of {what}")
    return image


def _inferno() -> torch.Tensor:
    """(256, 3) float32 RGB."""
    import cv2

    colours = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_INFERNO)  # (256, 1, 3) BGR
    return torch.from_numpy(colours[:, 0, ::-1].copy()).float() / 255
