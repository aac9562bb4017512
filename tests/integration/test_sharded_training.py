"""FSDP2 in two and four real processes: the numbers of DDP, a share of the memory, and checkpoints for any number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
from megasr.training.last_checkpoint import CheckpointFiles
from megasr.training.module import MegaSRModule
from megasr.training.sharding import ShardedStrategy, local
from tests.helpers.ranks import run_ranks
from tests.helpers.sd3 import sd3_folder
from tests.helpers.sdxl import sdxl_folder
from tests.helpers.training import LossCurve, make_module

pytestmark = pytest.mark.filterwarnings("ignore")
# Checkpoints are gathered and written tensor by tensor: only the test with four processes, which writes none, trains
# the ControlNet and RCA.
ADAPTER = AdapterConfig(guidance=("canny",), image=True, image_width=16, saft_width=8, controlnet=False)
WHOLE = AdapterConfig(guidance=("canny", "superpixel"), image=True, image_width=16, rca=True, saft_width=8)
STEPS, HALF = 4, 2  # HALF is in the middle of an epoch of 3 steps


class Tokens(lightning.Callback):
    """Gives batches the tokens that photographs lack: made of the image, so they are those of the image everywhere."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        pixels = batch["lq"].flatten(1)
        batch["image_tokens"] = pixels[:, : 5 * 16].unflatten(1, (5, 16))
        batch["representation"] = pixels[:, : 512 // 4].repeat(1, 4)[:, None]


class Draws(lightning.Callback):
    """Remembers what is drawn in this process: the images and their timesteps, and a sum over the initial weights."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        self.initial = float(sum(_whole(p.detach()).double().sum() for p in module.parameters() if p.requires_grad))

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen += zip(batch["keys"], outputs["timesteps"].tolist(), strict=True)


class SaveAt(lightning.Callback):
    """Saves after a step."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Any, *unused: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def train(
    strategy: Any,
    devices: int,
    resume: Path | None = None,
    save: SaveAt | None = None,
    adapter: AdapterConfig = ADAPTER,
    steps: int = STEPS,
    **changes: Any,
) -> Any:
    """(losses, shares of the trained weights, optimizer's state and averages that lie here, draws) of a training."""
    torch.set_num_threads(1)
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=3)
    module = make_module(adapter=adapter, optimizer=optimizer, **changes)
    data = PhotoDataModule(crop_size_px=32, batch_size=4 // devices, train_samples=12, eval_samples=1, seed=3)
    curve, ema, draws = LossCurve(), EMA(0.9), Draws()
    callbacks = [Tokens(), curve, ema, draws, *([save] if save else [])]
    trainer = lightning.Trainer(
        accelerator="cpu", devices=devices, strategy=strategy, plugins=CheckpointFiles(), max_steps=steps,
        callbacks=callbacks, gradient_clip_val=0.5, limit_val_batches=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    trained = [p for p in module.parameters() if p.requires_grad]
    state = [value for of_one in trainer.optimizers[0].state.values() for value in of_one.values() if value.dim()]
    total = sum(p.numel() for p in trained)
    shares = _here(trained) / total, _here(state) / (2 * total), _here([*ema.shadow.values()]) / total
    return curve.losses, shares, (draws.seen, draws.initial)


def _whole(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _here(tensors: list[torch.Tensor]) -> int:
    return sum(local(t).numel() for t in tensors)


def all_of_two(folder: Path) -> dict[str, Any]:
    """Everything that is asked of two processes, in one start of them."""
    spread, one = folder / "folder.ckpt", folder / "one.ckpt"
    return {
        "ddp": train("ddp", 2),
        "whole": train(ShardedStrategy(single_file=False), 2, save=SaveAt(HALF, spread)),
        "from_folder": train(ShardedStrategy(), 2, resume=spread, save=SaveAt(HALF + 1, one)),
        "from_file": train(ShardedStrategy(), 2, resume=one),
        "from_single": train(ShardedStrategy(shard_frozen=True), 2, resume=folder / "single.ckpt"),
        "as_ddp": train("ddp", 2, resume=spread),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def single(folder: Path) -> list[float]:
    return train("auto", 1, save=SaveAt(HALF, folder / "single.ckpt"))[0]


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
        assert rank["whole"][1] == pytest.approx((0.5, 0.5, 0.5), abs=0.01)  # weights, optimizer, average
        assert rank["ddp"][1] == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("name", ["ddp", "whole"])
def test_processes_draw_differently_and_start_alike(ranks: list[dict[str, Any]], name: str) -> None:
    (first, initial), (second, other) = (rank[name][2] for rank in ranks)
    assert initial == other
    assert len({key for key, _ in first} | {key for key, _ in second}) == 2 * 2 * STEPS, "no image is drawn twice"
    assert len({timestep for _, timestep in first + second}) > STEPS  # as many as there are images, but for chance


def test_four_processes_train_a_controlnet_and_hold_a_quarter_each() -> None:
    ranks = run_ranks(4, train, ShardedStrategy(), 4, None, None, WHOLE, HALF)
    alone, *_ = train("auto", 1, adapter=WHOLE, steps=HALF)
    assert [sum(losses) / 4 for losses in zip(*(losses for losses, *_ in ranks), strict=True)] == pytest.approx(alone)
    for _, shares, _ in ranks:
        assert shares == pytest.approx((0.25, 0.25, 0.25), abs=0.025)


def on_prior(prior: str, lq_stream: bool) -> list[Any]:
    """Trainings of an adapter on a prior in two processes."""
    adapter = replace(WHOLE, rca=False, connector="shared", controlnet=not lq_stream, lq_stream=lq_stream)
    strategies = "ddp", ShardedStrategy(), ShardedStrategy(shard_frozen=True)
    return [train(strategy, 2, adapter=adapter, steps=HALF, prior=prior) for strategy in strategies]


@pytest.mark.parametrize(("folder", "lq_stream"), [(sdxl_folder, False), (sd3_folder, False), (sd3_folder, True)])
def test_two_processes_train_on_sdxl_and_on_an_mmdit_as_ddp_does(folder: Callable[[], str], lq_stream: bool) -> None:
    for ddp, *sharded in run_ranks(2, on_prior, folder(), lq_stream):
        for losses, shares, _ in sharded:
            assert losses == pytest.approx(ddp[0], rel=1e-5)
            assert shares == pytest.approx((0.5, 0.5, 0.5), abs=0.01)


@pytest.mark.parametrize("name", ["from_folder", "from_file"])
def test_a_resumed_training_is_the_same_to_the_bit(ranks: list[dict[str, Any]], name: str) -> None:
    for rank in ranks:
        assert 0 < len(rank[name][0]) <= STEPS - HALF
        assert rank[name][0] == rank["whole"][0][-len(rank[name][0]) :]


def test_any_number_of_processes_goes_on_with_any_strategy(
    ranks: list[dict[str, Any]], single: list[float], folder: Path
) -> None:
    for name in ("from_single", "as_ddp"):
        assert mean_losses(ranks, name) == pytest.approx(single[HALF:], rel=1e-5)
    assert train("auto", 1, resume=folder / "folder.ckpt")[0] == pytest.approx(single[HALF:], rel=1e-5)
    assert train("auto", 1, resume=folder / "one.ckpt")[0] == pytest.approx(single[HALF + 1 :], rel=1e-5)


def test_a_checkpoint_holds_what_was_trained_as_file_or_as_folder(ranks: list[dict[str, Any]], folder: Path) -> None:
    file, spread = (read_checkpoint(folder / name) for name in ("one.ckpt", "folder.ckpt"))
    module = MegaSRModule.from_checkpoint(folder / "folder.ckpt")
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert file["state_dict"].keys() == spread["state_dict"].keys() == trained.keys()
    assert file.keys() == spread.keys()
    for name, parameter in trained.items():
        assert torch.equal(parameter, spread["callbacks"]["EMA"]["shadow"][name]), name
        assert not torch.equal(parameter, file["callbacks"]["EMA"]["shadow"][name]), name  # of a later step
    assert not list(folder.glob("*.part"))
