"""Losses without weights that look at structure: edges, frequencies, and the latents' means.

Images are (B, 3, H, W) RGB, about [0, 1] and never clamped; the results are (B,). All are computed in float32.
"""

from __future__ import annotations

import torch


def edge(sr: torch.Tensor, hq: torch.Tensor) -> torch.Tensor:
    """L1 distance of Sobel gradients per pixel, of each channel, so that edges of one hue count too.

    The gradient loss of SPSR (2003.13081) with both components in place of their magnitude, which has no gradient where
    sr is flat. Only positions whose 3 x 3 pixels are inside count.
    """
    return torch.stack([part.abs().mean((1, 2, 3)) for part in sobel(sr.float() - hq.float())]).sum(0)


def sobel(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Horizontal and vertical gradients per pixel: (B, C, H, W) -> two of (B, C, H - 2, W - 2)."""
    # Sums of shifted images: a convolution would be taken in bf16 by autocast.
    across, along = (_smooth(image, axis) for axis in (-2, -1))
    return (across[..., 2:] - across[..., :-2]) / 2, (along[..., 2:, :] - along[..., :-2, :]) / 2


def _smooth(image: torch.Tensor, axis: int) -> torch.Tensor:
    length = image.shape[axis] - 2
    before, here, after = (image.narrow(axis, start, length) for start in range(3))
    return (before + 2 * here + after) / 4


def frequency(sr: torch.Tensor, hq: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of the complex spectra, amplitudes and phases, of each channel.

    The frequency loss of MIMO-UNet (2108.05054) with magnitudes in place of real and imaginary parts, whose L1 depends
    on where the image begins. The transform is orthonormal: of white noise the loss is about as large as L1 of pixels.
    """
    spectrum = torch.fft.rfft2(sr.float() - hq.float(), norm="ortho")
    return spectrum.abs().mean((1, 2, 3))


def latent_mean(z0: torch.Tensor, z_hq: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of the channels' means over the batch and all places: (B, C, h, w) twice -> B times.

    A channel that is off by a constant is a grid in the image, of the period of the autoencoder's f, of which losses on
    the image see little (docs/one-step.md).
    """
    bias = (z0.float() - z_hq.float()).mean((0, 2, 3))
    return bias.abs().mean().expand(len(z0))
