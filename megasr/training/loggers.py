"""Loggers of a run, and what every training gets: checkpoints, a clean ending, progress."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

from megasr.errors import MegaSRError
from megasr.files import locked_folder, write_whole
from megasr.guidance.registry import guidance_switches
from megasr.tracking import WandbRuns, first_line, log_artifact, logs_model, staged_in
from megasr.training.callbacks import StepProgress
from megasr.training.checkpoint import refuse_changes
from megasr.training.folders import METRICS_FILE, read_rows, refuse_another_run
from megasr.training.last_checkpoint import LAST, SAVE_EVERY_N_STEPS, FirstError, LastCheckpoint, find_last

WANDB_ID_FILE = "wandb_id.txt"


class Recorded:
    """The last step at which every number was logged, so that a resumed run logs none twice.

    Args:
        rows: of the earlier part of the run: column -> text, with a column `step`.
    """

    def __init__(self, rows: list[dict[str, str]]) -> None:
        self._last = {key: int(row["step"]) for row in rows for key, value in row.items() if value}

    def fresh(self, metrics: Mapping[str, Any], step: int | None) -> dict[str, Any]:
        """What was not logged at this step or a later one; pictures and tables go with the numbers beside them."""
        if step is None:
            raise ValueError(f"{', '.join(metrics)}: a number is logged with its step")
        values = {key: value.item() if hasattr(value, "item") else value for key, value in metrics.items()}
        numbers = {key for key, value in values.items() if isinstance(value, int | float)}
        new = {key for key in numbers if step > self._last.get(key, -1)}
        self._last.update(dict.fromkeys(new, step))
        return {key: value for key, value in values.items() if key in new or key not in numbers} if new else {}


class CSVLog(Logger):
    """One row per call in metrics.csv, on disk when the call returns. While the disk is full, rows wait in memory.

    Args:
        folder: the run's folder.
        rows: of the earlier part of the run; any other content of the file is replaced.
    """

    name = version = ""

    def __init__(self, folder: Path, rows: list[dict[str, str]]) -> None:
        super().__init__()
        self._path = folder / METRICS_FILE
        self._columns = list(dict.fromkeys(key for row in rows for key in row)) or ["step"]
        self._recorded, self._waiting = Recorded(rows), list(rows)
        self._begun, self._rewrites = False, True

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self._path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row with the numbers that are not in the file yet."""
        if new := self._recorded.fresh(metrics, step):
            row = {"step": str(step), **{key: str(value) for key, value in new.items()}}
            added = [key for key in row if key not in self._columns]
            self._columns += added
            self._waiting.append(row)
            self._rewrites |= bool(added)
            self._write()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the rows that still wait."""
        if self._waiting:
            self._write()

    def log_hyperparams(self, *arguments: Any, **named: Any) -> None:
        pass  # config.yaml holds them

    def _write(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        try:
            if self._rewrites:
                writer.writeheader()
                writer.writerows(read_rows(self._path) if self._begun else [])
            writer.writerows(self._waiting)
            if self._rewrites:
                write_whole(self._path, text.getvalue().encode())
            else:
                with self._path.open("a", newline="") as file:
                    file.write(text.getvalue())
        except (OSError, MegaSRError) as error:
            self._rewrites = True  # a row may have been cut off
            rank_zero_warn(f"{self._path} is not written ({first_line(error)}): its rows are kept until it can be")
            return
        self._waiting, self._begun, self._rewrites = [], True, False


class RunWandbLogger(WandbLogger):
    """Lightning's logger with W&B's step equal to the training's, so that the parts of a resumed run fit together.

    W&B keeps the last row open for more numbers of its step: a killed process may lose that row, which metrics.csv has.

    Args:
        rows: of the earlier part of the run, from metrics.csv.
        weights: the checkpoint that becomes an artifact when the training has ended; None logs none.
        arguments: of WandbLogger.
    """

    def __init__(self, rows: list[dict[str, str]], weights: Path | None = None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._recorded, self._weights = Recorded(rows), weights

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log the numbers that were not logged yet; W&B makes one row of each step."""
        if new := self._recorded.fresh(metrics, step):
            with staged_in(f"{self.save_dir}/wandb"):  # the pictures of tables
                self.experiment.log({**new, "trainer/global_step": step}, step=step)

    def log_hyperparams(self, *arguments: Any, **named: Any) -> None:
        pass  # the whole configuration was given when the run was opened

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the W&B run with the training, after the artifact of its weights; what W&B raises stops nothing."""
        super().finalize(status)
        if status == "success" and self._weights is not None:
            try:
                with staged_in(f"{self.save_dir}/wandb"):
                    log_artifact(self.experiment, f"model-{self.experiment.id}", "model", [self._weights])
            except Exception as error:
                rank_zero_warn(f"W&B took no artifact of {self._weights} ({first_line(error)}); it is on disk")
        with contextlib.suppress(Exception):  # the training is done, or its own error is the one to be seen
            self.experiment.finish(exit_code=0 if status == "success" else 1)


def open_loggers(
    folder: Path, config: Mapping[str, Any], resumes: bool, tell: Callable[[str], None]
) -> list[CSVLog | RunWandbLogger]:
    """metrics.csv and, unless W&B is disabled, a W&B run, both in the run's folder.

    Args:
        folder: the run's folder.
        config: the resolved configuration, for W&B.
        resumes: go on with what the folder holds; otherwise it is replaced.
        tell: prints one line for the user.
    """
    rows = read_rows(folder / METRICS_FILE) if resumes else []
    if rows:
        last = max(int(row["step"]) for row in rows)
        tell(f"{folder / METRICS_FILE} holds steps up to {last}: what is trained again up to there is not logged again")
    wandb = _open_wandb(folder, config, resumes, rows, tell)
    return [CSVLog(folder, rows), *([wandb] if wandb else [])]


@rank_zero_only
def _open_wandb(
    folder: Path, config: Mapping[str, Any], resumes: bool, rows: list[dict[str, str]], tell: Callable[[str], None]
) -> RunWandbLogger | None:
    record = folder / WANDB_ID_FILE
    if not resumes:
        record.unlink(missing_ok=True)
    run_id = record.read_text().split()[:1] if record.is_file() else []
    columns = {**config, "guidance": guidance_switches(config.get("model") or {})}
    weights = folder / LAST if logs_model() else None
    settings: dict[str, Any] = {"id": run_id[0] if run_id else None, "config": columns}
    logger: RunWandbLogger | None = WandbRuns(tell).open(
        folder, RunWandbLogger, rows=rows if run_id else [], weights=weights, name=folder.resolve().name, **settings
    )
    if logger is not None:
        write_whole(record, f"{logger.experiment.id}\n".encode())
    return logger


def trainer_defaults(command: str, options: Any, config: Mapping[str, Any], held: ExitStack) -> dict[str, Any]:
    """Arguments of the trainer that were not given: loggers, LastCheckpoint in the run's folder, FirstError, progress.

    Args:
        command: fit, validate or test. Only a fit logs by default: the others write their results into files.
        options: of the command, instantiated; its ckpt_path becomes the checkpoint that was chosen.
        config: the resolved configuration, as plain data.
        held: gets the lock of a fit's folder: two processes would write the same files.

    Raises:
        MegaSRError: another process trains in the folder.
        UsageError: the folder already holds another run, or no checkpoint to go on from, or one that was made with
            another configuration.
    """
    trainer, fits = options.trainer, command == "fit"
    folder = Path(trainer["default_root_dir"])
    callbacks = run_callbacks(trainer.get("callbacks"), folder, saves=trainer.get("enable_checkpointing") is not False)
    saves_last = any(isinstance(callback, LastCheckpoint) for callback in callbacks)
    ckpt_path = config.get("ckpt_path")
    if ckpt_path == "last" and saves_last:
        options.ckpt_path = ckpt_path = str(find_last(folder))
    if fits and ckpt_path and Path(ckpt_path).exists():  # else Lightning is to find it
        refuse_changes(Path(ckpt_path), config)  # before anything is opened
    logs = fits and trainer.get("logger") is None and not trainer.get("fast_dev_run")
    if (logs or (fits and saves_last and not trainer.get("fast_dev_run"))) and not _get_rank():
        held.enter_context(locked_folder(folder))
    if trainer.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
        callbacks.append(StepProgress())
    defaults: dict[str, Any] = {"callbacks": callbacks}
    if trainer.get("enable_model_summary") is None:
        defaults["enable_model_summary"] = False  # StepProgress says it in one line
    if trainer.get("logger") is None:
        defaults["logger"] = False
    if logs:
        resumes = config.get("ckpt_path") is not None
        if rank_zero_only.rank == 0:  # before W&B is opened
            refuse_another_run(folder / "config.yaml", resumes)
        defaults["logger"] = open_loggers(folder, config, resumes, rank_zero_info)
    return defaults


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
