"""Reads any photograph as what a pipeline takes and what has to be kept for sr: alpha, depth, greyness, metadata."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from megasr.errors import MegaSRError
from megasr.image_decoding import MAX_PIXELS, DecodingError, check_grey, decode_deep_colours, opened, orientation
from megasr.images import from_integers
from megasr.inference.metadata import Metadata, profile_space, read_metadata

if TYPE_CHECKING:
    from PIL import Image

_GREY = ("1", "L", "LA", "La", "F", "I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True, eq=False)
class Photograph:
    """One image file, upright.

    Attributes:
        pixels: (h, w, 3) RGB, uint8 or uint16 as the file has it; greyscale is replicated.
        alpha: (h, w) of the same type, None for opaque files. Colours are not multiplied by it.
        is_grey: the file has no colours.
        metadata: what goes with the pixels.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    is_grey: bool
    metadata: Metadata

    @property
    def is_deep(self) -> bool:
        """16 bits per channel, not 8."""
        return self.pixels.dtype == np.uint16

    def tensor(self) -> torch.Tensor:
        """lq (3, h, w) float32 in [0, 1]."""
        return from_integers(self.pixels)


def read_photograph(path: Path, max_pixels: int = MAX_PIXELS) -> Photograph:
    """Read a JPEG, PNG, WebP, TIFF, BMP or GIF: 8 or 16 bits, grey, palette, CMYK, with alpha, in any orientation.

    Pixels stay in their colour space, which the profile names. CMYK becomes sRGB through its profile, or by the plain
    formula without one. Of an animation the first frame is taken.

    Args:
        path: the file.
        max_pixels: the size, read from the header, above which nothing is decoded; no more than MAX_PIXELS.

    Raises:
        MegaSRError: the file is missing, damaged, too large or not an image.
    """
    try:
        content = path.read_bytes()
        if not content:
            raise DecodingError("the file is empty")
        with opened(content, max_pixels) as (image, deep):
            return _photograph(image, decode_deep_colours(content) if deep else None)
    except OSError as error:
        raise MegaSRError(f"cannot read image {path}: {error.strerror or error}") from error
    except DecodingError as error:
        raise MegaSRError(f"cannot read image {path}: {error}") from error


def _photograph(image: Image.Image, deep: np.ndarray | None) -> Photograph:
    profile = image.info.get("icc_profile")
    is_grey = image.mode in _GREY
    turned = orientation(image)
    if image.mode == "CMYK":
        metadata = read_metadata(image, _srgb_profile() if profile_space(profile) == "CMYK" else None)
        layers = np.asarray(_from_cmyk(image, profile))
    else:
        fits = profile_space(profile) == ("GRAY" if is_grey else "RGB")
        metadata = read_metadata(image, profile if fits else None)
        layers = _layers(image) if deep is None else deep
    layers = np.ascontiguousarray(_upright(layers, turned))
    alpha = layers[..., 3] if layers.shape[2] == 4 else None
    return Photograph(np.ascontiguousarray(layers[..., :3]), alpha, is_grey, metadata)


def _layers(image: Image.Image) -> np.ndarray:
    """(h, w, 3 or 4) RGB or RGBA, uint8, or uint16 for deep greyscale."""
    if image.mode.startswith(("I", "F")):
        grey = check_grey(image)
        if grey.dtype != np.uint16:
            grey = (grey * 65535).round().astype(np.uint16)
        if (clear := image.info.get("transparency")) is None:
            return np.dstack([grey] * 3)
        return np.dstack([grey, grey, grey, np.where(np.asarray(image) == clear, 0, 65535).astype(np.uint16)])
    see_through = image.has_transparency_data
    return np.asarray(image.convert("RGBA" if see_through else "RGB"))


def _from_cmyk(image: Image.Image, profile: bytes | None) -> Image.Image:
    from PIL import ImageCms

    if profile is None or profile_space(profile) != "CMYK":
        return image.convert("RGB")
    converted = ImageCms.profileToProfile(image, io.BytesIO(profile), io.BytesIO(_srgb_profile()), outputMode="RGB")
    assert converted is not None
    return converted


def _srgb_profile() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _upright(layers: np.ndarray, turned: int) -> np.ndarray:
    """Undo an EXIF orientation (EXIF 2.32, 4.6.4 A: 2 mirrored, 3 half a turn, ... 6 and 8 a quarter)."""
    if turned >= 5:
        layers = layers.swapaxes(0, 1)  # 5; the others differ from it as 2, 3 and 4 from 1
    vertical, horizontal = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}.get(
        turned, (1, 1)
    )
    return layers[::vertical, ::horizontal]
