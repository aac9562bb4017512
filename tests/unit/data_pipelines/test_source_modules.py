"""Shards, mixtures and real pairs as data modules: what is drawn, what is left out, what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_pipelines.datamodules import FolderDataModule, MixtureDataModule, PairedDataModule, Part
from megasr.errors import MegaSRError, UsageError
from megasr.images import write_png
from tests.helpers.shard_sets import (
    SIZES,
    image_names,
    make_shards,
    photo_files,
    pixels,
    shard_module,
    train_and_eval,
)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return train_and_eval(tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_of_shards_shows_every_image_once(shards: Path, workers: int) -> None:
    batches = list(shard_module(shards, num_workers=workers).train_dataloader())
    assert sorted(image_names(batches)) == [f"photo {n:02d}" for n in range(12)]
    for batch in batches:
        assert batch["tags"] == [f"tag {int(key.split()[1].split('/')[0])}" for key in batch["keys"]]
    assert all(batch["hq"].shape == (3, 3, 32, 32) and batch["lq"].shape == (3, 3, 8, 8) for batch in batches)
    (evaluation,) = shard_module(shards).val_dataloader()
    assert evaluation["keys"] == ["photo 00", "photo 01"]
    assert torch.equal(
        evaluation["hq"][0], torch.from_numpy(pixels(0, 60, 72)[14:46, 20:52].copy()).permute(2, 0, 1) / 255
    )


def test_too_much_damage_stops_training_with_the_list(shards: Path, tmp_path: Path) -> None:
    def files(number: int) -> tuple[str, dict[str, bytes]]:
        return photo_files(number)[0], {"png": b"broken"} if number % 4 == 0 else photo_files(number)[1]

    make_shards(tmp_path / "broken", SIZES, files)
    data = shard_module(tmp_path / "broken", max_damaged=0.2)
    logged: list[dict] = []
    logger = SimpleNamespace(log_metrics=lambda metrics, step: logged.append(metrics))
    data.trainer = SimpleNamespace(loggers=[logger], global_step=7, global_rank=0, world_size=1, fit_loop=None)  # type: ignore[assignment]
    data.consumed_samples = lambda: 0  # type: ignore[method-assign]
    with pytest.raises(
        MegaSRError, match=r"3 damaged images \(unreadable image 3\), more than max_damaged 0.2 of 12: .*photo"
    ):
        for batch in data.train_dataloader():
            data.on_after_batch_transfer(batch, 0)
    assert logged[-1]["data/damaged"] == 3


def test_resuming_with_other_images_or_another_order_is_refused(shards: Path) -> None:
    state = shard_module(shards).state_dict()
    shard_module(shards, max_damaged=0.5, crop_size_px=16).load_state_dict(state)
    make_shards(shards.parent / "other", SIZES, lambda n: photo_files(n + 50))
    for other in (
        shard_module(shards.parent / "other"),
        shard_module(shards, shuffle_shards=2),
        shard_module(shards, seed=1),
    ):
        with pytest.raises(UsageError, match="cannot resume: .* images would be repeated or left out"):
            other.load_state_dict(state)


def test_a_mixture_keeps_its_shares(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for n in range(3):
        write_png(pixels(n, 40, 40), folder / f"{n}.png")
    parts = [Part(str(shards), 0.5), Part(str(folder), 0.3), Part("scenes", 0.2)]
    data = MixtureDataModule(parts, str(tmp_path / "eval"), crop_size_px=32, batch_size=2, train_samples=100)
    drawn = [data.train_sample(draw) for draw in range(100)]
    shares = Counter(sample.key.split(":")[0] for sample in drawn)
    assert all(abs(shares[name] - 100 * share) <= 12 for name, share in (("0", 0.5), ("1", 0.3), ("2", 0.2)))
    assert len({sample.key for sample in drawn}) == 100
    from_shards = [sample.key.split(":")[1].rsplit("/", 1)[0] for sample in drawn if sample.key.startswith("0:")]
    assert all(len(set(from_shards[i : i + 1])) for i in range(12))
    assert next(iter(data.train_dataloader()))["hq"].shape == (2, 3, 32, 32)
    assert data.error_budget.samples == 15, "scenes have no end: they are not counted"


def test_real_pairs_stay_aligned(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("eval", 2)):
        for n in range(count):
            lq = pixels(n, 20, 24)
            write_png(lq, tmp_path / split / "lq" / f"{n}.png")
            write_png(np.kron(lq, np.ones((4, 4, 1), np.uint8)), tmp_path / split / "hq" / f"{n}.png")
    data = PairedDataModule(
        str(tmp_path / "train"), str(tmp_path / "eval"), crop_size_px=32, batch_size=3, train_samples=6
    )
    batches = [*data.train_dataloader(), *data.val_dataloader()]
    assert len(batches) == 3
    for batch in batches:
        assert torch.equal(batch["hq"][..., ::4, ::4], batch["lq"])
        assert torch.equal(data.on_after_batch_transfer(batch, 0)["lq"], batch["lq"])
        assert "degradation" not in batch
    with pytest.raises(UsageError, match="in both"):
        PairedDataModule(str(tmp_path / "train"), str(tmp_path / "train"), crop_size_px=32)
    (tmp_path / "train" / "lq" / "3.png").unlink()
    with pytest.raises(UsageError, match=r"3\.png: no lq called '3'"):
        PairedDataModule(str(tmp_path / "train"), str(tmp_path / "eval"), crop_size_px=32)


def test_an_evaluation_image_is_never_left_out(tmp_path: Path) -> None:
    write_png(pixels(0, 40, 40), tmp_path / "train" / "a.png")
    write_png(pixels(1, 20, 40), tmp_path / "eval" / "b.png")
    data = FolderDataModule(str(tmp_path / "train"), str(tmp_path / "eval"), crop_size_px=32, batch_size=1)
    with pytest.raises(UsageError, match="b: 40x20 px is smaller than the evaluation's crop of 32 px"):
        next(iter(data.val_dataloader()))
