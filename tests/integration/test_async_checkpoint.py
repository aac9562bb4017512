"""Checkpoints that are written while the training goes on hold the step that they were made in."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from data_pipelines.datamodules import PhotoDataModule
from megasr.errors import MegaSRError, UsageError
from megasr.networks.config import AdapterConfig
from megasr.training.callbacks import EMA
from megasr.training.last_checkpoint import LAST, PREVIOUS, AsyncCheckpointFiles, CheckpointFiles, LastCheckpoint
from megasr.training.sharding import ShardedStrategy
from tests.helpers.training import make_module

pytestmark = pytest.mark.filterwarnings("ignore")


class FailsAt(lightning.Callback):
    """An error in the pass of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *unused: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyError("interrupted")


def train(folder: Path, plugins: Any, steps: int = 5, more: Any = ()) -> None:
    """Steps of two images, a checkpoint after every second one."""
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=steps, plugins=plugins, callbacks=[*more, EMA(0.9), LastCheckpoint(folder, 2)],
        default_root_dir=folder, limit_val_batches=0, logger=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    data = PhotoDataModule(crop_size_px=32, batch_size=2, train_samples=20, eval_samples=1, seed=3)
    adapter = AdapterConfig(guidance=("canny",), saft_width=8, controlnet=False)
    trainer.fit(make_module(adapter=adapter), datamodule=data, ckpt_path=None)


class Steps(lightning.Callback):
    """Knows when another step has been taken."""

    def __init__(self) -> None:
        self.taken = threading.Event()

    def on_train_batch_end(self, *unused: Any) -> None:
        self.taken.set()

    def on_train_end(self, *unused: Any) -> None:
        self.taken.set()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """A disk on which a file that a thread writes takes until the next step has changed what it is made of."""
    write, steps = CheckpointFiles._write, Steps()

    def slowly(*arguments: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            steps.taken.clear()
            steps.taken.wait(2)
        write(*arguments)

    monkeypatch.setattr(CheckpointFiles, "_write", slowly)
    return steps


def assert_same(expected: Any, found: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_files_are_those_of_a_training_that_waits_for_them(tmp_path: Path, steps: Steps) -> None:
    train(tmp_path / "waits", None)
    train(tmp_path / "goes_on", AsyncCheckpointFiles(), more=[steps])
    for name, step in ((LAST, 5), (PREVIOUS, 4)):
        waits, goes_on = (torch.load(tmp_path / f / name, weights_only=True) for f in ("waits", "goes_on"))
        assert goes_on["global_step"] == step
        assert waits.keys() == goes_on.keys()
        for part in ("state_dict", "optimizer_states", "lr_schedulers"):
            assert_same(waits[part], goes_on[part])
        assert waits["PhotoDataModule"] == goes_on["PhotoDataModule"]
        assert_same(waits["callbacks"]["EMA"], goes_on["callbacks"]["EMA"])


def test_an_error_waits_for_the_file(tmp_path: Path, steps: Steps) -> None:
    with pytest.raises(KeyError):
        train(tmp_path, AsyncCheckpointFiles(), more=[steps, FailsAt(3)])
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == 3
    assert {path.name for path in tmp_path.iterdir()} == {LAST, PREVIOUS}


def test_what_a_write_has_to_say_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Any, checkpoint: Any, path: Path) -> None:
        raise MegaSRError(f"cannot write {path}: no space left")

    monkeypatch.setattr(CheckpointFiles, "_write", fails)
    files = AsyncCheckpointFiles()
    with pytest.raises(MegaSRError, match=r"best.ckpt: no space left"):
        files.save_checkpoint({}, tmp_path / "best.ckpt")  # at once, if the thread is that fast
        files.teardown()
    ends = pytest.raises(MegaSRError, match="last.ckpt could not be written at the end of the training, after 2 steps")
    with pytest.warns(UserWarning, match="the training goes on"), ends:
        train(tmp_path, AsyncCheckpointFiles(), steps=2)


def test_a_write_that_has_failed_stops_no_later_one(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """The error of a training comes after that of a file: what the training has done is saved nevertheless."""

    class FailsLater(FailsAt):
        def on_train_batch_start(self, trainer: Any, *unused: Any) -> None:
            if trainer.global_step == self.step:
                (tmp_path / "file").touch()
                with contextlib.suppress(MegaSRError):  # at once, if the thread is that fast
                    files.save_checkpoint({}, tmp_path / "file" / "best.ckpt")
            super().on_train_batch_start(trainer)

    files = AsyncCheckpointFiles()
    with pytest.raises(KeyError):
        train(tmp_path, files, more=[FailsLater(3)])
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == 3
    assert any("cannot write" in str(warning.message) and "best.ckpt" in str(warning.message) for warning in recwarn)


def test_folders_are_refused() -> None:
    strategy = ShardedStrategy(single_file=False)
    strategy.checkpoint_io = AsyncCheckpointFiles()
    with pytest.raises(UsageError, match="cannot write folders"):
        strategy.setup_environment()
