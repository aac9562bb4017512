"""The same bytes from a folder, HTTP with and without ranges, fsspec and commands; troubles are named."""

from __future__ import annotations

import http.server
import os
import pickle
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from data_pipelines.samples import Sample, SampleSet
from data_pipelines.shards import storage as storages
from data_pipelines.shards.manifest import MANIFEST
from data_pipelines.shards.reader import ShardSource
from data_pipelines.shards.storage import (
    FileCache,
    MissingFileError,
    ShortReadError,
    default_cache_dir,
    open_storage,
)
from megasr.errors import MegaSRError, UsageError
from tests.helpers.shard_sets import make_shards, sample_files

CONTENT = bytes(range(256)) * 20
NAME = "some.file"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves a folder: /plain/ whole files only, /ranges/ ranges too, /moved/ elsewhere, /cut/ half of the body."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # header and body in one packet
    server: Server

    def do_GET(self) -> None:
        kind, _, name = self.path.removeprefix("/").partition("/")
        self.server.asked[self.path] += 1
        path = self.server.folder / name.replace("%20", " ")
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if self.server.failures:
            self.reply(self.server.failures.pop(), b"later")
        elif kind == "moved":
            self.reply(302, b"", Location=f"/ranges/{name}")
        elif not path.is_file():
            self.reply(404, b"not here")
        elif kind in ("ranges", "cut") and asked:
            content, start = path.read_bytes(), int(asked[1])
            part = content[start : int(asked[2]) + 1]
            place = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
            self.reply(206 if part else 416, part, kind == "cut" and len(part) > 1, Content_Range=place)
        else:
            self.reply(200, path.read_bytes(), kind == "cut")

    def reply(self, status: int, body: bytes, cut: bool = False, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = cut

    def log_message(self, *arguments: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """Counts what it is asked for; answers with `failures` first."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.asked, self.failures = folder, Counter[str](), list[int]()
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "set"
    make_shards(path, [3, 2])
    (path / NAME).write_bytes(CONTENT)
    return path


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with Server(folder) as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.01,))
        thread.start()
        yield served
        served.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storages, "RETRY_WAITS_S", (0, 0, 0))


def ranged_pipe(folder: Path) -> str:
    script = 'tail -c +$(($2 + 1)) "$1" | head -c $(($3 + 1 - $2))'
    return f"pipe:sh -c '{script}' sh {folder}/{{name}} {{start}} {{end}}"


URLS: dict[str, Callable[[Path, Server], str]] = {
    "folder": lambda folder, server: str(folder),
    "fsspec": lambda folder, server: f"file://{folder}",
    "http": lambda folder, server: f"{server.url}/ranges",
    "http without ranges": lambda folder, server: f"{server.url}/plain/",
    "http redirected": lambda folder, server: f"{server.url}/moved",
    "pipe": lambda folder, server: f"pipe:cat {folder}/{{name}}",
    "pipe with ranges": lambda folder, server: ranged_pipe(folder),
}


def key_of(batch: list[Sample]) -> str:
    return batch[0].key


@pytest.mark.parametrize("kind", URLS)
def test_the_same_bytes_from_everywhere(folder: Path, server: Server, tmp_path: Path, kind: str) -> None:
    url = URLS[kind](folder, server)
    storage = open_storage(url, tmp_path / "cache")
    for copy in (storage, pickle.loads(pickle.dumps(storage))):
        assert copy.read(NAME, 700, 1700, "v") == CONTENT[700:1700]
        assert copy.read(NAME, 5119, 5120, "v") == CONTENT[5119:]
        assert copy.read_all(NAME, "v") == CONTENT
        for start in (5100, 6000):
            with pytest.raises(ShortReadError):
                copy.read(NAME, start, start + 100, "v")
        if "pipe" not in kind:
            with pytest.raises(MissingFileError, match="nothing"):
                copy.read("nothing", 0, 1, "v")
    source = ShardSource(url, tmp_path / "cache")
    source.read(0)  # what the parent has open must not be used by its forks
    loader = torch.utils.data.DataLoader(SampleSet(source.read, 5), 1, num_workers=2, collate_fn=key_of)
    assert list(loader) == [sample_files(number)[0] for number in range(5)]


def test_http_with_ranges_asks_for_a_sample_at_once_and_keeps_indices_alone(server: Server, tmp_path: Path) -> None:
    source = ShardSource(f"{server.url}/ranges", tmp_path / "cache")
    source.read(0)
    server.asked.clear()
    source.read(1)
    assert server.asked == {"/ranges/shard-000000.tar": 1}, "image and tags are one request"
    ShardSource(f"{server.url}/ranges", tmp_path / "cache").key(2)
    assert server.asked["/ranges/shard-000000.index.json"] == 0, "other workers of the machine have the copy"
    (name,) = copies(source.storage.cache)
    assert name.endswith("-shard-000000.index.json")


def test_http_without_ranges_fetches_a_file_once(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        storage = open_storage(f"{server.url}/plain", tmp_path)
        for start in range(10):
            storage.read(NAME, start, start + 10, "v")
    assert server.asked == {f"/plain/{MANIFEST}": 2, f"/plain/{NAME}": 1}


@pytest.mark.parametrize("status", [500, 503, 429])
def test_http_tries_again(server: Server, tmp_path: Path, status: int) -> None:
    storage = open_storage(f"{server.url}/ranges", tmp_path)
    server.failures = [status, status]
    assert storage.read(NAME, 3, 8, "v") == CONTENT[3:8]
    server.failures = [status] * 3
    with pytest.raises(MegaSRError, match=rf"/ranges/{NAME}: {status}, .*, tried 3 times"):
        storage.read(NAME, 3, 8, "v")


def test_http_troubles_are_named(server: Server, tmp_path: Path) -> None:
    storage = open_storage(f"{server.url}/ranges", tmp_path)
    server.failures = [403] * 3
    with pytest.raises(MegaSRError, match="/ranges/a%20b: 403, .*Forbidden") as error:
        storage.read("a b", 0, 1)
    assert not isinstance(error.value, MissingFileError)
    cut = open_storage(f"{server.url}/cut", tmp_path)
    for read in (lambda: cut.read(NAME, 0, 100, "v"), lambda: cut.read_all(NAME)):
        with pytest.raises(MegaSRError, match=f"/cut/{NAME}: .*tried 3 times"):
            read()
    with pytest.raises(MegaSRError, match="/nothing: not a shard set, .*/nothing/manifest.json: no such file"):
        ShardSource(f"{server.url}/ranges/nothing", tmp_path)
    with pytest.raises(MegaSRError, match=f"http://127.0.0.1:9/{MANIFEST}: Cannot connect .*, tried 3 times"):
        open_storage("http://127.0.0.1:9", tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".part"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sh -c 'echo first >&2; echo no credentials >&2; exit 7' {name}", "exit status 7, no credentials, tried 3"),
        ("false {name}", "exit status 1, no message"),
        ("no-such-client {name}", "there is no program 'no-such-client'"),
        ("echo too much {name} {start} {end}", "bytes came for a range of 3"),
    ],
)
def test_pipe_troubles_are_named(tmp_path: Path, command: str, message: str) -> None:
    with pytest.raises(MegaSRError, match=rf"^pipe:{re.escape(command)}: .*{message}"):
        open_storage(f"pipe:{command}", tmp_path).read("x.tar", 0, 3, "v")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize("name", ["$(touch ran)", "a;touch ran", "a b", "--to-command=touch", "'"])
def test_the_names_of_a_set_are_no_commands(tmp_path: Path, name: str) -> None:
    with pytest.raises(MegaSRError, match=re.escape(f"the set names a file {name!r}")):
        open_storage("pipe:sh -c 'cat {name}'", tmp_path).read(name, 0, 1, "v")


def test_a_command_is_shown_once_before_it_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storages, "_shown", set())
    command = f"sh -c 'echo ran >> {tmp_path}/log' {{name}}"
    for name in ("a", "b"):
        storage = open_storage(f"pipe:{command}", tmp_path / "cache")
        assert len(caplog.messages) == (name == "b")
        assert storage.read_all(name) == b""
    assert (tmp_path / "log").read_text() == "ran\n" * 2
    assert caplog.messages == [f"running the command of pipe:{command} (MEGASR_NO_PIPE=1 forbids it)"]


def test_commands_can_be_forbidden(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"pipe:sh -c 'touch {tmp_path}/ran; cat {folder}/{{name}}'"
    monkeypatch.setenv("MEGASR_NO_PIPE", "1")
    for reads in (open_storage, ShardSource):
        with pytest.raises(UsageError, match="^pipe:sh -c .*: MEGASR_NO_PIPE is set"):
            reads(url, tmp_path / "cache")
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv("MEGASR_NO_PIPE", "0")
    assert len(ShardSource(url, tmp_path / "cache")) == 5


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("pipe:aws s3 cp s3://bucket/shards -", "must contain {name}"),
        ("pipe:cat {name} {start}", "{start} and {end} go together"),
        ("pipe:cat '{name}", "No closing quotation"),
        ("s4://bucket/shards", "Protocol not known: s4; or use pipe: .* pipe:aws s3 cp s4://bucket/shards/{name} -"),
        ("no/such/folder", "no/such/folder: no such folder"),
    ],
)
def test_urls_that_cannot_be_read(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_storage(url)


def test_a_cache_must_have_room(folder: Path) -> None:
    with pytest.raises(UsageError, match="cache_gb must be positive, got 0"):
        open_storage(str(folder), cache_gb=0)


def writing(content: bytes, calls: list[str] | None = None) -> Callable[[BinaryIO], None]:
    def fetch(file: BinaryIO) -> None:
        file.write(content)
        if calls is not None:
            calls.append("fetched")

    return fetch


def copies(cache: FileCache) -> set[str]:
    return {path.name for path in cache.folder.iterdir() if path.suffix != ".lock"}


def test_the_oldest_copy_is_removed_and_can_be_read_to_its_end(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, limit_bytes=300)
    opened = {}
    for number, name in enumerate("bac"):
        opened[name] = cache.open(name, "v", writing(b"x" * 100))
        os.utime(tmp_path / f"v-{name}", (number, number))
    cache.open("d", "v", writing(b"x" * 100)).close()
    assert copies(cache) == {"v-a", "v-c", "v-d"}
    assert opened["b"].read() == b"x" * 100
    cache.open("e", "v", writing(b"x" * 400)).close()
    assert copies(cache) == {"v-e"}, "the newest stays even when it alone is too large"
    cache.open("e", "w", writing(b"y")).close()
    assert copies(cache) == {"w-e"}, "another version is another copy"
    for file in opened.values():
        file.close()


def test_threads_fetch_a_file_once(tmp_path: Path) -> None:
    calls: list[str] = []
    started, release = threading.Event(), threading.Event()

    def slow(file: BinaryIO) -> None:
        started.set()
        release.wait(10)
        writing(b"content", calls)(file)

    def read() -> None:
        with FileCache(tmp_path, 99).open("f", "v", slow) as file:
            results.append(file.read())

    results: list[bytes] = []
    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert started.wait(10)
    assert not (tmp_path / "v-f").exists(), "a copy appears whole"
    release.set()
    for thread in threads:
        thread.join(10)
    assert (results, calls) == ([b"content"] * 4, ["fetched"])


def test_a_failed_fetch_leaves_nothing(tmp_path: Path) -> None:
    def fetch(file: BinaryIO) -> None:
        file.write(b"half")
        raise MegaSRError("gone")

    cache = FileCache(tmp_path / "cache", 99)
    with pytest.raises(MegaSRError, match="gone"):
        cache.open("f", "v", fetch)
    assert copies(cache) == set()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MegaSRError, match="cannot write .*set cache_dir"):
        FileCache(tmp_path / "file", 99).open("f", "v", fetch)


def test_default_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "megasr" / "shards"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "megasr" / "shards"
