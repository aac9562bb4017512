"""Every kind of damage is found and named, and nothing else is."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipelines.shards.baked import BAKED
from data_pipelines.shards.manifest import MANIFEST, Manifest
from data_pipelines.shards.pack import pack
from data_pipelines.shards.tar import IndexedSample, dump_index, index_name, load_index
from data_pipelines.shards.verify import verify
from megasr.errors import MegaSRError
from tests.helpers.packing import make_photos, pack_options
from tests.helpers.shard_sets import encoded, pixels, write_shard

SHARD, LAST = "shard-000001.tar", "shard-000003.tar"
INDEX = "shard-000001.index.json"
Found = set[tuple[str, str, str]]  # (kind, file, key)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed set of four shards, the last with two samples."""
    folder = tmp_path_factory.mktemp("verify")
    pack(pack_options(make_photos(folder / "photos")), folder / "set")
    return folder / "set"


def indexed(folder: Path, name: str = INDEX) -> list[IndexedSample]:
    return load_index((folder / name).read_text(), name)[0]


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def truncate_in_second_sample(folder: Path) -> Found:
    second, third = indexed(folder)[1:]
    offset, size, _ = next(iter(second.files.values()))
    (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[: offset + size // 2])
    whole = {("wrong size", SHARD, ""), ("wrong sha256", SHARD, "")}
    return whole | {("missing sample", SHARD, sample.key) for sample in (second, third)}


def zero_bytes(folder: Path) -> Found:
    (folder / SHARD).write_bytes(b"")
    whole = {("wrong size", SHARD, ""), ("wrong sha256", SHARD, "")}
    return whole | {("missing sample", SHARD, sample.key) for sample in indexed(folder)}


def flip_one_bit_of_an_image(folder: Path) -> Found:
    sample = indexed(folder)[1]
    offset, size, _ = next(iter(sample.files.values()))
    byte = (folder / SHARD).read_bytes()[offset + size // 2]
    overwrite(folder / SHARD, offset + size // 2, bytes([byte ^ 1]))
    return {("wrong sha256", SHARD, ""), ("damaged sample", SHARD, sample.key)}


def remove_a_shard(folder: Path) -> Found:
    (folder / SHARD).unlink()
    return {("missing shard", SHARD, "")} | {("missing sample", SHARD, sample.key) for sample in indexed(folder)}


def remove_a_shard_and_its_index(folder: Path) -> Found:
    (folder / SHARD).unlink()
    (folder / INDEX).unlink()
    return {("missing shard", SHARD, ""), ("missing index", INDEX, ""), ("wrong count", MANIFEST, "")}


def copy_a_shard(folder: Path) -> Found:
    shutil.copy(folder / SHARD, folder / "shard-000009.tar")
    keys = {("duplicate key", "shard-000009.tar", sample.key) for sample in indexed(folder)}
    return keys | {("extra shard", "shard-000009.tar", ""), ("missing index", "shard-000009.index.json", "")}


def remake(folder: Path, samples: list[tuple[str, dict[str, bytes]]], **fields: int) -> None:
    """Replace the last shard by one that agrees with its index and with the manifest."""
    manifest = Manifest.from_json((folder / MANIFEST).read_text(), "")
    entry = write_shard(folder, LAST, samples)
    manifest = replace(manifest, shards=(*manifest.shards[:-1], entry), fields=fields)
    (folder / MANIFEST).write_text(manifest.to_json())


def the_same_key_in_another_shard(folder: Path) -> Found:
    key = indexed(folder)[0].key
    others = [sample for n in range(3) for sample in indexed(folder, f"shard-{n:06d}.index.json")]
    counts = Counter(field for sample in others for field in sample.files) + Counter(png=2)
    remake(folder, [(key, {"png": encoded(pixels(1))}), ("new", {"png": encoded(pixels(2))})], **counts)
    return {("duplicate key", LAST, key)}


def an_image_that_was_never_one(folder: Path) -> Found:
    remake(folder, [("x", {"png": b"no image"}), ("y", {"txt": b"\xff", "map.canny.png": encoded(pixels(1))})])
    return {
        ("damaged sample", LAST, "x"),
        ("damaged sample", LAST, "y"),
        ("no image", LAST, "y"),
        ("wrong count", MANIFEST, ""),
    }


def a_truncated_tar_without_an_index(folder: Path) -> Found:
    (folder / INDEX).unlink()
    (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:1600])
    whole = {("wrong size", SHARD, ""), ("wrong sha256", SHARD, ""), ("damaged tar", SHARD, "")}
    return whole | {("missing index", INDEX, ""), ("wrong count", MANIFEST, "")}


def a_sample_more(folder: Path) -> Found:
    with tarfile.open(folder / SHARD, mode="a") as tar:
        tar.addfile(tarfile.TarInfo("more.png"))
    return {("wrong sha256", SHARD, "")}


def an_index_that_points_elsewhere(folder: Path) -> Found:
    (first, second, third), sha256 = load_index((folder / INDEX).read_text(), INDEX)
    ((field, member),) = second.files.items()
    moved = replace(second, files={field: member._replace(offset=member.offset + 512)})
    (folder / INDEX).write_text(dump_index([first, moved, third], SHARD, sha256))
    return {("damaged sample", SHARD, second.key)}


def no_index(folder: Path) -> Found:
    (folder / INDEX).rename(folder / "other.index.json")
    return {("missing index", INDEX, ""), ("extra index", "other.index.json", "")}


def junk_for_an_index(folder: Path) -> Found:
    (folder / INDEX).write_bytes(b"\xff\xfe")
    return {("damaged index", INDEX, "")}


def wrong_counts_in_the_manifest(folder: Path) -> Found:
    manifest = Manifest.from_json((folder / MANIFEST).read_text(), "")
    shards = tuple(replace(shard, samples=7) if shard.name == SHARD else shard for shard in manifest.shards)
    (folder / MANIFEST).write_text(replace(manifest, shards=shards, fields=manifest.fields | {"txt": 9}).to_json())
    return {("wrong count", SHARD, ""), ("wrong count", MANIFEST, "")}


def a_manifest_that_contradicts_itself(folder: Path) -> Found:
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(content | {"samples": 12}))
    return {("damaged manifest", MANIFEST, "")}


def no_manifest(folder: Path) -> Found:
    (folder / MANIFEST).unlink()
    return {("no manifest", MANIFEST, "")}


def nothing(folder: Path) -> Found:
    return set()


DAMAGE = [
    nothing, truncate_in_second_sample, zero_bytes, flip_one_bit_of_an_image, remove_a_shard,
    remove_a_shard_and_its_index, copy_a_shard, the_same_key_in_another_shard, an_image_that_was_never_one,
    a_truncated_tar_without_an_index, a_sample_more, an_index_that_points_elsewhere, no_index, junk_for_an_index,
    wrong_counts_in_the_manifest, a_manifest_that_contradicts_itself, no_manifest,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_finds(damage: Callable[[Path], Found], whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(whole, folder)
    expected = damage(folder)
    findings = verify(folder)
    assert {(finding.kind, finding.where, finding.key) for finding in findings} == expected
    assert all(finding.detail for finding in findings)


def test_goes_on_after_the_first_with_any_number_of_workers(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(whole, folder)
    expected = flip_one_bit_of_an_image(folder)
    (folder / LAST).unlink()
    (folder / "shard-000000.tar").write_bytes(b"junk" * 1000)
    found = verify(folder, workers=2)
    assert found == verify(folder)
    assert expected <= {(finding.kind, finding.where, finding.key) for finding in found}
    assert {finding.where for finding in found} == {"shard-000000.tar", SHARD, LAST}


def test_a_baked_set_has_every_key_once_per_variant(tmp_path: Path) -> None:
    samples = [(f"{n}", {"lq.png": encoded(pixels(n))}) for n in range(3)]
    names = ["shard-000000-v000.tar", "shard-000000-v001.tar", "shard-000001-v001.tar"]
    shards = [write_shard(tmp_path, name, samples[2 * (name > names[1]) :][:2]) for name in names]
    manifest = Manifest(tuple(shards), {"lq.png": 5}, "none", "test", "0", "2024-01-01", {})
    (tmp_path / MANIFEST).write_text(manifest.to_json())
    assert {finding.kind for finding in verify(tmp_path)} == {"duplicate key"}
    (tmp_path / BAKED).write_text("{}")
    assert verify(tmp_path) == []
    for copied in (str, index_name):
        shutil.copy(tmp_path / copied(names[1]), tmp_path / copied(names[2]))
    assert {finding.key for finding in verify(tmp_path) if finding.kind == "duplicate key"} == {"0", "1"}


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MegaSRError, match="absent: no such folder"):
        verify(tmp_path / "absent")
