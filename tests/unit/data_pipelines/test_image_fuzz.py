"""Mutated image files: decoded or refused by one kind of error, never a crash, a hang or a full memory."""

from __future__ import annotations

import io
import re
import resource
import time
from collections import Counter

import cv2
import numpy as np
from PIL import Image

from megasr.errors import MegaSRError
from megasr.images import decode_image
from megasr.rng import numpy_generator

CASES = 600
MAX_PIXELS = 2**20
MAX_SECONDS = 5.0
MAX_GROWTH_MB = 200  # the largest image that is let through takes 4 MB as RGBA


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _originals() -> dict[str, bytes]:
    pixels = cv2.resize(numpy_generator(0, "fuzz").integers(0, 256, (6, 8, 3), dtype=np.uint8), (64, 48))
    image, other = Image.fromarray(pixels), Image.fromarray(255 - pixels)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    deep = pixels.astype(np.uint16) * 257
    frames = {"save_all": True, "append_images": [other]}
    return {
        "jpeg": _encode(image, "JPEG"),
        "progressive jpeg": _encode(image, "JPEG", progressive=True, subsampling=0),
        "rotated jpeg": _encode(image, "JPEG", exif=exif),
        "cmyk jpeg": _encode(image.convert("CMYK"), "JPEG"),
        "png": _encode(image, "PNG"),
        "rotated alpha png": _encode(image.convert("RGBA"), "PNG", exif=exif),
        "palette png": _encode(image.quantize(16), "PNG", transparency=3),
        "16-bit png": cv2.imencode(".png", deep)[1].tobytes(),
        "animated png": _encode(image, "PNG", **frames),
        "webp": _encode(image, "WEBP", exif=exif),
        "lossless webp": _encode(image.convert("RGBA"), "WEBP", lossless=True),
        "animated webp": _encode(image, "WEBP", **frames),
        "tiff": _encode(image, "TIFF", tiffinfo={274: 6}),
        "lzw tiff": _encode(image, "TIFF", compression="tiff_lzw"),
        "jpeg tiff": _encode(image, "TIFF", compression="jpeg"),
        "16-bit tiff": cv2.imencode(".tiff", deep)[1].tobytes(),
        "bmp": _encode(image, "BMP"),
        "palette bmp": _encode(image.quantize(16), "BMP"),
        "gif": _encode(image, "GIF", **frames),
    }


ORIGINALS = _originals()


def mutate(number: int) -> tuple[str, bytes]:
    """(what was done, bytes) of case `number`: one to three mutations of one file, half of them in its header."""
    rng = numpy_generator(0, "case", number)
    kind = list(ORIGINALS)[number % len(ORIGINALS)]
    content = bytearray(ORIGINALS[kind])
    done = []
    for _ in range(rng.integers(1, 4)):
        length = max(len(content), 2)
        start = int(rng.integers(min(length, 120) if rng.random() < 0.5 else length))
        size = int(rng.integers(1, max(2, min(200, length - start))))
        name = str(rng.choice(["flip", "cut", "splice", "zero", "swap", "extreme", "repeat"]))
        done.append(name)
        if name == "flip":
            for place in rng.integers(start, length, int(rng.integers(1, 9))):
                content[place : place + 1] = bytes([int(rng.integers(256))])
        elif name == "cut":
            del content[start:]
        elif name == "splice":
            other = ORIGINALS[str(rng.choice(list(ORIGINALS)))]
            content[start:] = other[int(rng.integers(len(other))) :] if rng.random() < 0.5 else other[start:]
        elif name == "zero":
            content[start : start + size] = bytes(size)
        elif name == "swap":
            block, after = content[start : start + size], content[start + size : start + 2 * size]
            content[start : start + 2 * size] = after + block
        elif name == "extreme":
            content[start : start + 4] = [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"][int(rng.integers(3))]
        else:
            content[start:start] = content[start : start + size] * int(rng.integers(1, 4))
    return f"{kind}: {', '.join(done)}", bytes(content)


def fuzz(cases: int) -> tuple[Counter[str], float, float]:
    """(what came of each case, seconds of the slowest, growth of the peak memory in MB)."""
    for content in ORIGINALS.values():
        decode_image(content, "original")
    before, slowest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0.0
    results: Counter[str] = Counter()
    for number in range(cases):
        done, content = mutate(number)
        start = time.perf_counter()
        try:
            pixels = decode_image(content, "case", MAX_PIXELS)
        except MegaSRError as error:
            reason = str(error).removeprefix("cannot read image case: ")
            results["refused: " + re.sub(r"\d+", "N", reason)[:60]] += 1
        else:
            assert pixels.dtype == np.uint8, done
            assert pixels.ndim == 3, done
            assert pixels.shape[2] == 3, done
            assert 0 < pixels.size <= 3 * MAX_PIXELS, done
            results["decoded, as it was" if content in ORIGINALS.values() else "decoded"] += 1
        slowest = max(slowest, time.perf_counter() - start)
    return results, slowest, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def test_mutated_files_are_decoded_or_refused() -> None:
    results, slowest, growth_mb = fuzz(CASES)
    print(f"\n{CASES} mutated files, slowest {slowest:.3f} s, memory grew by {growth_mb:.0f} MB")
    for result, count in results.most_common():
        print(f"{count:5d}  {result}")
    refused = sum(count for result, count in results.items() if result.startswith("refused"))
    assert sum(results.values()) == CASES
    assert CASES / 4 < refused < CASES, "the mutations do damage, and not only damage"
    assert slowest < MAX_SECONDS
    assert growth_mb < MAX_GROWTH_MB
