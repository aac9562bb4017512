"""Where the files of a shard set come from: a local folder, an HTTP address, or a command (pipe:)."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Protocol

from data_pipelines.shards.file_cache import FileCache, default_cache_dir
from data_pipelines.shards.http_storage import HTTPStorage
from data_pipelines.shards.local_storage import LocalStorage, Parts
from data_pipelines.shards.pipe_storage import PipeStorage
from megasr.errors import UsageError


class Storage(Protocol):
    """Files by name. Objects can be pickled, forked and used from threads; what they hold open is made anew."""

    def read(self, name: str, offset: int, size: int, version: str = "", file_bytes: int | None = None) -> bytes:
        """Exactly `size` bytes of a file, from `offset` on.

        Args:
            name: of the file.
            offset: of the first byte.
            size: number of bytes.
            version: changes with the file (its sha256): what kept copies are told apart by.
            file_bytes: size of the whole file where it is known; a copy that was cut off is fetched again.

        Raises:
            MissingFileError: there is no such file.
            ShortReadError: the file ends before the range.
            MegaSRError: the place cannot be reached, refuses, or fails; names the URL and what it said.
        """
        ...

    def read_parts(self, name: str, parts: Parts, version: str = "", file_bytes: int | None = None) -> list[bytes]:
        """Ranges (offset, size) that lie close together, in order; of a remote file, asked for as one.

        Raises:
            MissingFileError, ShortReadError, MegaSRError: see read.
        """
        ...

    def read_all(self, name: str, version: str = "") -> bytes:
        """A whole small file. Without a version no copy of it is kept or used.

        Raises:
            MissingFileError, MegaSRError: see read.
        """
        ...

    def forget(self, name: str, version: str) -> bool:
        """Remove the copy of a file that turned out to be damaged; False when there was none."""
        ...


def open_storage(url: str, cache_dir: Path | None = None, cache_gb: float = 50) -> Storage:
    """The files at a URL.

    Args:
        url: a local folder, http(s)://host/folder, or pipe:COMMAND with {name} in it (see pipe_storage).
        cache_dir: where copies are kept of what cannot be read in ranges; None is the user's cache folder.
        cache_gb: size of all copies of this URL together, in 1e9 bytes.

    Raises:
        UsageError: no such folder, a pipe without {name}, or a URL of another kind.
    """
    if cache_gb <= 0:
        raise UsageError(f"cache_gb must be positive, got {cache_gb}")
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    cache = FileCache((cache_dir or default_cache_dir()) / name, int(cache_gb * 1e9))
    scheme, separator, rest = url.partition(":")
    if scheme == "pipe":
        return PipeStorage(rest, cache)
    if scheme in ("http", "https"):
        return HTTPStorage(url, cache)
    if separator and rest.startswith("//"):
        raise UsageError(
            f"{url}: cannot read {scheme}://; use pipe: with a client, such as pipe:aws s3 cp {url}/{{name}} -"
        )
    folder = Path(os.path.expanduser(url))
    if not folder.is_dir():
        raise UsageError(f"{url}: no such folder")
    return LocalStorage(folder)
