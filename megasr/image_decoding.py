"""Image bytes to pixels: the formats people have; whatever is not a whole image is refused.

Plain JPEGs (8-bit RGB or grey, upright) are decoded by OpenCV in half of Pillow's time, 16-bit colours by OpenCV
because Pillow cuts them to 8 bits, all else by Pillow. For plain JPEGs both give the same pixels (libjpeg-turbo).
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megasr.errors import MegaSRError, UsageError

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 2**29 // 3  # half a GiB of RGB, and exactly where Pillow itself refuses
# Not all that Pillow knows: its EPS reader runs Ghostscript, and nobody trains on PDFs.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
_ORIENTATION = 0x0112
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER_BYTES = 33  # signature and IHDR
_MAX_SCANS = 200  # every scan of a progressive JPEG is a pass over all pixels; encoders write about ten
warnings.filterwarnings("ignore", module=r"PIL\.")  # of metadata and sizes; the size is checked here


class DecodingError(ValueError):
    """These bytes are not a whole image of an accepted kind; the message says why, in a phrase."""


def decode(content: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Image bytes -> (H, W, 3) uint8 RGB; see megasr.images.decode_image.

    Raises:
        DecodingError: what is wrong with them.
    """
    if not content:
        raise DecodingError("the file is empty")
    with _header(content, max_pixels) as image:
        if _is_plain_jpeg(image, content):
            return _decode_plain_jpeg(content, image.height, image.width)
        deep = _has_deep_colours(image, content)
        image.load()  # before the orientation is asked for: it turns a TIFF upright and drops the tag
        return _to_rgb(_deep_to_8_bit(content) if deep else image, orientation(image))


@contextmanager
def opened(content: bytes, max_pixels: int = MAX_PIXELS) -> Iterator[tuple[Image.Image, bool]]:
    """A whole image, loaded by Pillow, and whether its colours are deeper than the 8 bits Pillow gives.

    Raises:
        DecodingError: it is not a whole image of an accepted kind, too large, or the block raised anything.
    """
    with _header(content, max_pixels) as image:
        _is_plain_jpeg(image, content)  # refuses one that lost its end
        deep = _has_deep_colours(image, content)
        image.load()
        yield image, deep


def size_from_header(path: Path) -> tuple[int, int]:
    """(height, width) that decoding the file would give, without decoding it (but for TIFFs).

    Raises:
        DecodingError: it is not an image.
        OSError: it cannot be opened.
    """
    from PIL import Image

    with path.open("rb") as file, _pillow_errors(), Image.open(file, formats=_FORMATS) as image:
        if image.format != "TIFF":  # Pillow's versions differ in whether a TIFF's size is that of the upright image
            size = image.height, image.width
            return size if orientation(image) < 5 else size[::-1]
    height, width, _ = decode(path.read_bytes()).shape
    return height, width


@contextmanager
def _header(content: bytes, max_pixels: int) -> Iterator[Image.Image]:
    from PIL import Image

    with _pillow_errors(), Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        if image.height * image.width > max_pixels:
            raise DecodingError(f"{image.width}x{image.height} px are more than {max_pixels} px")
        yield image


@contextmanager
def _pillow_errors() -> Iterator[None]:
    """Strict Pillow, whatever it raises as a DecodingError."""
    from PIL import ImageFile, PngImagePlugin, UnidentifiedImageError

    ImageFile.LOAD_TRUNCATED_IMAGES = False  # pyiqa, when it is imported, lets Pillow fill up truncated images
    # One compressed text, or profile, may be as large as all together: programs write their whole workflow into PNGs.
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
    try:
        yield
    except DecodingError:
        raise
    except UnidentifiedImageError as error:
        raise DecodingError(f"not an image ({' '.join(_FORMATS)}), or its header is damaged") from error
    # Its readers raise some fifteen kinds of errors on damaged files, from struct.error to ZeroDivisionError.
    except Exception as error:
        raise DecodingError(str(error) or type(error).__name__) from error


def _is_plain_jpeg(image: Image.Image, content: bytes) -> bool:
    """Whether an opened JPEG needs nothing but decoding.

    Raises:
        DecodingError: the end marker is missing, so the file lost its tail. Entropy-coded data cannot contain the
            marker (ITU-T T.81, B.1.1.5), so no truncated file passes; a file that lost its middle does.
    """
    if image.format != "JPEG":
        return False
    scan = image.fp.tell()  # type: ignore[attr-defined]  # Pillow has read up to the first scan
    if content.rfind(b"\xff\xd9", scan) < 0:
        raise DecodingError("truncated: the JPEG has no end marker")
    if "progressive" in image.info and content.count(b"\xff\xda", scan) > _MAX_SCANS:
        raise DecodingError(f"a progressive JPEG of more than {_MAX_SCANS} scans")
    return image.mode in ("L", "RGB") and orientation(image) == 1


def _decode_plain_jpeg(content: bytes, height: int, width: int) -> np.ndarray:
    import cv2

    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None or pixels.shape != (height, width, 3):
        raise DecodingError("damaged JPEG")
    return pixels


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 when there is none or the metadata are damaged: the pixels may still be right."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return value if value in range(1, 9) else 1


