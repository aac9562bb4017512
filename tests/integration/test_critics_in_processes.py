"""One-step training with a critic and a LoRA in two real processes: the numbers of one, and an exact resume."""

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
from megasr.training.checkpoint import adapter_parameters, critic_parameters
from megasr.training.config import OptimizerConfig
from megasr.training.last_checkpoint import CheckpointFiles
from megasr.training.sharding import ShardedStrategy
from tests.helpers.losses import one_step
from tests.helpers.ranks import run_ranks
from tests.helpers.training import LossCurve

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS, HALF = 3, 1
# Checkpoints of folders are written tensor by tensor: a ControlNet would take most of the time.
ADAPTER = AdapterConfig(guidance=("canny",), saft_width=8, controlnet=False, prior_lora=2, encoder_lora=2)
STRATEGIES = {"ddp": lambda: "ddp", "sharded": lambda: ShardedStrategy(single_file=False)}


class SaveAt(lightning.Callback):
    """Saves after a step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, *unused: Any) -> None:
        if trainer.global_step == HALF and not self.path.exists():
            trainer.save_checkpoint(self.path)


def train(strategy: Any, devices: int, path: Path | None = None, resume: bool = False, accumulate: int = 1) -> Any:
    """Losses, and the trained weights after the last step."""
    torch.set_num_threads(1)
    module = one_step({"l1": 1.0, "vsd": 0.5}, adapter=ADAPTER, optimizer=OptimizerConfig(learning_rate=1e-3))
    data = PhotoDataModule(
        crop_size_px=32, batch_size=4 // devices // accumulate, train_samples=12, eval_samples=1, seed=3
    )
    curve = LossCurve()
    trainer = lightning.Trainer(
        accelerator="cpu", devices=devices, strategy=strategy, plugins=CheckpointFiles(), max_steps=STEPS,
        callbacks=[curve, EMA(0.9), *([SaveAt(path)] if path and not resume else [])], limit_val_batches=0,
        gradient_clip_val=0.5, accumulate_grad_batches=accumulate, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=path if resume else None, weights_only=True)
    trained = {**adapter_parameters(module), **critic_parameters(module)}
    whole = (p.full_tensor() if isinstance(p, DTensor) else p for p in trained.values())
    return curve.losses, dict(zip(trained, (p.detach().clone() for p in whole), strict=True))


def both(folder: Path) -> dict[str, Any]:
    """All that is asked of two processes, in one start of them; tensors as numbers, which a pipe takes."""
    results = {}
    for name, make in STRATEGIES.items():
        path = folder / f"{name}.ckpt"
        results[name] = train(make(), 2, path)
        results[f"{name} resumed"] = train(make(), 2, path, resume=True)
    results["sharded accumulated"] = train(ShardedStrategy(), 2, accumulate=2)
    return {name: (losses, {n: p.numpy() for n, p in weights.items()}) for name, (losses, weights) in results.items()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(2, both, tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def alone() -> Any:
    return train("auto", 1)


@pytest.mark.parametrize("name", [*STRATEGIES, "sharded accumulated"])
def test_two_processes_train_what_one_does(ranks: list[dict[str, Any]], alone: Any, name: str) -> None:
    losses, weights = alone
    critics = [part for part in weights if part.startswith("restoration_loss.")]
    assert critics
    for rank in ranks:
        for part, expected in weights.items():
            difference = (torch.from_numpy(rank[name][1][part]) - expected).abs()
            assert difference.mean() < 2e-5, part  # AdamW moves a weight by 1e-3 also where its gradient is rounding
    for part in critics:  # equal to the bit: gradients are averaged, not only alike
        assert (ranks[0][name][1][part] == ranks[1][name][1][part]).all(), part
    if "accumulated" not in name:
        means = [sum(pair) / 2 for pair in zip(*(rank[name][0] for rank in ranks), strict=True)]
        assert means == pytest.approx(losses, rel=1e-4)
        assert ranks[0][name][0] != ranks[1][name][0], "both processes saw the same images, noise and timesteps"


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_resumed_training_is_the_same_to_the_bit(ranks: list[dict[str, Any]], name: str) -> None:
    for rank in ranks:
        (losses, weights), (later, resumed) = rank[name], rank[f"{name} resumed"]
        assert later == losses[HALF:]
        assert all((weights[part] == resumed[part]).all() for part in weights)
