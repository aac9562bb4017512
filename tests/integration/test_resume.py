"""Contract 5: 10 steps == 5 + resume + 5, bit for bit, in the middle of an epoch, on real photographs."""

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from data_pipelines.datamodules import PhotoDataModule
from megasr.training.callbacks import EMA
from megasr.training.config import OptimizerConfig
from tests.helpers.training import LossCurve, make_module


def train(steps, folder, resume_from=None, every=None):
    import lightning

    module = make_module(optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=7))
    data = PhotoDataModule(crop_size_px=32, batch_size=2, train_samples=6, eval_samples=1, seed=3)  # epochs of 3 steps
    curve, ema = LossCurve(), EMA(0.9)
    callbacks = [curve, ema]
    if every:
        callbacks.append(ModelCheckpoint(folder, every_n_train_steps=every, save_top_k=-1, filename="{step}"))
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, callbacks=callbacks, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=bool(every), limit_val_batches=0,
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
