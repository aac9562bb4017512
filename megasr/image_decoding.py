"""Image bytes to pixels: the formats people have, and refusal of everything that is not a whole image.

Plain JPEGs (8-bit RGB or grey, upright, whole) are decoded by OpenCV, in half of Pillow's time; all else by Pillow.
Both use libjpeg-turbo and give the same pixels. Which of them decodes depends on the bytes alone.
"""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megasr.errors import MegaSRError, UsageError

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
# Half a GiB of RGB: above every camera's 8-bit frame, below what a loader worker can afford, and exactly where Pillow
# itself refuses, so that both decoders have one limit.
MAX_PIXELS = 2**29 // 3
# Not all that Pillow knows: its EPS reader runs Ghostscript, and nobody trains on PDFs.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
_ORIENTATION = 0x0112
_START, _SCAN, _END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by the kind of colour
_PNG_HEADER_BYTES = 33  # signature and IHDR
_BLOCK_BYTES = 2**20
_ROWS = 256  # of float32 pixels at a time
_MAX_SCANS = 200  # every scan of a progressive JPEG is a pass over all pixels; encoders write about ten


class DecodingError(ValueError):
    """These bytes are not a whole image of an accepted kind; the message says why, in a phrase."""


def decode(content: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Image bytes -> (H, W, 3) uint8 RGB; see megasr.images.decode_image.

    Raises:
        DecodingError: what is wrong with them.
    """
    if not content:
        raise DecodingError("the file is empty")
    size = plain_jpeg_size(content) if content.startswith(_START) else None
    if size is None:
        return _decode_with_pillow(content, max_pixels)
    import cv2

    _check_size(*size, max_pixels)
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise DecodingError(f"damaged JPEG: {error.err}") from error
    if pixels is None or pixels.shape != (*size, 3):
        raise DecodingError("damaged JPEG")
    return pixels


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


def plain_jpeg_size(content: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG that needs nothing but decoding, from its header; None when Pillow has to look at it.

    Raises:
        DecodingError: the end marker is missing, so the file lost its tail. Entropy-coded data cannot contain the
            marker (ITU-T T.81, B.1.1.5), so no truncated file passes; a file that lost its middle does.
    """
    size, plain, place = None, True, 2
    while place + 10 <= len(content) and content[place] == 0xFF:
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4])
        segment = content[place + 4 : place + 2 + length]
        if marker == _SCAN[1]:
            if content.rfind(_END, place) < 0:
                raise DecodingError("truncated: the JPEG has no end marker")
            return size if plain else None
        if marker in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive; the other frames are Pillow's
            size = int.from_bytes(content[place + 5 : place + 7]), int.from_bytes(content[place + 7 : place + 9])
            plain = plain and content[place + 4] == 8 and content[place + 9] in (1, 3) and min(size) > 0
            if marker == 0xC2 and content.count(_SCAN) > _MAX_SCANS:
                raise DecodingError(f"a progressive JPEG of more than {_MAX_SCANS} scans")
        elif marker == 0xE1:
            plain = plain and _is_upright(segment)
        elif marker in (0x01, 0xFF) or (0xC3 <= marker <= 0xDF and marker not in (0xC4, 0xDB, 0xDD)):
            return None
        place += 2 + length
    return None


def _is_upright(segment: bytes) -> bool:
    """True when a JPEG's APP1 segment asks for no rotation."""
    if not segment.startswith(b"Exif\0\0"):
        return b"Orientation" not in segment  # XMP can ask for one, too
    from PIL import Image

    exif = Image.Exif()
    try:
        with _strict_pillow:
            exif.load(segment)
            return exif.get(_ORIENTATION, 1) == 1
    except Exception:
        return False  # damaged: Pillow's path decides what it means


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise DecodingError(f"{width}x{height} px are more than {max_pixels} px")


class _StrictPillow:
    """Pillow as it is by default, whatever was imported: pyiqa, for one, tells it to fill up truncated images.

    Its settings are the whole process's: the first thread to read sets them, the last one puts back what was there.
    """

    def __init__(self) -> None:
        self._lock, self._readers, self._settings = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._readers == 0:
                self._settings.enter_context(_strict_settings())
            self._readers += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._readers -= 1
            if self._readers == 0:
                self._settings.close()


