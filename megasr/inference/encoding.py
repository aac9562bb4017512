"""Encodes sr as its photograph was: format by the file's ending, greyness, alpha, 16 bits where it can, metadata."""

from __future__ import annotations

import io
import math
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from megasr.errors import MegaSRError
from megasr.images import from_integers, resize, to_uint8, to_uint16
from megasr.inference.metadata import Metadata, sized

if TYPE_CHECKING:
    from megasr.inference.photograph import Photograph

_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
_DEEP, _OPAQUE = ("PNG", "TIFF"), ("JPEG", "BMP")
# Nearly without loss, and full resolution of the colours: sr is looked at closely.
_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
}
_MOST_PX = {"JPEG": 65500, "WEBP": 16383}  # of a side: libjpeg's and the format's own limit
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601


def check_fits(path: Path, height: int, width: int) -> None:
    """Refuse before it is restored what the format cannot hold.

    Args:
        path: its ending says the format.
        height: of sr.
        width: of sr.

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
        sr: restored from the photograph.
        original: the photograph.
        path: its ending says the format.

    Raises:
        MegaSRError: the format cannot hold this image.
    """
    form = _FORMATS[path.suffix.lower()]
    sr = sr.detach().float().cpu()
    height, width = sr.shape[-2:]
    if original.is_grey:
        sr = torch.tensordot(torch.tensor(_GREY), sr, dims=1)[None]
    if original.alpha is not None:
        alpha = resize(from_integers(original.alpha[..., None])[None], height, width)[0]
        sr = sr * alpha + 1 - alpha if form in _OPAQUE else torch.cat([sr, alpha])
    deep = original.is_deep and form in _DEEP
    pixels = to_uint16(sr) if deep else to_uint8(sr)
    try:
        if form == "TIFF":
            return _tiff(pixels, original.metadata)
        if deep:
            return _deep_png(pixels, original.metadata)
        return _with_pillow(pixels, form, original.metadata)
    except (OSError, ValueError, struct.error) as error:
        raise MegaSRError(f"{path}: {form} cannot hold {width}x{height} px: {error}") from error


def _with_pillow(pixels: np.ndarray, form: str, metadata: Metadata) -> bytes:
    from PIL import Image

    height, width, channels = pixels.shape
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    exif, options = metadata.exif(width, height), dict(_OPTIONS.get(form, {}))
    if exif:
        options["exif"] = exif
    if metadata.profile and form != "BMP":
        options["icc_profile"] = metadata.profile
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _deep_png(pixels: np.ndarray, metadata: Metadata) -> bytes:
    """16 bits, which Pillow cannot write in colour: by OpenCV, which writes no metadata."""
    import cv2

    height, width, channels = pixels.shape
    if channels == 2:  # OpenCV has no grey with alpha
        pixels = pixels[..., [0, 0, 0, 1]]
    order = {1: [0], 2: [2, 1, 0, 3], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(pixels[..., order]))
    content = encoded.tobytes()
    chunks = b""
    if metadata.profile:
        chunks += _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.profile))
    if exif := metadata.exif(width, height):
        chunks += _chunk(b"eXIf", exif.tobytes()[6:])
    header = 8 + 25  # the signature and IHDR, behind which both chunks may stand (PNG 3rd edition, 5.6)
    return content[:header] + chunks + content[header:]


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _tiff(pixels: np.ndarray, metadata: Metadata) -> bytes:
    """By tifffile, as Pillow has no 16-bit colours and loses EXIF where it compresses.

    tifffile writes no directories of EXIF: they are appended. What holds their places is written under the next
    numbers, which nothing uses, and gets its own afterwards; so the tags stay sorted, as they must be.
    """
    import tifffile
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    height, width, channels = pixels.shape
    texts = [(tag, "s", 0, value, True) for tag, value in metadata.tags.items() if isinstance(value, str)]
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
        iccprofile=metadata.profile,
        software=False,
        metadata=None,
        extratags=[*texts, *((number + 1, "I", 1, 0, True) for number in metadata.folders)],
    )
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        places = {number: tiff.pages.first.tags[number + 1].offset for number in metadata.folders}
    for number, tags in metadata.folders.items():
        end = file.seek(0, io.SEEK_END)
        end += file.write(b"\0" * (end % 2))  # directories begin at even places (TIFF 6.0, section 2)
        directory = ImageFileDirectory_v2(prefix=b"II", group=number)
        directory.update(sized(tags, width, height))
        file.write(directory.tobytes(end))
        file.seek(places[number])
        file.write(struct.pack("<HHII", number, 4, 1, end))  # number, LONG, one of them
    return file.getvalue()
