"""The names of an evaluation set, known before it is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipelines.data_module import SRDataModule
from data_pipelines.datamodules import (
    FolderDataModule,
    MixtureDataModule,
    PairedDataModule,
    Part,
    PhotoDataModule,
    SceneDataModule,
)
from data_pipelines.samples import UnusableSampleError
from data_pipelines.shards.reader import ShardSource
from data_pipelines.shards.tar import index_name
from megasr.images import write_png
from tests.helpers.shard_sets import make_shards, pixels, shard_module, train_and_eval

SIZE = {"crop_size_px": 32, "batch_size": 2}


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, SRDataModule]:
    """A data module of every kind, with three images in the evaluation."""
    shards = train_and_eval(tmp_path)
    for number, side in enumerate(("train", "eval")):
        for image in range(3):
            name = f"{side}/{image % 2}/{number}{image}"
            write_png(pixels(image, 40, 40), tmp_path / "images" / f"{name}.png")
            write_png(pixels(image, 40, 40), tmp_path / "pairs" / f"{name}_HR.png")
            write_png(pixels(image, 10, 10), tmp_path / "pairs" / f"{name}_LR4.png")
    train, evaluation = str(tmp_path / "images" / "train"), str(tmp_path / "images" / "eval")
    return {
        "folder": FolderDataModule(train, evaluation, **SIZE),
        "mixture": MixtureDataModule([Part(train)], evaluation, **SIZE),
        "paired": PairedDataModule(str(tmp_path / "pairs" / "train"), str(tmp_path / "pairs" / "eval"), **SIZE),
        "photos": PhotoDataModule(eval_samples=3, **SIZE),
        "scenes": SceneDataModule(eval_samples=3, **SIZE),
        "shards": shard_module(shards, eval_samples=3, batch_size=2),
    }


def test_every_data_module_names_what_it_gives(sets: dict[str, SRDataModule]) -> None:
    given = {kind: [key for batch in data.test_dataloader() for key in batch["keys"]] for kind, data in sets.items()}
    assert {kind: data.eval_keys() for kind, data in sets.items()} == given
    assert all(len(set(keys)) == 3 for keys in given.values())


def test_fewer_images_have_fewer_names(tmp_path: Path) -> None:
    assert shard_module(train_and_eval(tmp_path), eval_samples=2).eval_keys() == ["photo 00", "photo 01"]


def test_a_shard_without_its_index_is_named(tmp_path: Path) -> None:
    make_shards(tmp_path, [2, 2])
    (tmp_path / index_name("shard-000001.tar")).unlink()
    source = ShardSource(str(tmp_path))
    assert source.key(1) == "folder/image 001"
    with pytest.raises(UnusableSampleError, match="shard-000001.tar#0: missing index"):
        source.key(2)
