"""What a person sees of a training, a validation and a test: how large it is, and how far."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import lightning
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from megasr.progress import progress_bars


class StepProgress(ProgressBar):
    """Steps done of all, time left and the numbers that are logged for it: a bar, or a line per minute in a file."""

    def __init__(self) -> None:
        super().__init__()
        self._open, self._enabled = ExitStack(), True
        self._advance: Any = None

    def disable(self) -> None:
        """Show nothing: Lightning asks for it on all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show it again."""
        self._enabled = True

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Open the progress of the command."""
        super().setup(trainer, pl_module, stage)
        if trainer.is_global_zero and self._advance is None:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

            numbers = TextColumn("{task.fields[numbers]}", markup=False)
            self._advance = self._open.enter_context(progress_bars(BarColumn(), MofNCompleteColumn(), numbers))

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Say how large it is."""
        sizes = {True: 0, False: 0}
        for parameter in pl_module.parameters():
            sizes[parameter.requires_grad] += parameter.numel()
        rank_zero_info(f"{sizes[True] / 1e6:.1f} M parameters are trained, {sizes[False] / 1e6:.1f} M are frozen")

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Say where the results are."""
        rank_zero_info(f"{trainer.global_step} steps are done; the run is in {trainer.default_root_dir}")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *unused: object
    ) -> None:
        """An optimizer step may take several batches."""
        self._show("training", trainer.global_step, trainer.estimated_stepping_batches)

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *unused: Any, **named: Any
    ) -> None:
        """Within a training it has no bar of its own."""
        if not trainer.sanity_checking and trainer.state.fn == "validate":
            self._show("validating", _batches(trainer), sum(trainer.num_val_batches))

    def on_test_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *unused: Any, **named: Any
    ) -> None:
        """Restoring takes most of the time."""
        self._show("restoring and measuring", _batches(trainer), sum(trainer.num_test_batches))

    def _show(self, name: str, done: int, total: float) -> None:
        if self._enabled and self._advance is not None:
            values = self.trainer.progress_bar_metrics.items()
            numbers = "  ".join(f"{key} {value:.4g}" for key, value in values if isinstance(value, int | float))
            self._advance(name, done, int(total) if total not in (-1, float("inf")) else None, numbers=numbers)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Close it."""
        self._open.close()
        self._advance = None

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Leave the terminal to the message."""
        self._open.close()
        self._advance = None


def _batches(trainer: lightning.Trainer) -> int:
    return trainer._evaluation_loop.batch_progress.current.ready
