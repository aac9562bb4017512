"""The same bytes from a folder, HTTP with and without ranges, and commands; troubles are named."""

from __future__ import annotations

import contextlib
import http.server
import pickle
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from data_pipelines.samples import Sample, SampleSet
from data_pipelines.shards import storage as storages
from data_pipelines.shards.reader import ShardSource
from data_pipelines.shards.storage import MissingFileError, ShortReadError, open_storage
from megasr.errors import MegaSRError, UsageError
from tests.helpers.shard_sets import make_shards, sample_files

CONTENT = bytes(range(256)) * 20
RESPOND = http.server.BaseHTTPRequestHandler.send_response


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves a folder: /plain/ whole files only, /ranges/ ranges too, /moved/ elsewhere, /broken/ half of the body.

    And lies: /file/ leads to a file of the client, /shifted/ gives another range, /more/ more of it, /endless/ has no
    end, /trickle/ gives a byte now and then.
    """

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # header and body in one packet
    server: Server

    def do_GET(self) -> None:
        kind, _, name = self.path.removeprefix("/").partition("/")
        self.server.asked[self.path] += 1
        self.server.connections.add(self.client_address)
        path = self.server.folder / name.replace("%20", " ")
        if self.server.failures:
            self.reply(self.server.failures.pop(), b"later")
        elif kind == "moved":
            self.reply(302, b"", Location=f"/ranges/{name}")
        elif kind == "file":
            self.reply(302, b"", Location="file:///etc/passwd")
        elif kind in ("shifted", "more"):
            place = "bytes 0-999/5120" if kind == "shifted" else "bytes 700-1699/5120"
            self.reply(206, CONTENT[: 1000 if kind == "shifted" else 2000], Content_Range=place)
        elif kind in ("endless", "trickle"):
            self.pour(kind)
        elif not path.is_file():
            self.reply(404, b"not here")
        elif kind == "ranges" and (wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))):
            content, start = path.read_bytes(), int(wanted[1])
            part = content[start : int(wanted[2]) + 1]
            place = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
            self.reply(206, part, Content_Range=place) if part else self.reply(416, b"")
        elif kind == "broken":
            self.reply(200, path.read_bytes(), cut=True)
        else:
            self.reply(200, path.read_bytes())

    def reply(self, status: int, body: bytes, cut: bool = False, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = cut

    def pour(self, kind: str) -> None:
        self.close_connection = True
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while not self.server.stopping:
                self.wfile.write(b"x" if kind == "trickle" else CONTENT)
                self.wfile.flush()
                time.sleep(0.02 if kind == "trickle" else 0)

    def log_message(self, *arguments: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """Counts what it is asked for; answers with `failures` first."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.asked, self.failures = folder, Counter[str](), list[int]()
        self.connections: set[object] = set()
        self.stopping = False
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "set"
    make_shards(made, [3, 2])
    (made / "some file").write_bytes(CONTENT)
    return made


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with Server(folder) as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.01,))
        thread.start()
        yield served
        served.stopping = True
        served.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storages, "HTTP_WAITS_S", (0, 0, 0))
    monkeypatch.setattr(storages, "PIPE_WAITS_S", (0, 0, 0))


def ranged_pipe(folder: Path) -> str:
    script = 'tail -c +$(($2 + 1)) "$1" | head -c $(($3 + 1 - $2))'
    return f"pipe:sh -c '{script}' sh {folder}/{{name}} {{start}} {{end}}"


