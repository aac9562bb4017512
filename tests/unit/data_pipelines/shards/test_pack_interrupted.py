"""Packing gives the same bytes however it was interrupted: full disk, kill -9, damage, images that change."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.shards.manifest import MANIFEST
from data_pipelines.shards.pack import PLAN, pack
from megasr.errors import MegaSRError, UsageError
from tests.helpers.packing import make_photos, pack_options, set_content
from tests.helpers.shard_sets import encoded, pixels


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos")


class FullDisk:
    """Lets `room` bytes through to files that are opened for writing, then there is no space."""

    def __init__(self, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = room
        opened = Path.open

        def open_file(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            file = opened(path, mode, *args, **kwargs)
            return _Budgeted(file, self) if mode == "wb" else file

        monkeypatch.setattr(Path, "open", open_file)


class _Budgeted:
    def __init__(self, file: Any, disk: FullDisk) -> None:
        self.file, self.disk = file, disk

    def __enter__(self) -> _Budgeted:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, content: bytes) -> int:
        self.file.write(content[: self.disk.room])
        self.disk.room -= len(content)
        if self.disk.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(content)


# dropped.csv and the plan take the first 0.04 of the set, the manifest the last; between them are the tars and indexes.
@pytest.mark.parametrize("share", [0, 0.0005, 0.03, 0.1, 0.27, 0.29, 0.5, 0.7, 0.9, 0.98, 0.999])
def test_a_full_disk_leaves_nothing_by_halves(share: float, photos: Path, tmp_path: Path) -> None:
    pack(pack_options(photos), tmp_path / "whole")
    whole = set_content(tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        FullDisk(int(share * sum(map(len, whole.values()))), patch)
        with pytest.raises(MegaSRError, match="cannot write .*: No space left on device"):
            pack(pack_options(photos), tmp_path / "set")
    left = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    assert all(whole[name] == left[name] for name in left)
    assert len(left) < len(whole)
    pack(pack_options(photos), tmp_path / "set")
    assert set_content(tmp_path / "set") == whole


def test_a_damaged_shard_is_made_again(photos: Path, tmp_path: Path) -> None:
    pack(pack_options(photos), tmp_path / "set")
    whole = set_content(tmp_path / "set")
    tar = tmp_path / "set" / "shard-000001.tar"
    tar.write_bytes(tar.read_bytes()[:600] + b"X" + tar.read_bytes()[601:])
    (tmp_path / "set" / "shard-000002.tar").unlink()
    (tmp_path / "set" / "shard-000003.index.json").write_text("{")
    (tmp_path / "set" / "shard-000000.tar.123.part").write_bytes(b"left by a killed run")
    pack(pack_options(photos), tmp_path / "set")
    assert set_content(tmp_path / "set") == whole


@pytest.mark.parametrize("harm", ["changed", "vanished"])
def test_an_image_that_changed_after_the_plan_is_named(harm: str, photos: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        FullDisk(3_000, patch)
        with pytest.raises(MegaSRError, match=r"shard-000000\.tar"):
            pack(pack_options(photos), tmp_path / "set")
    if harm == "changed":
        (photos / "c/2.jpg").write_bytes(encoded(pixels(77), ".jpg"))
        with pytest.raises(MegaSRError, match=r"c/2\.jpg was changed after plan\.json was made \(jpg differs\)"):
            pack(pack_options(photos), tmp_path / "set")
    else:
        (photos / "c/2.jpg").unlink()
        with pytest.raises(UsageError, match=r"1 images are gone, the first is 'c/2'"):
            pack(pack_options(photos), tmp_path / "set")
    assert not list((tmp_path / "set").glob("*.part"))
    assert not (tmp_path / "set" / MANIFEST).exists()


def test_killed_in_the_middle_it_goes_on(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(100):
        (photos / f"{number}.png").write_bytes(encoded(pixels(number)))
    output = tmp_path / "set"
    options = pack_options(photos, samples_per_shard=2)
    process = multiprocessing.get_context("fork").Process(target=pack, args=(options, output, 2))
    process.start()
    while not list(output.glob("*.tar")):
        assert process.is_alive(), "it ended before it wrote a shard"
        time.sleep(0.001)
    process.kill()
    process.join()
    assert not (output / MANIFEST).exists()
    made = {path: path.stat().st_mtime_ns for path in output.glob("*.json") if path.name != PLAN}
    pack(options, output)
    pack(options, tmp_path / "uninterrupted")
    assert set_content(output) == set_content(tmp_path / "uninterrupted")
    assert all(path.stat().st_mtime_ns == when for path, when in made.items())
