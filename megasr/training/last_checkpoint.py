"""last.ckpt: what a training goes on from after Ctrl-C, SIGTERM, an error, `kill -9` or a power cut."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from megasr.errors import MegaSRError, UsageError
from megasr.files import open_whole
from megasr.tracking import first_line
from megasr.training.sharded_checkpoint import damage_of_folder, is_sharded, read_sharded
from megasr.training.stop import Stopped, StopRequest

SAVE_EVERY_N_STEPS = 500
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
STOPPED = "stopped"  # an empty file: a signal ended the training, which wants to go on


class LastCheckpoint(ModelCheckpoint):
    """Writes last.ckpt at the end of every epoch, every so many optimizer steps, and when the training is interrupted.

    The one before is kept as previous.ckpt. A checkpoint that cannot be written (a full disk) is warned of, and the
    training goes on. SIGTERM and SIGUSR1 end the step, save, and end the training with exit code 143, in all processes
    together. On an error several processes save nothing: they do not stop at the same step, and one would wait for the
    others forever.

    Args:
        folder: where last.ckpt is written.
        every_n_steps: optimizer steps between two checkpoints within an epoch.
    """

    def __init__(self, folder: Path, every_n_steps: int = SAVE_EVERY_N_STEPS) -> None:
        super().__init__(folder, filename=self.CHECKPOINT_NAME_LAST, enable_version_counter=False)
        self._path = folder / LAST
        self._every_n_steps = every_n_steps
        self._between_steps = False
        self._stop = StopRequest()

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Let the strategy write whole files: Lightning copies from the machine's folder for temporary files."""
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = CheckpointFiles()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """From here on everything is restored that a checkpoint holds."""
        super().on_train_start(trainer, pl_module)
        self._steps, self._between_steps = trainer.global_step, True
        self._stop.install()
        if trainer.is_global_zero:
            self._path.with_name(STOPPED).unlink(missing_ok=True)

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Weights, averages and schedule belong to different steps until the step is done."""
        self._between_steps = False

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *unused: Any
    ) -> None:
        """Save after every so many steps; what is saved here does not replace the checkpoint of the epoch's end.

        Raises:
            Stopped: a process was asked to stop; everything is saved.
        """
        self._between_steps = trainer.global_step != self._steps  # else gradients wait for more batches
        self._steps = trainer.global_step
        stops = self._between_steps and self._stop.agreed(trainer)
        due = self._between_steps and self._steps % self._every_n_steps == 0
        if (due or stops) and not self._should_skip_saving_checkpoint(trainer):
            trainer.save_checkpoint(self._path)
        if stops:
            if trainer.is_global_zero:
                self._path.with_name(STOPPED).touch()  # exit codes of many processes are not told apart by schedulers
            rank_zero_info(f"stopped by a signal after {self._steps} steps: go on with --ckpt_path last")
            raise Stopped

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Save the steps since the last checkpoint, if they are whole."""
        new = self._between_steps and trainer.global_step not in (0, self._last_global_step_saved)
        if not new or trainer.world_size > 1 or trainer.fast_dev_run or isinstance(exception, Stopped):
            return
        try:
            # Weights that one step has broken show in the loss of the next one, which is such an exception.
            if all(torch.isfinite(p).all() for p in pl_module.parameters() if p.requires_grad):
                trainer.save_checkpoint(self._path)
                rank_zero_info(f"saved {trainer.global_step} steps: go on with --ckpt_path last")
        except Exception as error:  # the exception that stopped the training is the one to be seen
            rank_zero_warn(f"{self._path} was not saved: {first_line(error)}")

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._stop.restore()


class CheckpointFiles(TorchCheckpointIO):
    """Reads and writes checkpoints: whole files, and folders of several processes."""

    def load_checkpoint(self, path: Any, *unused: Any, **settings: Any) -> dict[str, Any]:
        """A checkpoint with tensors on the CPU."""
        if is_sharded(Path(path)):
            return read_sharded(Path(path))
        found: dict[str, Any] = super().load_checkpoint(path, *unused, **settings)
        return found

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a file, whole or not at all. Only that of LastCheckpoint may fail: it is not what training is for.

        The failure ends here, in the process that writes: the others wait for it afterwards.
        """
        path = Path(path)
        try:
            self._write(checkpoint, path)
        except MegaSRError as error:
            if path.name != LAST:
                raise
            rank_zero_warn(f"{error}: this checkpoint is left out, the training goes on, the one before is kept")

    def _write(self, checkpoint: dict[str, Any], path: Path) -> None:
        try:
            with open_whole(path) as file:
                torch.save(checkpoint, file)
                if path.name == LAST:
                    _keep(path)
        except RuntimeError as error:  # torch's writer has no OSError for a full disk
            raise MegaSRError(f"cannot write {path}: {first_line(error)}") from error


def _keep(path: Path) -> None:
    """Give the file a second name, under which it stays when it is replaced."""
    if path.is_file():
        link = path.with_name(f"{PREVIOUS}.link")
        link.unlink(missing_ok=True)
        os.link(path, link)
        os.replace(link, path.with_name(PREVIOUS))


def find_last(folder: Path) -> Path:
    """The newest checkpoint of a run that is whole; one that is damaged is warned of.

    Raises:
        UsageError: there is none.
        MegaSRError: all are damaged.
    """
    found = [path for name in (LAST, PREVIOUS) if (path := folder / name).exists()]
    if not found:
        raise UsageError(f"--ckpt_path last: there is no {LAST} in {folder}; leave the option out to start anew")
    damaged: list[str] = []
    for path in found:
        problem = damage(path)
        if problem is None:
            if damaged:
                rank_zero_warn(f"{'; '.join(damaged)}: going on from {path}, which is older")
            return path
        damaged.append(f"{path} is damaged ({problem})")
    raise MegaSRError(f"{'; '.join(damaged)}: start anew in another folder")


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, None when every byte is as it was written."""
    if is_sharded(path):
        return damage_of_folder(path)
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        return str(error)
    return None if broken is None else f"{broken} was changed after it was written"
