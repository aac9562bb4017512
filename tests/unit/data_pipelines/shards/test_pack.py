"""Packing loses nothing silently: every image is in the set, byte by byte, or counted with its reason."""

from __future__ import annotations

import csv
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import webdataset

from data_pipelines.shards.foreign import index_shards
from data_pipelines.shards.manifest import MANIFEST
from data_pipelines.shards.pack import DROPPED, PLAN, pack, read_plan
from data_pipelines.shards.tar import decode_key
from data_pipelines.shards.verify import verify
from megasr.errors import MegaSRError, UsageError
from tests.helpers.packing import KEYS, make_photos, pack_options, photo, set_content
from tests.helpers.shard_sets import encoded, pixels


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos")


def test_webdataset_reads_the_very_bytes(photos: Path, tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    for number, key in enumerate(KEYS):
        (maps / key).parent.mkdir(parents=True, exist_ok=True)
        (maps / f"{key}.png").write_bytes(encoded(pixels(number)[..., 0]))
    manifest = pack(pack_options(photos, maps={"oracle_canny": str(maps)}), tmp_path / "set")
    shards = [str(tmp_path / "set" / shard.name) for shard in manifest.shards]
    samples = {decode_key(s["__key__"]): s for s in webdataset.WebDataset(shards, shardshuffle=False)}
    assert sorted(samples) == sorted(KEYS)
    assert list(samples) != sorted(KEYS)
    for key in KEYS:
        path = photo(photos, key)
        assert samples[key][path.suffix[1:].lower()] == path.read_bytes()
        assert samples[key]["map.oracle_canny.png"] == (maps / f"{key}.png").read_bytes()
    assert samples["a"]["txt"].decode() == "tree, öd"
    assert manifest.fields == {"jpg": 6, "map.oracle_canny.png": 11, "png": 5, "txt": 1}
    assert [shard.samples for shard in manifest.shards] == [3, 3, 3, 2]
    assert verify(tmp_path / "set") == []


def test_same_bytes_for_any_number_of_workers_and_again(photos: Path, tmp_path: Path) -> None:
    pack(pack_options(photos), tmp_path / "one")
    pack(pack_options(photos), tmp_path / "two", workers=2)
    assert set_content(tmp_path / "one") == set_content(tmp_path / "two")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()}
    pack(pack_options(photos), tmp_path / "one")
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()}
    pack(pack_options(photos, seed=1), tmp_path / "other")
    assert set_content(tmp_path / "one")["shard-000000.tar"] != set_content(tmp_path / "other")["shard-000000.tar"]


def test_what_is_dropped_is_counted_and_listed(photos: Path, tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    for key in [*KEYS, "small", "tagged", "zero", "text", "cut"]:
        (maps / key).parent.mkdir(parents=True, exist_ok=True)
        (maps / f"{key}.png").write_bytes(encoded(pixels(0)[..., 0]))
    (maps / "c/0.png").unlink()
    (maps / "c/1.png").write_bytes(encoded(pixels(1, height=19)))
    (maps / "c/2.png").write_bytes(b"junk")
    (photos / "small.png").write_bytes(encoded(pixels(50, height=8)))
    (photos / "tagged.png").write_bytes(encoded(pixels(51)))
    (photos / "tagged.txt").write_bytes(b"\xff\xfe\xfd")
    (photos / "zero.jpg").write_bytes(b"")
    (photos / "text.jpg").write_bytes(b"not an image")
    (photos / "cut.png").write_bytes(encoded(pixels(52))[:-700])
    expected = {
        "c/0": "no oracle_canny map",
        "c/1": "unusable oracle_canny map",
        "c/2": "unusable oracle_canny map",
        "cut": "damaged image",
        "small": "smaller than 16 px",
        "tagged": "unreadable tags",
        "text": "damaged image",
        "zero": "damaged image",
    }
    manifest = pack(pack_options(photos, min_size_px=16, maps={"oracle_canny": str(maps)}), tmp_path / "set")
    with (tmp_path / "set" / DROPPED).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["key"]: row["reason"] for row in rows} == expected
    assert str(photos / "cut.png") in next(row["detail"] for row in rows if row["key"] == "cut")
    assert manifest.dropped == Counter(expected.values())
    assert manifest.samples == len(KEYS) - 3


