"""One tar and its index: written whole, the same bytes whenever and by whomever, found again when finished."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import webdataset

from data_pipelines.shards.manifest import ShardEntry
from data_pipelines.shards.tar_index import (
    IndexedSample,
    digest,
    dump_index,
    encode_key,
    index_name,
    load_record,
)
from megasr.errors import MegaSRError
from megasr.files import open_whole, write_whole

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
