"""Shards: webdataset tars, each with an index that says where every sample lies, so that any can be read at once."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote, unquote

import webdataset

from data_pipelines.shards.manifest import ShardEntry
from megasr.errors import MegaSRError
from megasr.files import file_sha256, open_whole, write_whole

INDEX_FORMAT = "megasr-shard-index-1"
_NOT_AN_INDEX = (ValueError, TypeError, KeyError, AttributeError, RecursionError)  # what parsing one raises
_META = re.compile(r"__[^/]*__($|/)")  # what webdataset skips


class Member(NamedTuple):
    """Where the content of a field lies in its tar, in bytes, and its digest ("" when unknown)."""

    offset: int
    size: int
    digest: str = ""


@dataclass(frozen=True)
class IndexedSample:
    """One sample of a tar: its key, decoded, and its files by field."""

    key: str
    files: dict[str, Member]


Samples = Sequence[IndexedSample]


def digest(content: bytes) -> str:
    """The first 16 hexadecimal digits of the sha256, which tell damaged content from the original."""
    return hashlib.sha256(content).hexdigest()[:16]


def encode_key(key: str) -> str:
    """Percent-encode all but ASCII letters, digits, "/", "_" and "-", so that webdataset's first dot ends the key.

    Two leading underscores mark webdataset's own files: the first of them is encoded too.
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
    """The text of a shard's index. The tar's sha256 tells a finished shard from a damaged one without a manifest."""
    rows = ",\n".join(json.dumps([sample.key, sample.files]) for sample in samples)
    head = {"format": INDEX_FORMAT, "shard": shard_name, "sha256": sha256, "digest": digest(rows.encode())}
    return f'{json.dumps(head)[:-1]}, "samples": [\n{rows}\n]}}\n'


def load_index(text: str, where: str) -> tuple[list[IndexedSample], str]:
    """(samples in the order of the tar, sha256 of the tar) of the index file at `where`.

    Raises:
        MegaSRError: the text is not an index, is damaged, or lists a sample twice.
    """
    try:
        content = json.loads(text)
        if content["format"] != INDEX_FORMAT:
            raise ValueError(f"format is {content['format']!r}, this version reads {INDEX_FORMAT!r}")
        rows = _split_index(text)[1]
        if content.get("digest", digest(rows.encode())) != digest(rows.encode()):  # older versions wrote none
            raise ValueError("its samples are not those that were written")
        samples = [_indexed_sample(row) for row in content["samples"]]
        if len({sample.key for sample in samples}) < len(samples):
            raise ValueError("it lists a sample twice")
        return samples, str(content["sha256"])
    except _NOT_AN_INDEX as error:
        raise _not_an_index(where, error) from error


def open_index(text: str, where: str) -> tuple[Samples, str]:
    """load_index for those who need few of many samples: each is parsed when it is asked for.

    A worker of a large training shows less than a hundredth of the samples of every index that it opens.

    Raises:
        MegaSRError: see load_index. A single sample that cannot be used raises when it is asked for.
    """
    head, rows = _split_index(text)
    try:
        content, lines = json.loads(f"{head}[]}}"), rows.split(",\n")
        whole = content["format"] == INDEX_FORMAT and content["digest"] == digest(rows.encode())
        if whole and rows and len({line.partition('", {')[0] for line in lines}) == len(lines):
            return _LazySamples(lines, where), str(content["sha256"])
    except _NOT_AN_INDEX:
        pass
    return load_index(text, where)  # an older one, an empty one, or one that is damaged: it says how


class _LazySamples(Sequence[IndexedSample]):
    """Samples of an index, as lines of JSON."""

    def __init__(self, lines: list[str], where: str) -> None:
        self.lines, self.where = lines, where

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, number: Any) -> Any:
        try:
            return _indexed_sample(json.loads(self.lines[number]))
        except _NOT_AN_INDEX as error:
            raise _not_an_index(self.where, error) from error


def _split_index(text: str) -> tuple[str, str]:
    """(what comes before the list of samples, one line per sample) of what dump_index has written."""
    head, _, rows = text.partition("[\n")
    return head, rows.removesuffix("\n]}\n")


def _not_an_index(where: str, error: Exception) -> MegaSRError:
    return MegaSRError(f"{where}: not the index of a shard ({error!r}); `megasr shards verify` says more")


def _indexed_sample(row: Any) -> IndexedSample:
    key, files = row
    return IndexedSample(_checked_key(key), {name: _checked_member(*values) for name, values in files.items()})


