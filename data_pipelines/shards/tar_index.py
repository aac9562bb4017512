"""Where every file of a shard lies: names of samples, scanning a tar, and the index file beside it.

Naming is webdataset's: the path of a member up to the first dot of its last component is the key, the rest the field.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import quote, unquote

from megasr.errors import MegaSRError

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
