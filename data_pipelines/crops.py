"""Crops of samples: hq, lq and maps stay aligned."""

from __future__ import annotations

from dataclasses import replace

import torch

from data_pipelines.samples import Sample, UnusableSampleError
from megasr.errors import UsageError
from megasr.rng import numpy_generator


def crop_sample(sample: Sample, size_px: int, seed: int, *key: int | str) -> Sample:
    """The same random crop of hq, lq and maps, flipped left to right half of the time; a function of the key.

    With lq, the corner is drawn in pixels of lq.

    Args:
        sample: hq (H, W, 3), lq (3, h, w) or None, maps (C, H, W).
        size_px: height and width of hq afterwards, a multiple of the scale factor.
        seed: of the draw.
        key: see megasr.rng.

    Raises:
        UnusableSampleError: hq is smaller than the crop.
    """
    height, width = sample.hq.shape[:2]
    if min(height, width) < size_px:
        raise UnusableSampleError(sample.key, f"smaller than {size_px} px", f"{width}x{height} px", damaged=False)
    scale = _scale(sample)
    rng = numpy_generator(seed, "crop", *key)
    top, left = (int(rng.integers((n - size_px) // scale + 1)) * scale for n in (height, width))
    crop = _cut(sample, top, left, size_px)
    return _flipped(crop) if rng.random() < 0.5 else crop


def center_crop_sample(sample: Sample, size_px: int) -> Sample:
    """The centre of hq, lq and maps, its corner on a pixel of lq.

    Raises:
        UsageError: hq is smaller than the crop: evaluation leaves nothing out.
    """
    height, width = sample.hq.shape[:2]
    if min(height, width) < size_px:
        raise UsageError(f"{sample.key}: {width}x{height} px is smaller than the evaluation's crop of {size_px} px")
    scale = _scale(sample)
    top, left = ((n - size_px) // 2 // scale * scale for n in (height, width))
    return _cut(sample, top, left, size_px)


def _scale(sample: Sample) -> int:
    return 1 if sample.lq is None else sample.hq.shape[0] // sample.lq.shape[-2]


def _cut(sample: Sample, top: int, left: int, size_px: int) -> Sample:
    def window(image: torch.Tensor, scale: int) -> torch.Tensor:
        y, x, size = top // scale, left // scale, size_px // scale
        return image[:, y : y + size, x : x + size].contiguous()

    return replace(
        sample,
        hq=sample.hq[top : top + size_px, left : left + size_px],
        maps={name: window(values, 1) for name, values in sample.maps.items()},
        lq=None if sample.lq is None else window(sample.lq, _scale(sample)),
    )


def _flipped(sample: Sample) -> Sample:
    return replace(
        sample,
        hq=sample.hq[:, ::-1],
        maps={name: _mirrored(name, values.flip(-1)) for name, values in sample.maps.items()},
        lq=None if sample.lq is None else sample.lq.flip(-1),
    )


def _mirrored(name: str, values: torch.Tensor) -> torch.Tensor:
    """What a flip does to the values of a map: the normal of a mirrored surface points to the other side."""
    if not name.endswith("normal"):
        return values
    return torch.cat([1 - values[:1], values[1:]])
