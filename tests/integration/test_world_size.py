"""An epoch of shards begun by two processes and ended by one: real processes, Lightning's own checkpoint."""

from __future__ import annotations

from pathlib import Path

import lightning
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.helpers.recorder import Recorder
from tests.helpers.shard_sets import shard_module, train_and_eval


def fit(shards: Path, folder: Path, devices: int, steps: int, checkpoint: Path | None = None) -> Recorder:
    data = shard_module(shards, batch_size=1, degradation="first_order")
    module = Recorder(folder)
    lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=devices,
        strategy="ddp_fork" if devices > 1 else "auto",
        max_steps=steps,
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)],
    ).fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=checkpoint is not None)
    return module


@pytest.mark.filterwarnings("ignore")
def test_two_processes_begin_an_epoch_and_one_ends_it(tmp_path: Path) -> None:
    shards = train_and_eval(tmp_path)
    fit(shards, tmp_path, devices=2, steps=4)  # the last of these steps is lost: the checkpoint of step 3 is taken
    module = fit(shards, tmp_path, devices=1, steps=9, checkpoint=tmp_path / "step=3.ckpt")
    before, after = module.seen(world_size=2), module.seen(world_size=1)
    assert len(before) == 8
    assert [step for step, _ in after] == list(range(3, 9))
    keys = [key for step, key in before if step < 3] + [key for _, key in after]
    assert sorted(int(key.rsplit("/", 1)[1]) for key in keys) == list(range(12)), "every draw once"
    assert sorted(key.rsplit("/", 1)[0] for key in keys) == [f"photo {n:02d}" for n in range(12)], "every image once"
