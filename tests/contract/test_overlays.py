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


ADDED = {"keep_best": ("callbacks", "ModelCheckpoint"), "async_save": ("plugins", "AsyncCheckpointFiles")}


def test_all_overlays_are_here() -> None:
    assert {path.stem for path in (EXPERIMENTS / "overlays").glob("*.yaml")} == {*STRATEGIES, *ADDED}


@pytest.mark.parametrize("name", ADDED)
def test_an_overlay_adds_to_what_a_recipe_has(name: str, tmp_path: Path) -> None:
    overlay, recipe = EXPERIMENTS / "overlays" / f"{name}.yaml", tmp_path / "recipe.yaml"
    recipe.write_text("data: PhotoDataModule\ntrainer:\n  callbacks: [{class_path: megasr.training.callbacks.EMA}]\n")
    trainer = read_fit(["--config", str(recipe), "--config", str(overlay)])["trainer"]
    key, added = ADDED[name]
    assert trainer[key][-1]["class_path"].rpartition(".")[2] == added
    assert trainer["callbacks"][0]["class_path"] == "megasr.training.callbacks.EMA"
    assert f"--config experiments/overlays/{name}.yaml" in overlay.read_text()


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_overlay_is_a_configuration_of_fit_and_names_its_command(name: str) -> None:
    overlay = EXPERIMENTS / "overlays" / f"{name}.yaml"
    recipe = EXPERIMENTS / "tiny" / "megasr.yaml"
    trainer = read_fit(["--config", str(recipe), "--config", str(overlay)])["trainer"]
    strategy = trainer["strategy"]
    assert (strategy if isinstance(strategy, str) else strategy["class_path"].rsplit(".", 1)[-1]) == STRATEGIES[name]
    assert f"--config experiments/overlays/{name}.yaml" in overlay.read_text()
