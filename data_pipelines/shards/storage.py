"""Where shards lie: local folders, pipe: commands, and through fsspec HTTP, S3, Hugging Face and other places."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote

from filelock import FileLock
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from data_pipelines.shards.manifest import MANIFEST
from megasr.errors import MegaSRError, UsageError
from megasr.files import home_folder, open_whole

OPEN_FILES = 32  # per storage
RETRY_WAITS_S = (0.0, 0.5, 2.0)  # before each try
FORBIDDEN = "MEGASR_NO_PIPE"
_MAX_OFFSET = 2**40  # clients cut a range at the end of the file, as HTTP does
_LOCK_FILES = 64  # shared by the copies of one set
_shown: set[str] = set()  # commands; forked workers inherit it
T = TypeVar("T")


class MissingFileError(MegaSRError):
    """The place answers, and the file is not there: trying again does not help."""


class ShortReadError(MegaSRError):
    """The file ends before the range that was asked for."""


class FileCache:
    """Whole copies of remote files, in one folder that all processes of a machine share. The oldest are removed first.

    Args:
        folder: of the copies of one URL.
        limit_bytes: of all copies together; the newest stays even if it is larger.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes

    def open(self, name: str, version: str, fetch: Callable[[BinaryIO], None]) -> BinaryIO:
        """Open the copy of a file; `fetch` writes it into an open, empty file when there is none.

        Raises:
            MegaSRError: it cannot be fetched or written.
        """
        path = self.folder / f"{version[:16]}-{name}"
        try:
            with suppress(FileNotFoundError):
                return path.open("rb")
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / f"{zlib.crc32(path.name.encode()) % _LOCK_FILES}.lock"):
                if not path.exists():
                    with open_whole(path, durable=False) as file:
                        fetch(file)
                copy = path.open("rb")  # can be read to its end, whoever removes it
            with FileLock(self.folder / "all.lock"):
                self._make_room(path)
        except OSError as error:
            raise MegaSRError(f"cannot write {path}: {error.strerror or error}; set cache_dir") from error
        return copy

    def _make_room(self, newest: Path) -> None:
        copies = [p for p in self.folder.iterdir() if p.is_file() and p.suffix not in (".lock", ".part")]
        total = sum(path.stat().st_size for path in copies)
        for path in sorted(copies, key=lambda path: path.stat().st_mtime_ns):
            if total > self.limit_bytes and path != newest:
                total -= path.stat().st_size
                path.unlink()