def _checked_key(key: str) -> str:
    if not isinstance(key, str) or _points_outside(key):
        raise ValueError(f"{key!r} cannot be the name of a sample")
    return key


def _checked_member(offset: int, size: int, content_digest: str) -> Member:
    if type(offset) is not int or type(size) is not int or offset < 0 or size < 0:
        raise ValueError(f"{size} bytes at byte {offset} are no place in a tar")
    return Member(offset, size, content_digest)


def _points_outside(path: str) -> bool:
    """Keys become names of files where what is made of the samples is written."""
    return path.startswith("/") or ".." in PurePosixPath(path).parts or "\0" in path


def scan_tar(file: BinaryIO, where: str) -> list[IndexedSample]:
    """The samples of an open, seekable tar, without digests, from its headers.

    Directories, webdataset's own files, hidden files and files without a suffix are no samples.

    Raises:
        MegaSRError: it is no whole tar, has members that are no plain files below the top, a file twice, or a sample
            whose files are not next to each other.
    """
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            samples = _group(tar)
            _check_end(file, tar.offset)
    except (tarfile.TarError, EOFError, ValueError, RecursionError) as error:
        raise MegaSRError(f"{where}: not a whole tar ({error})") from error
    return samples


def _group(members: Iterable[tarfile.TarInfo]) -> list[IndexedSample]:
    samples: dict[str, IndexedSample] = {}
    last = None
    for member in members:
        if member.size < 0:  # tarfile would read the same header for ever
            raise ValueError(f"{member.name!r} has the size {member.size}")
        if member.isdir() or not (name := _split(member)):
            continue
        key, field = name
        sample = samples.setdefault(key, IndexedSample(key, {}))
        if field in sample.files:
            raise ValueError(f"{member.name!r} is there twice")
        if sample.files and key != last:
            raise ValueError(f"the files of {key!r} are not next to each other")
        sample.files[field] = Member(member.offset_data, member.size)
        last = key
    return list(samples.values())


def _split(member: tarfile.TarInfo) -> tuple[str, str] | None:
    """(key, field) of a member; None for what is no part of a sample."""
    path = member.name.removeprefix("./")
    folder, slash, base = path.rpartition("/")
    stem, dot, field = base.partition(".")
    key = decode_key(folder + slash + stem)
    if _points_outside(path) or _points_outside(key):
        raise ValueError(f"{member.name!r} points outside the tar")
    if not member.isreg() or member.issparse():
        raise ValueError(f"{member.name!r} is not a plain file")
    return None if _META.match(path) or not stem or not dot else (key, field.lower())


def _check_end(file: BinaryIO, offset: int) -> None:
    """tarfile takes a damaged header, and a file cut between two members, for the end; both would lose samples."""
    file.seek(offset)
    end = file.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE:
        raise ValueError(f"truncated at byte {offset + len(end)}, the end of the archive is missing")
    if end.strip(b"\0"):
        raise ValueError(f"damaged header at byte {offset}")
    if file.read(tarfile.RECORDSIZE).strip(b"\0"):
        raise ValueError(f"something follows the end of the archive at byte {offset}")


def write_tar(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> tuple[ShardEntry, Samples]:
    """Write a tar of samples (key, field -> content), then its index: (its entry, its samples).

    Raises:
        MegaSRError: the place cannot be written to; nothing is left behind.
    """
    index = path.with_name(index_name(path.name))
    index.unlink(missing_ok=True)  # it would vouch for a tar that is about to be replaced
    indexed = []
    with open_whole(path) as file, webdataset.TarWriter(file, user="", group="", mtime=0, encoder=False) as tar:
        for key, contents in samples:
            files = {}
            for field, content in contents.items():
                tar.write({"__key__": encode_key(key), field: content})
                padded = -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                files[field] = Member(tar.tarstream.offset - padded, len(content), digest(content))
            indexed.append(IndexedSample(key, files))
    sha256 = file_sha256(path)
    write_whole(index, dump_index(indexed, path.name, sha256).encode(), durable=True)
    return ShardEntry(path.name, len(indexed), path.stat().st_size, sha256), indexed


def finished_tar(path: Path) -> tuple[ShardEntry, Samples] | None:
    """The entry and the samples of a tar that write_tar has finished and nothing has damaged since; else None."""
    index = path.with_name(index_name(path.name))
    try:
        samples, sha256 = load_index(index.read_text(), str(index))
        if file_sha256(path) != sha256:
            return None
        return ShardEntry(path.name, len(samples), path.stat().st_size, sha256), samples
    except (OSError, UnicodeDecodeError, MegaSRError):
        return None
