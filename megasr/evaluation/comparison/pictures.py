"""The pictures of the comparison page: checked, encoded without loss unless asked otherwise, and written one by one."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megasr.errors import UsageError
from megasr.images import read_image, read_size

if TYPE_CHECKING:
    from PIL import Image

_ASPECT_TOLERANCE = 0.05  # lq of odd sizes is rounded; more than that is another crop
_LOSSLESS_EFFORT = {"method": 3, "quality": 50}  # 1 % larger than the best, in a quarter of its time


@dataclass(frozen=True)
class Source:
    """One column of pictures: lq, the sr of a method, or hq.

    Attributes:
        label: its name on the page.
        paths: key of the image -> file.
        method: number of the method, None for lq and hq.
        is_lq: shown enlarged to the size of the others.
    """

    label: str
    paths: Mapping[str, Path]
    method: int | None = None
    is_lq: bool = False


def sizes(sources: Sequence[Source], keys: Sequence[str]) -> list[tuple[int, int]]:
    """(height, width) of every image, from the headers of its files.

    Raises:
        UsageError: pictures of one image differ in size, or its lq is larger or of another shape.
        MegaSRError: a file is missing or not an image.
    """
    found = []
    full = [source for source in sources if not source.is_lq]
    for key in keys:
        size = read_size(full[0].paths[key])
        for source in full[1:]:
            if (other := read_size(source.paths[key])) != size:
                raise UsageError(
                    f"{key!r} is {_text(size)} in {full[0].label} but {_text(other)} in {source.label}: "
                    "only pictures of one size can be laid over each other"
                )
        for source in (source for source in sources if source.is_lq):
            _check_lq(key, read_size(source.paths[key]), size)
        found.append(size)
    return found


def _check_lq(key: str, lq: tuple[int, int], size: tuple[int, int]) -> None:
    if lq[0] > size[0] or lq[1] > size[1]:
        raise UsageError(
            f"lq of {key!r} is {_text(lq)}, larger than its sr of {_text(size)}: is --lq the right folder?"
        )
    if abs(lq[0] * size[1] / (lq[1] * size[0]) - 1) > _ASPECT_TOLERANCE:
        raise UsageError(f"lq of {key!r} is {_text(lq)}, its sr {_text(size)}: another shape, so not the same crop")


def _text(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]} px"


def encode(pixels: np.ndarray, webp_quality: int | None = None) -> tuple[str, bytes]:
    """(H, W, 3) uint8 RGB -> (media type, file): the smaller of lossless WebP and PNG, or lossy WebP of a quality."""
    from PIL import Image

    image = Image.fromarray(pixels)
    if max(pixels.shape) > 16383:  # what WebP can hold
        return "image/png", _save(image, "PNG")
    if webp_quality is not None:
        return "image/webp", _save(image, "WEBP", quality=webp_quality)
    webp = _save(image, "WEBP", lossless=True, **_LOSSLESS_EFFORT)
    png = _save(image, "PNG")
    return ("image/webp", webp) if len(webp) <= len(png) else ("image/png", png)


def _save(image: Image.Image, form: str, **options: Any) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, format=form, **options)
    return encoded.getvalue()


def blocks(
    sources: Sequence[Source],
    keys: Sequence[str],
    webp_quality: int | None,
    progress: Callable[[str, int, int], None],
) -> Iterator[bytes]:
    """Every picture as an inert element of HTML, those of one image after another. One image is in memory at a time.

    Args:
        sources: the columns.
        keys: the images.
        webp_quality: 0 to 100 for lossy pictures, None for lossless ones.
        progress: called with what is done, how many of how many.

    Raises:
        MegaSRError: a file cannot be decoded.
    """
    with ThreadPoolExecutor(min(len(sources), os.cpu_count() or 1)) as pool:
        for number, key in enumerate(keys):
            # Reading stays in this thread: the decoder changes a global setting of Pillow for its time.
            pixels = [read_image(source.paths[key]) for source in sources]
            encoded = pool.map(partial(encode, webp_quality=webp_quality), pixels)
            for column, (media_type, content) in enumerate(encoded):
                opening = f'<script type="text/plain" id="picture-{number}-{column}" data-type="{media_type}">'
                yield opening.encode() + base64.b64encode(content) + b"</script>\n"
            progress("pictures", number + 1, len(keys))
