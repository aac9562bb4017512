"""What ends a training early, in real processes: signals, a loss that is not finite, a disk that takes no more."""

from __future__ import annotations

import os
import resource
import signal
import warnings
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from data_pipelines.datamodules import PhotoDataModule
from megasr.errors import MegaSRError, UsageError
from megasr.networks.config import AdapterConfig
from megasr.training.callbacks import EMA
from megasr.training.last_checkpoint import INTERRUPTED, LAST, PREVIOUS, TERMINATED, LastCheckpoint, Stopped, find_last
from tests.helpers.ranks import run_ranks
from tests.helpers.training import LossCurve, make_module

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 5


class At(lightning.Callback):
    """Does something before the pass of a step, in the process of one rank."""

    def __init__(self, step: int, rank: int, action: Any) -> None:
        self.step, self.rank, self.action = step, rank, action

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.global_step, trainer.global_rank) == (self.step, self.rank):
            self.action(module, batch)


def train(folder: Path, devices: int, at: At | None = None, resume: Path | None = None, every: int = 2) -> list[float]:
    """Losses of five steps of two images in epochs of three steps."""
    torch.set_num_threads(1)
    curve = LossCurve()
    trainer = lightning.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_steps=STEPS,
        callbacks=[*([at] if at else []), curve, EMA(0.9), LastCheckpoint(folder, every)], default_root_dir=folder,
        limit_val_batches=0, logger=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = PhotoDataModule(crop_size_px=32, batch_size=2 // devices, train_samples=6, eval_samples=1, seed=3)
    module = make_module(adapter=AdapterConfig())
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return curve.losses


def signalled_and_resumed(folder: Path, number: int) -> tuple[list[float], list[float], Any]:
    """Losses of an undisturbed training, those after a signal to the second process, and how that one ended."""
    undisturbed = train(folder / "whole", 2)
    stop = At(2, 1, lambda *unused: os.kill(os.getpid(), number))
    ended: Any = None
    try:
        train(folder / "stopped", 2, stop)
    except SystemExit as error:
        ended = type(error).__name__, error.code
    return undisturbed, train(folder / "stopped", 2, resume=find_last(folder / "stopped")), ended


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_process_saves_and_stops_both_and_nothing_is_lost(tmp_path: Path, number: int) -> None:
    for rank, (undisturbed, rest, ended) in enumerate(run_ranks(2, signalled_and_resumed, tmp_path, number)):
        assert ended == (Stopped.__name__, INTERRUPTED if rank == 1 and number == signal.SIGINT else TERMINATED)
        assert rest == undisturbed[2:]


def test_after_an_error_the_signals_are_given_back(tmp_path: Path) -> None:
    def fail(*unused: Any) -> None:
        raise KeyError("failed")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyError):
        train(tmp_path, 1, At(1, 0, fail))
    assert signal.getsignal(signal.SIGINT) is before


def loss_breaks_in_the_second(folder: Path) -> str:
    try:
        train(folder, 2, At(3, 1, lambda module, batch: _break(module)))
    except MegaSRError as error:
        return str(error)
    return "nothing"


def _break(module: Any) -> None:
    next(p for p in module.parameters() if p.requires_grad).data[...] = torch.nan


def test_a_loss_that_is_not_finite_in_one_process_stops_both(tmp_path: Path) -> None:
    first, second = run_ranks(2, loss_breaks_in_the_second, tmp_path)
    assert first == "loss is not finite at step 3 in another process; see its line"
    assert second.startswith("loss is not finite at step 3 for ")
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == 3


def full_disk(folder: Path) -> tuple[str, list[str]]:
    """The operating system refuses large files from the fourth step on, as a full disk does."""

    def fill(*unused: Any) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    with warnings.catch_warnings(record=True) as caught, pytest.raises(MegaSRError) as ended:
        warnings.simplefilter("always")
        train(folder, 1, At(3, 0, fill), every=1)
    return str(ended.value), [str(warning.message) for warning in caught]


def test_a_full_disk_costs_checkpoints_and_not_the_training_unless_it_stays_full(tmp_path: Path) -> None:
    ((ended, said),) = run_ranks(1, full_disk, tmp_path)
    assert ended == f"{tmp_path / LAST} could not be written at the end of the training, after {STEPS} steps"
    assert any("last.ckpt" in line and "the training goes on" in line for line in said)
    assert all(line.count("cannot write") == 1 for line in said if "the training goes on" in line)
    assert {path.name for path in tmp_path.iterdir()} == {LAST, PREVIOUS}  # and no part
    assert torch.load(find_last(tmp_path), weights_only=True)["global_step"] == 3


def test_the_last_step_is_saved_when_no_validation_follows_it(tmp_path: Path) -> None:
    """Lightning saves after validations; here there is one after every second epoch, and the training has one."""
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=2, check_val_every_n_epoch=2, callbacks=[LastCheckpoint(tmp_path)], logger=False,
        default_root_dir=tmp_path, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = PhotoDataModule(crop_size_px=32, batch_size=1, train_samples=6, eval_samples=1, seed=3)
    trainer.fit(make_module(adapter=AdapterConfig(guidance=("canny",), saft_width=8)), datamodule=data)
    assert torch.load(find_last(tmp_path), weights_only=True)["global_step"] == 2


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(UsageError, match="there is no last.ckpt in"):
        find_last(tmp_path)
    for name, value in ((PREVIOUS, 1), (LAST, 2)):
        torch.save({"value": torch.full((1000,), value)}, tmp_path / name)
    assert find_last(tmp_path) == tmp_path / LAST
    _damage(tmp_path / LAST)
    assert find_last(tmp_path) == tmp_path / PREVIOUS
    assert "last.ckpt is damaged" in str(recwarn.pop().message)
    (tmp_path / PREVIOUS).write_bytes((tmp_path / PREVIOUS).read_bytes()[:-500])
    with pytest.raises(MegaSRError, match=r"last.ckpt is damaged.*previous.ckpt is damaged.*start anew"):
        find_last(tmp_path)


def _damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # one bit of a tensor
    path.write_bytes(content)
