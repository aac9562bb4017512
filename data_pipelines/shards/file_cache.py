"""Copies of remote files on the local disk: each fetched once for all processes, the least recently used removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from data_pipelines.shards.local_storage import Descriptor, LocalStorage, MissingFileError
from megasr.errors import MegaSRError
from megasr.files import home_folder, open_whole

_LOCKS = 64  # a lock per file would leave a lock file per shard for ever
_TRIES = 3
Fetch = Callable[[BinaryIO], None]


def default_cache_dir() -> Path:
    """Where copies are kept when nothing else is said: below XDG_CACHE_HOME, else below ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or home_folder() / ".cache") / "megasr" / "shards"


class _Copies(LocalStorage):
    """Files whose time of last use is their modification time (many disks are mounted without access times)."""

    def _open(self, path: Path) -> Descriptor:
        descriptor = super()._open(path)
        with contextlib.suppress(FileNotFoundError):  # removed since: the descriptor still reads it
            os.utime(path)
        return descriptor


class FileCache:
    """Whole files, or none, in one folder that all workers of a machine share.

    Args:
        folder: of the copies of one URL.
        limit_bytes: of all copies together. Processes keep reading what they have open after it was removed.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._copies = _Copies(folder)

    def read(self, name: str, offset: int, size: int, version: str, file_bytes: int | None, fetch: Fetch) -> bytes:
        """A range of the copy of a file, which `fetch` writes when there is no copy yet.

        Args:
            name: of the file.
            offset: of the first byte.
            size: number of bytes.
            version: of the file; another version is another copy.
            file_bytes: size that the file should have: another size is fetched a second time, then taken as it is.
            fetch: writes the whole file into an open, empty one.

        Raises:
            MegaSRError: the copy cannot be written, or is removed again before it is read.
        """
        copy = f"{version[:16]}-{name}"
        for _ in range(_TRIES):
            try:
                return self._copies.read(copy, offset, size)
            except MissingFileError:
                self._fetch(copy, file_bytes, fetch)
        raise MegaSRError(
            f"{self.folder / copy}: fetched {_TRIES} times and always removed before it was read; "
            f"the cache holds {self.limit_bytes / 1e9:g} GB, raise cache_gb"
        )

    def read_all(self, name: str, version: str, fetch: Fetch) -> bytes:
        """The whole copy of a file; see read."""
        self.read(name, 0, 0, version, None, fetch)
        return self._copies.read_all(f"{version[:16]}-{name}")

    def forget(self, name: str, version: str) -> bool:
        """Remove the copy of a file, so that it is fetched again; whether there was one."""
        path = self.folder / f"{version[:16]}-{name}"
        there = path.exists()
        path.unlink(missing_ok=True)
        self._copies.close()
        return there

    def _fetch(self, copy: str, file_bytes: int | None, fetch: Fetch) -> None:
        path = self.folder / copy
        with self._locked(f"{zlib.crc32(copy.encode()) % _LOCKS}.lock"):
            if path.exists():
                return
            with open_whole(path, durable=False) as file:
                fetch(file)
                if file_bytes not in (None, file.tell()):
                    _empty(file)
                    fetch(file)
        with self._locked("all.lock"):
            self._make_room(path)

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """A lock that holds between threads and processes, and ends with its process however that ends."""
        path = self.folder / "locks" / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = path.open("wb")
        except OSError as error:
            raise MegaSRError(f"cannot write {path}: {error.strerror or error}; set cache_dir") from error
        with handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _make_room(self, newest: Path) -> None:
        found = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.is_file() and path != newest:
                    found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        total = newest.stat().st_size + sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.limit_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size


def _empty(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()
