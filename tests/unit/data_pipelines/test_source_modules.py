"""Shards, mixtures and real pairs as data modules: what is drawn, what is left out, what is refused."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_pipelines.datamodules import (
    FolderDataModule,
    MixtureDataModule,
    PairedDataModule,
    Part,
    ShardDataModule,
    open_source,
)
from data_pipelines.folder import FolderSource
from data_pipelines.samples import UnusableSampleError
from data_pipelines.shards.reader import ShardSource
from megasr.batch import SRBatch
from megasr.errors import MegaSRError, UsageError
from megasr.images import write_png
from tests.helpers.shard_sets import (
    SIZES,
    encoded,
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
    logged: list[tuple[dict, int]] = []
    logger = SimpleNamespace(log_metrics=lambda metrics, step: logged.append((metrics, step)))
    data.trainer = SimpleNamespace(loggers=[logger], global_step=7, global_rank=0, world_size=1, fit_loop=None)  # type: ignore[assignment]
    data.consumed_samples = lambda: 0  # type: ignore[method-assign]
    with pytest.raises(
        MegaSRError, match=r"3 damaged images \(unreadable image 3\), more than max_damaged 0.2 of 12: .*photo"
    ):
        for batch in data.train_dataloader():
            data.on_after_batch_transfer(batch, 0)
    metrics, step = logged[-1]
    assert (metrics["data/damaged"], metrics["data/filtered_draws"], step) == (3, 0, 7)


def test_what_was_left_out_is_remembered_by_a_checkpoint_and_told_at_the_end(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batch(*damaged: str) -> SRBatch:
        skipped = tuple((name, "unreadable image", True) for name in damaged)
        return SRBatch(keys=["x"], lq=torch.zeros(1, 3, 8, 8), skipped=[skipped])

    data, resumed = (shard_module(shards, max_damaged=0.2) for _ in range(2))
    data.on_after_batch_transfer(batch("photo 03", "photo 05"), 0)
    resumed.load_state_dict(data.state_dict())
    resumed.on_after_batch_transfer(batch("photo 05"), 0)
    with pytest.raises(MegaSRError, match=r"3 damaged .* of 12: photo 03: unreadable image; photo 05"):
        resumed.on_after_batch_transfer(batch("photo 07"), 0)
    told: list[str] = []
    monkeypatch.setattr("data_pipelines.data_module.rank_zero_info", told.append)
    for stage in ("validate", "fit"):
        data.teardown(stage)
        shard_module(shards).teardown(stage)
    assert told == ["left out of the training: 2 damaged images (unreadable image 2)"]


def test_resuming_with_other_images_or_another_order_is_refused(shards: Path) -> None:
    state = shard_module(shards).state_dict()
    same = shard_module(shards, max_damaged=0.5, crop_size_px=16)
    same.load_state_dict(state)
    assert next(iter(same.train_dataloader()))
    make_shards(shards.parent / "other", SIZES, lambda n: photo_files(n + 50))
    for other in (
        shard_module(shards.parent / "other"),
        shard_module(shards, shuffle_shards=2),
        shard_module(shards, seed=1),
    ):
        other.load_state_dict(state)
        assert next(iter(other.val_dataloader())), "a checkpoint can be measured without its training images"
        with pytest.raises(UsageError, match="cannot resume: .* images would be repeated or left out"):
            other.train_dataloader()


def test_training_images_are_not_evaluated_on(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write_png(pixels(0, 40, 40), folder / "a.png")
    settings = {"crop_size_px": 32, "train_samples": 8}
    for build in (
        lambda: shard_module(shards, eval_url=f"{shards}/."),
        lambda: MixtureDataModule([Part(str(folder)), Part("scenes")], str(folder), **settings),
        lambda: MixtureDataModule([Part("scenes"), Part(str(shards))], str(shards), **settings),
    ):
        with pytest.raises(UsageError, match="numbers taken on training images say nothing"):
            build()


def test_maps_of_hq_are_no_guidance_from_lq(tmp_path: Path) -> None:
    def files(number: int) -> tuple[str, dict[str, bytes]]:
        key, content = photo_files(number)
        maps = {f"map.{name}.png": encoded(pixels(number, 60, 72)[..., 0]) for name in ("canny", "oracle_canny")}
        return key, {**content, **maps}

    make_shards(tmp_path / "shards", SIZES, files)
    make_shards(tmp_path / "eval", [1], files)
    for batch in (
        *shard_module(tmp_path / "shards").train_dataloader(),
        *shard_module(tmp_path / "shards").val_dataloader(),
    ):
        assert list(batch["maps"]) == ["oracle_canny"]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_is_the_error(tmp_path: Path, workers: int) -> None:
    write_png(pixels(0, 40, 40), tmp_path / "train" / "a.png")
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "b.png").write_bytes(b"no image")
    data = FolderDataModule(
        str(tmp_path / "train"),
        str(tmp_path / "eval"),
        crop_size_px=32,
        batch_size=1,
        train_samples=1,
        num_workers=workers,
    )
    with pytest.raises(UnusableSampleError, match=r"^b: unreadable \(cannot read image .*b\.png") as caught:
        next(iter(data.val_dataloader()))
    assert len(str(caught.value).splitlines()) == 1
    (tmp_path / "train" / "a.png").write_bytes(b"no image")
    with pytest.raises(MegaSRError, match="^1 images in a row cannot be used: a: unreadable$"):
        next(iter(data.train_dataloader()))


def test_a_mixture_keeps_its_shares(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for n in range(3):
        write_png(pixels(n, 40, 40), folder / f"{n}.png")
    parts = [Part(str(shards), 0.5, shuffle_shards=2), Part(str(folder), 0.3), Part("scenes", 0.2)]
    data = MixtureDataModule(parts, str(tmp_path / "eval"), crop_size_px=32, batch_size=2, train_samples=100)
    drawn = [data.train_sample(draw) for draw in range(100)]
    shares = Counter(sample.key.split(":")[0] for sample in drawn)
    assert all(abs(shares[name] - 100 * share) <= 12 for name, share in (("0", 0.5), ("1", 0.3), ("2", 0.2)))
    assert len({sample.key for sample in drawn}) == 100
    from_shards = [sample.key.split(":")[1].rsplit("/", 1)[0] for sample in drawn if sample.key.startswith("0:")]
    assert all(len(set(from_shards[i : i + 1])) for i in range(12))
    assert next(iter(data.train_dataloader()))["hq"].shape == (2, 3, 32, 32)
    assert data.train_source.source.sources[0].draws.window == 2
    assert data.error_budget.samples == 15, "scenes have no end: they are not counted"
    other = MixtureDataModule(parts, str(tmp_path / "eval"), crop_size_px=32, seed=1)
    assert not {np.sort(other.train_source.read(15 + n).hq, axis=1).tobytes() for n in range(5)} & {
        np.sort(data.train_source.read(15 + n).hq, axis=1).tobytes() for n in range(5)
    }, "another seed renders other scenes"


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


def test_evaluation_on_the_training_set_is_refused(shards: Path) -> None:
    with pytest.raises(UsageError, match="numbers .*on training images say nothing"):
        shard_module(shards, eval_url=f"{shards}/")


def test_a_place_is_a_shard_set_or_a_folder(shards: Path, tmp_path: Path) -> None:
    write_png(pixels(0, 40, 40), tmp_path / "folder" / "a.png")
    assert [type(open_source(str(path))) for path in (shards, tmp_path / "folder")] == [ShardSource, FolderSource]
    with pytest.raises(UsageError, match="s3://bucket/set: .*or use pipe: with a client"):
        open_source("s3://bucket/set")
    source = open_source(f"pipe:cat {shards}/{{name}}", str(tmp_path / "cache"), 2.0)
    assert isinstance(source, ShardSource)
    assert (source.cache_dir, source.cache_gb) == (tmp_path / "cache", 2.0)


def test_copies_of_both_sets_are_kept_in_the_cache(shards: Path, tmp_path: Path) -> None:
    train_url, eval_url = (f"pipe:cat {folder}/{{name}}" for folder in (shards, shards.parent / "eval"))
    data = shard_module(shards, train_url=train_url, eval_url=eval_url, cache_dir=str(tmp_path / "cache"), cache_gb=0.5)
    assert len([*data.train_dataloader(), *data.val_dataloader()]) == 5
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert isinstance(data.eval_source, ShardSource)
    assert data.eval_source.cache_gb == 0.5


def test_an_evaluation_image_is_never_left_out(tmp_path: Path) -> None:
    write_png(pixels(0, 40, 40), tmp_path / "train" / "a.png")
    write_png(pixels(1, 20, 40), tmp_path / "eval" / "b.png")
    data = FolderDataModule(str(tmp_path / "train"), str(tmp_path / "eval"), crop_size_px=32, batch_size=1)
    with pytest.raises(UsageError, match="b: 40x20 px is smaller than the evaluation's crop of 32 px"):
        next(iter(data.val_dataloader()))


def folder_keys(data: FolderDataModule) -> tuple[set[str], list[str]]:
    """Names of the images that are trained and evaluated on."""
    source = data.train_source.source  # of what a filter drops as well
    return {source.key(index) for index in range(len(source))}, data.eval_keys()


def test_a_folder_keeps_a_part_of_itself_for_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("data_pipelines.datamodules.rank_zero_info", told.append)
    for number in range(41):
        write_png(pixels(number, 40, 40) if number else pixels(number, 20, 20), tmp_path / f"{number:02d}.png")
    settings = {"crop_size_px": 32, "batch_size": 2, "train_samples": 4}
    trained, evaluated = folder_keys(FolderDataModule(str(tmp_path), **settings))
    assert len(evaluated) == 2 and not trained & set(evaluated)
    assert trained | set(evaluated) == {f"{number:02d}" for number in range(41)}
    assert told == [f"data.eval_root is not set: 2 of the 41 images of {tmp_path} are kept for it, not trained on"]

    # More images, or fewer evaluated ones, move none from one side to the other.
    one = folder_keys(FolderDataModule(str(tmp_path), eval_samples=1, **settings))[1]
    assert set(one) < set(evaluated)
    (tmp_path / f"{evaluated[0]}.png").unlink()
    assert evaluated[1] in folder_keys(FolderDataModule(str(tmp_path), **settings))[1]
    assert "00" not in evaluated, "it is smaller than the crop"
    with pytest.raises(UsageError, match=r"40 images, too few or smaller than crops of "):
        FolderDataModule(str(tmp_path), eval_crop_size_px=64, **settings)


def test_shards_keep_the_last_of_every_shard_for_evaluation(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("data_pipelines.datamodules.rank_zero_info", told.append)
    monkeypatch.setattr("data_pipelines.datamodules._EVAL_OF", 4)
    url = str(shards)
    data = ShardDataModule(url, crop_size_px=32, batch_size=3, train_samples=9)
    assert data.eval_keys() == ["photo 04", "photo 08", "photo 11"]
    assert told == [f"data.eval_url is not set: 3 of the 12 images of {url} are kept for it, not trained on"]
    batches = list(data.train_dataloader())
    assert sorted(image_names(batches)) == [f"photo {n:02d}" for n in range(12) if n not in (4, 8, 11)]
    whole, part = ShardSource(url), data.train_source
    assert whole.fingerprint != part.fingerprint == pickle.loads(pickle.dumps(part)).fingerprint
    assert next(iter(data.val_dataloader()))["keys"] == data.eval_keys()
    with pytest.raises(UsageError, match="name others for evaluation in data.eval_url"):
        ShardDataModule(url, baked="any")


def test_pairs_and_mixtures_keep_a_part_of_themselves_for_evaluation(shards: Path, tmp_path: Path) -> None:
    for n in range(24):
        lq = pixels(n, 20, 24)
        write_png(lq, tmp_path / "pairs" / "lq" / f"{n}.png")
        write_png(np.kron(lq, np.ones((4, 4, 1), np.uint8)), tmp_path / "pairs" / "hq" / f"{n}.png")
    settings = {"crop_size_px": 32, "batch_size": 2, "train_samples": 4}
    paired = PairedDataModule(str(tmp_path / "pairs"), **settings)
    (key,) = paired.eval_keys()
    assert paired.error_budget.samples == 23 and key not in {paired.train_source.read(n).key for n in range(23)}
    assert [k for batch in paired.val_dataloader() for k in batch["keys"]] == [key]

    parts = [Part("scenes"), Part(str(shards)), Part(str(tmp_path / "pairs" / "hq"))]
    mixture = MixtureDataModule(parts, **settings)
    assert mixture.eval_keys() == [f"0:{ShardSource(str(shards)).key(11)}", f"1:{key}"]
    assert [k for batch in mixture.val_dataloader() for k in batch["keys"]] == mixture.eval_keys()
    assert mixture.error_budget.samples == 11 + 23
    with pytest.raises(UsageError, match="scenes alone .* set data.eval_url"):
        MixtureDataModule([Part("scenes")], **settings)
