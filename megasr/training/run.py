"""Shared by `megasr fit` and the runs of a study: the callbacks of a trainer, and which error is reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning

from megasr.training.ending import FirstError
from megasr.training.last_checkpoint import SAVE_EVERY_N_STEPS, LastCheckpoint


def run_callbacks(
    given: Any, folder: Path, every_n_steps: int = SAVE_EVERY_N_STEPS, saves: bool = True
) -> list[lightning.Callback]:
    """FirstError, the configured callbacks and, unless one of them keeps the last checkpoint, LastCheckpoint.

    Args:
        given: `trainer.callbacks`: a list, one callback or None.
        folder: where last.ckpt is written.
        every_n_steps: optimizer steps between two checkpoints within an epoch.
        saves: add LastCheckpoint.
    """
    callbacks = list(given) if isinstance(given, list | tuple) else [given] if given else []
    if saves and not any(_keeps_last(callback) for callback in callbacks):
        callbacks.append(LastCheckpoint(folder, every_n_steps))
    return [FirstError(), *callbacks]


def call_trainer(trainer: lightning.Trainer, action: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call trainer.fit, .validate or .test. Raises the error that ended it, whatever else failed after that."""
    first = next(callback for callback in trainer.callbacks if isinstance(callback, FirstError))
    try:
        return action(*arguments, **named)
    except BaseException as error:
        raise first.raised(trainer, error) from error


def _keeps_last(callback: Any) -> bool:
    return isinstance(callback, LastCheckpoint) or bool(getattr(callback, "save_last", False))
