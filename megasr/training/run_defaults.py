"""What `megasr fit` records in its folder unless the command line says otherwise."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from megasr.errors import UsageError
from megasr.training.loggers import open_loggers


def trainer_defaults(command: str, trainer: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the trainer that were not given: loggers and last.ckpt in the run's folder.

    Args:
        command: fit, validate or test. Only a fit logs by default: the others write their results into files.
        trainer: the trainer's section, instantiated.
        config: the resolved configuration, as plain data.

    Raises:
        UsageError: the folder already holds another run.
    """
    folder = Path(trainer["default_root_dir"])
    given = trainer.get("callbacks") or []
    callbacks = list(given) if isinstance(given, list | tuple) else [given]
    defaults: dict[str, Any] = {}
    if trainer.get("logger") is None:
        defaults["logger"] = False
        if command == "fit" and not trainer.get("fast_dev_run"):
            resumes = config.get("ckpt_path") is not None
            if rank_zero_only.rank == 0:  # before W&B is opened
                refuse_another_run(folder / "config.yaml", resumes)
            defaults["logger"] = open_loggers(folder, config, resumes, rank_zero_info)
    saves = trainer.get("enable_checkpointing") is not False
    if saves and not any(isinstance(callback, Checkpoint) for callback in callbacks):
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # it holds the run
        last = ModelCheckpoint(folder, filename=ModelCheckpoint.CHECKPOINT_NAME_LAST, enable_version_counter=False)
        defaults["callbacks"] = [*callbacks, last]
    return defaults


def refuse_another_run(config_file: Path, resumes: bool) -> None:
    """Refuse to start a run in a folder that holds one.

    Raises:
        UsageError: it does, and the new one does not resume it.
    """
    if not resumes and config_file.is_file():
        raise UsageError(
            f"{config_file.parent} already holds a run: resume it with --ckpt_path last, "
            "or give another --trainer.default_root_dir"
        )
