"""Copies are fetched once, whole, and make room for newer ones."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from data_pipelines.shards.storage import FileCache, ShortReadError, default_cache_dir
from megasr.errors import MegaSRError


def writing(content: bytes, calls: list[str] | None = None) -> Callable[[BinaryIO], None]:
    def fetch(file: BinaryIO) -> None:
        file.write(content)
        if calls is not None:
            calls.append("fetched")

    return fetch


def copies(cache: FileCache) -> set[str]:
    return {path.name for path in cache.folder.iterdir() if path.is_file()}


def test_the_least_recently_used_copy_is_removed(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, limit_bytes=300)
    for number, name in enumerate("abc"):
        cache.read(name, 0, 1, "v", 100, writing(b"x" * 100))
        os.utime(tmp_path / f"v-{name}", (number, number))
    other = FileCache(tmp_path, limit_bytes=300)  # another process
    other.read("a", 0, 1, "v", 100, writing(b""))
    other.read("d", 0, 1, "v", 100, writing(b"x" * 100))
    assert copies(cache) == {"v-a", "v-c", "v-d"}
    assert cache.read("b", 0, 1, "v", 100, writing(b"y" * 100)) == b"x", "what is open can be read to its end"
    with pytest.raises(ShortReadError):
        other.read("e", 0, 500, "v", 400, writing(b"x" * 400))
    assert copies(cache) == {"v-e"}, "the newest stays even when it alone is too large"


def test_two_threads_fetch_a_file_once(tmp_path: Path) -> None:
    calls: list[str] = []
    started, release = threading.Event(), threading.Event()

    def slow(file: BinaryIO) -> None:
        started.set()
        release.wait(10)
        writing(b"content", calls)(file)

    results: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: results.append(FileCache(tmp_path, 99).read("f", 3, 4, "v", None, slow)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    assert started.wait(10)
    assert copies(FileCache(tmp_path, 99)) == {f"v-f.{os.getpid()}.part"}
    release.set()
    for thread in threads:
        thread.join(10)
    assert (results, calls) == ([b"tent"] * 4, ["fetched"])


def test_a_copy_of_the_wrong_size_is_fetched_again(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 99)
    contents = iter([b"cut", b"whole"])
    assert cache.read("f", 0, 5, "v", 5, lambda file: writing(next(contents))(file)) == b"whole"
    calls: list[str] = []
    for _ in range(3):
        assert cache.read("g", 0, 3, "v", 5, writing(b"cut", calls)) == b"cut"
    assert len(calls) == 2, "a file that is short where it comes from is kept as it is"
    assert cache.read("f", 0, 3, "w", 3, writing(b"new")) == b"new", "another version is another copy"


def test_a_failed_fetch_leaves_nothing(tmp_path: Path) -> None:
    def fetch(file: BinaryIO) -> None:
        file.write(b"half")
        raise MegaSRError("gone")

    cache = FileCache(tmp_path / "cache", 99)
    with pytest.raises(MegaSRError, match="gone"):
        cache.read("f", 0, 1, "v", None, fetch)
    assert copies(cache) == set()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MegaSRError, match="cannot write .*set cache_dir"):
        FileCache(tmp_path / "file", 99).read("f", 0, 1, "v", None, fetch)


def test_default_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "megasr" / "shards"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "megasr" / "shards"
