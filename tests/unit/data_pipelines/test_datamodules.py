"""What all data modules promise, and what each source makes of it."""

from __future__ import annotations

import pickle
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from data_pipelines.data_module import EVAL_SEED
from data_pipelines.datamodules import (
    FolderDataModule,
    MixtureDataModule,
    PairedDataModule,
    PhotoDataModule,
    SceneDataModule,
    ShardDataModule,
    SRDataModule,
)
from data_pipelines.degradations.presets import get_degradation
from data_pipelines.photos import EVAL_PHOTOS, TRAIN_PHOTOS
from data_pipelines.samples import DrawSampler, Sample, collate
from data_pipelines.scenes.rendering import render_scene
from megasr.errors import UsageError
from megasr.images import resize

COMMON = ("scale_factor", "crop_size_px", "batch_size", "train_samples", "eval_samples", "num_workers")


@pytest.fixture(params=[PhotoDataModule, SceneDataModule], ids=["photos", "scenes"])
def data(request: pytest.FixtureRequest) -> SRDataModule:
    return request.param(crop_size_px=32, batch_size=4, train_samples=8, eval_samples=6)


def test_a_batch_has_what_the_contract_says(data: SRDataModule) -> None:
    loader = data.train_dataloader()
    batches = list(loader)
    assert len(loader) == len(batches) == 2
    for batch in batches:
        assert batch["hq"].shape == (4, 3, 32, 32)
        assert batch["hq"].dtype == torch.float32
        assert 0 <= batch["hq"].min() < batch["hq"].max() <= 1
        assert len(batch["tags"]) == len(batch["keys"]) == 4
        assert all(isinstance(tags, str) for tags in batch["tags"])
    assert len({key for batch in batches for key in batch["keys"]}) == 8


def test_evaluation_is_degraded_in_the_loader_and_replays(data: SRDataModule) -> None:
    batch = next(iter(data.val_dataloader()))
    hq = batch["hq"].clone()
    assert torch.equal(batch["lq"], resize(hq, 8, 8))
    assert torch.equal(data.degradation.apply(hq, batch["degradation"]), batch["lq"])
    assert torch.equal(data.on_after_batch_transfer(batch, 0)["hq"], hq)


@pytest.mark.parametrize("source", [PhotoDataModule, SceneDataModule])
def test_both_back_ends_apply_the_same_parameters(source: type) -> None:
    settings = {"degradation": "realesrgan_strong", "crop_size_px": 64, "batch_size": 4, "train_samples": 4, "seed": 5}
    cpu, device = (source(backend=backend, **settings) for backend in ("cpu", "device"))
    made, bare = (next(iter(data.train_dataloader())) for data in (cpu, device))
    assert "lq" not in bare
    on_device = device.on_after_batch_transfer(dict(bare), 0)
    assert made["degradation"] == on_device["degradation"] == cpu.degradation.sample_params(5, bare["keys"])
    assert (made["lq"] - on_device["lq"]).abs().mean() < 0.02
    own = device.on_after_batch_transfer({**bare, "lq": torch.zeros(4, 3, 16, 16)}, 0)
    assert own["lq"].sum() == 0, "lq that is there is left alone"


def test_the_seed_and_the_back_end_are_those_of_training_only() -> None:
    settings = {"degradation": "realesrgan_strong", "crop_size_px": 32, "batch_size": 4, "eval_samples": 4}
    evaluations = [
        next(iter(PhotoDataModule(backend=backend, seed=seed, usm_target=usm, **settings).val_dataloader()))
        for backend, seed, usm in (("cpu", 0, False), ("device", 7, True))
    ]
    assert torch.equal(evaluations[0]["lq"], evaluations[1]["lq"])
    assert torch.equal(evaluations[0]["hq"], evaluations[1]["hq"])
    draws = [PhotoDataModule(seed=seed, **settings).train_item(0) for seed in (0, 7)]
    assert draws[0].degradation != draws[1].degradation
    assert draws[0].degradation == get_degradation("realesrgan_strong", 4).sample_params(0, [draws[0].key])[0]


@pytest.mark.parametrize("backend", ["cpu", "device"])
def test_a_sharpened_target_is_what_lq_is_made_of(backend: str) -> None:
    settings = {"crop_size_px": 64, "batch_size": 2, "train_samples": 2}
    plain, sharp = (
        data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
        for data in (PhotoDataModule(backend=backend, usm_target=usm, **settings) for usm in (False, True))
    )
    assert sharp["hq"].std() > plain["hq"].std()
    assert torch.equal(sharp["lq"], resize(sharp["hq"], 16, 16))


