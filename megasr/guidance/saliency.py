"""Saliency by the spectral residual: what of the spectrum is not as expected stands out (Hou & Zhang, CVPR 2007).

Two things differ from the paper, both because lq is blurred: the image is mirrored at its borders, and frequencies that
it does not have are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from megasr.images import resize

_WIDTH_PX = 64  # the paper's scale, at which an object is a few pixels large
_SIGMA_PX = 2.5  # at that scale: the authors' code; the paper's text says 8, which would leave little but one blob
_GREY = (0.299, 0.587, 0.114)
# Mean amplitude per pixel (a fortieth of an 8-bit level) below which a frequency fades out: lq has nothing in its upper
# ones, and their residual, which is that of roundings, would drown the rest.
_SILENCE = 1e-4
_FLAT = 1e-3  # relative contrast below which a map says nothing


def extract_saliency(image: torch.Tensor, keys: Sequence[str]) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> saliency (B, 1, H, W) in [0, 1], stretched to that range per image.

    A flat image gives zeros. Computed on the image's device, each sample by itself. Keys are not used.
    """
    height, width = image.shape[-2:]
    small_width = min(_WIDTH_PX, width)
    small = resize(image.float(), max(1, round(height * small_width / width)), small_width)
    grey = (small * torch.tensor(_GREY, device=image.device).view(3, 1, 1)).sum(1, keepdim=True)
    return resize(_stretch(_smooth(_spectral_residual(grey))), height, width)


def _spectral_residual(grey: torch.Tensor) -> torch.Tensor:
    """(B, 1, h, w) -> squared amplitude of what is left when each frequency is divided by its neighbours."""
    height, width = grey.shape[-2:]
    # A spectrum is that of the image repeated: unmirrored, the jump from one border to the other stands out most.
    wide = torch.cat([grey, grey.flip(-1)], -1)
    spectrum = torch.fft.fft2(torch.cat([wide, wide.flip(-2)], -2), norm="forward")
    amplitude = spectrum.abs()
    floored = amplitude.clamp(min=_SILENCE)
    log = floored.log()
    residual = (log - _mean_3x3(log)).exp()
    # Over the plain amplitude, what is not in the image would be as loud as the rest, in the phase of a rounding error.
    found = torch.fft.ifft2(residual * spectrum / floored, norm="forward").abs().square()
    return found[..., :height, :width]


def _mean_3x3(log: torch.Tensor) -> torch.Tensor:
    """Mean over a frequency and its eight neighbours; a spectrum is periodic."""
    rows = log + log.roll(1, -2) + log.roll(-1, -2)
    return (rows + rows.roll(1, -1) + rows.roll(-1, -1)) / 9


def _smooth(saliency: torch.Tensor) -> torch.Tensor:
    """Gaussian over (B, 1, h, w). Not a convolution: those round in a way that depends on the batch and on autocast."""
    radius = round(3 * _SIGMA_PX)
    offsets = torch.arange(-radius, radius + 1, device=saliency.device, dtype=saliency.dtype)
    weights = torch.exp(-0.5 * (offsets / _SIGMA_PX) ** 2)
    weights = weights / weights.sum()
    padded = F.pad(saliency, (radius,) * 4, mode="replicate")
    rows = (padded.unfold(-2, len(weights), 1) * weights).sum(-1)
    return (rows.unfold(-1, len(weights), 1) * weights).sum(-1)


def _stretch(saliency: torch.Tensor) -> torch.Tensor:
    low, high = saliency.amin((-2, -1), keepdim=True), saliency.amax((-2, -1), keepdim=True)
    contrast = high - low
    # Asked this way round, what is not a number stays one, and is found out instead of being called flat.
    return torch.where(contrast <= _FLAT * high, 0, (saliency - low) / contrast)
