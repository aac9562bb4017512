"""Grids: how far the strongest isolated peak of sr's power spectrum is above hq's.

A decoder's upsampling and a transformer's patches leave patterns of 2, 4, 8 or 16 px, which PSNR, SSIM and LPIPS hardly
see. A pattern of period 16 / n px, at any phase, is in the spectrum at multiples of 1/16 per pixel and nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # protocols are named before torch is imported
    import torch

PERIOD_PX = 16
PEAK_DB = 12.0  # noise has 1.6 dB here in the mean, and 12 dB or more in one of 60000 frequencies
LEAST_PX = 4 * PERIOD_PX
_REACH = 7  # frequencies on each side of a peak that make its background


def spectral_peaks(sr: torch.Tensor, hq: torch.Tensor) -> float:
    """The excess of sr's peaks over hq's, in dB: 0 when no multiple of 1/16 per pixel has a stronger peak in sr.

    The largest difference over these frequencies, where anything below PEAK_DB counts as PEAK_DB, which is no peak. It
    depends neither on contrast nor on the phase, nor does what is smooth in the spectrum (blur, noise) change it. A
    texture of hq, as its photograph has it, is no grid.

    Args:
        sr: (1, 3, H, W) in [0, 1].
        hq: the same.

    Raises:
        ValueError: they are smaller than 64 px.
    """
    return float((peaks_db(sr).clamp(min=PEAK_DB) - peaks_db(hq).clamp(min=PEAK_DB)).amax())


def peaks_db(image: torch.Tensor) -> torch.Tensor:
    """Power at the multiples (y, x) of 1/16 per pixel relative to its background, over all channels.

    The background is the median of the frequencies around, or along a horizontal, vertical or diagonal line through the
    peak, whichever is largest: straight edges make such lines.

    Args:
        image: (1, 3, H, W) in [0, 1]; rows and columns beyond multiples of 16 are left out.

    Returns:
        (16, 9) in dB, y before x; (0, 0), the mean, is 0.

    Raises:
        ValueError: it is smaller than 64 px.
    """
    import torch

    if min(image.shape[-2:]) < LEAST_PX:
        raise ValueError(f"its spectrum needs {LEAST_PX}x{LEAST_PX} px")
    height, width = (size // PERIOD_PX * PERIOD_PX for size in image.shape[-2:])
    pixels = image[0, :, :height, :width].double()
    rows, columns = (torch.hann_window(size, dtype=pixels.dtype, device=pixels.device) for size in (height, width))
    window = rows[:, None] * columns  # the edges of the image are no structure
    spectrum = torch.fft.fft2((pixels - pixels.mean((-2, -1), keepdim=True)) * window).abs().square().sum(0)
    # The noise of rounding to 8 bits, so that a flat image has a background too.
    spectrum += len(pixels) * window.square().sum() / (12 * 255**2)
    y = torch.arange(PERIOD_PX, device=pixels.device)[:, None, None] * (height // PERIOD_PX)
    x = torch.arange(PERIOD_PX // 2 + 1, device=pixels.device)[None, :, None] * (width // PERIOD_PX)
    background = torch.stack(
        [
            spectrum[(y + around[:, 0]) % height, (x + around[:, 1]) % width].median(-1).values
            for around in _neighbourhoods(min(_REACH, min(height, width) // (2 * PERIOD_PX)), pixels.device)
        ]
    ).amax(0)
    peaks: torch.Tensor = 10 * (spectrum[y[..., 0], x[..., 0]] / background).log10()
    peaks[0, 0] = 0
    return peaks


def _neighbourhoods(reach: int, device: torch.device) -> list[torch.Tensor]:
    """Offsets (N, 2) of the square around a peak and of four lines through it, without the peak, which is 3 wide."""
    import torch

    steps = torch.arange(-reach, reach + 1, device=device)
    square = torch.cartesian_prod(steps, steps)
    steps = steps[steps.abs() > 1]
    none = torch.zeros_like(steps)
    lines = [(none, steps), (steps, none), (steps, steps), (steps, -steps)]
    return [square[square.abs().amax(1) > 1], *(torch.stack(line, 1) for line in lines)]
