"""The world on one GPU: trainings that end by the clock, and command lines that the recipes take."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipelines.embedded import PhotoDataModule
from experiments.world import on_gpu
from megasr import cli
from megasr.pretraining.module import PretrainingModule
from tests.helpers.training import fit


class OneWeight(PretrainingModule):
    """A model of one number, which notes its learning rates."""

    def __init__(self) -> None:
        super().__init__(learning_rate=0.5, schedule="trapezoid")
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.rates: list[float] = []

    def training_step(self, batch: Any, batch_index: int) -> torch.Tensor:
        self.rates.append(self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        time.sleep(0.005)
        return self.weight.square().sum()


def test_a_training_ends_in_time_with_a_learning_rate_that_has_fallen(tmp_path: Path) -> None:
    module, begun = OneWeight(), time.monotonic()
    data = PhotoDataModule(batch_size=1, train_samples=10**6, crop_size_px=32)
    fit(module, data, 10**6, callbacks=[on_gpu.TimeBudget(1.5, decay_share=0.5)], default_root_dir=tmp_path)
    assert 1.5 < time.monotonic() - begun < 15
    rates = module.rates
    assert len(rates) > 20 and rates[0] == pytest.approx(0.5 / 100), "it warms up"
    assert rates[-1] < 0.1 * max(rates)
    kept = OneWeight()
    fit(kept, data, 10**6, callbacks=[on_gpu.TimeBudget(0.5, decay_share=0)], default_root_dir=tmp_path)
    assert kept.rates == sorted(kept.rates), "without a decay it only rises"


def _world(folder: Path) -> on_gpu.World:
    return on_gpu.World(folder, folder, folder, pool=66, latents=32, device="cpu", workers=8)


def _commands(trainings: dict[str, list[Callable[[], None]]]) -> list[list[str]]:
    return [step.args[0] for steps in trainings.values() for step in steps]  # type: ignore[attr-defined]


def test_the_recipes_take_every_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = _world(tmp_path)
    parts = _commands(on_gpu.train_parts(world, 10))
    adapters = _commands(on_gpu.train_adapters(world, 10))
    assert len(parts) == 6 and len(adapters) == 5
    for words in (*parts, *adapters):
        assert cli.main([*words, "--print_config"]) == 0, words
        shown = capsys.readouterr().out
        assert "TimeBudget" in shown and "limit_val_batches: 0" in shown
    assert {words[0] for words in adapters} == {"fit"}
    assert "null" in parts[4]
    (tmp_path / "ControlNetHED.pth").touch()
    assert str(tmp_path / "ControlNetHED.pth") in _commands(on_gpu.train_parts(world, 10))[4]


def test_the_tuned_decoder_takes_the_place_of_the_priors(tmp_path: Path) -> None:
    for folder, text in (("vae", "tuned"), ("prior/vae", "plain")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text(text)
    on_gpu.use_tuned_decoder(_world(tmp_path))
    assert (tmp_path / "prior" / "vae" / "config.json").read_text() == "tuned"


def test_a_training_that_fails_is_named_and_stops_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise SystemExit(3)

    failed = on_gpu.train_together(_world(tmp_path), {"good": [lambda: print("worked")], "bad": [fail]})
    assert failed == ["bad"]
    out = capsys.readouterr().out
    assert "good: done" in out and "bad: FAILED with 3" in out
    assert (tmp_path / "logs" / "good.log").read_text() == "worked\n"
