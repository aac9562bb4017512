"""Shards, baked variants, mixtures and real pairs as data modules: what is drawn, what is left out, what is refused."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_pipelines.datamodules import FolderDataModule, MixtureDataModule, PairedDataModule, Part, ShardDataModule
from data_pipelines.shards.bake import bake
from data_pipelines.shards.baked import BakeOptions
from megasr.errors import MegaSRError, UsageError
from megasr.images import write_png
from tests.helpers.shard_sets import encoded, make_shards, pixels

SIZES = (5, 4, 3)


def files_of(number: int) -> tuple[str, dict[str, bytes]]:
    """Sample `number` of a shard set: 60x72 px and a tag."""
    return f"photo {number:02d}", {"png": encoded(pixels(number, 60, 72)), "txt": f"tag {number}".encode()}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    make_shards(tmp_path / "shards", SIZES, files_of)
    make_shards(tmp_path / "eval", [3], files_of)
    return tmp_path / "shards"


def module(shards: Path, **settings: object) -> ShardDataModule:
    defaults = {"crop_size_px": 32, "batch_size": 3, "train_samples": 12, "eval_samples": 2, "cache_dir": str(shards)}
    return ShardDataModule(str(shards), str(shards.parent / "eval"), **{**defaults, **settings})


def names(batches: list) -> list[str]:
    """Keys without the number of the draw."""
    return [key.rsplit("/", 1)[0] for batch in batches for key in batch["keys"]]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_of_shards_shows_every_image_once(shards: Path, workers: int) -> None:
    batches = list(module(shards, num_workers=workers).train_dataloader())
    assert sorted(names(batches)) == [f"photo {n:02d}" for n in range(12)]
    for batch in batches:
        assert batch["tags"] == [f"tag {int(key.split()[1].split('/')[0])}" for key in batch["keys"]]
    assert all(batch["hq"].shape == (3, 3, 32, 32) and batch["lq"].shape == (3, 3, 8, 8) for batch in batches)
    (evaluation,) = module(shards).val_dataloader()
    assert evaluation["keys"] == ["photo 00", "photo 01"]
    assert torch.equal(
        evaluation["hq"][0], torch.from_numpy(pixels(0, 60, 72)[14:46, 20:52].copy()).permute(2, 0, 1) / 255
    )


OPTIONS = BakeOptions("realesrgan_strong", 4, 32, maps=("canny",), seed=4)


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("*.tar")}


def test_one_more_variant_leaves_the_others_alone_and_a_lost_one_comes_back(shards: Path) -> None:
    folder = shards / "baked" / "strong"
    bake(shards, "strong", OPTIONS, 2)
    two = content(folder)
    assert len(two) == 2 * len(SIZES)
    manifest = bake(shards, "strong", OPTIONS, 3)
    three = content(folder)
    assert {name: three[name] for name in two} == two, "bytes and times"
    assert manifest.samples == 3 * sum(SIZES)
    lost = sorted(three)[4]
    (folder / lost).write_bytes(three[lost][0][:1000])  # as if killed without whole files
    bake(shards, "strong", OPTIONS, 3)
    assert {name: found[0] for name, found in content(folder).items()} == {n: f[0] for n, f in three.items()}
    with pytest.raises(UsageError, match="holds 3 variants already, 2 would lose some"):
        bake(shards, "strong", OPTIONS, 2)
    with pytest.raises(UsageError, match="seed was 4, is 5"):
        bake(shards, "strong", BakeOptions("realesrgan_strong", 4, 32, maps=("canny",), seed=5), 3)


def test_a_baked_variant_is_what_on_line_training_would_have_made(shards: Path) -> None:
    from data_pipelines.degradations.presets import get_degradation
    from megasr.guidance.extract import extract_guidance
    from megasr.guidance.registry import resolve_guidance

    bake(shards, "strong", OPTIONS, 2)
    data = module(shards, baked="strong", degradation="realesrgan_strong", train_samples=24)
    batches = list(data.train_dataloader())
    assert Counter(names(batches)) == {f"photo {n:02d}/v{v}": 1 for n in range(12) for v in range(2)}, "all in 2 epochs"
    strong = get_degradation("realesrgan_strong", 4)
    for batch in batches[:3]:
        for i, key in enumerate(batch["keys"]):
            name, variant = key.split("/")[0], int(key.split("/")[1][1:])
            (params,) = strong.sample_params(4, [name], variant)
            hq = (batch["hq"][i].permute(1, 2, 0) * 255).round().numpy().astype(np.uint8)
            assert batch["degradation"][i] == params
            assert torch.equal(strong.apply_image(hq, params), batch["lq"][i])
        maps = extract_guidance({"keys": batch["keys"], "lq": batch["lq"]}, resolve_guidance(["canny"]), 4)
        assert (maps["canny"] - batch["maps"]["canny"]).abs().max() <= 0.5 / 255 + 1e-6
    crops = {
        (key.split("/")[1], batch["hq"][i].numpy().tobytes())
        for batch in batches
        for i, key in enumerate(batch["keys"])
    }
    assert len({crop for _, crop in crops}) == 24, "every variant has a crop of its own"


def test_baked_and_on_line_draws_mix_in_the_share_that_was_asked(shards: Path) -> None:
    bake(shards, "mild", BakeOptions("bicubic", 4, 32), 1)
    data = module(shards, baked="mild", baked_share=0.25, train_samples=240)
    baked = [key.count("/") == 2 for batch in data.train_dataloader() for key in batch["keys"]]
    assert 0.16 < np.mean(baked) < 0.34
    for changes, says in (
        ({"crop_size_px": 40}, "made with crop_size_px 32, data.crop_size_px is 40"),
        ({"degradation": "first_order"}, "degradation 'bicubic', data.degradation is 'first_order'"),
        ({"backend": "device", "baked_share": 0.5}, "needs data.backend cpu"),
        ({"baked_share": 1.5}, r"baked_share must be in \[0, 1\], got 1.5"),
        ({"baked": "../mild"}, "not the name of a baked set"),
    ):
        with pytest.raises(UsageError, match=says):
            module(shards, **{"baked": "mild", **changes})


def test_baked_sets_of_other_originals_are_refused(shards: Path) -> None:
    bake(shards, "mild", BakeOptions("bicubic", 4, 32), 1)
    make_shards(shards.parent / "other", SIZES, lambda n: files_of(n + 50))
    shutil.copytree(shards / "baked", shards.parent / "other" / "baked")
    with pytest.raises(MegaSRError, match="baked from other originals"):
        module(shards.parent / "other", baked="mild")


def test_an_unusable_original_is_baked_as_such_and_counted_when_drawn(tmp_path: Path) -> None:
    def files(number: int) -> tuple[str, dict[str, bytes]]:
        key, content = files_of(number)
        image = {1: encoded(pixels(1, 20, 20)), 2: b"no image"}.get(number, content["png"])
        return key, {**content, "png": image}

    make_shards(tmp_path / "shards", SIZES, files)
    make_shards(tmp_path / "eval", [1], files_of)
    bake(tmp_path / "shards", "mild", BakeOptions("bicubic", 4, 32), 1)
    for settings in ({"baked": "mild"}, {}):
        data = module(tmp_path / "shards", max_damaged=0.1, **settings)
        batches = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
        assert sum(len(batch["keys"]) for batch in batches) == 12
        assert list(data.error_budget.damaged) == ["photo 02"]
        assert data.error_budget.filtered == {"smaller than 32 px": 1}
        assert "1 damaged images (unreadable image 1), 1 draws of filtered images" in data.error_budget.summary()


def test_too_much_damage_stops_training_with_the_list(shards: Path, tmp_path: Path) -> None:
    def files(number: int) -> tuple[str, dict[str, bytes]]:
        return files_of(number)[0], {"png": b"broken"} if number % 4 == 0 else files_of(number)[1]

    make_shards(tmp_path / "broken", SIZES, files)
    data = module(tmp_path / "broken", max_damaged=0.2)
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
    state = module(shards).state_dict()
    module(shards, max_damaged=0.5, crop_size_px=16).load_state_dict(state)
    make_shards(shards.parent / "other", SIZES, lambda n: files_of(n + 50))
    for other in (module(shards.parent / "other"), module(shards, shuffle_shards=2), module(shards, seed=1)):
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
