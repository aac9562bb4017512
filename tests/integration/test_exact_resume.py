"""n steps == k + resume + (n - k), to the bit, in two processes, with all that a resume must bring back."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed.tensor import DTensor

from data_pipelines.datamodules import PhotoDataModule
from megasr.networks.config import AdapterConfig
from megasr.training.callbacks import EMA
from megasr.training.checkpoint import read_checkpoint
from megasr.training.config import ObjectiveConfig, OptimizerConfig
from megasr.training.last_checkpoint import CheckpointFiles
from megasr.training.sharded_checkpoint import is_sharded
from megasr.training.sharding import ShardedStrategy
from tests.helpers.ranks import run_ranks
from tests.helpers.sources import ROOT
from tests.helpers.training import LossCurve, make_module

pytestmark = pytest.mark.filterwarnings("ignore")
OVERLAY = ROOT / "experiments" / "overlays" / "keep_best.yaml"
STEPS, STOP = 4, 2  # in the middle of an epoch of 3 steps
MIDDLE = "middle.ckpt"
STRATEGIES = {"ddp": lambda: "ddp", "folder": lambda: ShardedStrategy(single_file=False)}


class SaveInTheMiddle(lightning.Callback):
    """Saves what the second training goes on from."""

    def on_train_batch_end(self, trainer: Any, *unused: Any) -> None:
        if trainer.global_step == STOP:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / MIDDLE)


def train(folder: Path, strategy: str, resume: bool = False) -> tuple[list[float], str]:
    """Losses, and the hash of every trained weight, average and state of the optimizer that lies in this process."""
    torch.set_num_threads(1)
    (best,) = yaml.safe_load(OVERLAY.read_text())["trainer"]["callbacks+"]
    curve, ema = LossCurve(), EMA(0.9)
    keeps = [] if resume else [SaveInTheMiddle(), ModelCheckpoint(**best["init_args"] | {"save_top_k": 1})]
    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, strategy=STRATEGIES[strategy](), max_steps=STEPS, gradient_clip_val=0.5,
        callbacks=[curve, ema, *keeps], plugins=CheckpointFiles(), default_root_dir=folder, logger=False,
        limit_val_batches=0 if resume else 1, num_sanity_val_steps=0, enable_checkpointing=not resume,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = make_module(
        adapter=AdapterConfig(guidance=("canny",), saft_width=8, controlnet=False),
        objective=ObjectiveConfig(guidance_dropout=0.5, type_dropout=0.5, validation_timesteps=1),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=3),
    )
    data = PhotoDataModule(
        crop_size_px=32, batch_size=2, train_samples=12, eval_samples=2, num_workers=1, seed=3,
        degradation="realesrgan_strong",
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=folder / MIDDLE if resume else None, weights_only=True)
    trained = [p.detach() for p in module.parameters() if p.requires_grad]
    states = [value for of_one in trainer.optimizers[0].state.values() for value in of_one.values()]
    return curve.losses, _digest([*trained, *ema.shadow.values(), *states])


def _digest(tensors: list[torch.Tensor]) -> str:
    here = (t.to_local() if isinstance(t, DTensor) else t for t in tensors)
    return hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in here)).hexdigest()


def whole_and_resumed(folder: Path) -> dict[str, Any]:
    """All strategies in one start of the processes: strategy -> (whole, what came after the resume)."""
    results = {}
    for name in STRATEGIES:
        whole = train(folder / name, name)
        results[name] = whole, train(folder / name, name, resume=True)
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return run_ranks(2, whole_and_resumed, folder)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_resumed_training_is_the_same_to_the_bit(ranks: list[dict[str, Any]], name: str) -> None:
    for rank in ranks:
        (losses, state), (later_losses, later_state) = rank[name]
        assert later_losses == losses[STOP:]
        assert later_state == state
    assert len({loss for rank in ranks for loss in rank[name][0][0]}) == 2 * STEPS, (
        "every step of every process differs"
    )


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_best_checkpoint_is_kept_beside_the_last(ranks: list[dict[str, Any]], folder: Path, name: str) -> None:
    (best,) = (folder / name / "checkpoints").iterdir()
    assert best.name.startswith(("step=3-loss=", "step=4-loss="))
    assert is_sharded(best) == (name == "folder")
    assert read_checkpoint(best)["global_step"] in (3, 4)
