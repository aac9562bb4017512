"""Adapter checkpoints: small, safe to load, and not to be mixed up."""

import csv

import pytest
import torch
import torch.nn.functional as F

from data_pipelines.photos import EVAL_PHOTOS, load_photo
from experiments.tiny.ship_adapter import slim
from experiments.world.photographs import LIST
from megasr import MegaSR
from megasr.batch import SRBatch
from megasr.errors import MegaSRError, UsageError
from megasr.images import center_crop, from_uint8
from megasr.networks.config import AdapterConfig
from megasr.networks.parameters import part_of
from megasr.training.callbacks import EMA
from megasr.training.checkpoint import read_checkpoint
from megasr.training.folders import SHIPPED
from megasr.training.module import MegaSRModule
from tests.helpers.training import fit, make_batch, make_module, prior_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A module trained for three steps with EMA, its checkpoint and the averaged weights."""
    module, ema = make_module(), EMA(0.5)
    trainer = fit(module, make_batch(), 3, callbacks=[ema])
    path = tmp_path_factory.mktemp("run") / "adapter.ckpt"
    trainer.save_checkpoint(path)
    return module, path, ema


def test_it_holds_what_was_trained_and_nothing_of_the_prior(run):
    module, path, _ = run
    checkpoint = torch.load(path, weights_only=True)
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert set(checkpoint["state_dict"]) == trained
    assert not any("prior" in name or "unet.unet" in name for name in checkpoint["state_dict"])
    assert checkpoint["prior_fingerprint"] == module.prior.fingerprint()


def test_it_comes_back_with_the_averaged_weights(run):
    module, path, ema = run
    back = MegaSRModule.from_checkpoint(path)
    weights = dict(back.named_parameters())
    assert ema.shadow and all(torch.equal(weights[name], value) for name, value in ema.shadow.items())
    raw = dict(module.named_parameters())
    assert any(not torch.equal(raw[name], value) for name, value in ema.shadow.items())
    assert back.hparams == module.hparams and not back.training


def test_another_prior_is_refused(run):
    with pytest.raises(MegaSRError, match="trained on the prior .* but the loaded prior is"):
        MegaSRModule.from_checkpoint(run[1], prior=prior_folder(seed=1))


def test_another_adapter_is_refused(run):
    with pytest.raises(MegaSRError, match="made for another adapter.*msfm"):
        MegaSRModule.from_checkpoint(run[1], adapter=AdapterConfig(guidance=("canny", "superpixel"), saft_width=8))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"], ids=["empty", "text"])
def test_a_damaged_file_is_one_clear_line(tmp_path, content):
    (tmp_path / "broken.ckpt").write_bytes(content)
    with pytest.raises(MegaSRError, match="cannot read checkpoint .*broken.ckpt") as error:
        MegaSRModule.from_checkpoint(tmp_path / "broken.ckpt")
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_foreign_checkpoint(tmp_path):
    with pytest.raises(MegaSRError, match="no checkpoint .*none.ckpt: give the path"):
        MegaSRModule.from_checkpoint(tmp_path / "none.ckpt")
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.5.0"}, tmp_path / "foreign.ckpt")
    with pytest.raises(MegaSRError, match="not a checkpoint of a MegaSR adapter"):
        MegaSRModule.from_checkpoint(tmp_path / "foreign.ckpt")


def test_a_part_that_two_adapters_share_starts_from_trained_weights(tmp_path):
    base = make_module(adapter=AdapterConfig())
    fit(base, make_batch(), 3).save_checkpoint(tmp_path / "base.ckpt")
    more = AdapterConfig(guidance=("canny",), saft_width=8)
    fresh, forked = make_module(adapter=more), make_module(adapter=more, init=str(tmp_path / "base.ckpt"))
    ours, theirs, start = (dict(module.named_parameters()) for module in (forked, base, fresh))
    shared = {name for name, p in base.named_parameters() if p.requires_grad}
    assert shared and all(torch.equal(ours[name], theirs[name]) for name in shared)
    added = {name for name, p in forked.named_parameters() if p.requires_grad} - shared
    assert added and all(torch.equal(ours[name], start[name]) for name in added)
    assert torch.equal(forked.restore(make_batch()), base.eval().restore(make_batch())), "MSFM starts at the identity"


def test_parts_of_an_adapter_with_other_guidance_are_a_start_too(run):
    trained = MegaSRModule.from_checkpoint(run[1])
    others = AdapterConfig(guidance=("canny", "superpixel", "noise"), saft_width=8)
    parts = "lq_encoder,controlnet"
    fresh, forked = make_module(adapter=others), make_module(adapter=others, init=str(run[1]), init_parts=parts)
    ours, theirs, start = (dict(module.named_parameters()) for module in (forked, trained, fresh))
    taken = {n for n, p in forked.named_parameters() if p.requires_grad and part_of(n) in ("lq_encoder", "controlnet")}
    assert {part_of(name) for name in taken} == {"lq_encoder", "controlnet"}
    assert all(torch.equal(ours[name], theirs[name]) for name in taken)
    left = {name for name, p in forked.named_parameters() if p.requires_grad} - taken
    assert left and all(torch.equal(ours[name], start[name]) for name in left)


@pytest.mark.parametrize(
    ("init", "parts", "message"),
    [
        (False, "msfm", "model.init_parts would do nothing without model.init"),
        (True, "msfn", "unknown part of model.init_parts 'msfn'.*msfm"),
        (True, "rca", r"model.init_parts: model.init .* has no rca; it has controlnet, .*msfm"),
    ],
)
def test_parts_that_cannot_be_a_start_are_refused(run, init, parts, message):
    with pytest.raises(UsageError, match=message):
        make_module(init=str(run[1]) if init else None, init_parts=parts)


def test_init_of_another_prior_or_with_parts_too_many_is_refused(run, tmp_path):
    with pytest.raises(MegaSRError, match="this adapter does not train .*msfm.*model.init_parts"):
        make_module(adapter=AdapterConfig(), init=str(run[1]))
    with pytest.raises(MegaSRError, match="init .*: trained on the prior"):
        make_module(prior=prior_folder(seed=1), init=str(run[1]))


def test_a_forked_adapter_comes_back_without_what_it_started_from(run, tmp_path):
    forked = make_module(init=str(run[1]))
    fit(forked, make_batch(), 1).save_checkpoint(tmp_path / "forked.ckpt")
    checkpoint = torch.load(tmp_path / "forked.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["init"] == str(run[1])
    checkpoint["hyper_parameters"]["init"] = "gone.ckpt"
    torch.save(checkpoint, tmp_path / "forked.ckpt")
    assert not MegaSRModule.from_checkpoint(tmp_path / "forked.ckpt").training


def test_the_shipped_adapter_restores_and_is_a_start_for_more():
    """It fits the shipped prior, and without new parts' training the forked adapter restores the same image."""
    base = MegaSRModule.from_checkpoint("tiny")
    more = MegaSRModule(
        adapter=AdapterConfig(text=False, guidance=("canny",), saft_width=8), init="tiny", sampler=base.sampler
    ).eval()
    batch = {"lq": torch.rand(1, 3, 16, 16), "keys": ["a"]}
    with torch.no_grad():
        first, second = base.restore(batch), more.restore(batch)
    assert first.shape == (1, 3, 64, 64)
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("adapter", ["tiny-one-step", "experiments/world/weights/adapter.ckpt"])
def test_one_step_adapters_restore_photographs_better_than_the_start_of_studies(adapter, root, monkeypatch):
    """Also where no weights of LPIPS are, on which they were trained; they name no file of the machine that did it."""
    monkeypatch.chdir(root)  # the second one names its prior from there
    settings = read_checkpoint(SHIPPED.get(adapter, adapter))["hyper_parameters"]
    assert settings["init"] is None and settings["objective"]["weights_dir"] is None
    assert "'/" not in str(settings), "a place on this machine"
    one, start = (MegaSR.from_checkpoint(name) for name in (adapter, "tiny"))
    for photo in EVAL_PHOTOS[:3]:
        hq = from_uint8(center_crop(load_photo(photo.name), 128))[None]
        batch = SRBatch(keys=["a"], lq=F.avg_pool2d(hq, 4), tags=[""])
        errors = [float((system.restore(batch) - hq).square().mean()) for system in (one, start)]
        assert errors[0] < 0.7 * errors[1]


def test_the_photographs_of_a_shipped_adapter_are_named_with_their_licences_and_authors():
    with (SHIPPED["tiny-one-step"].parent / "ATTRIBUTION.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(row["licence"] and row["authors"] and "@" not in row["authors"] for row in rows)
    with LIST.open(newline="") as file:
        fetched = sorted(row["photograph"] for row in csv.DictReader(file))
    assert sorted(name for row in rows for name in row["photographs"].split()) == fetched


def test_the_adapter_that_ships_is_half_as_large_and_the_same(run, tmp_path):
    _, path, ema = run
    torch.save(slim(read_checkpoint(path), color_fix="adain"), tmp_path / "slim.ckpt")
    module = MegaSRModule.from_checkpoint(tmp_path / "slim.ckpt")
    assert module.sampler.color_fix == "adain"
    weights = dict(module.named_parameters())
    for name, value in ema.shadow.items():
        torch.testing.assert_close(weights[name], value.half().float(), rtol=0, atol=0)
    assert (tmp_path / "slim.ckpt").stat().st_size < path.stat().st_size / 3
