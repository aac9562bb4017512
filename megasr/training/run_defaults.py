"""What `megasr fit` records in its folder unless the command line says otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from megasr.files import locked_folder
from megasr.training.changed_config import refuse_changes
from megasr.training.ending import FirstError
from megasr.training.folders import refuse_another_run
from megasr.training.last_checkpoint import LastCheckpoint, find_last
from megasr.training.loggers import open_loggers
from megasr.training.steps import StepProgress


def trainer_defaults(command: str, options: Any, config: Mapping[str, Any], held: ExitStack) -> dict[str, Any]:
    """Arguments of the trainer that were not given: loggers, LastCheckpoint in the run's folder, FirstError, progress.

    Args:
        command: fit, validate or test. Only a fit logs by default: the others write their results into files.
        options: of the command, instantiated; gets the checkpoint to go on from, which has been compared with its CRCs.
        config: the resolved configuration, as plain data.
        held: gets the lock of a fit's folder: two processes would write the same files.

    Raises:
        MegaSRError: another process trains in the folder.
        UsageError: the folder already holds another run, or no checkpoint to go on from, or one that was made with
            another configuration.
    """
    trainer = options.trainer
    folder = Path(trainer["default_root_dir"])
    given = trainer.get("callbacks") or []
    callbacks = list(given) if isinstance(given, list | tuple) else [given]
    adds = trainer.get("enable_checkpointing") is not False and not any(_keeps_last(callback) for callback in callbacks)
    callbacks += [LastCheckpoint(folder)] if adds else []
    callbacks = [FirstError(), *callbacks]
    resumed = _resumed_from(config.get("ckpt_path"), folder, callbacks)
    if resumed is not None:
        options.ckpt_path = str(resumed)
    if command == "fit" and resumed is not None:
        refuse_changes(resumed, config)  # before anything is opened
    writes = (adds or trainer.get("logger") is None) and not trainer.get("fast_dev_run")
    if command == "fit" and writes and not _get_rank():
        held.enter_context(locked_folder(folder))
    if trainer.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
        callbacks.append(StepProgress())
    defaults: dict[str, Any] = {"callbacks": callbacks}
    if trainer.get("enable_model_summary") is None:
        defaults["enable_model_summary"] = False  # StepProgress says it in one line
    if trainer.get("logger") is None:
        defaults["logger"] = False
        if command == "fit" and not trainer.get("fast_dev_run"):
            resumes = config.get("ckpt_path") is not None
            if rank_zero_only.rank == 0:  # before W&B is opened
                refuse_another_run(folder / "config.yaml", resumes)
            defaults["logger"] = open_loggers(folder, config, resumes, rank_zero_info)
    return defaults


def _keeps_last(callback: Any) -> bool:
    return isinstance(callback, LastCheckpoint) or bool(getattr(callback, "save_last", False))


def _resumed_from(ckpt_path: str | None, folder: Path, callbacks: Sequence[Any]) -> Path | None:
    """The checkpoint that a training goes on from; `last` is the newest whole one of LastCheckpoint, if that is used.

    Returns:
        None when there is none, or Lightning is to find it.

    Raises:
        UsageError, MegaSRError: as find_last.
    """
    if ckpt_path is None:
        return None
    if ckpt_path != "last":
        return path if (path := Path(ckpt_path)).exists() else None
    return find_last(folder) if any(isinstance(callback, LastCheckpoint) for callback in callbacks) else None