URLS: dict[str, Callable[[Path, Server], str]] = {
    "folder": lambda folder, server: str(folder),
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
        assert copy.read("some file", 700, 1000, "v") == CONTENT[700:1700]
        assert copy.read("some file", 5119, 1, "v") == CONTENT[5119:]
        assert copy.read("some file", 9, 0, "v") == b""
        assert copy.read_all("some file", "v") == CONTENT
        for offset in (5100, 6000):
            with pytest.raises(ShortReadError):
                copy.read("some file", offset, 100, "v")
        if "pipe" not in kind:
            with pytest.raises(MissingFileError, match="nothing"):
                copy.read("nothing", 0, 1, "v")
    source = ShardSource(url, tmp_path / "cache")
    source.read(0)  # what the parent has open must not be used by its forks
    samples = SampleSet(source.read, 5)
    loader = torch.utils.data.DataLoader(samples, 1, num_workers=2, collate_fn=key_of)
    assert list(loader) == [sample_files(number)[0] for number in range(5)]
    if kind == "http":
        assert len(server.connections) == 2 + 1 + 2, "two storages, the source, and each of its workers"


def test_http_keeps_its_connection_and_asks_for_ranges_only(server: Server, tmp_path: Path) -> None:
    storage = open_storage(f"{server.url}/ranges", tmp_path / "cache")
    for offset in range(20):
        storage.read("some file", offset, 10, "v")
    assert (server.asked.total(), len(server.connections)) == (20, 1)
    source = ShardSource(f"{server.url}/ranges", tmp_path / "cache")
    source.read(0)
    server.asked.clear()
    source.read(1)
    assert server.asked == {"/ranges/shard-000000.tar": 1}, "image and tags are one question"
    assert not (tmp_path / "cache").exists()


def test_http_without_ranges_fetches_a_file_once(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        storage = open_storage(f"{server.url}/plain", tmp_path)
        for offset in range(10):
            storage.read("some file", offset, 10, "v")
    assert server.asked.total() == 3, "the first of every storage asks for a range; one fetches the file"


@pytest.mark.parametrize("status", [500, 503, 429])
def test_http_tries_again(server: Server, tmp_path: Path, status: int) -> None:
    storage = open_storage(f"{server.url}/ranges", tmp_path)
    server.failures = [status, status]
    assert storage.read("some file", 3, 5, "v") == CONTENT[3:8]
    server.failures = [status] * 3
    with pytest.raises(MegaSRError, match=rf"/ranges/some%20file: HTTP {status} .*, tried 3 times"):
        storage.read("some file", 3, 5, "v")


def test_http_troubles_are_named(server: Server, tmp_path: Path) -> None:
    server.failures = [403]
    with pytest.raises(MegaSRError, match=r"/ranges/x: HTTP 403 Forbidden$") as error:
        open_storage(f"{server.url}/ranges", tmp_path).read("x", 0, 1)
    assert not isinstance(error.value, MissingFileError)
    with pytest.raises(MissingFileError, match=r"/ranges/x: HTTP 404 Not Found$"):
        open_storage(f"{server.url}/ranges", tmp_path).read_all("x")
    with pytest.raises(MegaSRError, match=r"/broken/some%20file: .*tried 3 times"):
        open_storage(f"{server.url}/broken", tmp_path).read_all("some file")
    with pytest.raises(MegaSRError, match=r"/broken/some%20file: .*tried 3 times"):
        open_storage(f"{server.url}/broken", tmp_path).read("some file", 0, 1, "v")
    server.shutdown()
    server.server_close()
    with pytest.raises(MegaSRError, match=rf"{server.url}/ranges/x: .*refused, tried 3 times"):
        open_storage(f"{server.url}/ranges", tmp_path).read("x", 0, 1)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("file", "redirects to file:///etc/passwd, which is no http address"),
        ("shifted", "asked for 1000 bytes from 700, got those of 'bytes 0-999/5120'"),
        ("more", "sends more than the 1000 bytes"),
        ("endless", "sends more than the 20000 bytes"),
        ("trickle", r"only \d+ bytes came in .* s, tried 3 times"),
    ],
)
def test_a_lying_server_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, message: str
) -> None:
    monkeypatch.setattr(storages, "_MOST_BYTES", 20_000)
    monkeypatch.setattr(storages, "_TIMEOUT_S", 0.1)
    storage = open_storage(f"{server.url}/{kind}", tmp_path / "cache", cache_gb=20_000 / 1e9)
    with pytest.raises(MegaSRError, match=rf"/{kind}/.*{message}"):
        storage.read("some file", 700, 1000, "v", 5120)
    if kind in ("endless", "trickle"):
        with pytest.raises(MegaSRError, match=rf"/{kind}/.*{message}"):
            storage.read_all("some file")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name.startswith("cache")]


def test_an_endless_error_page_is_not_read(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "send_response", lambda self, status: RESPOND(self, 404 if status == 200 else status))
    with pytest.raises(MissingFileError, match="HTTP 404"):
        open_storage(f"{server.url}/endless", tmp_path).read_all("some file")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sh -c 'echo first >&2; echo no credentials >&2; exit 7' {name}", "exit status 7, no credentials, tried 3"),
        ("false {name}", "exit status 1, no message"),
        ("no-such-client {name}", "cannot run no-such-client: No such file"),
        ("echo too much {name} {start} {end}", "bytes came for a range of 3"),
    ],
)
def test_pipe_troubles_are_named(tmp_path: Path, command: str, message: str) -> None:
    with pytest.raises(MegaSRError, match=rf"^pipe:{re.escape(command)}: .*{message}"):
        open_storage(f"pipe:{command}", tmp_path).read("x.tar", 0, 3, "v")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("sh -c 'cat {folder}/{{name}}'", "$(touch ran)"),
        ("sh -c 'cat {folder}/{{name}}'", "a;touch ran"),
        ("sh -c 'cat {folder}/{{name}} {{start}} {{end}}'", "a b"),
        ("sh -c 'cat<{folder}/{{name}}'", "$(touch ran)"),
        ("timeout 9 ssh host cat {folder}/{{name}}", "a;touch ran"),
        ("tar {{name}}", "--to-command=touch ran"),
    ],
)
def test_the_names_of_a_set_are_no_commands(folder: Path, tmp_path: Path, command: str, name: str) -> None:
    with pytest.raises(MegaSRError, match=re.escape(f"the set names a file {name!r}")):
        open_storage(f"pipe:{command.format(folder=folder)}", tmp_path).read(name, 0, 1, "v")
    plain = open_storage(f"pipe:sh -c 'cat {folder}/{{name}}'", tmp_path / "cache")
    assert plain.read_all("shard-000000.tar") == (folder / "shard-000000.tar").read_bytes()


def test_a_command_is_shown_once_before_it_runs(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
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


def test_a_pipe_without_ranges_runs_once_per_file(folder: Path, tmp_path: Path) -> None:
    script = f'echo ran >> {tmp_path}/log; cat "$1"'
    for _ in range(2):
        storage = open_storage(f"pipe:sh -c '{script}' sh {folder}/{{name}}", tmp_path / "cache")
        assert storage.read("some file", 1, 5, "v", len(CONTENT)) == CONTENT[1:6]
    assert (tmp_path / "log").read_text() == "ran\n"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("pipe:aws s3 cp s3://bucket/shards -", "must contain {name}"),
        ("pipe:cat {name} {start}", "{start} and {end} go together"),
        ("pipe:cat '{name}", "No closing quotation"),
        ("s3://bucket/shards", "cannot read s3://; use pipe: .* pipe:aws s3 cp s3://bucket/shards/{name} -"),
        ("no/such/folder", "no/such/folder: no such folder"),
    ],
)
def test_urls_that_cannot_be_read(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_storage(url)


def test_a_cache_must_have_room(folder: Path) -> None:
    with pytest.raises(UsageError, match="cache_gb must be positive, got 0"):
        open_storage(str(folder), cache_gb=0)
