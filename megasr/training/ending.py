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
    """A training was asked to stop, and has saved where it stands."""


class StopRequest:
    """Remembers that a signal came. Lightning's own handlers talk to other processes from within, where they may wait
    for one another forever; here the processes agree at the end of a step, or of a batch of the validation.

    A second Ctrl-C does not wait for that (the data may not come), but for the end of an optimizer step.

    Attributes:
        whole: weights, averages and schedule belong to the same step; not so within an optimizer step.
    """

    def __init__(self) -> None:
        self.whole = False
        self._asked: int | None = None
        self._interrupts = 0
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Take the signals over; only a main thread can. What is ignored (nohup, `&` in a script) stays ignored."""
        if threading.current_thread() is not threading.main_thread():
            return
        taken = [n for n in _SIGNALS if signal.getsignal(n) not in (signal.SIG_IGN, self._remember)]
        self._before |= {number: signal.signal(number, self._remember) for number in taken}

    def ignore(self) -> None:
        """Let nothing interrupt what comes now."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)
        self._asked, self._interrupts = None, 0

    def restore(self) -> None:
        """Give the signals back to who had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before, self._asked, self._interrupts = {}, None, 0

    def raise_if_asked(self, trainer: lightning.Trainer) -> None:
        """Stop when any of the processes was asked; all must call it together.

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
    """Keeps the error that ended the run, whatever other callbacks, loggers and strategies raise while they end.

    It must be the first of the callbacks.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Remember the error. Lightning would kill this process when another one has ended, while it may be saving."""
        self.error = self.error or exception
        for thread in threading.enumerate():
            if isinstance(thread, _ChildProcessObserver):
                thread._child_processes = []  # `raised` ends them

    def raised(self, trainer: lightning.Trainer, error: BaseException) -> BaseException:
        """What the command line is to end with when the trainer has raised `error`; ends the processes it started."""
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
        gloo = first_line(first).rpartition(".cc:")[2].partition("] ")[2].partition(". This")[0]
        return MegaSRError(
            f"rank {trainer.global_rank} waited in vain for another process in step {trainer.global_step}: {why} "
            f"({gloo or first_line(first)})"
        )


def _is_of_worker(error: BaseException) -> bool:
    """Whether it is what a DataLoader has to say of a worker that was killed, or the pipe to it."""
    if not isinstance(error, ConnectionError | EOFError):
        return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")
    return any("torch/utils/data" in frame.filename for frame in traceback.extract_tb(error.__traceback__))


def _end_processes(trainer: lightning.Trainer) -> list[str]:
    """Wait a little for the processes that the first one has started, kill the others, and say how each has ended."""
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