@contextmanager
def _strict_settings() -> Iterator[None]:
    from PIL import ImageFile, PngImagePlugin

    before = ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_CHUNK
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    # One compressed text, or profile, may be as large as all together: programs write their whole workflow into PNGs.
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata and sizes; the size is checked here
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_CHUNK = before


_strict_pillow = _StrictPillow()


@contextmanager
def _pillow_errors() -> Iterator[None]:
    """Strict Pillow, whatever it raises as a DecodingError."""
    from PIL import UnidentifiedImageError

    try:
        with _strict_pillow:
            yield
    except DecodingError:
        raise
    except UnidentifiedImageError as error:
        raise DecodingError(f"not an image ({' '.join(_FORMATS)}), or its header is damaged") from error
    # Its readers raise some fifteen kinds of errors on damaged files, from struct.error to ZeroDivisionError.
    except Exception as error:
        raise DecodingError(str(error) or type(error).__name__) from error


@contextmanager
def opened(content: bytes, max_pixels: int = MAX_PIXELS) -> Iterator[tuple[Image.Image, bool]]:
    """A whole image, loaded by strict Pillow, and whether its colours are deeper than the 8 bits Pillow gives.

    Raises:
        DecodingError: it is not a whole image of an accepted kind, too large, or the block raised anything.
    """
    from PIL import Image

    with _pillow_errors(), Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        _check_size(image.height, image.width, max_pixels)
        deep = _has_deep_colours(image, content)
        # Before anything is asked of it: loading turns a TIFF upright and drops its orientation.
        image.load()
        yield image, deep


def _decode_with_pillow(content: bytes, max_pixels: int) -> np.ndarray:
    with opened(content, max_pixels) as (image, deep):
        return _to_rgb(_decode_deep(content) if deep else image, orientation(image))


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 when there is none or the metadata are damaged: the pixels may still be right."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return found if found in range(1, 9) else 1


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
    width, height, bits, kind = struct.unpack_from(">IIBB", content, 16)
    most = 2 * height * (1 + width * bits * _PNG_CHANNELS.get(kind, 4) // 8) + _BLOCK_BYTES  # interlaced, it is more
    unpacked, unpack = 0, zlib.decompressobj()
    for packed in _packed_pieces(content):
        while packed and unpacked <= most:
            try:
                unpacked += len(unpack.decompress(packed, _BLOCK_BYTES))
            except zlib.error as error:
                raise DecodingError(f"damaged PNG: {error}") from error
            packed = unpack.unconsumed_tail
    if unpacked > most:
        raise DecodingError(f"more data than a PNG of {width}x{height} px has")


def _packed_pieces(content: bytes) -> Iterator[bytes]:
    """What the IDAT chunks of a PNG hold, in small pieces: zlib copies what it leaves of one whenever it is called."""
    place = len(PNG_SIGNATURE)
    while place + 12 <= len(content):
        begin, end = place + 8, place + 8 + int.from_bytes(content[place : place + 4])
        if content[place + 4 : begin] == b"IDAT":
            for piece in range(begin, end, _BLOCK_BYTES):
                yield content[piece : min(piece + _BLOCK_BYTES, end)]
        place = end + 4


def _decode_deep(content: bytes) -> Image.Image:
    """16-bit RGB, with or without alpha -> 8-bit RGB on white."""
    from PIL import Image

    pixels = decode_deep_colours(content)
    if pixels.shape[2] == 4:
        pixels = np.concatenate([_on_white(rows) for rows in np.array_split(pixels, -(-len(pixels) // _ROWS))])
    return Image.fromarray(_to_8_bit(pixels))


def _on_white(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 4) uint16 -> (H, W, 3) uint16."""
    alpha = pixels[..., 3:].astype(np.float32) / 65535
    return (pixels[..., :3] * alpha + 65535 * (1 - alpha)).round().astype(np.uint16)


def _to_8_bit(pixels: np.ndarray) -> np.ndarray:
    """uint16 -> uint8, rounded to nearest, without a float copy of what may be a very large image."""
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
    """Every image file below `folder`, sorted by path.

    Links are followed, to folders too: sets are often put together of them. Hidden files and folders are left out:
    they are other programs' (macOS's ._photo.png, Jupyter's .ipynb_checkpoints).

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
