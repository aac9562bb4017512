"""SSIM with its window as two passes: pyiqa's own takes most of the time of a weight-free evaluation."""

from __future__ import annotations

import torch
from torch import nn

_SIZE, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


class SeparableSSIM(nn.Module):
    """pyiqa's SSIM (Wang et al. 2004: 11 x 11 Gaussian window, sigma 1.5, valid positions only) in float64.

    The Gaussian window is an outer product, so rows and columns are filtered one after the other: 22 instead of 121
    products per pixel. It differs from pyiqa's by less than 1e-6, because pyiqa rounds its window to float32.

    Args:
        test_y_channel: measure the rounded Y of `color_space` instead of every channel.
        color_space: "ycbcr" (limited range) or "yiq".
    """

    window: torch.Tensor

    def __init__(self, test_y_channel: bool, color_space: str) -> None:
        super().__init__()
        self._on_y, self._color_space = test_y_channel, color_space
        positions = torch.arange(_SIZE, dtype=torch.float64) - _SIZE // 2
        window = torch.exp(-positions.square() / (2 * _SIGMA**2))
        self.register_buffer("window", window / window.sum())

    def forward(self, sr: torch.Tensor, hq: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [0, 1] -> (B,) in [0, 1].

        Raises:
            ValueError: they are smaller than the window.
        """
        from pyiqa.archs.func_util import preprocess_rgb

        if min(sr.shape[-2:]) < _SIZE:
            raise ValueError(f"its window is {_SIZE}x{_SIZE} px")

        x, y = (preprocess_rgb(image, self._on_y, 255, self._color_space).double() for image in (sr, hq))
        mean_x, mean_y = self._blur(x), self._blur(y)
        var_x = self._blur(x * x) - mean_x.square()
        var_y = self._blur(y * y) - mean_y.square()
        covariance = self._blur(x * y) - mean_x * mean_y
        structure = ((2 * covariance + _C2) / (var_x + var_y + _C2)).relu()
        luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
        return (luminance * structure).mean((1, 2, 3))

    def _blur(self, image: torch.Tensor) -> torch.Tensor:
        return self._pass(self._pass(image, -1), -2)

    def _pass(self, image: torch.Tensor, dim: int) -> torch.Tensor:
        # Shifted sums: conv2d in float64 unfolds the image in memory and takes five times as long.
        length = image.shape[dim] - _SIZE + 1
        total = image.narrow(dim, 0, length) * self.window[0]
        for shift in range(1, _SIZE):
            total.add_(image.narrow(dim, shift, length), alpha=float(self.window[shift]))
        return total
