"""Loggers and defaults of a run."""

from __future__ import annotations

import contextlib
import csv
import glob
import io
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

from megasr.errors import MegaSRError
from megasr.files import locked_folder, write_whole
from megasr.tracking import WandbRuns, first_line
from megasr.training.callbacks import StepProgress
from megasr.training.checkpoint import refuse_changes
from megasr.training.folders import METRICS_FILE, read_rows, refuse_another_run
from megasr.training.last_checkpoint import LastCheckpoint, find_last
from megasr.training.run import run_callbacks

WANDB_ID_FILE = "wandb_id.txt"


class Recorded:
    """The last step at which every number was logged.

    Args:
        rows: of an earlier part of the run: column -> text, with a column `step`.
    """

    def __init__(self, rows: list[dict[str, str]]) -> None:
        self._last = {key: int(row["step"]) for row in rows for key, value in row.items() if value}

    def fresh(self, metrics: Mapping[str, Any], step: int) -> dict[str, Any]:
        """What has not been logged at this step or a later one; pictures and tables go with the numbers beside them."""
        numbers = {key for key, value in metrics.items() if isinstance(value, int | float)}
        new = {key for key in numbers if step > self._last.get(key, -1)}
        self._last.update(dict.fromkeys(new, step))
        return {key: value for key, value in metrics.items() if key in new or key not in numbers} if new else {}


class CSVLog(Logger):
    """One row per call in metrics.csv, on disk when the call returns. Only the first process writes.

    While the disk is full the rows wait in memory: a training does not end for them.

    Args:
        folder: the run's folder.
        rows: what an earlier part of the run has written.
    """

    def __init__(self, folder: Path, rows: list[dict[str, str]]) -> None:
        super().__init__()
        self._path = folder / METRICS_FILE
        self._earlier: list[dict[str, str]] | None = rows  # until the file has been written anew
        self._columns = list(dict.fromkeys(key for row in rows for key in row)) or ["step"]
        self._recorded = Recorded(rows)

    @property
    def name(self) -> str:
        """None of its own: the run's folder is its name."""
        return ""

    @property
    def version(self) -> str:
        """As the name."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self._path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row with those numbers that are not in the file yet."""
        if step is None:
            raise ValueError(f"{', '.join(metrics)}: a number is logged with its step")
        new = self._recorded.fresh({key: _number(value) for key, value in metrics.items()}, step)
        if not new:
            return
        row = {"step": str(step), **{key: str(value) for key, value in new.items()}}
        added = [key for key in row if key not in self._columns]
        self._columns += added
        self._write_or_keep([row], anew=bool(added))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the rows that still wait for room on the disk."""
        if self._earlier:
            self._write_or_keep([], anew=True)

    def _write_or_keep(self, new: list[dict[str, str]], anew: bool) -> None:
        try:
            self._write(new, anew)
        except (OSError, MegaSRError) as error:
            if self._earlier is None:
                self._earlier = read_rows(self._path)  # without a line that was cut off
            self._earlier += new
            rank_zero_warn(f"{self._path} is not written ({first_line(error)}): its rows are kept until it can be")

    def _write(self, new: list[dict[str, str]], anew: bool) -> None:
        if anew or self._earlier is not None:
            rows = read_rows(self._path) if self._earlier is None else self._earlier
            write_whole(self._path, self._as_text([*rows, *new], header=True).encode())
            self._earlier = None
        else:
            with self._path.open("a", newline="") as file:
                file.write(self._as_text(new))

    def _as_text(self, rows: list[dict[str, str]], header: bool = False) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def log_hyperparams(self, *arguments: Any, **named: Any) -> None:
        """Nothing: config.yaml holds them."""


class RunWandbLogger(WandbLogger):
    """Lightning's logger with W&B's step equal to the training's, so that the parts of a resumed run fit together.

    W&B keeps the row of the last step open for more numbers, so a killed process loses it, although metrics.csv has it.
    The resumed run logs it again, from there.

    Args:
        rows: what earlier parts of the run have written into metrics.csv.
        record: file with the run's id and the last step whose row W&B has been told to write.
        arguments: of WandbLogger.
    """

    def __init__(self, rows: list[dict[str, str]], record: Path, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._recorded, self._record = Recorded(rows), record
        self._last = read_record(record)[1]
        self._lost: dict[int, dict[str, float]] = {}
        for row in rows:
            if (step := int(row["step"])) > self._last:
                numbers = {key: float(value) for key, value in row.items() if key != "step"}
                self._lost.setdefault(step, {}).update(numbers)
        self._open_row: int | None = None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log those numbers that have not been logged; what is logged at one step becomes one row."""
        if step is None:
            raise ValueError(f"{', '.join(metrics)}: a number is logged with its step")
        self._log_lost(step)
        if new := self._recorded.fresh({key: _number(value) for key, value in metrics.items()}, step):
            self._log(new, step)

    def _log_lost(self, until: int) -> None:
        # Not before the training is there: W&B takes steps in their order, and numbers of these may still be missing.
        for step in sorted(step for step in self._lost if step <= until):
            self._log(self._lost.pop(step), step)

    def _log(self, metrics: Mapping[str, Any], step: int) -> None:
        if self._open_row != step:
            self.close_row()
        with _data_folder(f"{self.save_dir}/wandb"):
            self.experiment.log({**metrics, "trainer/global_step": step}, step=step)
        self._open_row = step

    @rank_zero_only
    def close_row(self, before: float = math.inf) -> None:
        """Let W&B write the row of the last step, which it keeps open for more numbers; not from step `before` on."""
        if self._open_row is not None and self._open_row < before:
            self.experiment.log({}, step=self._open_row, commit=True)
            self._last, self._open_row = max(self._last, self._open_row), None
            write_record(self._record, self.experiment.id, self._last)

    def log_hyperparams(self, *arguments: Any, **named: Any) -> None:
        """Nothing: the whole configuration was given when the run was opened."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the W&B run with the training."""
        super().finalize(status)
        with contextlib.suppress(Exception):  # the training is done, or its own error is the one to be seen
            self._log_lost(max(self._lost, default=-1))
            self.close_row()
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
    log = CSVLog(folder, rows)
    return [log, *([wandb] if (wandb := _open_wandb(folder, config, resumes, rows, tell)) else [])]


