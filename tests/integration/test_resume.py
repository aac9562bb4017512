"""Contract 5: 10 steps == 5 + resume + 5, bit for bit, in the middle of an epoch, on real photographs."""

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from data_pipelines.datamodules import PhotoDataModule
from megasr.training.callbacks import EMA
from megasr.training.config import OptimizerConfig
from megasr.training.last_checkpoint import LastCheckpoint
from tests.helpers.training import LossCurve, make_module


def train(steps, folder, resume_from=None, every=None, more=()):
    module = make_module(optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=7))
    data = PhotoDataModule(crop_size_px=32, batch_size=2, train_samples=6, eval_samples=1, seed=3)  # epochs of 3 steps
    curve, ema = LossCurve(), EMA(0.9)
    callbacks = [*more, curve, ema]
    if every:
        callbacks.append(ModelCheckpoint(folder, every_n_train_steps=every, save_top_k=-1, filename="{step}"))
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, callbacks=callbacks, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=bool(every or more), limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=resume_from, weights_only=True)
    return module, curve.losses, ema


def test_ten_steps_equal_five_resume_five(tmp_path):
    whole, losses, whole_ema = train(10, tmp_path, every=5)
    resumed, later_losses, resumed_ema = train(10, tmp_path, resume_from=tmp_path / "step=5.ckpt")
    assert later_losses == losses[5:]
    for (name, a), (_, b) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert all(torch.equal(whole_ema.shadow[name], value) for name, value in resumed_ema.shadow.items())
    assert len(set(losses)) == 10  # different draws at every step, or the comparison would prove nothing


class Fails(lightning.Callback):
    """In the pass of step `step`, or when its weights are new and their averages are not."""

    def __init__(self, step, hook):
        self.step, self.hook = step, hook

    def _fail(self, trainer, hook, done):
        if hook == self.hook and trainer.global_step == done:
            raise KeyError("interrupted")

    def on_before_backward(self, trainer, *unused):
        self._fail(trainer, "pass", self.step - 1)

    def on_train_batch_end(self, trainer, *unused):
        self._fail(trainer, "between", self.step)


# Epochs of 3 steps, a checkpoint every 4 as well.
@pytest.mark.parametrize(("step", "hook", "kept"), [(8, "pass", 7), (6, "between", 4), (7, "between", 6)])
def test_an_interrupted_training_goes_on_from_its_last_whole_step(tmp_path, step, hook, kept):
    _, losses, whole_ema = train(10, tmp_path)
    with pytest.raises(KeyError):
        train(10, tmp_path, more=[LastCheckpoint(tmp_path, every_n_steps=4), Fails(step, hook)])
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "previous.ckpt"}
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == kept
    _, later_losses, ema = train(10, tmp_path, resume_from=tmp_path / "last.ckpt")
    assert later_losses == losses[kept:]
    assert all(torch.equal(whole_ema.shadow[name], value) for name, value in ema.shadow.items())


def test_weights_that_are_not_finite_replace_no_checkpoint(tmp_path):
    class Breaks(Fails):
        def _fail(self, trainer, hook, done):
            if trainer.global_step == done == self.step - 1:
                next(p for p in trainer.lightning_module.parameters() if p.requires_grad).data[...] = torch.nan
            super()._fail(trainer, hook, done)

    with pytest.raises(KeyError):
        train(10, tmp_path, more=[LastCheckpoint(tmp_path), Breaks(5, "pass")])
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3
