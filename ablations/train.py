"""The training of a run: a `megasr fit` of the plan's config, made once for all runs that differ only in sampling.

Its folder holds adapter.ckpt and training.json, which is written last. While it runs, `resume/` holds the checkpoints
of LastCheckpoint, from which a killed training goes on.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning

from ablations.plan import Components, RunPlan, build
from ablations.results import CHECKPOINT, TRAINING_FILE, Training
from megasr.console import quiet_lightning
from megasr.errors import MegaSRError
from megasr.files import file_sha256, write_whole
from megasr.training.callbacks import EMA
from megasr.training.checkpoint import final_weights, read_checkpoint
from megasr.training.last_checkpoint import LAST, find_last
from megasr.training.loggers import call_trainer, run_callbacks
from megasr.training.module import MegaSRModule
from megasr.training.monitor import TrainingMonitor

SAVE_EVERY_N_STEPS = 50
OnStep = Callable[[int, float], None]  # (optimizer steps so far, loss)


class Steps(lightning.Callback):
    """Reports every optimizer step, and records losses and seconds across resumes.

    Args:
        on_step: called with the number of steps and the loss.
    """

    def __init__(self, on_step: OnStep) -> None:
        self._on_step = on_step
        self._step, self._before_s = 0, 0.0
        self.losses: list[list[float]] = []

    @property
    def seconds(self) -> float:
        """Seconds of training since the first step."""
        return self._before_s + time.perf_counter() - self._started

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Count from the restored step."""
        self._started, self._step = time.perf_counter(), trainer.global_step

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Report when the optimizer has moved (not on every batch when gradients are accumulated)."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        loss = float(trainer.callback_metrics.get("train/loss", float("nan")))
        if self._step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.losses.append([self._step, loss])
        self._on_step(self._step, loss)

    def state_dict(self) -> dict[str, Any]:
        """Losses and seconds so far."""
        return {"losses": self.losses, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self.losses, self._before_s = list(state_dict["losses"]), float(state_dict["seconds"])


def train(plan: RunPlan, components: Components, folder: Path, logger: Any, on_step: OnStep) -> Training:
    """Train, resuming what an earlier process left, and write adapter.ckpt (averaged weights with EMA), training.json.

    With several devices every process calls it.

    Args:
        plan: what to train.
        components: classes that its config builds.
        folder: of the training.
        logger: of Lightning, None for none; with one, a single process shows what `megasr fit` shows (TrainingMonitor).
        on_step: called after every optimizer step.

    Raises:
        MegaSRError: it took other than the planned number of steps, or a file cannot be written.
    """
    quiet_lightning()
    lightning.seed_everything(plan.seed, workers=True, verbose=False)
    built = build(components, plan.config)
    resume, steps, settings = folder / "resume", Steps(on_step), {**built.trainer}
    # The monitor's processes exchange numbers where all have a logger; here only the first one has.
    monitored = logger and plan.processes == 1 and isinstance(built.model, MegaSRModule)
    given = run_callbacks(settings.pop("callbacks", None), resume, SAVE_EVERY_N_STEPS)
    settings["devices"] = plan.processes  # of those that the slot shows
    if settings.get("limit_val_batches") is None:
        settings["limit_val_batches"] = 0  # the evaluation follows the training
    trainer = components.trainer(
        **settings,
        logger=logger or False,
        callbacks=[*given, *([TrainingMonitor()] if monitored else []), steps],
        default_root_dir=folder,
        max_epochs=-1,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    begun = find_last(resume) if (resume / LAST).exists() else None
    call_trainer(trainer, trainer.fit, built.model, datamodule=built.data, ckpt_path=begun)
    if trainer.global_step != plan.max_steps:
        raise MegaSRError(f"stopped after {trainer.global_step} of {plan.max_steps} steps; runs need equal steps")
    for callback in trainer.callbacks:
        if isinstance(callback, EMA):
            callback.swap_in(built.model)
    trainer.save_checkpoint(folder / CHECKPOINT, weights_only=True)  # written whole, see use_checkpoint_files
    device, checkpoint = str(trainer.strategy.root_device), folder / CHECKPOINT
    weights = file_sha256(checkpoint)[:12] if checkpoint.is_file() else ""
    training = Training(plan.training, trainer.global_step, steps.seconds, device, steps.losses, weights)
    if trainer.is_global_zero:
        write_whole(folder / TRAINING_FILE, json.dumps(asdict(training)).encode())
        shutil.rmtree(resume, ignore_errors=True)
    return training


def load_adapter(model: lightning.LightningModule, folder: Path) -> None:
    """Load the weights of a finished training into a freshly built module.

    Raises:
        MegaSRError: the checkpoint cannot be read, or is of another adapter.
    """
    checkpoint = read_checkpoint(folder / CHECKPOINT)
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(final_weights(checkpoint, folder / CHECKPOINT), strict=model.strict_loading)
