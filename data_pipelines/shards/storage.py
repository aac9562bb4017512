"""Where shards lie: local folders, HTTP, pipes; ranges are fetched once and cached."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import http.client
import io
import os
import re
import shlex
import stat
import subprocess
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, TypeVar
from urllib.parse import quote, urljoin, urlsplit

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from megasr.errors import MegaSRError, UsageError
from megasr.files import home_folder, open_whole

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


class RemoteStorage:
    """A storage where asking costs more than copying."""

    cache: FileCache

    def read(self, name: str, offset: int, size: int, version: str = "", file_bytes: int | None = None) -> bytes:
        """See Storage.read."""
        raise NotImplementedError

    def forget(self, name: str, version: str) -> bool:
        """See Storage.forget."""
        return self.cache.forget(name, version)

    def read_parts(self, name: str, parts: Parts, version: str = "", file_bytes: int | None = None) -> list[bytes]:
        """See Storage.read_parts."""
        begin, end = parts[0][0], max(offset + size for offset, size in parts)
        block = self.read(name, begin, end - begin, version, file_bytes)
        return [block[offset - begin : offset - begin + size] for offset, size in parts]


PIPE_WAITS_S = (0.0, 0.5, 2.0)  # before each try
FORBIDDEN = "MEGASR_NO_PIPE"
_LAST_BYTE = 2**40  # clients cut a range at the end of the file, as HTTP does
_PLAIN = re.compile(r"[A-Za-z0-9_.@%+=:,/-]+")  # what no shell and no other language acts on
_SCRIPT = re.compile(r"""[\s;&|<>()$`'"\\]""")  # in a word that a shell or another language reads
_REMOTE_SHELLS = ("ssh", "rsh")  # they give all of their words to a shell
_shown: set[str] = set()  # forked workers have it, too


def show_command(template: str) -> None:
    """Say once on the console, whatever the number of processes, which command is about to run.

    Raises:
        UsageError: commands are forbidden.
    """
    _check_allowed(template)
    if template not in _shown:
        _shown.add(template)
        rank_zero_info(f"running the command of pipe:{template} ({FORBIDDEN}=1 forbids it)")


def _check_allowed(template: str) -> None:
    if os.environ.get(FORBIDDEN, "") not in ("", "0"):
        raise UsageError(f"pipe:{template}: {FORBIDDEN} is set, so no command is run; unset it to allow it")


class PipeStorage(RemoteStorage):
    """Files by name through a command.

    Args:
        template: the command, with {name} and, where it can read ranges, {start} and {end} (the first and last byte).
        cache: of whole files, for commands without ranges.

    Raises:
        UsageError: commands are forbidden, {name} is missing, one of {start} and {end} is missing, or the quotes do not
            match.
    """

    def __init__(self, template: str, cache: FileCache) -> None:
        _check_allowed(template)
        self.template = template
        self.cache = cache
        try:
            self.words = shlex.split(template)
        except ValueError as error:
            raise UsageError(f"pipe:{template}: {error}") from error
        given = {place for place in ("{name}", "{start}", "{end}") if any(place in word for word in self.words)}
        if "{name}" not in given:
            raise UsageError(f"pipe:{template}: the command must contain {{name}}, the place of the file's name")
        if len(given) == 2:
            raise UsageError(f"pipe:{template}: {{start}} and {{end}} go together")
        self.has_ranges = len(given) == 3

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.template, self.cache)

    def read(self, name: str, offset: int, size: int, version: str = "", file_bytes: int | None = None) -> bytes:
        """See Storage.read."""
        if not self.has_ranges:
            return self.cache.read(name, offset, size, version, file_bytes, lambda file: self._fetch(name, file))
        content = self._run(name, offset, offset + size - 1) if size else b""
        if len(content) > size:
            raise MegaSRError(f"pipe:{self.template}: {name}: {len(content)} bytes came for a range of {size}")
        if len(content) < size:
            raise ShortReadError(f"{name}: ends at byte {offset + len(content)}, wanted {size} bytes from {offset}")
        return content

    def read_all(self, name: str, version: str = "") -> bytes:
        """See Storage.read_all."""
        if version and not self.has_ranges:
            return self.cache.read_all(name, version, lambda file: self._fetch(name, file))
        return self._run(name)

    def _fetch(self, name: str, file: BinaryIO) -> None:
        self._run(name, into=file)

    def _run(self, name: str, start: int = 0, end: int = _LAST_BYTE, into: IO[bytes] | None = None) -> bytes:
        self._check_name(name)
        values = {"{name}": name, "{start}": str(start), "{end}": str(end)}
        words = [_fill(word, values) for word in self.words]
        trouble = ""
        show_command(self.template)
        for wait_s in PIPE_WAITS_S:
            time.sleep(wait_s)
            if into is not None:
                into.seek(0)
                into.truncate()
            try:
                done = subprocess.run(
                    words, stdin=subprocess.DEVNULL, stdout=into or subprocess.PIPE, stderr=subprocess.PIPE
                )
            except OSError as error:
                raise MegaSRError(f"pipe:{self.template}: cannot run {words[0]}: {error.strerror or error}") from error
            if done.returncode == 0:
                return done.stdout or b""
            said = done.stderr.decode(errors="replace").strip().splitlines()
            trouble = f"exit status {done.returncode}, {said[-1] if said else 'no message'}"
        raise MegaSRError(f"pipe:{self.template}: {name}: {trouble}, tried {len(PIPE_WAITS_S)} times")

    def _check_name(self, name: str) -> None:
        """Names come from the manifest of the set. Inside a word that a shell reads, or as an option, they could act.

        Raises:
            MegaSRError: this one could.
        """
        remote = any(os.path.basename(word) in _REMOTE_SHELLS for word in self.words)
        for word in self.words:
            in_script = "{name}" in word and (remote or _SCRIPT.search(word))
            if (in_script and not _PLAIN.fullmatch(name)) or (word.startswith("{name}") and name.startswith("-")):
                raise MegaSRError(
                    f"pipe:{self.template}: the set names a file {name!r}, which the command could take for a part of "
                    "itself; pass {name} as a word of its own, or rename the file"
                )


def _fill(word: str, values: dict[str, str]) -> str:
    for place, value in values.items():
        word = word.replace(place, value)
    return word


HTTP_WAITS_S = (0.0, 0.5, 2.0)  # before each try; the first failure is often a connection that the server let go
_TIMEOUT_S = 60
_REDIRECTS = 5
_CHUNK_BYTES = 2**20
_SLOWEST_BYTES_S = 1000  # a server that is slower for longer than the time limit is taken for one that stalls
_MOST_BYTES = 2**30  # of a manifest or an index, which are read into memory
_DRAINED_BYTES = 2**16  # of an answer's unwanted body; with more the connection is given up
T = TypeVar("T")
Take = Callable[[http.client.HTTPResponse], T]


class HTTPStorage(RemoteStorage):
    """Files below a base address. Ranges are asked for; when the server ignores that, whole files are cached.

    Args:
        url: http:// or https:// address of the folder; a name is appended to it.
        cache: for servers without ranges.
    """

    def __init__(self, url: str, cache: FileCache) -> None:
        self.url = url.rstrip("/") + "/"
        self.cache = cache
        self._has_ranges = True
        self._connections = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url, self.cache)

    def read(self, name: str, offset: int, size: int, version: str = "", file_bytes: int | None = None) -> bytes:
        """See Storage.read."""
        if size == 0:
            return b""
        if self._has_ranges:
            content = self._get(name, lambda response: _take_range(response, offset, size), offset, size)
            if content is not None:
                return content
            self._has_ranges = False
        return self.cache.read(name, offset, size, version, file_bytes, lambda file: self._fetch(name, file))

    def read_all(self, name: str, version: str = "") -> bytes:
        """See Storage.read_all."""
        return self._get(name, lambda response: b"".join(_blocks(response, _MOST_BYTES)))

    def _fetch(self, name: str, file: BinaryIO) -> None:
        def take(response: http.client.HTTPResponse) -> None:
            file.seek(0)
            file.truncate()
            file.writelines(_blocks(response, self.cache.limit_bytes))

        self._get(name, take)

    def _get(self, name: str, take: Take[T], offset: int = 0, size: int = 0) -> T:
        url = self.url + quote(name)
        headers = {"Range": f"bytes={offset}-{offset + size - 1}"} if size else {}
        for number, wait_s in enumerate(HTTP_WAITS_S, 1):
            time.sleep(wait_s)
            try:
                return self._exchange(url, headers, take)
            except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: an address that is none
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise  # the disk under `take`, not the network
                self._connections.__dict__.clear()
                if number == len(HTTP_WAITS_S):
                    raise MegaSRError(f"{url}: {_text(error)}, tried {number} times") from error
        raise AssertionError("the last try returns or raises")

    def _exchange(self, url: str, headers: dict[str, str], take: Take[T]) -> T:
        for _ in range(_REDIRECTS):
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https"):
                raise MegaSRError(f"{self.url}: redirects to {url}, which is no http address")
            connection = self._connection(parts.scheme, parts.netloc)
            connection.request(
                "GET", parts._replace(scheme="", netloc="", fragment="").geturl() or "/", headers=headers
            )
            response = connection.getresponse()
            if response.status in (200, 206):
                try:
                    return take(response)
                except MegaSRError as error:
                    raise type(error)(f"{url}: {error}") from error
                finally:
                    if not response.isclosed():  # an unwanted rest: what comes next here is not an answer
                        connection.close()
            if response.length is not None and response.length <= _DRAINED_BYTES:
                response.read()
            else:
                connection.close()
            if response.status == 416:
                raise ShortReadError(f"{url}: ends before {headers.get('Range')}")
            if response.status in (404, 410):
                raise MissingFileError(f"{url}: HTTP {response.status} {response.reason}")
            if response.status in (408, 429) or response.status >= 500:
                raise OSError(f"HTTP {response.status} {response.reason}")
            location = response.getheader("Location")
            if response.status not in (301, 302, 303, 307, 308) or not location:
                raise MegaSRError(f"{url}: HTTP {response.status} {response.reason}")
            url = urljoin(url, location)
        raise MegaSRError(f"{url}: redirected more than {_REDIRECTS} times")

    def _connection(self, scheme: str, host: str) -> http.client.HTTPConnection:
        # A connection that a fork has copied must not be used by both sides.
        key = f"{os.getpid()} {scheme} {host}"
        opened = self._connections.__dict__
        if key not in opened:
            kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
            opened[key] = kind(host, timeout=_TIMEOUT_S)
        connection: http.client.HTTPConnection = opened[key]
        return connection


def _take_range(response: http.client.HTTPResponse, offset: int, size: int) -> bytes | None:
    """The bytes of a 206 answer; None when the server sends the whole file instead."""
    if response.status == 200:
        return None
    place = response.getheader("Content-Range", "")
    if not place.startswith(f"bytes {offset}-"):
        raise MegaSRError(f"asked for {size} bytes from {offset}, got those of {place!r}")
    content = b"".join(_blocks(response, size))
    if len(content) < size:
        raise ShortReadError(f"ends at byte {offset + len(content)}, wanted {size} bytes from {offset}")
    return content


def _blocks(response: http.client.HTTPResponse, most: int) -> Iterator[bytes]:
    """The body of an answer, piece by piece.

    Raises:
        MegaSRError: it is larger than `most`.
        OSError, HTTPException: it is cut off, or comes too slowly.
    """
    began, done = time.monotonic(), 0
    while block := response.read1(_CHUNK_BYTES):
        done += len(block)
        if done > most:
            raise MegaSRError(f"the server sends more than the {most} bytes that were expected")
        if (took := time.monotonic() - began) > _TIMEOUT_S + done / _SLOWEST_BYTES_S:
            raise TimeoutError(f"only {done} bytes came in {took:.0f} s")
        yield block
    if response.length:  # read1 does not say that the connection broke off
        raise http.client.IncompleteRead(b"", response.length)
    response.read()  # nothing; it frees the connection for the next request


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__


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