def _has_deep_colours(image: Image.Image, content: bytes) -> bool:
    """True for 16 bits per channel in more than one channel: Pillow cuts them off to 8 where it should round.

    Raises:
        DecodingError: such a TIFF in a layout of which neither decoder makes the right pixels.
    """
    if image.format == "PNG":
        return content[24] == 16 and content[25] != 0
    if image.format != "TIFF" or max(_tiff_tag(image, 258), default=1) <= 8:  # 258: bits per sample
        return False
    colours, planes, extra = (_tiff_tag(image, number) for number in (262, 284, 338))
    usual = colours in ((1,), (2,)) and planes in ((), (1,)) and extra in ((), (2,))
    if not usual or image.mode not in ("RGB", "RGBA", "I;16", "I;16B", "F"):
        raise DecodingError(f"a TIFF of more than 8 bits in an unusual layout ({image.mode})")
    return image.mode in ("RGB", "RGBA")


def _tiff_tag(image: Image.Image, number: int) -> tuple[int, ...]:
    value = image.tag_v2.get(number, ())  # type: ignore[attr-defined]
    return value if isinstance(value, tuple) else (value,)


def decode_deep_colours(content: bytes) -> np.ndarray:
    """16-bit colours -> (H, W, 3 or 4) uint16 RGB or RGBA as stored. Pillow has read it already: it is whole.

    Raises:
        DecodingError: OpenCV makes something else of it.
    """
    import cv2

    refuse_long_png(content)
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        raise DecodingError("an unusual kind of 16-bit image")
    return pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]


def refuse_long_png(content: bytes) -> None:
    """Before OpenCV decodes a PNG: libpng unpacks whatever follows the last row, gigabytes of a megabyte.

    Raises:
        DecodingError: more than the rows is packed, or the header is cut off.
    """
    if not content.startswith(PNG_SIGNATURE):
        return
    if len(content) < _PNG_HEADER_BYTES:
        raise DecodingError("damaged PNG: its header is cut off")
    width, height, bits = struct.unpack_from(">IIB", content, 16)
    most = 2 * height * (1 + width * bits // 2) + 2**20  # four channels; interlaced, it is more
    packed, place = [], len(PNG_SIGNATURE)
    while place + 12 <= len(content):
        end = place + 8 + int.from_bytes(content[place : place + 4])
        if content[place + 4 : place + 8] == b"IDAT":
            packed.append(content[place + 8 : end])
        place = end + 4
    try:
        if len(zlib.decompressobj().decompress(b"".join(packed), most + 1)) > most:
            raise DecodingError(f"more data than a PNG of {width}x{height} px has")
    except zlib.error as error:
        raise DecodingError(f"damaged PNG: {error}") from error


def _deep_to_8_bit(content: bytes) -> Image.Image:
    """16-bit RGB, with or without alpha -> 8-bit RGB on white."""
    from PIL import Image

    pixels = decode_deep_colours(content)
    if pixels.shape[2] == 4:
        alpha = pixels[..., 3:].astype(np.float32) / 65535
        pixels = (pixels[..., :3] * alpha + 65535 * (1 - alpha)).round().astype(np.uint16)
    return Image.fromarray(_to_8_bit(pixels))


def _to_8_bit(pixels: np.ndarray) -> np.ndarray:
    """uint16 -> uint8, rounded to nearest."""
    import cv2

    return cv2.convertScaleAbs(pixels, alpha=1 / 257)


def _to_rgb(image: Image.Image, turned: int) -> np.ndarray:
    from PIL import Image, ImageOps

    if image.mode.startswith(("I", "F")):
        pixels = _grey_to_uint8(image)
        pixels[np.asarray(image) == image.info.get("transparency", -1)] = 255
        image = Image.fromarray(pixels)
    elif "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    if image.mode != "RGB":  # else it would be a copy
        image = image.convert("RGB")
    if turned != 1:
        image.getexif()[_ORIENTATION] = turned
        image = ImageOps.exif_transpose(image)
    return np.array(image)


def _grey_to_uint8(image: Image.Image) -> np.ndarray:
    if image.mode == "F":
        return (check_grey(image) * 255).round().astype(np.uint8)
    return _to_8_bit(check_grey(image))


def check_grey(image: Image.Image) -> np.ndarray:
    """An image of mode I;16, I or F -> (H, W), uint16 or float in [0, 1].

    Raises:
        DecodingError: its values are neither.
    """
    grey = np.asarray(image)
    # Before Pillow 11 a 16-bit PNG is of mode I, which is that of 32-bit TIFFs, too.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return grey.astype(np.uint16)
    if image.mode == "F" and grey.min() >= 0 and grey.max() <= 1:
        return grey
    raise DecodingError(f"greyscale of mode {image.mode} and range {grey.min():g} to {grey.max():g}: what is white?")


def list_images(folder: str | Path) -> list[Path]:
    """Every image file below `folder`, sorted by path. Links are followed; hidden files and folders are left out.

    Raises:
        UsageError: the folder does not exist or holds no image.
        MegaSRError: it, or a folder in it, cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder" + (f" in {Path.cwd()}" if not folder.is_absolute() else ""))
    try:
        paths = sorted(_images_below(folder, ()))
    except OSError as error:
        raise MegaSRError(f"cannot read {error.filename}: {error.strerror or error}") from error
    if not paths:
        raise UsageError(f"{folder}: holds no image ({' '.join(IMAGE_SUFFIXES)})")
    return paths


def _images_below(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    """The images of a folder and those in it; `above` are the real paths on the way to it."""
    if (here := os.path.realpath(folder)) in above:
        return  # a link to a folder that it lies in
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _images_below(folder / entry.name, (*above, here))
            # A link that leads nowhere is an image that cannot be read, not one that is not there.
            elif entry.name.lower().endswith(IMAGE_SUFFIXES) and (entry.is_file() or entry.is_symlink()):
                yield folder / entry.name
