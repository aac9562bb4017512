"""The only place for uint8 <-> [0, 1] <-> [-1, 1], RGB <-> Y, crop, pad, resize, and colour correction of sr."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F

from megasr.errors import MegaSRError, unknown_name
from megasr.files import write_whole
from megasr.image_decoding import MAX_PIXELS, DecodingError, decode, size_from_header


def from_uint8(array: np.ndarray) -> torch.Tensor:
    """(..., H, W, 3) uint8 -> (..., 3, H, W) float32 in [0, 1]."""
    return from_integers(array)


def from_integers(array: np.ndarray) -> torch.Tensor:
    """(..., H, W, C) uint8 or uint16 -> (..., C, H, W) float32 in [0, 1]."""
    most = 255 if array.dtype == np.uint8 else 65535
    return torch.from_numpy(np.moveaxis(array, -1, -3).astype(np.float32, order="C")) / most


def to_uint8(image: torch.Tensor) -> np.ndarray:
    """(..., C, H, W) in [0, 1] -> (..., H, W, C) uint8, rounded to nearest and clipped."""
    return np.moveaxis(_rounded(image, 255).to(torch.uint8).cpu().numpy(), -3, -1)


def to_uint16(image: torch.Tensor) -> np.ndarray:
    """(..., C, H, W) in [0, 1] -> (..., H, W, C) uint16, rounded to nearest and clipped."""
    return np.moveaxis(_rounded(image, 65535).cpu().numpy().astype(np.uint16), -3, -1)


def _rounded(image: torch.Tensor, most: int) -> torch.Tensor:
    return (image.detach().float().clamp(0, 1) * most).round()


def quantise(image: torch.Tensor) -> torch.Tensor:
    """The [0, 1] image as it would be read back from an 8-bit PNG. Metrics see nothing else."""
    return (image.float().clamp(0, 1) * 255).round() / 255


def to_signed(image: torch.Tensor) -> torch.Tensor:
    """[0, 1] -> [-1, 1], the range of diffusers' autoencoders."""
    return image * 2 - 1


def from_signed(image: torch.Tensor) -> torch.Tensor:
    """[-1, 1] -> [0, 1], clipped."""
    return ((image + 1) / 2).clamp(0, 1)


def resize(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bicubic (a = -0.5, antialiased when it shrinks) resize of (B, C, H, W), clipped to [0, 1]."""
    return F.interpolate(image, (height, width), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def upsample_lq(lq: torch.Tensor, scale_factor: int) -> torch.Tensor:
    """lq -> lq_up: bicubic to the size of hq."""
    return resize(lq, lq.shape[-2] * scale_factor, lq.shape[-1] * scale_factor)


def center_crop(array: np.ndarray, size_px: int) -> np.ndarray:
    """The (size_px, size_px) centre of an (H, W, ...) array that is at least that large."""
    top, left = ((n - size_px) // 2 for n in array.shape[:2])
    return array[top : top + size_px, left : left + size_px]


def pad_to_multiple(image: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pad (B, C, H, W) at the bottom and right to multiples of `multiple` by replicating the border."""
    bottom, right = (-n % multiple for n in image.shape[-2:])
    return F.pad(image, (0, right, 0, bottom), mode="replicate") if bottom or right else image


def decode_image(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a JPEG, PNG, WebP, TIFF, BMP or GIF file's bytes to (H, W, 3) uint8 RGB, upright.

    Greyscale is replicated, 16-bit rounded to 8, alpha composited on white, palettes and CMYK (inverted in JPEGs, as
    Adobe has it) converted; of an animation it is the first frame. Colour profiles are not applied.

    Args:
        content: the bytes of the file.
        name: what errors call it.
        max_pixels: above it nothing is decoded; at most MAX_PIXELS.

    Raises:
        MegaSRError: it is empty, truncated, damaged, too large or not an image. Damage inside the compressed data of a
            JPEG can stay unnoticed: the format has no checksum.
    """
    with _named(name):
        return decode(content, max_pixels)


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file as (H, W, 3) uint8 RGB; see decode_image.

    Raises:
        MegaSRError: the file is missing or cannot be decoded.
    """
    with _named(path):
        return decode(Path(path).read_bytes())


def read_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of what read_image would return, from the file's header.

    Raises:
        MegaSRError: the file is missing or not an image. Damage behind the header stays unnoticed.
    """
    with _named(path):
        return size_from_header(Path(path))


@contextmanager
def _named(name: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, DecodingError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or error
        raise MegaSRError(f"cannot read image {name}: {reason}") from error


def write_png(array: np.ndarray, path: str | Path) -> None:
    """Write (H, W, 3) uint8 as PNG, whole or not at all.

    Raises:
        MegaSRError: the place cannot be written to.
    """
    from PIL import Image

    encoded = io.BytesIO()
    Image.fromarray(array).save(encoded, format="PNG")
    write_whole(Path(path), encoded.getvalue())


ColorFix = Literal["none", "adain", "wavelet"]
_LEVELS = 5  # StableSR's number of blurs, 1, 2, 4, 8 and 16 px wide


def check_color_fix(kind: ColorFix) -> ColorFix:
    """The kind, if it is known.

    Raises:
        UsageError: shows those that are.
    """
    if kind not in get_args(ColorFix):
        raise unknown_name("color_fix", kind, get_args(ColorFix))
    return kind


def fix_color(sr: torch.Tensor, lq_up: torch.Tensor, kind: ColorFix) -> torch.Tensor:
    """sr with the colours of lq_up.

    Args:
        sr: restored image.
        lq_up: lq at the same size.
        kind: `adain` gives every channel the mean and standard deviation of lq_up's (1703.06868); `wavelet` takes
            everything coarser than about 32 px from lq_up (StableSR, 2305.07015); `none` changes nothing.
    """
    if kind == "none":
        return sr
    fixed = adain(sr, lq_up) if kind == "adain" else sr - blur(sr) + blur(lq_up)
    return fixed.clamp(0, 1)


def adain(sr: torch.Tensor, lq_up: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation of every channel of every image as in lq_up, not clipped (1703.06868, eq. 8)."""
    (std, mean), (lq_std, lq_mean) = (
        torch.std_mean(image, dim=(-2, -1), keepdim=True, correction=0) for image in (sr, lq_up)
    )
    return (sr - mean) / std.clamp_min(1e-5) * lq_std + lq_mean


def blur(image: torch.Tensor) -> torch.Tensor:
    """The coarse part of StableSR's a trous wavelet: dilated binomial blurs, each twice as wide; borders repeat."""
    channels = image.shape[1]
    kernel = torch.tensor([0.25, 0.5, 0.25], dtype=image.dtype, device=image.device)
    for level in range(_LEVELS):
        gap = 2**level
        for shape, padding in (((1, 1, 3, 1), (0, 0, gap, gap)), ((1, 1, 1, 3), (gap, gap, 0, 0))):
            weight = kernel.view(shape).expand(channels, *shape[1:])
            image = F.conv2d(F.pad(image, padding, mode="replicate"), weight, groups=channels, dilation=gap)
    return image
