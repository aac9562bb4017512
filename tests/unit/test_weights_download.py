"""Downloads against a real server with real troubles: what arrives is the published file, or one clear error."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from megasr.errors import MegaSRError, UsageError
from megasr.weights import MANIFEST, PublishedFile, Weight, download
from megasr.weights.download import WRONG, address, fetch
from tests.helpers.weight_server import WeightServer, weight_server

CONTENT = hashlib.shake_256(b"weights").digest(200_000)
OTHER = hashlib.shake_256(b"others").digest(200_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MIRROR = ("somebody/one",)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WeightServer]:
    """A hub with the weight `one`, which is the only host that downloads ask."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("MEGASR_WEIGHTS", str(tmp_path / "weights"))
    with weight_server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.host("somebody/one", {"one.pth": CONTENT})
        yield server


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weight of one file with a known sha256; where it will lie."""
    register(monkeypatch, PublishedFile("one.pth", sha256=SHA256))
    return tmp_path / "weights" / "one" / "one.pth"


def register(monkeypatch: pytest.MonkeyPatch, *files: PublishedFile, mirrors: tuple[str, ...] = MIRROR) -> None:
    monkeypatch.setitem(MANIFEST, "one", Weight("one", "a test", mirrors, "MIT", files))


def left(path: Path) -> list[str]:
    """The names in the folder of a weight."""
    return sorted(entry.name for entry in path.parent.iterdir() if entry.name != ".lock")


def test_a_file_arrives_once(server: WeightServer, one: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    assert fetch("one", report=lambda *progress: told.append(progress)) == one
    assert one.read_bytes() == CONTENT
    assert left(one) == ["one.pth"]
    assert told[-1] == ("one.pth", len(CONTENT), len(CONTENT))
    assert fetch("one") == one
    assert server.ranges_of("one.pth") == [""]
    assert fetch("one", tmp_path / "disk") == tmp_path / "disk" / "one" / "one.pth"


@pytest.mark.parametrize("known", [True, False], ids=["sha256 known", "sha256 unknown"])
@pytest.mark.parametrize("etags", [True, False], ids=["with ETag", "no ETag"])
def test_an_interrupted_download_goes_on(
    etags: bool, known: bool, server: WeightServer, one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not known:
        register(monkeypatch, PublishedFile("one.pth"))
    server.etags = etags
    server.cuts = [70_000, 50_000, 0]
    if not etags and not known:  # nothing tells that the rest belongs to what is here: all is asked for again
        server.cuts = [70_000, 50_000]
    with pytest.raises(MegaSRError, match=r"stopped after \d+ bytes. Run again, it goes on"):
        fetch("one")
    assert not one.exists()
    assert one.with_name("one.pth.part").read_bytes() == CONTENT[: 120_000 if etags or known else 50_000]
    assert fetch("one") == one
    assert one.read_bytes() == CONTENT
    assert left(one) == ["one.pth"]
    resumed = ["", "bytes=70000-", "bytes=120000-", "bytes=120000-"]
    assert server.ranges_of("one.pth") == (resumed if etags or known else ["", "", ""])


def test_short_breaks_are_bridged(server: WeightServer, one: Path) -> None:
    server.cuts = [10_000] * 5
    fetch("one")
    assert one.read_bytes() == CONTENT
    assert server.ranges_of("one.pth") == ["", *(f"bytes={done}-" for done in range(10_000, 60_000, 10_000))]


@pytest.mark.parametrize("known", [True, False])
def test_a_server_without_ranges_sends_all_again(
    known: bool, server: WeightServer, one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not known:
        register(monkeypatch, PublishedFile("one.pth"))
    server.ranges = False
    server.cuts = [70_000, 70_000]
    with pytest.raises(MegaSRError, match="stopped after 70000 bytes"):
        fetch("one")
    fetch("one")
    assert one.read_bytes() == CONTENT
    assert left(one) == ["one.pth"]


@pytest.mark.parametrize("knows_if_range", [True, False])
def test_a_file_that_changed_meanwhile_is_begun_anew(
    knows_if_range: bool, server: WeightServer, one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, PublishedFile("one.pth"))
    server.knows_if_range = knows_if_range
    server.cuts = [70_000, 0]
    with pytest.raises(MegaSRError):
        fetch("one")
    server.host("somebody/one", {"one.pth": OTHER})
    fetch("one")
    assert one.read_bytes() == OTHER
    assert len(server.requests) == (3 if knows_if_range else 4)  # If-Range spares the request in vain


def test_a_part_that_is_whole_or_too_long(server: WeightServer, one: Path) -> None:
    for content in (CONTENT, CONTENT + b"more", OTHER[:9], b""):
        one.parent.mkdir(parents=True, exist_ok=True)
        one.unlink(missing_ok=True)
        one.with_name("one.pth.part").write_bytes(content)
        fetch("one")
        assert one.read_bytes() == CONTENT
        assert left(one) == ["one.pth"]


def test_another_content_is_refused_and_kept_aside(server: WeightServer, one: Path) -> None:
    server.host("somebody/one", {"one.pth": OTHER})
    found = hashlib.sha256(OTHER).hexdigest()
    aside = one.with_name(f"one.pth{WRONG}")
    says = re.escape(f"gives another file, kept as {aside}: sha256 expected {SHA256}, found {found}")
    with pytest.raises(MegaSRError, match=says):
        fetch("one")
    assert left(one) == [aside.name]
    assert aside.read_bytes() == OTHER
    server.host("somebody/one", {"one.pth": CONTENT})
    fetch("one")
    assert one.read_bytes() == CONTENT


def test_a_file_here_that_is_not_the_published_one_is_replaced(server: WeightServer, one: Path) -> None:
    one.parent.mkdir(parents=True)
    one.write_bytes(OTHER)
    fetch("one")
    assert one.read_bytes() == CONTENT


def test_mirrors_are_tried_in_order(server: WeightServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirrors = ("nobody/one", "http://127.0.0.1:1/", "somebody/else", "somebody/one")
    files = PublishedFile("config.json"), PublishedFile("one.pth", sha256=SHA256)
    register(monkeypatch, *files, mirrors=mirrors)
    server.host("somebody/else", {"config.json": b"{}", "one.pth": OTHER})
    server.host("somebody/one", {"config.json": b"[]"})
    assert fetch("one") == tmp_path / "weights" / "one"
    assert (tmp_path / "weights/one/config.json").read_bytes() == b"{}"
    assert (tmp_path / "weights/one/one.pth").read_bytes() == CONTENT
    asked = [path.removesuffix("/resolve/main/one.pth") for path, _ in server.requests if path.endswith("one.pth")]
    assert asked == ["/somebody/else", "/somebody/one"]  # those that failed before come last


def test_no_mirror_is_one_error_with_every_reason(server: WeightServer, monkeypatch: pytest.MonkeyPatch) -> None:
    mirrors = ("nobody/one", "http://127.0.0.1:1/one.pth", "ftp://example.org/one.pth")
    register(monkeypatch, PublishedFile("one.pth"), mirrors=mirrors)
    with pytest.raises(MegaSRError) as error:
        fetch("one")
    assert f"cannot fetch one, one.pth: {server.url}/nobody/one/resolve/main/one.pth answers 404" in str(error.value)
    assert "http://127.0.0.1:1/one.pth cannot be reached: [Errno 111] Connection refused" in str(error.value)
    assert "ftp://example.org/one.pth is no http address" in str(error.value)


def test_an_older_format_is_taken_where_the_newer_is_absent(
    server: WeightServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, PublishedFile("one.safetensors", instead=PublishedFile("one.pth")))
    assert fetch("one") == tmp_path / "weights" / "one" / "one.pth"
    assert fetch("one").read_bytes() == CONTENT
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        ({"kind": "text/html; charset=utf-8"}, "answers with a web page"),
        ({"hides_length": True}, "does not say how long the file is"),
        ({"claims": 10**16}, r"has no room: 10000000000000000 bytes are needed, \d+ are free"),
    ],
)
def test_what_cannot_be_the_file_is_not_written(
    trouble: dict[str, object], says: str, server: WeightServer, one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, PublishedFile("one.pth"))
    vars(server).update(trouble)
    with pytest.raises(MegaSRError, match=says):
        fetch("one")
    assert left(one) == []


def test_another_size_than_the_published_one_is_not_written(
    server: WeightServer, one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, PublishedFile("one.pth", size=1_000))
    with pytest.raises(MegaSRError, match=r"offers 200000 bytes, but one\.pth has 1000"):
        fetch("one")
    assert left(one) == []


@pytest.mark.parametrize("size", [len(CONTENT), None], ids=["size known", "size unknown"])
def test_an_endless_body_fills_no_disk(
    size: int | None, server: WeightServer, one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, PublishedFile("one.pth", size=size, sha256=SHA256))
    monkeypatch.setattr(download, "_MOST_BYTES", 300_000)
    server.hides_length = server.endless = True
    with pytest.raises(MegaSRError, match=f"sends more than {size or 300_000} bytes"):
        fetch("one")
    assert left(one) == []


def test_a_stalling_mirror_gives_way_to_the_next(
    server: WeightServer, one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_TIMEOUT_S", 0.2)
    monkeypatch.setattr(download, "_SLOWEST_BYTES_S", 1_000_000)
    server.pause_s = 0.1
    with pytest.raises(MegaSRError, match=r"is too slow: \d+ bytes in \d+ s"):
        fetch("one")
    assert left(one) == ["one.pth.part", "one.pth.part.etag"]
    server.pause_s = 0
    assert fetch("one").read_bytes() == CONTENT


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1:1/one.pth", "data:text/plain,x", "http://["])
def test_a_redirect_leads_to_http_only(place: str, server: WeightServer, one: Path) -> None:
    server.moved_to = place
    with pytest.raises(MegaSRError, match="cannot fetch one, one.pth: .* (answers 302|cannot be reached)"):
        fetch("one")
    assert left(one) == []


def test_offline_asks_nobody(server: WeightServer, one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in (("MEGASR_OFFLINE", "1"), ("HF_HUB_OFFLINE", "yes")):
        monkeypatch.setenv(variable, value)
        with pytest.raises(MegaSRError, match=f"^{variable} is set: nothing is fetched"):
            fetch("one")
        monkeypatch.setenv(variable, "0")
    assert server.requests == []
    assert fetch("one") == one


def test_unknown_names_and_places(server: WeightServer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown weight 'controlnet_hed'; did you mean controlnet-hed"):
        fetch("controlnet_hed")
    with pytest.raises(UsageError, match="leave out --to"):
        fetch("timm/vit_base_patch8_224.augreg2_in21k_ft_in1k", tmp_path)


def test_a_folder_that_cannot_be_made(server: WeightServer, one: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("a file")
    with pytest.raises(MegaSRError, match="cannot use the folder"):
        fetch("one")


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert address("a/b", "c d.pth") == "https://huggingface.co/a/b/resolve/main/c%20d.pth"
    assert address("https://example.org/x/", "c/d.pth") == "https://example.org/x/c/d.pth"
    assert address("https://example.org/x?id=3", "d.pth") == "https://example.org/x?id=3"
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert address("a/b", "d.pth") == "https://mirror.example/a/b/resolve/main/d.pth"
    space = "https://huggingface.co/spaces/a/b/resolve/main/"
    assert address(space, "d.pth") == "https://mirror.example/spaces/a/b/resolve/main/d.pth"
