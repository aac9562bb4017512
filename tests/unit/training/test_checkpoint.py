"""Adapter checkpoints: small, safe to load, and not to be mixed up."""

import pytest
import torch

from megasr.errors import MegaSRError
from megasr.networks.config import AdapterConfig
from megasr.training.callbacks import EMA
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
    with pytest.raises(MegaSRError, match="No such file"):
        MegaSRModule.from_checkpoint(tmp_path / "none.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(MegaSRError, match="not a checkpoint of a MegaSR adapter"):
        MegaSRModule.from_checkpoint(tmp_path / "foreign.ckpt")
