"""How a run ends and goes on: signals and errors, and the checkpoint that is written whole, also in the background."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

from megasr.errors import MegaSRError, UsageError
from megasr.files import open_whole
from megasr.tracking import first_line
from megasr.training.checkpoint import damage, read_checkpoint, read_settings

INTERRUPTED, TERMINATED = 130, 143  # exit codes, as a shell has them for SIGINT and SIGTERM
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C; a scheduler's "time is up": SLURM sends either
_AT_ONCE = 3  # Ctrl-C so many times ends the training even within an optimizer step
_PATIENCE_S = 5.0
_OF_CONNECTIONS = re.compile(r"gloo|nccl|c10d|ProcessGroup|TCPStore|connection (closed|reset)|timed out", re.IGNORECASE)


class Stopped(SystemExit):
    """A signal ended the training, and its steps are saved."""


class StopRequest:
    """Remember a signal until all processes agree on it, at the end of a step or of a batch of the validation.

    Lightning's own handlers run collectives, in which the processes may wait for one another forever. A second Ctrl-C
    does not wait for the step (its data may never come), unless the optimizer is at work.

    Attributes:
        whole: weights, averages and schedule are of the same step; not so within an optimizer step.
    """

    def __init__(self) -> None:
        self.whole = False
        self._asked: int | None = None
        self._interrupts = 0
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Handle the signals; only a main thread can. Ignored ones (nohup, `&` in a script) stay ignored."""
        if threading.current_thread() is not threading.main_thread():
            return
        taken = [n for n in _SIGNALS if signal.getsignal(n) not in (signal.SIG_IGN, self._remember)]
        self._before |= {number: signal.signal(number, self._remember) for number in taken}

    def ignore(self) -> None:
        """Ignore the signals until `restore`."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def restore(self) -> None:
        """Give the signals back to their former handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before, self._asked, self._interrupts = {}, None, 0

    def raise_if_asked(self, trainer: lightning.Trainer) -> None:
        """Stop all processes when one got a signal; a collective.

        Raises:
            Stopped: in all of them.
        """
        asked = self._asked is not None
        if trainer.world_size > 1:
            asked = bool(trainer.strategy.reduce_boolean_decision(asked, all=False))
        if asked:
            raise Stopped(INTERRUPTED if self._asked == signal.SIGINT else TERMINATED)

    def _remember(self, number: int, frame: Any) -> None:
        self._asked = number
        if number != signal.SIGINT:
            return
        self._interrupts += 1
        if self._interrupts == 1 and rank_zero_only.rank == 0:
            os.write(2, b"\nstopping at the end of this step; Ctrl-C once more does not wait for it\n")  # print may not
        if (self._interrupts > 1 and self.whole) or self._interrupts >= _AT_ONCE:
            raise KeyboardInterrupt


class FirstError(lightning.Callback):
    """Keep the error that ended the run, whatever callbacks, loggers and strategies raise after it.

    It must be the first of the callbacks.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Remember the error, and keep Lightning from killing this process, which may be saving, after another one."""
        self.error = self.error or exception
        for thread in threading.enumerate():
            if isinstance(thread, _ChildProcessObserver):
                thread._child_processes = []  # `raised` ends them

    def raised(self, trainer: lightning.Trainer, error: BaseException) -> BaseException:
        """The error to end the command with, when the trainer raised `error`; ends the processes that it started."""
        first = self.error or error
        ends = _end_processes(trainer)
        if isinstance(first, SIGTERMException):
            return SystemExit(TERMINATED)  # Lightning's has no exit code, which would be a success
        if _is_of_worker(first):
            return MegaSRError(
                f"a data worker died in step {trainer.global_step} ({first_line(first)}); if memory is short, "
                "lower --data.num_workers"
            )
        lost = isinstance(first, RuntimeError) and not isinstance(first, MegaSRError)
        if not lost or trainer.world_size == 1 or not _OF_CONNECTIONS.search(str(first)):
            return first
        why = "; ".join(ends) or "its own line, or what started it, says why"
        return MegaSRError(
            f"rank {trainer.global_rank} waited in vain for another process in step {trainer.global_step}: {why} "
            f"({first_line(first)})"
        )


def _is_of_worker(error: BaseException) -> bool:
    """Whether a DataLoader, or the pipe to its worker, reports that the worker was killed."""
    if not isinstance(error, ConnectionError | EOFError):
        return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")
    return any("torch/utils/data" in frame.filename for frame in traceback.extract_tb(error.__traceback__))


def _end_processes(trainer: lightning.Trainer) -> list[str]:
    """Wait a little for the processes that the first one started, kill the others, and say how each ended."""
    launcher = trainer.strategy.launcher
    processes = launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else []
    ends, until = [], time.monotonic() + _PATIENCE_S
    for rank, process in enumerate(processes, start=trainer.global_rank + 1):
        try:
            code = process.wait(max(0.0, until - time.monotonic()))
            how = f"was killed by signal {-code} (out of memory?)" if code < 0 else f"ended with exit code {code}"
        except subprocess.TimeoutExpired:
            process.kill()
            how = "hangs"
        ends.append(f"rank {rank} {how}")
    return ends


