"""10 steps == k + resume + (10 - k): the same draws in the same order, the same weights, bit for bit."""

from __future__ import annotations

from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from data_pipelines.datamodules import PhotoDataModule
from megasr.errors import UsageError

STEPS = 10


class Recorder(lightning.LightningModule):
    """Learns one number from hq and lq, and remembers which samples it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen: list[list[str]] = []

    def training_step(self, batch: dict, batch_index: int) -> torch.Tensor:
        self.seen.append(batch["keys"])
        return (self.weight * batch["hq"].mean() - batch["lq"].std()) ** 2

    def validation_step(self, batch: dict, batch_index: int) -> None:
        assert "lq" in batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def fit(folder: Path, steps: int, resume: Path | None = None, trainer: dict | None = None, **data: int) -> Recorder:
    module = Recorder()
    settings = {"crop_size_px": 32, "batch_size": 4, "train_samples": 16, "eval_samples": 2, "seed": 3, **data}
    lightning.Trainer(
        default_root_dir=folder,
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)],
        **(trainer or {}),
    ).fit(module, datamodule=PhotoDataModule(**settings), ckpt_path=resume, weights_only=resume is not None)
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("workers", "trainer"),
    [
        (0, {}),
        (0, {"limit_train_batches": 3, "num_sanity_val_steps": 0}),
        (0, {"val_check_interval": 2}),
        (1, {}),
    ],
    ids=["plain", "short epochs", "validation within epochs", "workers"],
)
def test_resumed_training_is_the_uninterrupted_training(tmp_path: Path, workers: int, trainer: dict) -> None:
    whole = fit(tmp_path / "whole", STEPS, trainer=trainer, num_workers=workers)
    assert len(whole.seen) == STEPS
    keys = [key for batch in whole.seen for key in batch]
    assert [int(key.rsplit("/", 1)[1]) for key in keys] == list(range(4 * STEPS)), "every draw once, in order"
    for step in (3, 4, 6):  # within an epoch, at its end, within the next
        checkpoint = tmp_path / "whole" / f"step={step}.ckpt"
        resumed = fit(tmp_path / str(step), STEPS, checkpoint, trainer, num_workers=workers)
        assert resumed.seen == whole.seen[step:]
        assert torch.equal(resumed.weight, whole.weight)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("step", [3, 4])
@pytest.mark.parametrize("change", [{"batch_size": 2}, {"train_samples": 32}])
def test_resuming_with_other_batches_is_refused(tmp_path: Path, step: int, change: dict) -> None:
    fit(tmp_path, step)
    with pytest.raises(UsageError, match=r"cannot resume: .*'batch_size': 4.*draws would be repeated or skipped"):
        fit(tmp_path / "resumed", 9, tmp_path / f"step={step}.ckpt", **change)
