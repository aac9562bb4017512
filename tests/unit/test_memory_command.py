"""`megasr doctor --config`: what a recipe says about memory, and one error for what cannot be planned."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from megasr.commands.doctor import batch_line, plan_memory, read_setup, read_strategy
from megasr.commands.lightning_cli import read_fit
from megasr.errors import MegaSRError, UsageError
from megasr.training.memory_plan import Planner
from megasr.training.memory_setup import TrainingSetup

RECIPE = Path(__file__).parents[2] / "experiments" / "sd21" / "megasr.yaml"


def test_a_recipe_is_read_without_its_weights_and_data() -> None:
    setup = read_setup(read_fit(["--config", str(RECIPE), "--data.batch_size", "4"]), devices=4)
    assert (setup.batch_size, setup.crop_size_px, setup.devices, setup.accumulation) == (4, 512, 4, 2)
    assert (setup.strategy, setup.precision, setup.clips, setup.ema, setup.on_gpu) == (
        "ddp",
        "bf16-mixed",
        True,
        False,
        True,
    )
    assert setup.model["adapter"]["guidance"]
    assert batch_line(setup) == "global batch 32 = micro-batch 4 x 4 devices x 2 accumulated"


def test_of_a_study_s_recipe_the_study_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[TrainingSetup] = []

    def stop(planner: Planner, setup: TrainingSetup) -> None:
        planned.append(setup)
        raise MegaSRError("planned")

    monkeypatch.setattr(Planner, "plan", stop)
    study = str(RECIPE.with_name("prior_selection.yaml"))
    with pytest.raises(MegaSRError, match="planned"):
        plan_memory(argparse.Namespace(config=[study], devices=None, gpu_gib=80.0, reserve_gib=1.0, rest=[]))
    assert (planned[0].batch_size, planned[0].strategy) == (8, "single")


def test_an_unknown_key_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.read_text().replace("saft_width", "saft_widht"))
    with pytest.raises(UsageError, match="saft_widht"):
        read_fit(["--config", str(path)])


@pytest.mark.parametrize(
    ("value", "devices", "expected"),
    [
        ("auto", 1, ("single", False)),
        ("auto", 2, ("ddp", False)),
        ("ddp_find_unused_parameters_true", 2, ("ddp", False)),
        (
            {
                "class_path": "lightning.pytorch.strategies.DDPStrategy",
                "dict_kwargs": {"gradient_as_bucket_view": True},
            },
            2,
            ("ddp", True),
        ),
        ({"class_path": "megasr.training.sharding.ShardedStrategy", "init_args": {}}, 2, ("fsdp2", False)),
    ],
)
def test_strategies_of_lightning(value: Any, devices: int, expected: tuple[str, bool]) -> None:
    assert read_strategy(value, devices) == expected


@pytest.mark.parametrize("name", ["deepspeed", "fsdp"])  # Lightning's FSDP wraps what MegaSR does not call
def test_a_strategy_that_is_not_planned_for_is_said(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        read_strategy(name, 2)


def test_without_a_batch_there_is_no_plan() -> None:
    config = {"model": {}, "data": {"class_path": "Other", "init_args": {}}, "trainer": {}}
    with pytest.raises(UsageError, match="Other has no batch_size"):
        read_setup(config)
