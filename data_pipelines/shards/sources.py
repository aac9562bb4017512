"""The files that become a sample: an image, its tags and its maps. Found, read, judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.filters import ImageFilter
from data_pipelines.folder import index_folder, read_tags
from data_pipelines.samples import UnusableSampleError
from data_pipelines.shards.members import decode_map
from data_pipelines.shards.tar_index import TAGS_FIELD, digest, map_field
from megasr.errors import MegaSRError, UsageError
from megasr.images import decode_image


@dataclass(frozen=True)
class Verdict:
    """What became of one image.

    Args:
        key: which image.
        digests: field -> digest of its content, the image first; empty when it is dropped.
        size: bytes that were read.
        reason: why it is dropped, the same phrase for all images with this trouble; "" when it is kept.
        detail: more about the reason.
    """

    key: str
    digests: dict[str, str]
    size: int
    reason: str = ""
    detail: str = ""


def find_images(folders: tuple[str, ...]) -> dict[str, Path]:
    """Key -> file of every image; with several folders a key begins with the folder's name.

    Raises:
        UsageError: a folder is missing or empty, or two files would have one key.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        prefix = f"{Path(folder).resolve().name}/" if len(folders) > 1 else ""
        for key, path in index_folder(folder).items():
            if prefix + key in found:
                raise UsageError(f"{found[prefix + key]} and {path} would both be called {prefix + key!r}; rename one")
            found[prefix + key] = path
    return found


def read_fields(key: str, path: Path, maps: Mapping[str, str]) -> dict[str, bytes]:
    """Field -> content of one sample: the image's file as it is, its tags if it has any, its maps.

    Args:
        key: of the sample.
        path: of the image.
        maps: guidance name -> folder that holds KEY.png.

    Raises:
        UnusableSampleError: a file cannot be read.
    """
    contents = {path.suffix[1:].lower(): _read(key, path, "image")}
    try:
        tags = read_tags(path)
    except (MegaSRError, OSError) as error:
        raise UnusableSampleError(key, "unreadable tags", str(error)) from error
    if tags:
        contents[TAGS_FIELD] = tags.encode()
    for name, folder in sorted(maps.items()):
        contents[map_field(name)] = _read(key, Path(folder) / f"{key}.png", f"{name} map")
    return contents


def _read(key: str, path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UnusableSampleError(key, f"no {what}", str(path)) from error
    except OSError as error:
        raise UnusableSampleError(key, f"unreadable {what}", str(error)) from error


def judge(maps: Mapping[str, str], keep: ImageFilter, image: tuple[str, Path]) -> Verdict:
    """Read and decode all files of an image, ask the filter, hash what is kept."""
    key, path = image
    size = 0
    try:
        contents = read_fields(key, path, maps)
        size = sum(map(len, contents.values()))
        _check_pixels(key, path, contents, maps, keep)
    except UnusableSampleError as error:
        detail = str(error).removeprefix(f"{key}: {error.reason}")[2:-1]
        return Verdict(key, {}, size, error.reason, detail)
    return Verdict(key, {name: digest(content) for name, content in contents.items()}, size)


def _check_pixels(
    key: str, path: Path, contents: Mapping[str, bytes], maps: Mapping[str, str], keep: ImageFilter
) -> None:
    hq = _decode(key, next(iter(contents.values())), str(path), "image")
    if reason := keep.reason(hq):
        raise UnusableSampleError(key, reason, damaged=False)
    height, width = hq.shape[:2]
    for name in maps:
        try:
            decode_map(contents[map_field(name)], height, width)
        except ValueError as error:
            raise UnusableSampleError(key, f"unusable {name} map", str(error)) from error


def _decode(key: str, content: bytes, where: str, what: str) -> np.ndarray:
    try:
        return decode_image(content, where)
    except MegaSRError as error:
        raise UnusableSampleError(key, f"damaged {what}", str(error)) from error
