"""How a training ends: signals that ask it to stop, and the one error that is reported."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
import traceback
from typing import Any

import lightning
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from megasr.errors import MegaSRError
from megasr.tracking import first_line

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
