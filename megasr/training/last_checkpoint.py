"""last.ckpt: what a training goes on from after Ctrl-C, an error, `kill -9` or a power cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from megasr.files import open_whole
from megasr.tracking import first_line

SAVE_EVERY_N_STEPS = 500


class LastCheckpoint(ModelCheckpoint):
    """Writes last.ckpt at the end of every epoch, every so many optimizer steps, and when the training is interrupted.

    Several processes save nothing when they are interrupted: they do not stop at the same step, and one would wait for
    the others forever.

    Args:
        folder: where last.ckpt is written.
        every_n_steps: optimizer steps between two checkpoints within an epoch.
    """

    def __init__(self, folder: Path, every_n_steps: int = SAVE_EVERY_N_STEPS) -> None:
        super().__init__(folder, filename=self.CHECKPOINT_NAME_LAST, enable_version_counter=False)
        self._path = folder / f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}"
        self._every_n_steps = every_n_steps
        self._between_steps = False

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Let the strategy write whole files: Lightning copies from the machine's folder for temporary files."""
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = _WholeFiles()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """From here on everything is restored that a checkpoint holds."""
        super().on_train_start(trainer, pl_module)
        self._steps, self._between_steps = trainer.global_step, True

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Weights, averages and schedule belong to different steps until the step is done."""
        self._between_steps = False

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *unused: Any
    ) -> None:
        """Save after every so many steps; what is saved here does not replace the checkpoint of the epoch's end."""
        self._between_steps = trainer.global_step != self._steps  # else gradients wait for more batches
        self._steps = trainer.global_step
        due = self._between_steps and self._steps % self._every_n_steps == 0
        if due and not self._should_skip_saving_checkpoint(trainer):
            trainer.save_checkpoint(self._path)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Save the steps since the last checkpoint, if they are whole."""
        new = self._between_steps and trainer.global_step not in (0, self._last_global_step_saved)
        if not new or trainer.world_size > 1 or trainer.fast_dev_run:
            return
        try:
            # Weights that one step has broken show in the loss of the next one, which is such an exception.
            if all(torch.isfinite(p).all() for p in pl_module.parameters() if p.requires_grad):
                trainer.save_checkpoint(self._path)
                rank_zero_info(f"saved {trainer.global_step} steps: go on with --ckpt_path last")
        except Exception as error:  # the exception that stopped the training is the one to be seen
            rank_zero_warn(f"{self._path} was not saved: {first_line(error)}")


class _WholeFiles(TorchCheckpointIO):
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with open_whole(Path(path)) as file:
            torch.save(checkpoint, file)
