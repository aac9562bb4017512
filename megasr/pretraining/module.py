"""Base of the trainings that make the embedded prior, CLIP and extractors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import lightning
import torch

from megasr.batch import SRBatch
from megasr.files import write_whole_folder
from megasr.images import from_uint8
from megasr.training.callbacks import EMA
from megasr.training.module import trapezoid

Schedule = Literal["one_cycle", "trapezoid"]
_WARMUP_STEPS, _DECAY_SHARE = 100, 0.2  # of the trapezoid


class PretrainingModule(lightning.LightningModule):
    """Train a network on images (and their tags) and export it as a folder.

    Args:
        learning_rate: peak of the schedule.
        weight_decay: AdamW's, of matrices and kernels.
        seed: of noise, timesteps, dropout and the choice of words.
        schedule: `one_cycle` rises and falls over the whole run. `trapezoid` stays at the peak and falls to zero over
            the last fifth: until then a run does not depend on its length, and a longer one can resume from it.
    """

    def __init__(
        self, learning_rate: float = 1e-3, weight_decay: float = 0.01, seed: int = 0, schedule: Schedule = "one_cycle"
    ) -> None:
        super().__init__()
        self.learning_rate, self.weight_decay, self.seed, self.schedule = learning_rate, weight_decay, seed, schedule

    def export(self, folder: Path) -> None:
        """Write the trained network."""
        raise NotImplementedError

    def samples(self, count: int) -> torch.Tensor:
        """hq (count, 3, H, W) in [0, 1] of the first training draws, for statistics."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        return torch.stack([from_uint8(data.train_sample(draw).hq) for draw in range(count)])

    def configure_optimizers(self) -> dict[str, Any]:
        trained = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.99))
        steps = int(self.trainer.estimated_stepping_batches)
        schedule: torch.optim.lr_scheduler.LRScheduler
        if self.schedule == "one_cycle":
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, steps, pct_start=0.05)
        else:
            schedule = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: trapezoid(step, steps, _WARMUP_STEPS, _DECAY_SHARE)
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Export(lightning.Callback):
    """Export the module at the end of training, with the averaged weights when EMA is on.

    A training that is resumed after its last step is exported as well.

    Args:
        folder: None is `export` in the trainer's default_root_dir.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write a whole folder or none, in the first process."""
        assert isinstance(pl_module, PretrainingModule)
        folder = Path(self.folder or Path(trainer.default_root_dir) / "export")
        averages = [callback for callback in trainer.callbacks if isinstance(callback, EMA)]  # type: ignore[attr-defined]
        for ema in averages:
            ema.swap_in(pl_module)
        if trainer.is_global_zero:
            with write_whole_folder(folder) as temporary:
                pl_module.export(temporary)
        for ema in averages:
            ema.swap_out(pl_module)


def text_of(batch: SRBatch) -> list[str]:
    """The tags of every sample, "" where there are none."""
    return list(batch.get("tags") or [""] * len(batch["keys"]))
