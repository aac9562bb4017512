"""A module that learns one number and writes down which samples it was given, on every rank."""

from __future__ import annotations

from pathlib import Path

import lightning
import torch

from megasr.batch import SRBatch


class Recorder(lightning.LightningModule):
    """Appends a line (step, key) per sample to one file per world size and rank.

    Args:
        folder: of the files.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch: SRBatch, batch_index: int) -> torch.Tensor:
        with (self.folder / f"seen-{self.trainer.world_size}-{self.trainer.global_rank}.txt").open("a") as file:
            file.writelines(f"{self.global_step} {key}\n" for key in batch["keys"])
        return (self.weight * batch["hq"].mean() - batch["lq"].std()) ** 2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def seen(self, world_size: int) -> list[tuple[int, str]]:
        """(step, key) of every sample that runs of this many processes were given."""
        files = sorted(self.folder.glob(f"seen-{world_size}-*.txt"))
        lines = [line.split(" ", 1) for path in files for line in path.read_text().splitlines()]
        return [(int(step), key) for step, key in lines]
