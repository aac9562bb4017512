"""What is measured during a training: the right numbers, and no change of the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.loggers import Logger

from data_pipelines.datamodules import PhotoDataModule
from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.metrics import ImageMetric
from megasr.networks.config import AdapterConfig
from megasr.training.callbacks import EMA
from megasr.training.config import ObjectiveConfig, OptimizerConfig
from megasr.training.folders import read_rows
from megasr.training.loggers import CSVLog
from megasr.training.monitor import TrainingMonitor, as_in_test, first_images
from megasr.training.protocol_metrics import ProtocolMetrics
from megasr.training.sharding import ShardedStrategy
from tests.helpers.ranks import run_ranks
from tests.helpers.training import Clock, LossCurve, fit, make_module

pytestmark = pytest.mark.filterwarnings("ignore")


class Memory(Logger):
    """Keeps every call."""

    name = version = ""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, dict[str, Any]]] = []

    def log_metrics(self, metrics: dict[str, Any], step: int) -> None:
        self.calls.append((step, dict(metrics)))

    def log_hyperparams(self, *arguments: Any, **named: Any) -> None: ...

    def of(self, start: str) -> dict[int, dict[str, float]]:
        """Step -> the numbers whose key starts so."""
        rows: dict[int, dict[str, float]] = {}
        for step, row in self.calls:
            if found := {key: value for key, value in row.items() if key.startswith(start)}:
                rows.setdefault(step, {}).update(found)
        return rows


def photos(**settings: Any) -> PhotoDataModule:
    return PhotoDataModule(
        **{"crop_size_px": 32, "batch_size": 2, "train_samples": 32, "eval_samples": 3, "seed": 3} | settings
    )


def train(monitor: TrainingMonitor | None, steps: int = 4, *more: Any, **trainer: Any) -> tuple[list[float], Memory]:
    curve, memory = LossCurve(), Memory()
    module = make_module(optimizer=OptimizerConfig(learning_rate=1e-3), objective=ObjectiveConfig(guidance_dropout=0.5))
    callbacks = [curve, *more, *([monitor] if monitor else [])]
    fit(module, photos(), steps, callbacks=callbacks, logger=memory, **{"log_every_n_steps": 2, **trainer})
    return curve.losses, memory


def test_a_monitored_training_is_the_same_bit_for_bit() -> None:
    plain, _ = train(None, 4, EMA(0.5))
    monitor = TrainingMonitor(every_n_steps=2, images=2)
    watched, memory = train(monitor, 4, EMA(0.5), limit_val_batches=1, val_check_interval=3, num_sanity_val_steps=1)
    assert watched == plain
    assert len(set(plain)) == 4
    assert list(memory.of("val/psnr")) == [1, 3]
    logged = [(step, key) for step, row in memory.calls for key in row if key != "epoch"]
    assert len(logged) == len(set(logged)), "logged twice"


def test_throughput_is_of_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second per batch, a minute per restoration, an hour per validation; two batches are one step."""
    clock, monitor = Clock(), TrainingMonitor(every_n_steps=2, images=1)
    monitor.clock = clock

    def tick(seconds: float, result: Any = None) -> Any:
        clock.now += seconds
        return result

    from megasr.training.module import MegaSRModule

    step, restore = MegaSRModule.training_step, MegaSRModule.restore
    monkeypatch.setattr(MegaSRModule, "training_step", lambda self, *a: tick(1, step(self, *a)))
    monkeypatch.setattr(MegaSRModule, "restore", lambda self, *a: tick(60, restore(self, *a)))
    monkeypatch.setattr(MegaSRModule, "validation_step", lambda self, *a: tick(3600))
    settings = {"limit_val_batches": 1, "val_check_interval": 3, "num_sanity_val_steps": 1}
    _, memory = train(monitor, 4, accumulate_grad_batches=2, **settings)
    assert memory.of("train/images_per_s") == {
        1: {"train/images_per_s": 2.0}, 3: {"train/images_per_s": 2.0}
    }  # fmt: skip
    assert len(memory.of("grad_norm/")) == len(memory.of("modulation/")) == 2


