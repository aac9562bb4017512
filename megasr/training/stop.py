"""Signals that ask a training to stop: it ends the step, saves, and leaves with an exit code that says so."""

from __future__ import annotations

import signal
import threading
from typing import Any

import lightning

EXIT_CODE = 143  # as a shell has it for SIGTERM: saved, go on with --ckpt_path last
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # a scheduler's "your time is up": SLURM sends either


class Stopped(SystemExit):
    """A training was asked to stop, and has saved where it stands."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class StopRequest:
    """Remembers that a signal came. Lightning's own handlers talk to other processes from within, where they may wait
    for one another forever; here the processes agree at the end of a step."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Take the signals over; only a main thread can."""
        self.asked = False
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in _SIGNALS}

    def restore(self) -> None:
        """Give the signals back to who had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def agreed(self, trainer: lightning.Trainer) -> bool:
        """Whether any of the processes was asked; all must call it together."""
        if trainer.world_size == 1:
            return self.asked
        return bool(trainer.strategy.reduce_boolean_decision(self.asked, all=False))

    def _remember(self, number: int, frame: Any) -> None:
        self.asked = True
