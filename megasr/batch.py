"""SRBatch, the one contract between data, model and metrics.

Shapes: B samples, H x W the size of hq in pixels, h x w the size of lq (H = h * scale_factor), C map channels.
Images are RGB float32 in [0, 1], channels first. A stage adds keys; it never changes or re-interprets one.
"""

from __future__ import annotations

from typing import Any, TypedDict

import torch

from megasr.errors import UsageError


class SRBatch(TypedDict, total=False):
    """One batch. Training and evaluation need keys and hq (lq is added by the degradation); inference needs lq."""

    keys: list[str]  # B unique names; every random draw of a sample is keyed by its name
    hq: torch.Tensor  # (B, 3, H, W) in [0, 1], ground truth
    lq: torch.Tensor  # (B, 3, h, w) in [0, 1], degraded input
    tags: list[str]  # B comma-separated tag lists, "" when unknown
    patch_tags: list[tuple[str, ...]]  # B times N: tag of each part of hq, "" when unknown (pretraining)
    maps: dict[str, torch.Tensor]  # guidance name -> (B, C, H, W) in [0, 1]
    latents: torch.Tensor  # (B, C, h, w) float32, z0 of hq by the prior's VAE
    image_tokens: torch.Tensor  # (B, N, D) CLIP vision patch tokens of lq
    representation: torch.Tensor  # (B, M, D) the tagger's image representation of lq (the v1 network only)
    degradation: list[dict[str, Any]]  # B parameter sets of the degradation, replayable
    skipped: list[tuple[tuple[str, str, bool], ...]]  # B lists of unusable images (key, reason, damaged) passed over
    text_dropped: torch.Tensor  # (B,) bool: trained without tags, for classifier-free guidance
    guidance_dropped: torch.Tensor  # (B,) bool: trained without guidance maps
    types_dropped: dict[str, torch.Tensor]  # guidance name -> (B,) bool: trained without this map


def check_image(image: torch.Tensor, name: str) -> None:
    """Check at a package border that `image` is a (B, 3, H, W) float tensor.

    Raises:
        UsageError: the shape or dtype is another one.
    """
    if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point():
        raise UsageError(
            f"{name}: expected float RGB (B, 3, H, W) in [0, 1], got {image.dtype} of shape {tuple(image.shape)}"
        )


def extremes(values: torch.Tensor) -> tuple[float, float]:
    """The least and the largest value; not a number when one of them is none."""
    low, high = values.aminmax()
    return float(low), float(high)


def check_range(extremes: tuple[float, float], name: str) -> None:
    """Check that the least and the largest value of `name` are in [0, 1].

    Raises:
        UsageError: they are not, or are not numbers.
    """
    low, high = extremes
    if not (low >= 0 and high <= 1):
        raise UsageError(f"{name}: values must be in [0, 1], got [{low:.3g}, {high:.3g}]")