def test_evaluation_is_complete_and_the_same_for_every_seed(data: SRDataModule) -> None:
    batches = list(data.val_dataloader())
    keys = [key for batch in batches for key in batch["keys"]]
    assert len(keys) == len(set(keys)) == 6
    other = type(data)(crop_size_px=32, batch_size=6, eval_samples=6, seed=3)
    (whole,) = other.test_dataloader()
    assert whole["keys"] == keys
    assert torch.equal(whole["hq"], torch.cat([batch["hq"] for batch in batches]))
    training = [data.train_sample(draw).hq.tobytes() for draw in range(12)]
    evaluation = [data.eval_sample(index).hq.tobytes() for index in range(6)]
    assert not set(training) & set(evaluation)


def test_training_draws_depend_on_the_seed(data: SRDataModule) -> None:
    other = type(data)(crop_size_px=32, seed=1)
    same = type(data)(crop_size_px=32)
    assert data.train_sample(3).hq.tobytes() == same.train_sample(3).hq.tobytes()
    assert data.train_sample(3).hq.tobytes() != other.train_sample(3).hq.tobytes()
    assert data.train_sample(3).hq.tobytes() != data.train_sample(4).hq.tobytes()


def test_a_checkpoint_of_another_source_or_seed_is_refused() -> None:
    state = PhotoDataModule(crop_size_px=32).state_dict()

    def resume(data: SRDataModule) -> None:
        data.load_state_dict(state)
        data.train_dataloader()

    resume(PhotoDataModule(crop_size_px=64, batch_size=2))
    for other in (SceneDataModule(crop_size_px=32), PhotoDataModule(crop_size_px=32, seed=1)):
        with pytest.raises(UsageError, match="cannot resume: .* PhotoDataModule with seed 0"):
            resume(other)


def test_the_seed_decides_photograph_and_crop() -> None:
    one, other = (PhotoDataModule(crop_size_px=32, seed=seed) for seed in (0, 1))
    pairs = [(one.train_sample(draw), other.train_sample(draw)) for draw in range(40)]
    assert any(a.key != b.key for a, b in pairs)
    assert all(a.hq.tobytes() != b.hq.tobytes() for a, b in pairs), "also where the photograph is the same"


def test_a_worker_computes_on_one_thread() -> None:
    class Threads(PhotoDataModule):
        def train_item(self, draw: int) -> Sample:
            return Sample(str(cv2.getNumThreads()), np.zeros((16, 16, 3), np.uint8))

        def eval_item(self, index: int) -> Sample:
            return self.train_item(index)

    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        data = Threads(crop_size_px=32, num_workers=1, batch_size=1, train_samples=1, eval_samples=1)
        seen = [batch["keys"] for loader in (data.train_dataloader(), data.val_dataloader()) for batch in loader]
    finally:
        cv2.setNumThreads(before)
    assert seen == [["1"], ["1"]]


def test_workers_load_the_same_batches(data: SRDataModule) -> None:
    alone = list(data.train_dataloader())
    data.num_workers = 2
    for one, two in zip(alone, data.train_dataloader(), strict=True):
        assert one["keys"] == two["keys"]
        assert torch.equal(one["hq"], two["hq"])


@pytest.mark.parametrize("source", [PhotoDataModule, SceneDataModule])
def test_workers_that_are_not_forked_are_not_sent_the_trainer(source: type) -> None:
    data = source(crop_size_px=32, batch_size=4, train_samples=8)
    progress = SimpleNamespace(total=SimpleNamespace(processed=1), model=lambda: "a thing that cannot be pickled")
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, fit_loop=loop)  # type: ignore[assignment]
    for loader in (data.train_dataloader(), data.val_dataloader()):
        sent = pickle.loads(pickle.dumps(loader.dataset))
        assert np.array_equal(sent[3].hq, loader.dataset[3].hq)
    assert data.trainer is not None


def test_training_sees_every_training_photograph_and_no_other() -> None:
    data = PhotoDataModule(crop_size_px=32)
    seen = {data.train_sample(draw).key.split("/")[0] for draw in range(60)}
    assert seen == {photo.name for photo in TRAIN_PHOTOS}


@pytest.mark.parametrize("eval_samples", [1, 4, 5, 7, 16, 1000])
def test_evaluation_crops_are_spread_over_the_photographs(eval_samples: int) -> None:
    data = PhotoDataModule(eval_samples=eval_samples)
    counts = [sum(name == photo.name for name, _ in data.crops) for photo in EVAL_PHOTOS]
    assert len(data.crops) == min(eval_samples, data.num_eval()) == sum(counts)
    assert len(set(data.crops)) == len(data.crops)
    if eval_samples < 1000:  # so few that every photograph has enough of them
        assert data.num_eval() == eval_samples
        assert max(counts) - min(counts) <= 1


