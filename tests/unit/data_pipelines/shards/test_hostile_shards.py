"""A shard set that was made to do harm: refused or counted by name, without much memory, waiting, or files outside."""

from __future__ import annotations

import io
import json
import resource
import struct
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.samples import UnusableSampleError
from data_pipelines.shards.bake import bake
from data_pipelines.shards.baked import BakedSource, BakeOptions
from data_pipelines.shards.fields import load_array
from data_pipelines.shards.foreign import index_shards
from data_pipelines.shards.manifest import MANIFEST
from data_pipelines.shards.reader import ShardSource
from data_pipelines.shards.tar import IndexedSample, Member, dump_index, load_index
from data_pipelines.shards.verify import describe, verify
from megasr import cli
from megasr.errors import MegaSRError
from tests.helpers.shard_sets import make_shards, photo_files, write_shard

TAR, INDEX = "shard-000000.tar", "shard-000000.index.json"
DEEP = "[" * 100_000
HEADER_BYTES = tarfile.BLOCKSIZE


@pytest.fixture(autouse=True)
def _little_memory() -> Any:
    """What takes more than 4 GiB beyond what is in use fails here, and not the machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit_memory(2**32)
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def limit_memory(further_bytes: int) -> None:
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + further_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    make_shards(tmp_path / "set", [2, 1])
    return tmp_path / "set"


def edit_manifest(folder: Path, **values: Any) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    content["shards"][0] |= values
    content |= {total: sum(shard[total] for shard in content["shards"]) for total in ("samples", "bytes")}
    (folder / MANIFEST).write_text(json.dumps(content))


def edit_index(folder: Path, key: str = "folder/image 000", **files: Any) -> None:
    (first, *others), sha256 = load_index((folder / INDEX).read_text(), INDEX)
    members = first.files | {name: Member(*values) for name, values in files.items()}
    (folder / INDEX).write_text(dump_index([IndexedSample(key, members), *others], TAR, sha256))


@pytest.mark.parametrize("values", [{"bytes": 2**60}, {"samples": 10**30}, {"bytes": 1e300}, {"samples": 10**18}])
def test_numbers_that_no_set_has_are_refused(shards: Path, values: dict[str, Any]) -> None:
    edit_manifest(shards, **values)
    for read in (lambda: ShardSource(str(shards)), lambda: list(describe(shards))):
        with pytest.raises(MegaSRError, match=f"{TAR}: (samples|bytes) should be a count"):
            read()
    assert "damaged manifest" in {finding.kind for finding in verify(shards)}


@pytest.mark.parametrize("name", ["..", "../a.tar", "/etc/passwd", "a\0b", "a\nb.tar", "\x1b[2J.tar", ""])
def test_names_are_names_of_files_in_the_set(shards: Path, name: str) -> None:
    edit_manifest(shards, name=name)
    with pytest.raises(MegaSRError, match="is not the file name of a shard"):
        ShardSource(str(shards))


@pytest.mark.parametrize(
    "files",
    [
        {"png": [512, 2**40, ""]},
        {"png": [2**45, 20, ""]},
        {"png": [512, 2**31, ""]},
        {"png": [512, 2**70, ""]},
    ],
    ids=["size", "offset", "2 GiB", "2^70"],
)
def test_places_that_an_index_invents_cost_one_sample(shards: Path, files: dict[str, Any]) -> None:
    edit_manifest(shards, bytes=2**49)
    edit_index(shards, **files)
    source = ShardSource(str(shards))
    with pytest.raises(UnusableSampleError, match="wrong index"):
        source.read(0)
    assert source.read(1).key == "folder/image 001"
    with pytest.raises(MegaSRError, match="wrong index"):
        list(describe(shards))
    assert {"missing sample", "wrong index"} & {finding.kind for finding in verify(shards)}


@pytest.mark.parametrize("key", ["../../evil", "/etc/evil", "a/../../evil", "a\0b"])
def test_no_sample_is_named_like_a_file_outside(tmp_path: Path, shards: Path, key: str) -> None:
    edit_index(shards, key)
    with pytest.raises(UnusableSampleError, match="damaged index.*cannot be the name of a sample"):
        ShardSource(str(shards)).read(0)
    encoded_key = "".join(f"%{byte:02X}" for byte in key.encode())  # as writers of keys escape them
    for name in (f"{encoded_key}.png", f"a/{encoded_key}.png"):
        write_tar(tmp_path / "foreign", [(name, b"image")])
        if ".." in key or "\0" in key or not name.startswith("a/"):
            with pytest.raises(MegaSRError, match="points outside the tar"):
                index_shards(tmp_path / "foreign", "CC0")


def write_tar(folder: Path, members: list[tuple[str, bytes]]) -> None:
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "0.tar", "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_that_only_announce_headers(tmp_path: Path, kind: bytes) -> None:
    header = tarfile.TarInfo("x")
    header.type = kind
    (tmp_path / "0.tar").write_bytes(header.tobuf(tarfile.USTAR_FORMAT) * 5000 + bytes(10240))
    with pytest.raises(MegaSRError, match="0.tar: not a whole tar"):
        index_shards(tmp_path, "CC0")


@pytest.mark.parametrize("name", [MANIFEST, INDEX])
def test_records_that_nest_too_deeply(shards: Path, name: str) -> None:
    (shards / name).write_text(DEEP)
    with pytest.raises(MegaSRError, match="recursion depth exceeded"):
        ShardSource(str(shards)).read(0)
    assert {"damaged manifest", "damaged index"} & {finding.kind for finding in verify(shards)}


def npy(shape: str, body: bytes = b"", kind: str = "<f4") -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + body


def archive() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        npy("(1000000000000,)"),
        npy("(1000000,)"),
        npy("(1,)", b"cos\nmkdir\n(S'ran'\ntR.", "|O"),
        npy("(1,)", b"aaaa" * 4, "<U4"),
        npy("(" * 60_000),
        b"\x80\x04cos\nmkdir\n",
        archive(),
        b"",
    ],
    ids=["terabytes", "cut off", "objects", "texts", "deep", "pickle", "archive", "empty"],
)
def test_arrays_hold_numbers(content: bytes) -> None:
    with pytest.raises(ValueError):
        load_array(content)


def test_a_baked_variant_that_is_no_image_costs_one_sample(tmp_path: Path) -> None:
    make_shards(tmp_path / "set", [2], photo_files)
    bake(tmp_path / "set", "mild", BakeOptions("bicubic", 4, 32), 1)
    folder = tmp_path / "set" / "baked" / "mild"
    baked = ShardSource(str(folder))
    samples = [baked.files(number) for number in range(2)]
    samples[0][1]["lq.png"] = b"no image"
    entry = write_shard(folder, baked.manifest.shards[0].name, samples)
    (folder / MANIFEST).write_text(replace(baked.manifest, shards=(entry,)).to_json())
    source = BakedSource(ShardSource(str(tmp_path / "set")), "mild")
    with pytest.raises(UnusableSampleError, match="damaged variant"):
        source.read(0, 0)
    assert source.read(1, 0).lq is not None


def test_names_do_nothing_to_the_terminal(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_index(shards, "\x1b[2J\udcff", **{"\x1b]0;title\x07": [512, 3, "another"]})
    manifest = json.loads((shards / MANIFEST).read_text())
    (shards / MANIFEST).write_text(json.dumps(manifest | {"licence": "\x1b[31m\udcff"}))
    assert cli.main(["shards", "verify", str(shards)]) == 1
    assert cli.main(["shards", "info", str(shards)]) in (0, 1)
    assert cli.main(["shards", "info", f"{shards}\x1b[2J"]) == 1
    said = capsys.readouterr()
    assert "\\x1b[2J\\udcff" in said.out
    assert "\x1b" not in said.out + said.err.replace("\x1b[?25h", "").replace("\x1b[?25l", "")
