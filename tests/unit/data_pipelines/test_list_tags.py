"""The tags that a data module may show are listed without decoding an image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipelines import folder, paired
from data_pipelines.benchmarks import BenchmarkFiles, get_benchmark
from data_pipelines.data_module import SRDataModule
from data_pipelines.datamodules import (
    FolderDataModule,
    MixtureDataModule,
    PairedDataModule,
    Part,
    SceneDataModule,
    ShardDataModule,
)
from data_pipelines.shards import fields
from data_pipelines.shards.storage import Storage
from megasr.errors import UsageError
from megasr.images import write_png
from tests.helpers.shard_sets import make_shards, photo_files, pixels, shard_module, train_and_eval

SMALL: dict[str, Any] = {"crop_size_px": 32, "batch_size": 2, "train_samples": 4, "eval_samples": 2}


@pytest.fixture(autouse=True)
def blind(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and no image can be decoded any more."""

    def fail(*unused: object) -> None:
        raise AssertionError("an image was read")

    def close() -> None:
        monkeypatch.setattr(folder, "read_image", fail)
        monkeypatch.setattr(paired, "read_or_drop", fail)
        monkeypatch.setattr(fields, "decode_image", fail)

    return close


def listed(data: SRDataModule) -> tuple[list[str], list[str]]:
    return sorted(data.list_tags(evaluation=False)), sorted(data.list_tags(evaluation=True))


def write_photos(root: Path, names: str, scale: int = 1) -> str:
    for number, name in enumerate(names):
        root.mkdir(parents=True, exist_ok=True)
        write_png(pixels(number, 64 * scale, 64 * scale), root / f"{name}.png")
        (root / f"{name}.txt").write_text(f"tag {name.lower()},  photo")
    return str(root)


def test_of_folders(tmp_path: Path, blind: Callable[[], None]) -> None:
    train, evaluation = write_photos(tmp_path / "train", "abB"), write_photos(tmp_path / "eval", "xyz")
    (tmp_path / "train" / "b.txt").unlink()
    write_photos(tmp_path / "train", "c")
    (tmp_path / "train" / "c.txt").write_bytes(b"\xff")  # not UTF-8: training leaves the image out
    data = FolderDataModule(train, evaluation, **SMALL)
    shown = {tags for batch in data.val_dataloader() for tags in batch["tags"]}
    blind()
    assert listed(data) == (["", "tag a, photo", "tag b, photo"], sorted(shown))
    assert len(shown) == 2, "eval_samples are all that is shown"


def test_of_shards_with_the_bytes_of_the_tags_alone(
    tmp_path: Path, blind: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shard_module(train_and_eval(tmp_path))
    blind()
    sizes: list[int] = []
    read = Storage.read

    def watch(self: Storage, name: str, start: int, end: int, version: str = "") -> bytes:
        sizes.append(end - start)
        return read(self, name, start, end, version)

    monkeypatch.setattr(Storage, "read", watch)
    train, evaluation = listed(data)
    assert train == sorted(f"tag {n}" for n in range(12))
    assert evaluation == ["tag 0", "tag 1"]
    assert max(sizes) <= len("tag 11")


def test_of_shards_without_tags_and_of_a_part_of_a_set(tmp_path: Path, blind: Callable[[], None]) -> None:
    def bare(number: int) -> tuple[str, dict[str, bytes]]:
        key, files = photo_files(number)
        return key, files if number % 2 else {"png": files["png"]}

    make_shards(tmp_path / "set", [10, 10], bare)
    data = ShardDataModule(str(tmp_path / "set"), **{**SMALL, "eval_samples": 4})
    blind()
    train, evaluation = listed(data)
    assert evaluation == ["tag 19"] and "tag 19" not in train and "" in train


def test_of_mixtures_pairs_and_benchmarks(tmp_path: Path, blind: Callable[[], None]) -> None:
    first, second = write_photos(tmp_path / "one", "ab"), train_and_eval(tmp_path)
    evaluation = write_photos(tmp_path / "eval of all", "x")
    mixture = MixtureDataModule([Part(first), Part(str(second))], evaluation, **SMALL)
    scenes = MixtureDataModule([Part("scenes"), Part(first)], evaluation, **SMALL)
    lq, hq = write_photos(tmp_path / "pairs" / "lq", "mn"), write_photos(tmp_path / "pairs" / "hq", "mn", 4)
    (Path(lq) / "m.txt").write_text("of lq")
    pairs = PairedDataModule(hq, evaluation_pairs(tmp_path), train_lq_root=lq, **SMALL)
    blind()
    assert listed(mixture)[0] == sorted(["tag a, photo", "tag b, photo", *(f"tag {n}" for n in range(12))])
    assert listed(mixture)[1] == ["tag x, photo"]
    assert listed(pairs) == (["tag m, photo", "tag n, photo"], ["tag e, photo"])
    files = BenchmarkFiles(get_benchmark("realsr"), (("m", Path(lq) / "m.png"),), None, ((256, 256),))
    assert files.tags(0) == "of lq"
    with pytest.raises(UsageError, match="scenes have other tags in every draw"):
        listed(scenes)


def evaluation_pairs(folder: Path) -> str:
    write_photos(folder / "eval pairs" / "lq", "e")
    write_photos(folder / "eval pairs" / "hq", "e", 4)
    return str(folder / "eval pairs")


def test_of_data_that_are_made_while_they_are_drawn() -> None:
    with pytest.raises(UsageError, match="SceneDataModule makes its tags while it draws"):
        listed(SceneDataModule(**SMALL))


def test_progress_counts_the_images(tmp_path: Path) -> None:
    data = FolderDataModule(write_photos(tmp_path / "a", "abc"), write_photos(tmp_path / "b", "x"), **SMALL)
    seen: list[tuple[int, int]] = []
    data.list_tags(False, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
