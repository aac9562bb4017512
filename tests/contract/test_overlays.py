"""Every overlay fits on every kind of recipe, and changes what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from megasr.commands.lightning_cli import read_fit

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
STRATEGIES = {
    "ddp": "DDPStrategy",
    "fsdp2": "ShardedStrategy",
    "fsdp": "ShardedStrategy",
    "single": "auto",
    "cpu": "auto",
}


def test_all_overlays_are_here() -> None:
    assert {path.stem for path in (EXPERIMENTS / "overlays").glob("*.yaml")} == set(STRATEGIES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_overlay_is_a_configuration_of_fit_and_names_its_command(name: str) -> None:
    overlay = EXPERIMENTS / "overlays" / f"{name}.yaml"
    recipe = EXPERIMENTS / "tiny" / "megasr.yaml"
    trainer = read_fit(["--config", str(recipe), "--config", str(overlay)])["trainer"]
    strategy = trainer["strategy"]
    assert (strategy if isinstance(strategy, str) else strategy["class_path"].rsplit(".", 1)[-1]) == STRATEGIES[name]
    assert f"--config experiments/overlays/{name}.yaml" in overlay.read_text()