@pytest.mark.parametrize(
    ("settings", "sees"),
    [
        ({"every_n_steps": 1}, lambda memory: len(memory.of("val/psnr")) == 2),
        ({"every_n_steps": 2}, lambda memory: len(memory.of("val/psnr")) == 1),
        ({"every_n_steps": 0}, lambda memory: not memory.of("val/psnr")),
        ({"loss_bins": 1}, lambda memory: list(memory.of("train/loss_t")[1]) == ["train/loss_t000-999"]),
        (
            {"loss_bins": 10},  # the timesteps are 30, 253, 253 and 986
            lambda memory: [key[-7:] for key in memory.of("train/loss_t")[1]] == ["000-099", "200-299", "900-999"],
        ),
    ],
)
def test_every_setting_has_an_effect(settings: dict[str, Any], sees: Any) -> None:
    _, memory = train(TrainingMonitor(**{"every_n_steps": 0, **settings}), 2)
    assert sees(memory), memory.calls


def test_the_first_images_of_the_set_are_measured_under_the_protocol_with_averaged_weights() -> None:
    ema, monitor = EMA(0.5), TrainingMonitor(every_n_steps=2, images=3, protocol="rgb-v1")
    _, memory = train(monitor, 2, ema)
    measured = memory.of("val/")[1]
    module = make_module(optimizer=OptimizerConfig(learning_rate=1e-3))
    module.load_state_dict(ema.shadow, strict=False)
    from megasr.evaluation.evaluator import Evaluator

    evaluator = Evaluator(monitor.protocol, metrics=[key.removeprefix("val/") for key in measured])
    rows = []
    for batch in photos(batch_size=1).val_dataloader():
        rows += evaluator.rows(module.eval().restore(batch), batch["hq"], batch["keys"])
    assert len(rows) == 3
    means = {f"val/{name}": mean for name, mean in evaluator.summary(rows).items()}
    assert measured == pytest.approx(means, rel=1e-4)
    assert measured != pytest.approx(
        {f"val/{name}": value for name, value in rows[0].items() if name != "key"}, rel=1e-4
    )


def test_the_images_do_not_depend_on_the_batch_size() -> None:
    class Trainer:
        datamodule: Any = None

    keys = []
    for batch_size in (1, 2, 8):
        trainer = Trainer()
        trainer.datamodule = photos(batch_size=batch_size)
        state = torch.get_rng_state()
        batches = first_images(trainer, 2)  # type: ignore[arg-type]
        assert torch.equal(torch.get_rng_state(), state), "a draw was taken from the training's generator"
        assert all(len(batch["keys"]) == len(batch["hq"]) == len(batch["lq"]) for batch in batches)
        keys.append([key for batch in batches for key in batch["keys"]])
    assert keys[0] == keys[1] == keys[2]
    assert len(keys[0]) == 2
    with pytest.raises(UsageError, match=r"monitor.every_n_steps=0"):
        first_images(Trainer(), 2)  # type: ignore[arg-type]


