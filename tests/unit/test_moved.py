"""Configurations of version 0.1 name modules by their places of then."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megasr.cli import main
from tests.helpers.sources import ROOT

PLACES = {
    "megasr.training.pretraining.autoencoder.AutoencoderModule": "megasr.pretraining.autoencoder",
    "megasr.training.strategies.ShardedStrategy": "megasr.training.sharding",
    "megasr.training.async_checkpoint.AsyncCheckpointFiles": "megasr.training.last_checkpoint",
}


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    for name in [name for name in sys.modules if name.startswith(tuple(p.rpartition(".")[0] for p in PLACES))]:
        del sys.modules[name]


@pytest.mark.parametrize(("old", "new"), PLACES.items())
def test_an_old_place_is_the_same_class_and_says_where_it_is_now(old: str, new: str) -> None:
    module, _, name = old.rpartition(".")
    with pytest.warns(FutureWarning, match=f"{module} is {new} now"):
        found = importlib.import_module(module)
    assert getattr(found, name) is getattr(importlib.import_module(new), name)
    with pytest.raises(ModuleNotFoundError, match="megasr.training.strategy"):
        importlib.import_module("megasr.training.strategy")


def test_an_old_recipe_is_parsed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = (ROOT / "experiments" / "overlays" / "fsdp2.yaml").read_text()
    old = tmp_path / "old.yaml"
    old.write_text(recipe.replace("megasr.training.sharding.", "megasr.training.strategies."))
    assert old.read_text() != recipe
    arguments = ["--config", str(ROOT / "experiments" / "tiny" / "megasr.yaml"), "--config", str(old), "--print_config"]
    assert main(["fit", *arguments]) == 0
    assert "ShardedStrategy" in capsys.readouterr().out
