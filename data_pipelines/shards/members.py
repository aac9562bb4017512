"""The files of one sample inside a tar: where they lie, and whether what lies there is this very file, whole."""

from __future__ import annotations

import struct
import tarfile
from typing import NamedTuple

import numpy as np
import torch

from data_pipelines.shards.tar_index import IndexedSample, decode_key, digest, encode_key
from megasr.errors import MegaSRError
from megasr.image_decoding import MAX_PIXELS, PNG_SIGNATURE, refuse_long_png

HEADER_BYTES = tarfile.BLOCKSIZE
_NAME_BYTES = 100  # what a plain tar header has room for
_GAP_BYTES = 2**16  # between the files of a sample: their headers, also those of long names
_MOST_FILES = 1000  # of one sample
_MOST_BYTES = 2**31  # of one sample: the largest image that is decoded, 16 bits deep and not compressed, has half


class DamageError(MegaSRError):
    """Why a sample cannot be read: the reason that it is counted by, and a detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason} ({detail})")
        self.reason, self.detail = reason, detail


class Member(NamedTuple):
    """Where a file of a sample lies in its tar, and the digest of its content ("" when unknown)."""

    field: str
    offset: int
    size: int
    digest: str


def members_of(sample: IndexedSample) -> tuple[Member, ...]:
    """The files of a sample in the order of the tar."""
    found = (Member(name, *place, sample.digests.get(name, "")) for name, place in sample.files.items())
    return tuple(sorted(found, key=lambda member: member.offset))


def parts_of(members: tuple[Member, ...], tar_bytes: int) -> list[tuple[int, int]]:
    """(offset, size) of the header and of the content of every member.

    Raises:
        DamageError: they are not next to each other inside a tar of tar_bytes.
    """
    if not members:
        raise DamageError("wrong index", "a sample without files")
    begin, end = members[0].offset - HEADER_BYTES, max(member.offset + member.size for member in members)
    if len(members) > _MOST_FILES or sum(member.size for member in members) > _MOST_BYTES:
        raise DamageError("wrong index", f"{len(members)} files of {sum(m.size for m in members)} bytes in one sample")
    if begin < 0 or end > tar_bytes or end - begin > sum(m.size for m in members) + len(members) * _GAP_BYTES:
        raise DamageError("wrong index", f"bytes {begin} to {end} of a tar of {tar_bytes}")
    return [part for m in members for part in ((m.offset - HEADER_BYTES, HEADER_BYTES), (m.offset, m.size))]


def check(key: str, member: Member, header: bytes, content: bytes) -> None:
    """Check that the bytes at a member's place are this member.

    Raises:
        DamageError: another file lies there, or its content is not what was packed.
    """
    is_packed = not member.digest or digest(content) == member.digest
    if is_packed and member.digest and header.startswith(f"{encode_key(key)}.{member.field}\0".encode()):
        return  # reading the header properly takes as long as the digest
    try:
        found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise DamageError("wrong index", f"no header of {member.field!r} at byte {member.offset}: {error}") from error
    if found.size != member.size or not _is_named(found.name, f"{key}.{member.field}"):
        raise DamageError("wrong index", f"{found.name!r} lies where {member.field!r} should be")
    if not is_packed:
        raise DamageError("damaged content", f"{member.field!r} is not what was packed")


def _is_named(found: str, expected: str) -> bool:
    path = found.removeprefix("./")
    shortened = len(path.encode("utf-8", "surrogateescape")) >= _NAME_BYTES  # the whole name is in a header before
    # Python's tarfile puts "?" for what is not ASCII, and the whole name in a header before.
    return shortened or expected.lower() in (decode_key(path).lower(), path.lower()) or path == _in_ascii(expected)


def _in_ascii(name: str) -> str:
    return name.encode("ascii", "replace").decode()


def decode_map(content: bytes, height: int | None = None, width: int | None = None) -> torch.Tensor:
    """A guidance map: 8- or 16-bit PNG, grey or RGB, of the image's size -> (C, H, W) float32 in [0, 1], C = 1 or 3.

    Args:
        content: of the file.
        height: of the image; None takes any.
        width: of the image; None takes any.

    Raises:
        ValueError: it is something else.
    """
    import cv2

    if content[:8] != PNG_SIGNATURE or len(content) < 24:
        raise ValueError("not a PNG")
    found_width, found_height = struct.unpack(">II", content[16:24])
    if found_width != (width or found_width) or found_height != (height or found_height):
        raise ValueError(f"{found_width}x{found_height} px, the image has {width}x{height}")
    if found_width * found_height > MAX_PIXELS:
        raise ValueError(f"{found_width}x{found_height} px are more than {MAX_PIXELS} px")
    refuse_long_png(content)
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise ValueError("cannot be decoded as grey or RGB")
    largest = np.iinfo(pixels.dtype).max
    channels_last = pixels[..., None] if pixels.ndim == 2 else pixels[..., ::-1]
    return torch.from_numpy(np.ascontiguousarray(channels_last.transpose(2, 0, 1)).astype(np.float32) / largest)
