"""Byte ranges of files behind an HTTP address, over connections that stay open.

Proxies and log-ins are not spoken here: a pipe: URL with curl does that.
"""

from __future__ import annotations

import errno
import http.client
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote, urljoin, urlsplit

from data_pipelines.shards.file_cache import FileCache
from data_pipelines.shards.local_storage import MissingFileError, ShortReadError
from data_pipelines.shards.remote_storage import RemoteStorage
from megasr.errors import MegaSRError

WAITS_S = (0.0, 0.5, 2.0)  # before each try; the first failure is often a connection that the server let go
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
        for number, wait_s in enumerate(WAITS_S, 1):
            time.sleep(wait_s)
            try:
                return self._exchange(url, headers, take)
            except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: an address that is none
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise  # the disk under `take`, not the network
                self._connections.__dict__.clear()
                if number == len(WAITS_S):
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
