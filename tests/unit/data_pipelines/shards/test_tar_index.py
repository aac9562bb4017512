"""Scanning a tar finds what webdataset finds, and takes no damage for the end of the archive."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import webdataset

from data_pipelines.shards.tar import (
    IndexedSample,
    Member,
    decode_key,
    dump_index,
    encode_key,
    load_index,
    open_index,
    scan_tar,
)
from megasr.errors import MegaSRError

KEYS = ["plain", "a/b", "v1.2/x.y", "__init", "__a__/b", "é ü/~%41", "long/" * 40 + "key", "\udcff"]


def tar_of(members: Iterable[tuple[str, bytes]], change: Callable[[tarfile.TarInfo], None] | None = None) -> bytes:
    """A tar with these members; `change` is applied to the last."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        members = list(members)
        for number, (name, content) in enumerate(members, start=1):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if change is not None and number == len(members):
                change(member)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize("key", KEYS)
def test_a_key_survives_the_tar(key: str) -> None:
    tar = tar_of([(f"{encode_key(key)}.jpg", b"image"), (f"{encode_key(key)}.map.canny.png", b"map")])
    (sample,) = scan_tar(io.BytesIO(tar), "here")
    assert sample.key == key == decode_key(encode_key(key))
    contents = {field: tar[m.offset : m.offset + m.size] for field, m in sample.files.items()}
    assert contents == {"jpg": b"image", "map.canny.png": b"map"}
    text = dump_index([sample], "x.tar", "abc")
    for index in (text, re.sub(r', "digest": "\w+"', "", text)):  # as older versions wrote it
        assert load_index(index, "x.index.json") == ([sample], "abc")
        samples, sha256 = open_index(index, "x.index.json")
        assert ([*samples], sha256) == ([sample], "abc")


def test_scan_of_a_tar_by_webdataset_finds_what_webdataset_finds(tmp_path: Path) -> None:
    with webdataset.ShardWriter(str(tmp_path / "%d.tar"), maxcount=2, verbose=0) as writer:
        for key in ("a", "b/c", "d"):
            writer.write({"__key__": key, "JPG": b"j" * 600, "txt": key, "map.hed.png": b"m" * 512})
    for path in sorted(tmp_path.glob("*.tar")):
        expected = list(webdataset.WebDataset(str(path), shardshuffle=False))
        with path.open("rb") as file:
            samples = scan_tar(file, path.name)
        assert [sample.key for sample in samples] == [sample["__key__"] for sample in expected]
        tar = path.read_bytes()
        for sample, other in zip(samples, expected, strict=True):
            contents = {field: tar[m.offset : m.offset + m.size] for field, m in sample.files.items()}
            assert contents == {field: other[field] for field in ("jpg", "txt", "map.hed.png")}


def test_what_is_no_sample_is_skipped() -> None:
    names = ("__meta__/x.json", "._a.jpg", "a/.hidden.jpg", "README", "./b.jpg")
    assert [s.key for s in scan_tar(io.BytesIO(tar_of((name, b"1") for name in names)), "here")] == ["b"]


TWO = [("a.jpg", b"1" * 700), ("b.jpg", b"2")]


def retype(kind: bytes) -> Callable[[tarfile.TarInfo], None]:
    def change(member: tarfile.TarInfo) -> None:
        member.type, member.linkname = kind, "a.jpg"

    return change


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty file"),
        (b"\x89PNG" * 1000, "not a whole tar"),
        (tar_of(TWO)[:100], "truncated header"),
        (tar_of(TWO)[:700], "unexpected end of data"),
        (tar_of(TWO)[:1536], "truncated at byte 1536"),  # between two members, where tarfile sees an end
        (tar_of(TWO)[:1600], "truncated at byte 1600"),
        (tar_of(TWO)[:2560], "truncated at byte 2560"),  # all contents, no end of the archive
        (tar_of(TWO).replace(b"b.jpg", b"c.jpg"), "damaged header at byte 1536"),
        (tar_of(TWO)[:2560] + b"\0" * 1024 + tar_of(TWO), "something follows the end of the archive"),
        (tar_of([*TWO, ("b.jpg", b"3")]), "'b.jpg' is there twice"),
        (tar_of([*TWO, ("a.txt", b"3")]), "the files of 'a' are not next to each other"),
        (tar_of([("/etc/a.jpg", b"1")]), "'/etc/a.jpg' points outside"),
        (tar_of([("a/../../b.jpg", b"1")]), "'a/../../b.jpg' points outside"),
        (tar_of(TWO, retype(tarfile.SYMTYPE)), "'b.jpg' is not a plain file"),
        (tar_of(TWO, retype(tarfile.LNKTYPE)), "'b.jpg' is not a plain file"),
        (tar_of(TWO, retype(tarfile.CHRTYPE)), "'b.jpg' is not a plain file"),
    ],
)
def test_refuses(content: bytes, says: str) -> None:
    with pytest.raises(MegaSRError) as error:
        scan_tar(io.BytesIO(content), "x.tar")
    assert str(error.value).startswith("x.tar: ")
    assert says in str(error.value)


def test_a_negative_size_does_not_hang() -> None:
    tar = bytearray(tar_of([("a.jpg", b"1"), ("README", b"2")]))
    header = memoryview(tar)[1024:1536]
    header[124:136] = b"\xff" + (2**88 - 512).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(MegaSRError, match="'README' has the size -512"):
        scan_tar(io.BytesIO(tar), "x.tar")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format": "other"}',
        '{"format": "megasr-shard-index-1", "samples": [["a", {"jpg": [-1, 2, ""]}]], "sha256": ""}',
        '{"format": "megasr-shard-index-1", "samples": [[1, {"jpg": [1, 2, ""]}]], "sha256": ""}',
        dump_index([IndexedSample("a", {"jpg": Member(512, 3)})], "x.tar")[:-5],
    ],
)
def test_refuses_what_is_no_index(text: str) -> None:
    for read in (load_index, open_index):
        with pytest.raises(MegaSRError, match=r"x\.index\.json: "):
            read(text, "x.index.json")


def test_an_opened_index_parses_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [IndexedSample(f'"{n}", {{', {"jpg": Member(512 * n, n, "d")}) for n in range(100)]
    text = dump_index(samples, "x.tar", "abc")
    parsed: list[str] = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda line: (parsed.append(line), loads(line))[1])
    opened, sha256 = open_index(text, "x.index.json")
    assert (len(opened), sha256, len(parsed)) == (100, "abc", 1), "the head alone"
    assert opened[41] == samples[41]
    assert len(parsed) == 2
    assert sum(map(len, parsed)) < len(text) / 10
    with pytest.raises(IndexError):
        opened[100]


@pytest.mark.parametrize("count", [0, 1])
def test_small_indices_are_opened(count: int) -> None:
    samples = [IndexedSample("a", {"jpg": Member(512, 3)})] * count
    assert [*open_index(dump_index(samples, "x.tar"), "x.index.json")[0]] == samples


def test_a_sample_that_is_listed_twice_is_refused() -> None:
    text = dump_index([IndexedSample("a", {"jpg": Member(512, size)}) for size in (3, 4)], "x.tar")
    for read in (load_index, open_index):
        with pytest.raises(MegaSRError, match="it lists a sample twice"):
            read(text, "x.index.json")
