"""10 steps == k + resume + (10 - k): the same draws in the same order, the same weights, bit for bit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from data_pipelines.datamodules import PhotoDataModule

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
    [(0, {}), (0, {"limit_train_batches": 3, "num_sanity_val_steps": 0}), (0, {"val_check_interval": 2}), (1, {})],
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
@pytest.mark.parametrize("change", [{"batch_size": 2}, {"batch_size": 8}, {"train_samples": 32}])
def test_resuming_with_other_batches_goes_on_with_the_next_draw(tmp_path: Path, step: int, change: dict) -> None:
    fit(tmp_path, step)
    resumed = fit(tmp_path / "resumed", 9, tmp_path / f"step={step}.ckpt", **change)
    draws = [int(key.rsplit("/", 1)[1]) for batch in resumed.seen for key in batch]
    assert draws == list(range(4 * step, 4 * step + (9 - step) * change.get("batch_size", 4)))


def test_the_position_survives_a_change_of_the_number_of_processes() -> None:
    """10 steps of 3 processes, then 4 of 2, then 1 of 5: every position is a number of samples."""
    state, expected = None, 0
    batches = 0
    for steps, world_size in ((10, 3), (4, 2), (1, 5)):
        data = PhotoDataModule(crop_size_px=32, batch_size=4, train_samples=64, eval_samples=1)
        progress = SimpleNamespace(total=SimpleNamespace(processed=batches))
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
        data.trainer = SimpleNamespace(world_size=world_size, global_rank=1, fit_loop=loop)  # type: ignore[assignment]
        if state is not None:
            data.load_state_dict(state)
        assert data.consumed_samples() == expected
        first = next(iter(data.train_dataloader()))["keys"]
        assert [int(key.rsplit("/", 1)[1]) for key in first] == [expected + 1 + world_size * i for i in range(4)]
        batches += steps
        progress.total.processed = batches
        expected += steps * 4 * world_size
        state = data.state_dict()
        assert state["consumed_samples"] == expected
