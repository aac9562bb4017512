"""A callback that kills its process once."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import lightning


class DieOnce(lightning.Callback):
    """SIGKILL after a step, unless that has happened before.

    Args:
        step: the step.
        mark: a file that remembers it.
    """

    def __init__(self, step: int, mark: str) -> None:
        self.step, self.mark = step, Path(mark)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Die."""
        if trainer.global_step == self.step and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