SAVE_EVERY_N_STEPS = 500
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
STOPPED = "stopped"  # an empty file: a signal ended the training, which is to be resumed
NOT_WRITTEN = "{}: this checkpoint is left out, the training goes on, the one before is kept"


class LastCheckpoint(ModelCheckpoint):
    """Write last.ckpt after every epoch, every so many optimizer steps, and when the training is interrupted.

    The one before is kept as previous.ckpt. A checkpoint that cannot be written (a full disk) is a warning. Ctrl-C,
    SIGTERM and SIGUSR1 finish the step (or the batch of the validation), save, and end the training with exit code 130
    or 143, in all processes together. After an error the finished steps are saved, by the first process alone under
    DDP; other strategies would need the failed processes, and save nothing. Gradients that are being accumulated are
    not saved: the resumed step lacks them.

    Args:
        folder: where last.ckpt is written.
        every_n_steps: optimizer steps between two checkpoints within an epoch.
    """

    def __init__(self, folder: Path, every_n_steps: int = SAVE_EVERY_N_STEPS) -> None:
        super().__init__(folder, filename=self.CHECKPOINT_NAME_LAST, enable_version_counter=False)
        self._path = folder / LAST
        self._every_n_steps = every_n_steps
        self._stop = StopRequest()

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Let the strategy write whole files: Lightning copies from the machine's folder for temporary files."""
        super().setup(trainer, pl_module, stage)
        self._stop.whole = False
        use_checkpoint_files(trainer)

    def on_sanity_check_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Handle signals here as well; there is nothing to save."""
        self._stop.install()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """From here on all that a checkpoint holds is restored."""
        super().on_train_start(trainer, pl_module)
        self._steps = self._first_step = trainer.global_step
        self._stop.whole, self._accumulates = True, False
        self._stop.install()
        if trainer.is_global_zero:
            self._path.with_name(STOPPED).unlink(missing_ok=True)

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Weights, averages and schedule are of different steps until this one is done."""
        self._stop.whole = False

    def on_train_batch_start(self, trainer: lightning.Trainer, *unused: Any) -> None:
        """Stop here, where the numbers of the step before are logged.

        Raises:
            Stopped: a process got a signal.
        """
        if not self._accumulates:
            self._stop.raise_if_asked(trainer)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *unused: Any
    ) -> None:
        """Save after every so many steps, beside the checkpoint of the epoch's end."""
        self._stop.whole = True
        self._accumulates = trainer.global_step == self._steps
        self._steps = trainer.global_step
        due = not self._accumulates and self._steps % self._every_n_steps == 0
        if due and not self._should_skip_saving_checkpoint(trainer):
            trainer.save_checkpoint(self._path, weights_only=False)

    def on_validation_batch_end(self, trainer: lightning.Trainer, *unused: Any) -> None:
        """Do not finish a long validation.

        Raises:
            Stopped: a process got a signal.
        """
        if trainer.state.fn == TrainerFn.FITTING:
            self._stop.raise_if_asked(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Give the signals back, and save the last step, whenever the validations were.

        Raises:
            MegaSRError: it cannot be written: a training whose weights are lost has not succeeded.
        """
        super().on_train_end(trainer, pl_module)
        self._stop.restore()
        if trainer.fast_dev_run or trainer.global_step == self._first_step or not self._lacks_steps(trainer):
            return
        trainer.save_checkpoint(self._path, weights_only=False)
        if self._lacks_steps(trainer):
            raise MegaSRError(
                f"{self._path} could not be written at the end of the training, after {self._steps} steps"
            )

    def _lacks_steps(self, trainer: lightning.Trainer) -> bool:
        """Whether last.ckpt is older than the training; a collective."""
        _wait_for_files(trainer)
        lacks = trainer.is_global_zero and _steps_in(self._path) not in (None, trainer.global_step)
        return bool(trainer.strategy.reduce_boolean_decision(lacks, all=False))

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Save the finished steps; nothing interrupts that."""
        self._stop.ignore()
        try:
            _wait_for_files(trainer)
            self._save_at_end(trainer, pl_module, stopped=isinstance(exception, Stopped))
            if isinstance(exception, Stopped) and exception.code == TERMINATED and trainer.is_global_zero:
                self._path.with_name(STOPPED).touch()  # schedulers do not tell the exit codes of many processes apart
        except Exception as error:  # the exception that stopped the training is the one to be seen
            rank_zero_warn(f"{self._path} was not saved: {first_line(error)}")
        finally:
            self._stop.restore()

    def _save_at_end(self, trainer: lightning.Trainer, module: lightning.LightningModule, stopped: bool) -> None:
        if not self._stop.whole or trainer.global_step == self._first_step or trainer.fast_dev_run:
            return
        alone = trainer.world_size == 1 or type(trainer.strategy) is DDPStrategy
        if stopped:
            trainer.save_checkpoint(self._path, weights_only=False)  # all processes are here
        elif alone and trainer.is_global_zero and _is_finite(module):
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.save_checkpoint(checkpoint, self._path)
        _wait_for_files(trainer)
        if trainer.is_global_zero and _steps_in(self._path) == trainer.global_step:
            rank_zero_info(f"saved {trainer.global_step} steps: go on with --ckpt_path last")


def _is_finite(module: lightning.LightningModule) -> bool:
    """A step that breaks the weights shows in the loss of the next one, which then ends the training."""
    return all(bool(torch.isfinite(p).all()) for p in module.parameters() if p.requires_grad)


def _wait_for_files(trainer: lightning.Trainer) -> None:
    """Wait for a CheckpointIO that writes in a thread; errors of earlier files must not stop the next one."""
    try:
        trainer.strategy.checkpoint_io.teardown()
    except Exception as error:
        rank_zero_warn(first_line(error))


def _steps_in(path: Path) -> int | None:
    """The optimizer steps of a checkpoint: 0 when there is none, None when it does not say."""
    if not path.exists():
        return 0
    try:
        return int(read_settings(path)["global_step"])
    except (MegaSRError, KeyError):  # a module that is not the project's own may save anything
        return None


class CheckpointFiles(TorchCheckpointIO):
    """Read and write checkpoints: whole files, and folders of several processes."""

    def load_checkpoint(self, path: Any, *unused: Any, **settings: Any) -> dict[str, Any]:
        """A checkpoint with tensors on the CPU, whatever Lightning's weights_only says. Raises as read_checkpoint."""
        return read_checkpoint(path)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a file, whole or not at all. A last.ckpt that cannot be written is a warning.

        The error ends in the process that writes: the others wait for it afterwards.
        """
        path = Path(path)
        try:
            self._write(checkpoint, path)
        except MegaSRError as error:
            if path.name != LAST:
                raise
            rank_zero_warn(NOT_WRITTEN.format(error))

    def _write(self, checkpoint: dict[str, Any], path: Path) -> None:
        try:
            with open_whole(path) as file:
                torch.save(checkpoint, file)
                if path.name == LAST and path.is_file():
                    link = path.with_name(f"{PREVIOUS}.link")
                    link.unlink(missing_ok=True)
                    os.link(path, link)  # a second name, under which it stays when it is replaced
                    os.replace(link, path.with_name(PREVIOUS))
        except MegaSRError:
            raise
        except RuntimeError as error:  # torch's writer has no OSError for a full disk
            raise MegaSRError(f"cannot write {path}: {first_line(error)}") from error


def use_checkpoint_files(trainer: lightning.Trainer) -> None:
    """Replace Lightning's own reader and writer of checkpoints, which unpickles remote files unchecked."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = CheckpointFiles()


def find_last(folder: Path) -> Path:
    """The newest checkpoint of a run that is whole; a damaged one is a warning.

    Raises:
        UsageError: there is none.
        MegaSRError: all are damaged.
    """
    paths = [path for name in (LAST, PREVIOUS) if (path := folder / name).exists()]
    if not paths:
        raise UsageError(f"--ckpt_path last: there is no {LAST} in {folder}; leave the option out to start anew")
    damaged: list[str] = []
    for path in paths:
        problem = damage(path)
        if problem is None:
            if damaged:
                rank_zero_warn(f"{'; '.join(damaged)}: going on from {path}, which is older")
            return path
        damaged.append(f"{path} is damaged ({problem})")
    raise MegaSRError(f"{'; '.join(damaged)}: start anew in another folder")


class AsyncCheckpointFiles(AsyncCheckpointIO):
    """Copy a checkpoint's tensors and write it in a thread, whole or not at all, as CheckpointFiles does.

    One is written at a time, so there is one copy at most; the end of a training waits for it. The error of a failed
    write comes with the next one, or at the end.
    """

    def __init__(self) -> None:
        super().__init__(CheckpointFiles())

    def teardown(self) -> None:
        """Wait for the file that is being written. Raises the error of that write, once."""
        try:
            super().teardown()
        finally:
            self._error = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Copy, and begin to write. Raises the error of the write before."""
        self.teardown()
        super().save_checkpoint(checkpoint, path, storage_options)

    def load_checkpoint(self, path: Any, *settings: Any, **named: Any) -> dict[str, Any]:
        """A checkpoint with tensors on the CPU; waits for the one that is being written."""
        self.teardown()
        checkpoint: dict[str, Any] = super().load_checkpoint(path, *settings, **named)
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint; waits for the one that is being written."""
        self.teardown()
        super().remove_checkpoint(path)
