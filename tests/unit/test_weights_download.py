"""Downloads from a server whose connections break: what arrives is the published file, or there is one clear error."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from megasr.errors import MegaSRError, UsageError
from megasr.weights import MANIFEST, PublishedFile, Weight
from megasr.weights.local import fetch
from tests.helpers.weight_server import WeightServer, weight_server

CONTENT = hashlib.shake_256(b"weights").digest(200_000)
OTHER = hashlib.shake_256(b"others").digest(200_000)
FILE = PublishedFile("one.pth", sha256=hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WeightServer]:
    """A hub with the weight `one`, which is the only host that downloads ask."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("MEGASR_WEIGHTS", str(tmp_path / "weights"))
    with weight_server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.host("somebody/one", {"one.pth": CONTENT})
        yield server


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weight of one file; where it will lie."""
    register(monkeypatch, FILE)
    return tmp_path / "weights" / "one" / "one.pth"


def register(monkeypatch: pytest.MonkeyPatch, *files: PublishedFile, mirrors: tuple[str, ...] = ()) -> None:
    monkeypatch.setitem(MANIFEST, "one", Weight("one", "a test", mirrors or ("somebody/one",), "MIT", files))


@pytest.mark.parametrize("kind", ["repository", "address"])
def test_a_file_arrives_once(
    kind: str, server: WeightServer, one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "address":
        register(monkeypatch, FILE, mirrors=(f"{server.url}/somebody/one/resolve/main/",))
    for _ in range(2):
        assert fetch("one") == one
        assert one.read_bytes() == CONTENT
    assert len(server.ranges_of("one.pth")) == 1
    assert [path.name for path in one.parent.iterdir() if path.suffix] == ["one.pth"]
    assert fetch("one", tmp_path / "disk") == tmp_path / "disk" / "one" / "one.pth"


def test_a_broken_connection_is_bridged_and_whole_files_are_kept(
    server: WeightServer, one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = CONTENT * 60
    server.host("somebody/one", {"config.json": b"{}", "one.pth": content})
    register(monkeypatch, PublishedFile("config.json"), PublishedFile("one.pth", size=len(content)))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.cuts = [2, len(content) - 9] + [0] * 9
    with pytest.raises(MegaSRError, match=r"cannot fetch one, one\.pth: somebody/one: .*Run it again"):
        fetch("one")
    assert not one.exists()
    server.cuts = [len(content) - 9]
    assert fetch("one") == one.parent
    assert one.read_bytes() == content
    assert server.ranges_of("one.pth")[-1].startswith("bytes=10485760-")  # huggingface_hub writes 10 MiB at a time
    assert server.ranges_of("config.json") == [""]


def test_another_content_is_refused(server: WeightServer, one: Path) -> None:
    server.host("somebody/one", {"one.pth": OTHER})
    with pytest.raises(MegaSRError, match=f"gives another file: sha256 expected {FILE.sha256}, found [0-9a-f]{{64}}"):
        fetch("one")
    assert not one.exists()
    one.write_bytes(OTHER)  # by hand: it is replaced
    server.host("somebody/one", {"one.pth": CONTENT})
    assert fetch("one").read_bytes() == CONTENT


def test_mirrors_are_tried_in_order(server: WeightServer, one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirrors = ("nobody/one", "http://127.0.0.1:1/", "somebody/else", "somebody/one")
    register(monkeypatch, PublishedFile("config.json"), FILE, mirrors=mirrors)
    server.host("somebody/else", {"config.json": b"{}", "one.pth": OTHER})
    server.host("somebody/one", {"config.json": b"[]"})
    assert fetch("one") == one.parent
    assert (one.parent / "config.json").read_bytes() == b"{}"
    assert one.read_bytes() == CONTENT


def test_no_mirror_is_one_error_with_every_reason(server: WeightServer, monkeypatch: pytest.MonkeyPatch) -> None:
    mirrors = ("nobody/one", "http://127.0.0.1:1/one.pth", "ftp://example.org/one.pth")
    register(monkeypatch, PublishedFile("one.pth"), mirrors=mirrors)
    with pytest.raises(MegaSRError) as error:
        fetch("one")
    for part in ("cannot fetch one, one.pth: nobody/one: 404", "Connection refused", "No connection adapters"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_an_older_format_is_taken_where_the_newer_is_absent(
    server: WeightServer, one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, PublishedFile("one.safetensors", instead=PublishedFile("one.pth")))
    assert fetch("one") == fetch("one") == one
    assert len(server.ranges_of("one.pth")) == 1


def test_a_space_and_its_address_are_of_the_hub(
    server: WeightServer, one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.host("spaces/somebody/one", {"one.pth": CONTENT})
    for mirror in ("spaces/somebody/one", "https://huggingface.co/spaces/somebody/one/resolve/main/"):
        register(monkeypatch, FILE, mirrors=(mirror,))
        one.unlink(missing_ok=True)
        assert fetch("one").read_bytes() == CONTENT


def test_offline_asks_nobody(server: WeightServer, one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in (("MEGASR_OFFLINE", "1"), ("HF_HUB_OFFLINE", "yes")):
        monkeypatch.setenv(variable, value)
        with pytest.raises(MegaSRError, match=f"^{variable} is set: nothing is fetched"):
            fetch("one")
        monkeypatch.setenv(variable, "0")
    assert server.requests == []


def test_a_repository_of_a_library_is_put_nowhere_else(server: WeightServer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave out --to"):
        fetch("timm/vit_base_patch8_224.augreg2_in21k_ft_in1k", tmp_path)


def test_a_folder_that_cannot_be_made(server: WeightServer, one: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("a file")
    with pytest.raises(MegaSRError, match="cannot use the folder .*one: Not a directory"):
        fetch("one")
