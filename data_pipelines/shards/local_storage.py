"""Byte ranges of files in a local folder, and the two ways in which a file can be damaged."""

from __future__ import annotations

import errno
import io
import os
import stat
import weakref
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from megasr.errors import MegaSRError

OPEN_FILES = 32
Parts = Sequence[tuple[int, int]]  # (offset, size) of ranges that lie close together, in order


class MissingFileError(MegaSRError):
    """The place answers, and the file is not there: trying again will not help."""


class ShortReadError(MegaSRError):
    """The file ends before the range that was asked for."""


def open_plain(path: Path) -> io.BufferedReader:
    """A file open for reading.

    Raises:
        OSError: it cannot be opened, or is a named pipe or a device, which a set that was unpacked can hold: reading
            these may never end.
    """
    return os.fdopen(_open_plain(path), "rb")


def _open_plain(path: Path) -> int:
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # else a named pipe waits for its writer
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    return number


class Descriptor:
    """A file open for reading, closed when the last user lets go of it: another thread may still be reading."""

    def __init__(self, path: Path) -> None:
        self.number = _open_plain(path)
        weakref.finalize(self, os.close, self.number)


class LocalStorage:
    """Files of one folder, read at offsets through descriptors that stay open (the OPEN_FILES last used).

    pread shares no file position, so the object works in threads and after a fork; pickled, it opens its files anew.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._opened = lru_cache(OPEN_FILES)(self._open)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder,)

    def read(self, name: str, offset: int, size: int, version: str = "", file_bytes: int | None = None) -> bytes:
        """See Storage.read."""
        path = self.folder / name
        try:
            content = os.pread(self._opened(path).number, size, offset)
        except OSError as error:
            raise _named(error, path) from error
        if len(content) < size:
            raise ShortReadError(f"{path}: ends at byte {offset + len(content)}, wanted {size} bytes from {offset}")
        return content

    def read_parts(self, name: str, parts: Parts, version: str = "", file_bytes: int | None = None) -> list[bytes]:
        """See Storage.read_parts. Apart, because cutting parts out of a whole copies every image once more."""
        return [self.read(name, offset, size) for offset, size in parts]

    def read_all(self, name: str, version: str = "") -> bytes:
        """See Storage.read_all."""
        path = self.folder / name
        try:
            with open_plain(path) as file:
                return file.read()
        except OSError as error:
            raise _named(error, path) from error

    def forget(self, name: str, version: str) -> bool:
        """See Storage.forget: these are the files themselves."""
        return False

    def close(self) -> None:
        """Let go of all open files; they are opened again when they are read."""
        self._opened.cache_clear()

    def _open(self, path: Path) -> Descriptor:
        return Descriptor(path)


def _named(error: OSError, path: Path) -> MegaSRError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return MissingFileError(f"{path}: no such file")
    return MegaSRError(f"cannot read {path}: {error.strerror or error}")