def test_a_failing_restoration_leaves_weights_and_modes_as_they_were() -> None:
    ema = EMA(0.5)
    module = make_module().train()
    trained = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
    modes = [part.training for part in module.modules()]
    ema.shadow = {name: p + 1 for name, p in trained.items()}
    trainer = lightning.Trainer(accelerator="cpu", callbacks=[ema], logger=False, enable_checkpointing=False)
    with pytest.raises(KeyError), as_in_test(trainer, module):
        assert not module.network.controlnet.training
        assert all(torch.equal(p, ema.shadow[name]) for name, p in module.named_parameters() if p.requires_grad)
        raise KeyError
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(p, trained[name]) for name, p in module.named_parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"every_n_steps": -1}, "monitor.every_n_steps must be at least 0, got -1"),
        ({"images": 0}, "monitor.images must be at least 1, got 0"),
        ({"loss_bins": 0}, "monitor.loss_bins must be at least 1, got 0"),
        ({"protocol": "rgb-v2"}, "unknown protocol 'rgb-v2'; did you mean rgb-v1"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        TrainingMonitor(**settings)


def test_images_of_another_size_than_the_protocols_are_refused_before_the_training() -> None:
    with pytest.raises(UsageError, match=r"stablesr-crops-v1 measures 512 px"):
        train(TrainingMonitor(every_n_steps=1, protocol="stablesr-crops-v1"), 1)


def test_what_cannot_be_measured_is_left_out_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """gmsd cannot be taken of images of this size, fsim not of one sr; all other numbers are as ever."""
    v1 = {"protocol": "weight-free-v1"}  # v2 has a metric that needs larger images anyway
    (_, alone), (_, whole) = (train(TrainingMonitor(every_n_steps=2, images=count, **v1), 2) for count in (1, 3))
    measure = ImageMetric.__call__

    def failing(self: ImageMetric, sr: torch.Tensor, hq: torch.Tensor, key: str, taken: dict[str, float]) -> float:
        if self.spec.name == "gmsd" or (self.spec.name == "fsim" and key == first and not torch.equal(sr, hq)):
            raise MegaSRError(f"{self.spec.name} cannot be taken of {key!r}")
        return measure(self, sr, hq, key, taken)

    def said() -> list[str]:
        return [text for record in caplog.records if "monitor goes on" in (text := record.getMessage())]

    first = next(iter(photos().val_dataloader()))["keys"][0]
    monkeypatch.setattr(ImageMetric, "__call__", failing)
    with caplog.at_level("INFO"):
        losses, memory = train(TrainingMonitor(every_n_steps=1, images=3, **v1), 2)
    assert len(losses) == 2
    expected, got = whole.of("val/")[1], memory.of("val/")[1]
    assert {name for name in expected if got.get(name) != expected[name]} == {"val/gmsd", "val/fsim"}
    others = (3 * expected["val/fsim"] - alone.of("val/")[1]["val/fsim"]) / 2
    assert got["val/fsim"] == pytest.approx(others, rel=1e-4)
    assert "val/gmsd" not in got
    assert sorted(text.split()[5] for text in said()) == ["fsim", "gmsd"]


def logged(folder: Path, strategy: Any, devices: int) -> list[dict[str, str]]:
    """The rows of a training with validation, and of the test of its last weights, by some processes."""
    module = make_module(adapter=AdapterConfig(guidance=("canny", "superpixel"), saft_width=8))
    data = photos(batch_size=4 // devices, eval_samples=2)
    settings = {"devices": devices, "strategy": strategy, "log_every_n_steps": 1, "logger": CSVLog(folder, [])}
    callbacks = [TrainingMonitor(every_n_steps=2, images=1), ProtocolMetrics("rgb-v1", ["psnr_rgb"])]
    trainer = fit(
        module,
        data,
        2,
        callbacks=callbacks,
        limit_val_batches=1,
        val_check_interval=2,
        default_root_dir=folder,
        **settings,
    )
    trainer.test(module, datamodule=data, verbose=False)
    return read_rows(folder / "metrics.csv")


def logged_by_two(folder: Path) -> dict[str, list[dict[str, str]]]:
    """Both strategies, in one start of the processes."""
    return {name: logged(folder / name, s, 2) for name, s in (("ddp", "ddp"), ("sharded", ShardedStrategy()))}


def test_two_processes_log_what_one_does(tmp_path: Path) -> None:
    for name in ("alone", "ddp", "sharded"):
        (tmp_path / name).mkdir()
    alone = logged(tmp_path / "alone", "auto", 1)
    seen = {key for row in alone for key in row}
    assert {"val/psnr_y", "val/loss", "test/psnr_rgb", "grad_norm/msfm"} <= seen, seen
    for name, rows in run_ranks(2, logged_by_two, tmp_path)[0].items():
        assert [list(row) for row in rows] == [list(row) for row in alone], name
        for one, together in zip(alone, rows, strict=True):
            numbers = {key: float(value) for key, value in one.items() if key != "train/images_per_s"}
            assert {key: float(together[key]) for key in numbers} == pytest.approx(numbers, rel=1e-3, abs=1e-7), name
