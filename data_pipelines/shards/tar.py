"""tar files: their members, an index of them, and writing them whole."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote, unquote

import numpy as np
import torch
import webdataset

from data_pipelines.shards.manifest import ShardEntry
from megasr.errors import MegaSRError
from megasr.files import open_whole, write_whole
from megasr.image_decoding import MAX_PIXELS, PNG_SIGNATURE, refuse_long_png

INDEX_FORMAT = "megasr-shard-index-1"
IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff")
TAGS_FIELD = "txt"
PARAMS_FIELD = "params.json"  # of a baked variant
_META = re.compile(r"__[^/]*__($|/)")  # what webdataset skips


@dataclass(frozen=True)
class IndexedSample:
    """One sample of a tar.

    Args:
        key: its name, decoded.
        files: field -> (offset of the content in the tar, size), in bytes.
        digests: field -> digest of the content; empty when only headers were read.
    """

    key: str
    files: dict[str, tuple[int, int]]
    digests: dict[str, str] = field(default_factory=dict, compare=False)


def digest(content: bytes) -> str:
    """16 hexadecimal digits that tell damaged content from the original (the beginning of its sha256)."""
    return hashlib.sha256(content).hexdigest()[:16]


def map_field(guidance: str) -> str:
    """The field of a guidance map."""
    return f"map.{guidance}.png"


def image_field(sample: IndexedSample) -> str | None:
    """The field that holds the photograph, None when there is none."""
    return next((name for name in IMAGE_FIELDS if name in sample.files), None)


def encode_key(key: str) -> str:
    """Percent-encode all but ASCII letters, digits, "/", "_" and "-", so that webdataset's first dot ends the key.

    A component that begins with two underscores would be taken for webdataset's own files: the first is encoded too.
    """
    encoded = quote(key, safe="/", errors="surrogateescape").replace(".", "%2E").replace("~", "%7E")
    return re.sub(r"(^|/)__", r"\1%5F_", encoded)


def decode_key(name: str) -> str:
    """The inverse of encode_key."""
    return unquote(name, errors="surrogateescape")


def index_name(shard_name: str) -> str:
    """shard-000000.tar -> shard-000000.index.json."""
    return f"{shard_name.removesuffix('.tar')}.index.json"


def dump_index(samples: Iterable[IndexedSample], shard_name: str, sha256: str = "") -> str:
    """The text of the index file of a shard.

    Args:
        samples: in the order of the tar.
        shard_name: file name of the tar.
        sha256: of the tar, so that a finished shard can be told from a damaged one without a manifest.
    """
    head = {"format": INDEX_FORMAT, "shard": shard_name, "sha256": sha256}
    lines = ",\n".join(json.dumps(_to_row(sample)) for sample in samples)
    return f'{json.dumps(head)[:-1]}, "samples": [\n{lines}\n]}}\n'


def _to_row(sample: IndexedSample) -> list[Any]:
    return [sample.key, {name: [*place, sample.digests.get(name, "")] for name, place in sample.files.items()}]


def load_index(text: str, where: str) -> list[IndexedSample]:
    """The samples of an index file, in the order of the tar.

    Raises:
        MegaSRError: the text at `where` is not an index.
    """
    return load_record(text, where)[0]


def load_record(text: str, where: str) -> tuple[list[IndexedSample], str]:
    """(samples, sha256 of the tar) of an index file.

    Raises:
        MegaSRError: the text at `where` is not an index.
    """
    try:
        content = json.loads(text)
        if content["format"] != INDEX_FORMAT:
            raise MegaSRError(f"{where}: format is {content['format']!r}, this version reads {INDEX_FORMAT!r}")
        return [_from_row(row) for row in content["samples"]], str(content["sha256"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise MegaSRError(f"{where}: not the index of a shard ({error!r}); `megasr shards verify` says more") from error


def _from_row(row: Any) -> IndexedSample:
    key, entries = row
    files, digests = {}, {}
    if not isinstance(key, str) or _points_outside(key):
        raise ValueError(f"{key!r} cannot be the name of a sample")
    for name, (offset, size, content_digest) in entries.items():
        if not all(type(n) is int and n >= 0 for n in (offset, size)):
            raise ValueError(f"wrong row {row!r}")
        files[name] = (offset, size)
        if content_digest:
            digests[name] = content_digest
    return IndexedSample(key, files, digests)


def scan_tar(file: BinaryIO, where: str) -> list[IndexedSample]:
    """The samples of an open, seekable tar. Reads headers only, seeking over contents.

    Directories, webdataset's own files, hidden files and files without a suffix are no samples.

    Raises:
        MegaSRError: `where` is not a tar, is truncated or damaged, has members that are no plain files below the
            top, the same file twice, or a sample whose files are not next to each other.
    """
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            samples = _group(tar, where)
            _check_end(file, tar.offset, where)
    except (tarfile.TarError, EOFError, ValueError, RecursionError) as error:  # of headers that only announce headers
        raise MegaSRError(f"{where}: not a whole tar ({error})") from error
    return samples


def _group(members: Iterable[tarfile.TarInfo], where: str) -> list[IndexedSample]:
    samples: dict[str, IndexedSample] = {}
    last = None
    for member in members:
        if member.size < 0:  # tarfile would go back and read the same header for ever
            raise MegaSRError(f"{where}: {member.name!r} has the size {member.size}")
        if member.isdir() or not (name := _split(member, where)):
            continue
        key, field_name = name
        sample = samples.setdefault(key, IndexedSample(key, {}))
        if field_name in sample.files:
            raise MegaSRError(f"{where}: {member.name!r} is there twice")
        if sample.files and key != last:
            raise MegaSRError(f"{where}: the files of {key!r} are not next to each other")
        sample.files[field_name] = (member.offset_data, member.size)
        last = key
    return list(samples.values())


def _split(member: tarfile.TarInfo, where: str) -> tuple[str, str] | None:
    """(key, field) of a member; None for what is no part of a sample."""
    path = member.name.removeprefix("./")
    if _points_outside(path):
        raise MegaSRError(f"{where}: {member.name!r} points outside the tar")
    if not member.isreg() or member.issparse():
        raise MegaSRError(f"{where}: {member.name!r} is not a plain file")
    folder, slash, base = path.rpartition("/")
    stem, dot, field_name = base.partition(".")
    if _META.match(path) or not stem or not dot:
        return None
    key = decode_key(folder + slash + stem)
    if _points_outside(key):
        raise MegaSRError(f"{where}: {member.name!r} stands for {key!r}, which points outside the tar")
    return key, field_name.lower()


def _points_outside(path: str) -> bool:
    """Keys become names of files where what is made of the samples is written."""
    return path.startswith("/") or ".." in PurePosixPath(path).parts or "\0" in path


def _check_end(file: BinaryIO, offset: int, where: str) -> None:
    """tarfile takes a damaged header, and a file cut between two members, for the end; both would lose samples."""
    file.seek(offset)
    end = file.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE:
        raise MegaSRError(f"{where}: truncated at byte {offset + len(end)}, the end of the archive is missing")
    if end.strip(b"\0"):
        raise MegaSRError(f"{where}: damaged header at byte {offset}")
    if file.read(tarfile.RECORDSIZE).strip(b"\0"):
        raise MegaSRError(f"{where}: something follows the end of the archive at byte {offset}")


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


_BLOCK = 512  # of a tar


def write_tar(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> tuple[ShardEntry, list[IndexedSample]]:
    """Write a tar, then its index; what it holds is returned as finished_tar would.

    Args:
        path: of the tar.
        samples: (key, field -> content) of each.

    Raises:
        MegaSRError: the place cannot be written to; nothing is left behind.
    """
    index = path.with_name(index_name(path.name))
    index.unlink(missing_ok=True)  # it would vouch for a tar that is about to be replaced
    indexed = []
    with open_whole(path) as file:
        hashed = _HashedFile(file)
        with webdataset.TarWriter(hashed, user="", group="", mtime=0, encoder=False) as tar:
            for key, contents in samples:
                files = {}
                for name, content in contents.items():
                    tar.write({"__key__": encode_key(key), name: content})
                    padded = -(-len(content) // _BLOCK) * _BLOCK
                    files[name] = (tar.tarstream.offset - padded, len(content))
                indexed.append(IndexedSample(key, files, {name: digest(c) for name, c in contents.items()}))
    sha256 = hashed.sha256.hexdigest()
    write_whole(index, dump_index(indexed, path.name, sha256).encode(), durable=True)
    return ShardEntry(path.name, len(indexed), hashed.size, sha256), indexed


def finished_tar(path: Path) -> tuple[ShardEntry, list[IndexedSample]] | None:
    """The entry and the samples of a tar that write_tar has finished and nothing has damaged since; else None."""
    index = path.with_name(index_name(path.name))
    try:
        samples, sha256 = load_record(index.read_text(), str(index))
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except (OSError, UnicodeDecodeError, MegaSRError):
        return None
    return (ShardEntry(path.name, len(samples), size, found), samples) if found == sha256 else None


class _HashedFile:
    """A file to write to that knows the sha256 and the size of what went through it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, content: bytes) -> int:
        self.sha256.update(content)
        self.size += len(content)
        return self.file.write(content)