def test_scenes_bring_exact_maps_and_tags() -> None:
    (batch,) = SceneDataModule(crop_size_px=32, eval_samples=3).val_dataloader()
    shapes = {name: tuple(value.shape) for name, value in batch["maps"].items()}
    assert shapes == {
        "oracle_depth": (3, 1, 32, 32),
        "oracle_normal": (3, 3, 32, 32),
        "oracle_segmentation": (3, 3, 32, 32),
        "oracle_edge": (3, 1, 32, 32),
    }
    assert all(value.dtype == torch.float32 for value in batch["maps"].values())
    scene = render_scene(2, EVAL_SEED, 32)
    exact = {"depth": scene.depth, "normal": scene.normal, "edge": scene.edges}
    for name, expected in exact.items():
        found = batch["maps"][f"oracle_{name}"][2].permute(1, 2, 0).numpy()
        assert np.array_equal(found.squeeze(), expected.astype(np.float32)), name
    assert batch["tags"][2] == ", ".join(scene.tags)


def test_a_batch_has_lq_for_all_or_none() -> None:
    bare = Sample("a", np.zeros((16, 16, 3), np.uint8))
    paired = replace(bare, lq=torch.zeros(3, 4, 4))
    assert "lq" not in collate([bare, bare])
    depth, mapped = {"depth": torch.zeros(1, 16, 16)}, torch.ones(1, 16, 16)
    some = collate([replace(bare, maps=depth | {"edge": mapped}), replace(bare, maps=depth)])
    assert list(some["maps"]) == ["depth"], "what every sample has"
    assert collate([paired, paired])["lq"].shape == (2, 3, 4, 4)
    with pytest.raises(UsageError, match=r"only some samples of a batch bring lq: .* needs data.backend cpu"):
        collate([paired, bare])


def test_processes_share_the_draws_and_go_on_together() -> None:
    """Step k of all processes together reads the draws that step k of one process with the larger batch reads."""
    ranks = [list(DrawSampler(lambda: 24, 12, rank, world_size=3)) for rank in range(3)]
    assert [len(draws) for draws in ranks] == [4, 4, 4]
    assert sorted(draw for draws in ranks for draw in draws[:2]) == list(range(24, 30))
    assert sorted(draw for draws in ranks for draw in draws) == list(range(24, 36))
    assert len(DrawSampler(lambda: 24, 12, 1, world_size=3)) == 4


def test_every_device_needs_a_batch() -> None:
    data = SceneDataModule(batch_size=4, train_samples=8)
    data.trainer = SimpleNamespace(global_rank=0, world_size=3)  # type: ignore[assignment]
    with pytest.raises(UsageError, match="train_samples 8 is less than one batch of 4 for each of 3 devices"):
        data.train_dataloader()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch_size": 0}, "data.batch_size must be at least 1, got 0"),
        ({"train_samples": 0}, "data.train_samples must be at least 1, got 0"),
        ({"eval_samples": 0}, "data.eval_samples must be at least 1, got 0"),
        ({"num_workers": -1}, "data.num_workers must be at least 0, got -1"),
        ({"crop_size_px": 8}, "data.crop_size_px must be at least 16, got 8"),
        ({"crop_size_px": 66}, "data.crop_size_px 66 is not a positive multiple of data.scale_factor 4"),
        ({"scale_factor": 0}, "scale_factor must be at least 1, got 0"),
        ({"degradation": "bicubik"}, "unknown degradation 'bicubik'; did you mean bicubic"),
        ({"seed": -1}, "data.seed must be in"),
        ({"batch_size": 8, "train_samples": 7}, "train_samples 7 is less than one batch of 8"),
        ({"crop_size_px": 400}, "crop_size_px 400: the smallest photograph has 300 px"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        PhotoDataModule(**settings)


REQUIRED = {
    PhotoDataModule: [],
    SceneDataModule: [],
    FolderDataModule: ["--data.train_root=a", "--data.eval_root=b"],
    ShardDataModule: ["--data.train_url=a", "--data.eval_url=b"],
    MixtureDataModule: ['--data.parts=[{"source": "a", "weight": 2}, {"source": "scenes"}]', "--data.eval_url=b"],
    PairedDataModule: ["--data.train_root=a", "--data.eval_root=b"],
}


@pytest.mark.parametrize("source", REQUIRED)
def test_the_config_knows_every_setting_and_its_help(source: type, capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(source, "data")
    settings = parser.parse_args([*REQUIRED[source], "--data.batch_size=3"]).data
    assert {*COMMON, "seed"} <= set(vars(settings))
    assert ("degradation" in vars(settings)) == (source is not PairedDataModule), "nothing is degraded there"
    assert settings.batch_size == 3
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert "size of hq over size of lq" in capsys.readouterr().out


@pytest.mark.parametrize("source", [PhotoDataModule, SceneDataModule])
def test_evaluation_may_have_another_size_than_training(source) -> None:
    data = source(crop_size_px=32, eval_crop_size_px=64, batch_size=1, eval_samples=1)
    assert next(iter(data.train_dataloader()))["hq"].shape[-2:] == (32, 32)
    assert next(iter(data.val_dataloader()))["hq"].shape[-2:] == (64, 64)
    with pytest.raises(UsageError, match="eval_crop_size_px 30"):
        source(eval_crop_size_px=30)