class Storage:
    """Files of one place, by name. Remote indices are copied to the cache, and shards where has_ranges is False.

    Pickled and forked objects make their connections and open files anew.
    """

    has_ranges = True

    def __init__(self, url: str, cache: FileCache | None = None) -> None:
        self.url = url
        self.cache = cache

    def read(self, name: str, start: int, end: int, version: str = "") -> bytes:
        """Bytes `start` to `end` (exclusive) of a file; another version (sha256 of its shard) is another copy.

        Raises:
            MissingFileError: there is no such file.
            ShortReadError: the file ends before the range.
            MegaSRError: the place cannot be reached, refuses, or fails; names the URL and what it said.
        """
        if self.has_ranges:
            content = self._cat(name, start, end)
        else:
            assert self.cache is not None
            with self.cache.open(name, version, partial(self._fetch, name)) as file:
                file.seek(start)
                content = file.read(end - start)
        if len(content) < end - start:
            raise ShortReadError(f"{self.url}: {name} ends at byte {start + len(content)}, before {end}")
        if len(content) > end - start:
            raise MegaSRError(f"{self.url}: {name}: {len(content)} bytes came for a range of {end - start}")
        return content

    def read_all(self, name: str, version: str = "") -> bytes:
        """A whole small file; with a version, a remote one is fetched once per machine and not by every worker.

        Raises:
            MissingFileError, MegaSRError: see read.
        """
        if self.cache is None or not version:
            return self._cat(name)

        def fetch(file: BinaryIO) -> None:
            file.write(self._cat(name))

        with self.cache.open(name, version, fetch) as file:
            return file.read()

    def _cat(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """A range of a file, or all of it."""
        raise NotImplementedError

    def _fetch(self, name: str, file: BinaryIO) -> None:
        """Write a whole file into an open, empty one."""
        raise NotImplementedError


class LocalStorage(Storage):
    """Files of a local folder, read with pread; the OPEN_FILES last used stay open.

    Opening a file for every sample would cost a network file system a request more each time.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self._opened = lru_cache(OPEN_FILES)(partial(open, mode="rb", buffering=0))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (Path(self.url),)

    def _cat(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        path = Path(self.url, name)
        try:
            if start is None or end is None:
                return path.read_bytes()
            file = self._opened(path)  # stays open until the read is done, whatever other threads open
            return os.pread(file.fileno(), end - start, start)
        except FileNotFoundError as error:
            raise MissingFileError(f"{path}: no such file") from error
        except OSError as error:
            raise MegaSRError(f"cannot read {path}: {error.strerror or error}") from error


class RemoteStorage(Storage):
    """Files of a place that fsspec reads. Those of an HTTP server that ignores ranges are copied to the cache."""

    def __init__(self, url: str, cache: FileCache) -> None:
        super().__init__(url.rstrip("/"), cache)
        try:
            self._file_system()
        except (ImportError, ValueError) as error:
            raise UsageError(
                f"{url}: {error}; or use pipe: with a client, such as pipe:aws s3 cp {self.url}/{{name}} -"
            ) from error
        self.has_ranges = len(self._cat(MANIFEST, 0, 1)) == 1

    def _file_system(self) -> Any:
        """fsspec keeps one per process: connections do not survive a fork."""
        import fsspec

        scheme = self.url.partition(":")[0]
        if not self._is_http():
            return fsspec.filesystem(scheme)
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=60, sock_read=60)  # a whole shard may take longer
        return fsspec.filesystem(scheme, client_kwargs={"timeout": timeout})

    def _is_http(self) -> bool:
        return self.url.startswith(("http:", "https:"))

    def _path(self, name: str) -> str:
        return f"{self.url}/{quote(name) if self._is_http() else name}"

    def _cat(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        path = self._path(name)
        return _retried(path, lambda: bytes(self._file_system().cat_file(path, start=start, end=end)))

    def _fetch(self, name: str, file: BinaryIO) -> None:
        def copy() -> None:
            _empty(file)
            self._file_system().get_file(self._path(name), file)

        _retried(self._path(name), copy)


class PipeStorage(Storage):
    """Files by name through a command, without a shell.

    Args:
        template: the command, with {name} and, where it can read ranges, {start} and {end} (the first and last byte).
        cache: of whole files, for commands without ranges.

    Raises:
        UsageError: commands are forbidden, or this one has no {name}, half a range, or quotes that do not match.
    """

    def __init__(self, template: str, cache: FileCache) -> None:
        super().__init__(f"pipe:{template}", cache)
        self.template = template
        _check_allowed(template)
        try:
            self.words = shlex.split(template)
        except ValueError as error:
            raise UsageError(f"{self.url}: {error}") from error
        places = [place for place in ("{name}", "{start}", "{end}") if any(place in word for word in self.words)]
        if "{name}" not in places:
            raise UsageError(f"{self.url}: the command must contain {{name}}, the place of the file's name")
        if len(places) == 2:
            raise UsageError(f"{self.url}: {{start}} and {{end}} go together")
        self.has_ranges = len(places) == 3

    def _cat(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        return self._run(name, start or 0, (end or _MAX_OFFSET) - 1)

    def _fetch(self, name: str, file: BinaryIO) -> None:
        self._run(name, 0, _MAX_OFFSET, file)

    def _run(self, name: str, first: int, last: int, into: BinaryIO | None = None) -> bytes:
        # Names come from the manifest: inside a word that a shell reads, or as an option, they could act.
        if shlex.quote(name) != name or name.startswith("-"):
            raise MegaSRError(f"{self.url}: the set names a file {name!r}, which is no plain name for a command")
        values = {"{name}": name, "{start}": str(first), "{end}": str(last)}
        words = [re.sub(r"\{(name|start|end)\}", lambda place: values[place[0]], word) for word in self.words]

        def run() -> bytes:
            if into is not None:
                _empty(into)
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, stdout=into or subprocess.PIPE, stderr=subprocess.PIPE
            )
            if done.returncode:
                lines = done.stderr.decode(errors="replace").strip().splitlines()
                raise OSError(f"exit status {done.returncode}, {lines[-1] if lines else 'no message'}")
            return done.stdout or b""

        show_command(self.template)
        if shutil.which(words[0]) is None:
            raise MegaSRError(f"{self.url}: there is no program {words[0]!r}")
        return _retried(f"{self.url}: {name}", run)


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


def _empty(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


def _retried(where: str, action: Callable[[], T]) -> T:
    """Run an action that fails when a network does. What libraries raise for that has no common class."""
    for number, wait_s in enumerate(RETRY_WAITS_S, 1):
        time.sleep(wait_s)
        try:
            return action()
        except FileNotFoundError as error:
            raise MissingFileError(f"{where}: no such file") from error
        except Exception as error:
            status = getattr(error, "status", None)  # of HTTP
            if status == 416:
                raise ShortReadError(f"{where}: ends before the range that was asked for") from error
            if number == len(RETRY_WAITS_S):
                raise MegaSRError(f"{where}: {str(error) or type(error).__name__}, tried {number} times") from error
    raise AssertionError("the last try returns or raises")


def open_storage(url: str, cache_dir: Path | None = None, cache_gb: float = 50) -> Storage:
    """The files at a URL.

    Args:
        url: a local folder, pipe:COMMAND with {name} in it (see PipeStorage), or any URL that fsspec reads:
            http(s)://, s3:// with s3fs, gs:// with gcsfs, hf://, ...
        cache_dir: where copies are kept of remote indices and of what cannot be read in ranges; None is the user's
            cache folder.
        cache_gb: size of all copies of this URL together, in 1e9 bytes.

    Raises:
        UsageError: no such folder, a pipe without {name}, or a URL that cannot be read.
        MegaSRError: the place cannot be reached, or holds no manifest.
    """
    if cache_gb <= 0:
        raise UsageError(f"cache_gb must be positive, got {cache_gb}")
    folder = (cache_dir or default_cache_dir()) / hashlib.sha256(url.encode()).hexdigest()[:16]
    cache = FileCache(folder, int(cache_gb * 1e9))
    scheme, separator, rest = url.partition(":")
    if scheme == "pipe":
        return PipeStorage(rest, cache)
    if separator and rest.startswith("//"):
        return RemoteStorage(url, cache)
    local = Path(os.path.expanduser(url))
    if not local.is_dir():
        raise UsageError(f"{url}: no such folder")
    return LocalStorage(local)


def default_cache_dir() -> Path:
    """Where copies are kept when nothing else is said: below XDG_CACHE_HOME, else below ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or home_folder() / ".cache") / "megasr" / "shards"
