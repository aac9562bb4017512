"""Photographs in and out: EXIF, ICC, alpha, 16 bit."""

from __future__ import annotations

import io
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from megasr.errors import MegaSRError
from megasr.image_decoding import MAX_PIXELS, DecodingError, check_grey, decode_deep_colours, opened, orientation
from megasr.images import from_integers, resize, to_uint8, to_uint16

if TYPE_CHECKING:
    from PIL import Image

EXIF_IFD, GPS_IFD = 0x8769, 0x8825
# Description, make, model, resolution (3), software, time, artist, copyright: of the photograph, not of the file.
DESCRIBING = (0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298)
_WIDTH, _HEIGHT = 0xA002, 0xA003
_INTEROPERABILITY = 0xA005  # points into the old file


Exif = dict[int, dict[int, Any]]  # 0 (the first directory), EXIF_IFD, GPS_IFD -> tags; none of them empty


def read_exif(image: Image.Image) -> Exif:
    """EXIF of an open image that still holds for sr: no orientation, thumbnail or layout. Damaged EXIF is left out."""
    try:
        exif = image.getexif()
        directories = {0: {tag: exif[tag] for tag in DESCRIBING if tag in exif}}
        for number in (EXIF_IFD, GPS_IFD):
            directories[number] = {t: v for t, v in exif.get_ifd(number).items() if t != _INTEROPERABILITY}
    except Exception:  # the pixels may still be right
        return {}
    return {number: tags for number, tags in directories.items() if tags}


def profile_space(profile: bytes | None) -> str | None:
    """RGB, GRAY, CMYK, ... of an ICC profile; None when there is none or it is damaged."""
    from PIL import ImageCms

    if not profile:
        return None
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()
    except (OSError, ImageCms.PyCMSError):
        return None


