"""FSDP2 in two and four real processes: the numbers of DDP, a share of the memory, and checkpoints for any number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch.distributed.tensor import DTensor

from data_pipelines.datamodules import PhotoDataModule
from megasr.networks.config import AdapterConfig
from megasr.training.callbacks import EMA
from megasr.training.checkpoint import read_checkpoint
from megasr.training.config import OptimizerConfig
from megasr.training.module import MegaSRModule
from megasr.training.strategies import ShardedStrategy
from tests.helpers.ranks import run_ranks
from tests.helpers.training import LossCurve, make_module

pytestmark = pytest.mark.filterwarnings("ignore")
ADAPTER = AdapterConfig(guidance=("canny", "superpixel"), image=True, image_width=16, rca=True, saft_width=8)
STEPS, HALF = 4, 2  # HALF is in the middle of an epoch of 3 steps


class Tokens(lightning.Callback):
    """Gives batches the tokens that photographs lack: made of the image, so they are those of the image everywhere."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        pixels = batch["lq"].flatten(1)
        batch["image_tokens"] = pixels[:, : 5 * 16].unflatten(1, (5, 16))
        batch["representation"] = pixels[:, : 512 // 4].repeat(1, 4)[:, None]


def train(strategy: Any, devices: int, steps: int, resume: Path | None = None, save: Path | None = None) -> Any:
    """(losses, share of the trained weights that lies here, same of the optimizer's state) of a training."""
    torch.set_num_threads(1)
    module = make_module(adapter=ADAPTER, optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=3))
    data = PhotoDataModule(crop_size_px=32, batch_size=4 // devices, train_samples=12, eval_samples=1, seed=3)
    curve, ema = LossCurve(), EMA(0.9)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=devices, strategy=strategy, max_steps=steps, callbacks=[Tokens(), curve, ema],
        gradient_clip_val=0.5, limit_val_batches=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    if save is not None:
        trainer.save_checkpoint(save)
    trained = [p for p in module.parameters() if p.requires_grad]
    state = [value for of_one in trainer.optimizers[0].state.values() for value in of_one.values() if value.dim()]
    total = sum(p.numel() for p in trained)
    return curve.losses, _here(trained) / total, _here(state) / (2 * total), _here([*ema.shadow.values()]) / total


def _here(tensors: list[torch.Tensor]) -> int:
    return sum((t.to_local() if isinstance(t, DTensor) else t).numel() for t in tensors)


def all_of_two(folder: Path) -> dict[str, Any]:
    """Everything that is asked of two processes, in one start of them."""
    one, spread = folder / "one.ckpt", folder / "folder.ckpt"
    found = {"ddp": train("ddp", 2, STEPS), "whole": train(ShardedStrategy(), 2, STEPS)}
    train(ShardedStrategy(), 2, HALF, save=one)
    train(ShardedStrategy(shard_frozen=True, single_file=False), 2, HALF, save=spread)
    found["from_file"] = train(ShardedStrategy(), 2, STEPS, resume=one)
    found["from_folder"] = train(ShardedStrategy(), 2, STEPS, resume=spread)
    found["from_single"] = train(ShardedStrategy(), 2, STEPS, resume=folder / "single.ckpt")
    found["as_ddp"] = train("ddp", 2, STEPS, resume=one)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def single(folder: Path) -> list[float]:
    train("auto", 1, HALF, save=folder / "single.ckpt")
    return train("auto", 1, STEPS)[0]


@pytest.fixture(scope="module")
def ranks(folder: Path, single: list[float]) -> list[dict[str, Any]]:
    return run_ranks(2, all_of_two, folder)


def mean_losses(ranks: list[dict[str, Any]], name: str) -> list[float]:
    return [sum(losses) / 2 for losses in zip(*(rank[name][0] for rank in ranks), strict=True)]


def test_the_losses_are_those_of_one_process_and_of_ddp(ranks: list[dict[str, Any]], single: list[float]) -> None:
    assert mean_losses(ranks, "whole") == pytest.approx(single, rel=1e-5)
    for rank in ranks:
        assert rank["whole"][0] == pytest.approx(rank["ddp"][0], rel=1e-5)
    assert ranks[0]["whole"][0] != ranks[1]["whole"][0]


def test_two_processes_hold_half_of_what_is_trained_each(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["whole"][1:] == pytest.approx((0.5, 0.5, 0.5), abs=0.01)  # weights, optimizer, average
        assert rank["ddp"][1:] == (1.0, 1.0, 1.0)


def test_four_processes_hold_a_quarter_each() -> None:
    for _, *shares in run_ranks(4, train, ShardedStrategy(), 4, 1):
        assert shares == pytest.approx((0.25, 0.25, 0.25), abs=0.025)


@pytest.mark.parametrize("name", ["from_file", "from_folder"])
def test_a_resumed_training_is_the_same_to_the_bit(ranks: list[dict[str, Any]], name: str) -> None:
    for rank in ranks:
        assert rank[name][0] == rank["whole"][0][HALF:]


def test_any_number_of_processes_goes_on_with_any_strategy(
    ranks: list[dict[str, Any]], single: list[float], folder: Path
) -> None:
    for name in ("from_single", "as_ddp"):
        assert mean_losses(ranks, name) == pytest.approx(single[HALF:], rel=1e-5)
    for checkpoint in ("one.ckpt", "folder.ckpt"):
        assert train("auto", 1, STEPS, resume=folder / checkpoint)[0] == pytest.approx(single[HALF:], rel=1e-5)


def test_a_checkpoint_holds_what_was_trained_as_file_or_as_folder(ranks: list[dict[str, Any]], folder: Path) -> None:
    file, spread = (read_checkpoint(folder / name) for name in ("one.ckpt", "folder.ckpt"))
    module = MegaSRModule.from_checkpoint(folder / "folder.ckpt")
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert file["state_dict"].keys() == spread["state_dict"].keys() == trained.keys()
    for name, parameter in trained.items():
        assert torch.equal(file["state_dict"][name], spread["state_dict"][name]), name
        assert torch.equal(parameter, spread["callbacks"]["EMA"]["shadow"][name]), name
    assert not list(folder.glob("*.part"))
