"""The training of a run: once for all runs that differ only in how they sample, and on from where it was killed.

A training's folder holds adapter.ckpt and training.json; training.json is written last. While it runs, `resume/` holds
the checkpoint that it goes on from.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning

from ablations.plan import Components, RunPlan
from megasr.console import NOISE
from megasr.errors import MegaSRError
from megasr.files import write_whole
from megasr.training.last_checkpoint import LAST, LastCheckpoint, find_last

CHECKPOINT, TRAINING_FILE = "adapter.ckpt", "training.json"
SAVE_EVERY_N_STEPS = 50
OnStep = Callable[[int, float], None]  # (optimizer steps so far, loss)


@dataclass(frozen=True)
class Training:
    """A finished training.

    Attributes:
        fingerprint: of all that it depends on, RunPlan.training.
        steps: optimizer steps.
        train_s: seconds, those before a resume included.
        device: what it ran on.
        losses: [step, loss] every trainer.log_every_n_steps.
    """

    fingerprint: str
    steps: int
    train_s: float
    device: str
    losses: list[list[float]]


class Steps(lightning.Callback):
    """Tells every optimizer step, and keeps losses and seconds; both go on after a resume.

    Args:
        on_step: is told.
    """

    def __init__(self, on_step: OnStep) -> None:
        self._on_step = on_step
        self._seen, self._before_s = 0, 0.0
        self.losses: list[list[float]] = []

    @property
    def seconds(self) -> float:
        """Of training, since its first step."""
        return self._before_s + time.perf_counter() - self._started

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Count from what is restored."""
        self._started, self._seen = time.perf_counter(), trainer.global_step

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Tell when the optimizer has moved (not on every batch when gradients are accumulated)."""
        if trainer.global_step == self._seen:
            return
        self._seen = trainer.global_step
        loss = float(trainer.callback_metrics.get("train/loss", float("nan")))
        if self._seen % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.losses.append([self._seen, loss])
        self._on_step(self._seen, loss)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training goes on with."""
        return {"losses": self.losses, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Read it."""
        self.losses, self._before_s = list(state_dict["losses"]), float(state_dict["seconds"])


class _Finished(lightning.Callback):
    """Of a training that is finished, what only a resumed one needs is not kept: two thirds of the bytes."""

    is_finished = False

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if self.is_finished:
            del checkpoint["optimizer_states"], checkpoint["lr_schedulers"]


def read_training(plan: RunPlan, folder: Path) -> Training | None:
    """The finished training of a plan in a folder; None when there is none.

    Raises:
        MegaSRError: training.json is there but cannot be understood.
    """
    path = folder / TRAINING_FILE
    if not (path.is_file() and (folder / CHECKPOINT).is_file()):
        return None
    try:
        training = Training(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise MegaSRError(f"{path} is damaged ({error}); delete {folder} to run it again") from error
    return training if training.fingerprint == plan.training else None


def read_losses(folder: Path) -> list[list[float]]:
    """[step, loss] of the training in a run's folder; empty when it was trained in another one."""
    path = folder / TRAINING_FILE
    return list(json.loads(path.read_text())["losses"]) if path.is_file() else []


def train(plan: RunPlan, built: Any, components: Components, folder: Path, logger: Any, on_step: OnStep) -> Training:
    """Train, on from where an earlier process was killed, and write adapter.ckpt and training.json.

    Raises:
        MegaSRError: it took other than the planned number of steps, or a file cannot be written.
    """
    resume = folder / "resume" / plan.training
    steps, finished = Steps(on_step), _Finished()
    last = LastCheckpoint(resume, SAVE_EVERY_N_STEPS)
    with _told_once():
        trainer = components.trainer(
            **plan.config["trainer"],
            logger=logger or False,
            callbacks=[steps, last, finished],
            default_root_dir=folder,
            max_epochs=-1,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        begun = find_last(resume) if (resume / LAST).exists() else None
        trainer.fit(built.model, datamodule=built.data, ckpt_path=begun)
        if trainer.global_step != plan.max_steps:
            raise MegaSRError(f"stopped after {trainer.global_step} of {plan.max_steps} steps; runs need equal steps")
        finished.is_finished = True
        trainer.save_checkpoint(folder / CHECKPOINT, weights_only=False)  # whole: LastCheckpoint has seen to that
    device = str(trainer.strategy.root_device)
    training = Training(plan.training, trainer.global_step, steps.seconds, device, steps.losses)
    write_whole(folder / TRAINING_FILE, json.dumps(asdict(training)).encode())
    shutil.rmtree(folder / "resume", ignore_errors=True)
    return training


def load_adapter(model: lightning.LightningModule, folder: Path) -> None:
    """Give a freshly built module the weights of a finished training.

    Raises:
        MegaSRError: the checkpoint cannot be read, or is of another adapter.
    """
    from megasr.training.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(folder / CHECKPOINT)
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"], strict=model.strict_loading)


@contextlib.contextmanager
def _told_once() -> Iterator[None]:
    """Many short runs would each repeat the hardware table and the advice on workers and logging intervals."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in (*NOISE, "does not have many workers", "number of training batches"):
                warnings.filterwarnings("ignore", message=f".*{message}")
            yield
    finally:
        log.setLevel(level)
