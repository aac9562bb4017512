"""The fields of a sample: their names, and their contents as files and as arrays."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping

import cv2
import numpy as np
import torch

from data_pipelines.samples import Sample, UnusableSampleError
from megasr.errors import MegaSRError
from megasr.guidance.registry import is_made_from_lq
from megasr.images import decode_image, from_integers

IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff")
TAGS_FIELD = "txt"
LQ_FIELD, TOKENS_FIELD, LATENTS_FIELD, PARAMS_FIELD = "lq.png", "tokens.npy", "latents.npy", "params.json"  # baked


def map_field(guidance: str) -> str:
    """The field of a guidance map."""
    return f"map.{guidance}.png"


def image_field(fields: Mapping[str, object]) -> str | None:
    """The field that holds the photograph, None when there is none."""
    return next((name for name in IMAGE_FIELDS if name in fields), None)


def decode_sample(key: str, files: Mapping[str, bytes]) -> Sample:
    """The image, tags and maps of a sample. Maps beside hq were made from hq: those of types made from lq are left out.

    Raises:
        UnusableSampleError: there is no image, or a field cannot be decoded.
    """
    field = image_field(files)
    if field is None:
        raise UnusableSampleError(key, "no image", f"only {', '.join(files)}")
    reason = "unreadable image"
    try:
        hq = decode_image(files[field], key)
        tags = decode_tags(key, files)
        reason = "unreadable map"
        names = [match[1] for name in files if (match := re.fullmatch(r"map\.(.+)\.png", name))]
        maps = {n: decode_map(files[map_field(n)], *hq.shape[:2]) for n in names if not is_made_from_lq(n)}
    except UnusableSampleError:
        raise
    except (MegaSRError, ValueError) as error:
        raise UnusableSampleError(key, reason, str(error)) from error
    return Sample(key, hq, tags, maps)


def decode_tags(key: str, files: Mapping[str, bytes]) -> str:
    """The tags of a sample, "" where it has none.

    Raises:
        UnusableSampleError: they are not UTF-8.
    """
    try:
        return files.get(TAGS_FIELD, b"").decode().strip()
    except UnicodeDecodeError as error:
        raise UnusableSampleError(key, "unreadable tags", str(error)) from error


def decode_map(content: bytes, height: int | None = None, width: int | None = None) -> torch.Tensor:
    """A guidance map: 8- or 16-bit PNG, grey or RGB, of the image's size -> (C, H, W) float32 in [0, 1], C = 1 or 3.

    Raises:
        ValueError: it is something else, or of another height or width (None takes any).
    """
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:  # empty, or too large
        raise ValueError(f"cannot be decoded: {error.err}") from error
    if pixels is None or pixels.dtype not in (np.uint8, np.uint16) or pixels.shape[2:] not in ((), (3,)):
        raise ValueError("not an 8- or 16-bit PNG, grey or RGB")
    rows, columns = pixels.shape[:2]
    if (rows, columns) != (height or rows, width or columns):
        raise ValueError(f"{columns}x{rows} px, the image has {width}x{height}")
    return from_integers(pixels[..., None] if pixels.ndim == 2 else pixels[..., ::-1])


def encode_png(image: np.ndarray) -> bytes:
    """(H, W), (H, W, 1) or (H, W, 3) uint8 RGB -> PNG."""
    channels = image[..., ::-1] if image.ndim == 3 and image.shape[2] == 3 else image
    done, encoded = cv2.imencode(".png", np.ascontiguousarray(channels), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    assert done
    return encoded.tobytes()


def dump_array(values: torch.Tensor) -> bytes:
    """A tensor as an .npy file."""
    content = io.BytesIO()
    np.save(content, values.numpy())
    return content.getvalue()


def load_array(content: bytes) -> torch.Tensor:
    """The tensor of an .npy file.

    Raises:
        ValueError: it is none.
    """
    try:
        return torch.from_numpy(np.load(io.BytesIO(content)))
    except (TypeError, MemoryError, EOFError) as error:  # an archive, texts, or a header that claims terabytes
        raise ValueError(f"no array of numbers ({error})") from error
