"""A small evaluation set, a module that restores it without a prior, and a quiet `trainer.test`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch

from data_pipelines.data_module import SRDataModule
from data_pipelines.samples import Sample
from megasr.batch import SRBatch
from megasr.images import from_uint8, resize, upsample_lq
from megasr.rng import numpy_generator

SIDE_PX = 96


def picture(key: str) -> np.ndarray:
    """(96, 96, 3) uint8: waves and noise of the key's own, on which every metric that is a formula is defined."""
    generator = numpy_generator(0, "picture", key)
    phase, noise = generator.uniform(0, 6, (3, 1, 1)), generator.normal(0, 12, (3, SIDE_PX, SIDE_PX))
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX] / 5
    return (127 + 80 * np.sin(x + phase) * np.cos(y - phase) + noise).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)


class NamedPictures(SRDataModule):
    """One picture per key, with lq at a quarter of its size.

    Args:
        keys: names of the evaluation set; two may be the same.
        batch_size: images per batch.
    """

    def __init__(self, keys: Sequence[str], batch_size: int = 2) -> None:
        super().__init__(batch_size=batch_size, eval_samples=len(keys))
        self.keys = keys

    def eval_sample(self, index: int) -> Sample:
        hq = picture(self.keys[index])
        return Sample(self.keys[index], hq, lq=resize(from_uint8(hq)[None], SIDE_PX // 4, SIDE_PX // 4)[0])


class NamelessTruth(NamedPictures):
    """The same pictures without hq."""

    has_hq = False

    def on_after_batch_transfer(self, batch: SRBatch, dataloader_idx: int) -> SRBatch:
        """Take hq away."""
        return SRBatch(**{name: value for name, value in batch.items() if name != "hq"})  # type: ignore[typeddict-item]


class Enlarger(lightning.LightningModule):
    """sr is lq_up.

    Args:
        diverges_at: the image whose sr is not finite.
        seed: for the record.
    """

    def __init__(self, diverges_at: str = "", seed: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.diverges_at, self.seed = diverges_at, seed
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.restored: list[str] = []

    def test_step(self, batch: SRBatch, batch_index: int) -> torch.Tensor:
        self.restored += batch["keys"]
        sr = upsample_lq(batch["lq"], 4)
        for image, key in zip(sr, batch["keys"], strict=True):
            if key == self.diverges_at:
                image[0, 0, 0] = float("nan")
        return sr


def quiet_trainer(folder: Path, callback: lightning.Callback, **settings: Any) -> lightning.Trainer:
    """A trainer on the CPU that prints nothing and keeps its files in a folder."""
    quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger"), False)
    return lightning.Trainer(
        default_root_dir=folder, accelerator="cpu", callbacks=[callback], **{"devices": 1, **quiet, **settings}
    )