@rank_zero_only
def _open_wandb(
    folder: Path, config: Mapping[str, Any], resumes: bool, rows: list[dict[str, str]], tell: Callable[[str], None]
) -> RunWandbLogger | None:
    record = folder / WANDB_ID_FILE
    run_id, last = read_record(record)
    if not resumes and run_id:
        if last < 0 and not read_rows(folder / METRICS_FILE):  # it has failed before its first step
            for failed in folder.glob(f"wandb/*run-*-{glob.escape(run_id)}"):
                shutil.rmtree(failed, ignore_errors=True)
        record.unlink()
        run_id = None
    logger = WandbRuns(tell).open(
        folder,
        RunWandbLogger,
        rows=rows if run_id else [],
        record=record,
        name=folder.resolve().name,
        id=run_id,
        config=dict(config),
    )
    if logger is not None:
        write_record(record, logger.experiment.id, last if run_id else -1)
    return logger


def read_record(path: Path) -> tuple[str | None, int]:
    """The id of a W&B run and the last step that it was told to write; None and -1 when there is no file."""
    lines = path.read_text().split() if path.is_file() else []
    return (lines[0], int(lines[1])) if len(lines) == 2 else (None, -1)


def write_record(path: Path, run_id: str, last: int) -> None:
    """Write what read_record reads."""
    write_whole(path, f"{run_id}\n{last}\n".encode())


@contextlib.contextmanager
def _data_folder(folder: str) -> Iterator[None]:
    """W&B keeps the pictures of tables that are not sent yet in the user's home; they belong to the run's files."""
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = folder
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


def _number(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


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
    callbacks = run_callbacks(trainer.get("callbacks"), folder, saves=trainer.get("enable_checkpointing") is not False)
    adds = any(isinstance(callback, LastCheckpoint) for callback in callbacks)
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