def test_several_folders_are_told_apart_or_refused(photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.png").write_bytes(encoded(pixels(99)))
    both = replace(pack_options(photos), folders=(str(photos), str(other)))
    assert pack(both, tmp_path / "set").samples == len(KEYS) + 1
    assert {"photos/a", "other/a"} <= {key for key, _ in read_plan(tmp_path / "set" / PLAN).samples}
    with pytest.raises(UsageError, match=r"d\.PNG and .*d\.PNG would both be called 'photos/__c__/d'"):
        pack(replace(both, folders=(str(photos), str(photos))), tmp_path / "twice")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"licence": "MIT"}, "licence was 'CC0', is 'MIT'"),
        ({"min_size_px": 4}, "min_size_px was 0, is 4"),
        ({"samples_per_shard": 4}, "samples_per_shard was 3, is 4"),
    ],
)
def test_a_set_of_other_options_is_refused(changes: dict[str, Any], says: str, photos: Path, tmp_path: Path) -> None:
    pack(pack_options(photos), tmp_path / "set")
    before = set_content(tmp_path / "set")
    with pytest.raises(UsageError, match=says):
        pack(pack_options(photos, **changes), tmp_path / "set")
    assert set_content(tmp_path / "set") == before


def test_a_set_of_other_images_is_refused(photos: Path, tmp_path: Path) -> None:
    pack(pack_options(photos), tmp_path / "set")
    (photos / "a.jpg").rename(photos / "z.jpg")
    with pytest.raises(UsageError, match=r"1 images are new, the first is 'z'; 1 images are gone, the first is 'a'"):
        pack(pack_options(photos), tmp_path / "set")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "x.tar").write_bytes(b"")
    with pytest.raises(UsageError, match=r"holds x\.tar, which has no plan"):
        pack(pack_options(photos), foreign)


def test_nothing_left_is_an_error(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no image is left to pack: 11 "):
        pack(pack_options(photos, min_size_px=1000), tmp_path / "set")


def test_shards_of_others_are_indexed(tmp_path: Path) -> None:
    with webdataset.ShardWriter(str(tmp_path / "%03d.tar"), maxcount=2, verbose=0) as writer:
        for number in range(3):
            writer.write({"__key__": f"a/{number}", "png": encoded(pixels(number)), "json": {"n": number}})
    manifest = index_shards(tmp_path, "MIT")
    assert (manifest.samples, manifest.fields) == (3, {"json": 3, "png": 3})
    assert verify(tmp_path) == []
    (tmp_path / "copy.tar").write_bytes((tmp_path / "001.tar").read_bytes())
    with pytest.raises(MegaSRError, match=r"'a/2' is in 001\.tar and in copy\.tar"):
        index_shards(tmp_path, "MIT")


def test_what_macos_puts_beside_a_shard_is_none(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "a", "png": encoded(pixels(0))})
    (tmp_path / "._a.tar").write_bytes(b"\0\5\26\7")
    assert index_shards(tmp_path, "MIT").samples == 1
    assert verify(tmp_path) == []


def test_names_whose_dots_webdataset_takes_for_the_end_of_the_key_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("22.05.png", "22.06.png"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(MegaSRError, match=r"no sample has an image \(jpg .*only 05\.png, 06\.png; .*first dot"):
        index_shards(tmp_path, "MIT")
    assert not (tmp_path / MANIFEST).exists(), "no reader would take it for a set"


def test_a_compressed_or_packed_set_is_not_indexed(photos: Path, tmp_path: Path) -> None:
    pack(pack_options(photos), tmp_path / "set")
    with pytest.raises(UsageError, match="was packed by megasr"):
        index_shards(tmp_path / "set", "MIT")
    with pytest.raises(UsageError, match=r"photos: holds no \.tar"):
        index_shards(photos, "MIT")