_GREY = ("1", "L", "LA", "La", "F", "I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True, eq=False)
class Photograph:
    """One image file, upright.

    Attributes:
        pixels: (h, w, 3) RGB, uint8 or uint16 as the file has it; greyscale is replicated.
        alpha: (h, w) of the same type, None for opaque files. Colours are not multiplied by it.
        is_grey: the file has no colours.
        exif: from read_exif.
        profile: ICC profile of the pixels, None when there is none that fits them.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    is_grey: bool
    exif: Exif
    profile: bytes | None

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
        layers = np.asarray(_from_cmyk(image, profile))
        profile = _srgb_profile() if profile_space(profile) == "CMYK" else None
    else:
        layers = _layers(image) if deep is None else deep
        profile = profile if profile_space(profile) == ("GRAY" if is_grey else "RGB") else None
    layers = np.ascontiguousarray(_upright(layers, turned))
    alpha = layers[..., 3] if layers.shape[2] == 4 else None
    return Photograph(np.ascontiguousarray(layers[..., :3]), alpha, is_grey, read_exif(image), profile)


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


_FORMATS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip
_DEEP, _OPAQUE = ("PNG", "TIFF"), ("JPEG", "BMP")
_OPTIONS: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}}
_MOST_PX = {"JPEG": 65500, "WEBP": 16383}  # of a side: libjpeg's and the format's own limit
_GREY_MODES = (0.299, 0.587, 0.114)  # ITU-R BT.601


def check_fits(path: Path, height: int, width: int) -> None:
    """Check that a format, which the ending of `path` says, can hold sr of this size.

    Raises:
        MegaSRError: a side is too long.
    """
    form = _FORMATS[path.suffix.lower()]
    if max(height, width) > (most := _MOST_PX.get(form, math.inf)):
        raise MegaSRError(f"{path}: {width}x{height} px, but {form} holds at most {most} px a side; try --format png")


def encode(sr: torch.Tensor, original: Photograph, path: Path) -> bytes:
    """sr (3, H, W) in [0, 1] -> the bytes of a file.

    Alpha is the photograph's, enlarged bicubically; JPEG and BMP have none and show the picture on white. 16 bits are
    kept in PNG and TIFF. A grey photograph gives a grey file.

    Args:
        sr: restored from `original`.
        original: the photograph.
        path: its ending says the format.

    Raises:
        MegaSRError: the format cannot hold this image.
    """
    form = _FORMATS[path.suffix.lower()]
    sr = sr.detach().float().cpu()
    height, width = sr.shape[-2:]
    if original.is_grey:
        sr = torch.tensordot(torch.tensor(_GREY_MODES), sr, dims=1)[None]
    if original.alpha is not None:
        alpha = resize(from_integers(original.alpha[..., None])[None], height, width)[0]
        sr = sr * alpha + 1 - alpha if form in _OPAQUE else torch.cat([sr, alpha])
    deep = original.is_deep and form in _DEEP
    pixels = to_uint16(sr) if deep else to_uint8(sr)
    details = original.exif.get(EXIF_IFD, {})
    details.update({tag: side for tag, side in ((_WIDTH, width), (_HEIGHT, height)) if tag in details})
    try:
        if form == "TIFF":
            return _tiff(pixels, original)
        return _deep_png(pixels, original) if deep else _with_pillow(pixels, form, original)
    except (OSError, ValueError, struct.error) as error:
        raise MegaSRError(f"{path}: {form} cannot hold {width}x{height} px: {error}") from error


def _with_pillow(pixels: np.ndarray, form: str, original: Photograph) -> bytes:
    from PIL import Image

    image, options = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels), dict(_OPTIONS.get(form, {}))
    if original.exif:
        options["exif"] = _pillow_exif(original.exif)
    if original.profile and form != "BMP":
        options["icc_profile"] = original.profile
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _pillow_exif(directories: Exif) -> Image.Exif:
    from PIL import Image

    exif = Image.Exif()
    for number, tags in directories.items():
        (exif.get_ifd(number) if number else exif).update(tags)
    return exif


def _deep_png(pixels: np.ndarray, original: Photograph) -> bytes:
    """16-bit PNG by OpenCV, as Pillow writes no 16-bit colours; the chunks of the metadata are added here."""
    import cv2

    # OpenCV has no grey with alpha, and takes BGR.
    order = {1: [0], 2: [0, 0, 0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[pixels.shape[2]]
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(pixels[..., order]))
    content = encoded.tobytes()
    chunks = b""
    if original.profile:
        chunks += _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(original.profile))
    if original.exif:
        chunks += _chunk(b"eXIf", _pillow_exif(original.exif).tobytes()[6:])
    header = 8 + 25  # signature and IHDR, after which both chunks may come (PNG 3rd edition, 5.6)
    return content[:header] + chunks + content[header:]


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _tiff(pixels: np.ndarray, original: Photograph) -> bytes:
    """By tifffile, as Pillow writes no 16-bit colours, and no EXIF into compressed files.

    tifffile writes no EXIF directories: they are appended. Their pointers are first written under the next, unused tag
    numbers, which are then replaced; so the tags stay sorted, as TIFF requires.
    """
    import tifffile
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    channels = pixels.shape[2]
    texts = [(tag, "s", 0, value, True) for tag, value in original.exif.get(0, {}).items() if isinstance(value, str)]
    folders = {number: tags for number, tags in original.exif.items() if number}
    file = io.BytesIO()
    tifffile.imwrite(
        file,
        pixels[..., 0] if channels == 1 else pixels,
        byteorder="<",
        photometric="rgb" if channels >= 3 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        compression="zlib",
        predictor=True,
        iccprofile=original.profile,
        software=False,
        metadata=None,
        extratags=[*texts, *((number + 1, "I", 1, 0, True) for number in folders)],
    )
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        places = {number: tiff.pages.first.tags[number + 1].offset for number in folders}
    for number, tags in folders.items():
        end = file.seek(0, io.SEEK_END)
        end += file.write(b"\0" * (end % 2))  # directories begin at even places (TIFF 6.0, section 2)
        directory = ImageFileDirectory_v2(prefix=b"II", group=number)
        directory.update(tags)
        file.write(directory.tobytes(end))
        file.seek(places[number])
        file.write(struct.pack("<HHII", number, 4, 1, end))  # number, LONG, one of them
    return file.getvalue()
