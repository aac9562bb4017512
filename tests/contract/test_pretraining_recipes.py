"""`make prior`, small: every recipe of `megasr pretrain` runs on what the one before has exported."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from megasr.cli import main
from megasr.prior import load_prior
from megasr.semantics.clip import load_clip
from tests.helpers.recipes import is_fit_recipe, read_note
from tests.helpers.sources import ROOT

COMMAND = re.compile(r"megasr pretrain --config (\S+)")
CHAIN = [ROOT / path for path in COMMAND.findall((ROOT / "Makefile").read_text())]
SMALL = {"pool": 3, "batch_size": 2, "train_samples": 4, "eval_samples": 2}


def test_make_prior_runs_every_recipe() -> None:
    every = {path for path in (ROOT / "experiments").rglob("*.yaml") if not is_fit_recipe(path)}
    assert set(CHAIN) == every
    assert len(CHAIN) == len(every)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the whole chain has run, two steps each."""
    folder = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "disabled")
        for recipe in CHAIN:
            changes = [f"--data.init_args.{name}={value}" for name, value in SMALL.items()]
            trainer = {
                "max_steps": 2,
                "accelerator": "cpu",
                "devices": 1,
                "strategy": "auto",
                "enable_progress_bar": False,
            }
            changes += [f"--trainer.{name}={value}" for name, value in trainer.items()]
            assert main(["pretrain", "--config", str(recipe), *changes]) == 0, recipe.name
    return folder


def test_the_chain_ends_in_a_prior_and_a_clip(folder: Path) -> None:
    prior = load_prior(str(folder / "runs/tiny/prior"))
    shipped = load_prior("tiny")
    for name in ("vae", "unet"):
        ours, theirs = getattr(prior, name).state_dict(), getattr(shipped, name).state_dict()
        assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert prior.text_encoder(["brick wall"]).shape == shipped.text_encoder(["brick wall"]).shape
    made, ours = load_clip(str(folder / "runs/tiny/clip_vision")).state_dict(), load_clip("tiny").state_dict()
    assert {k: v.shape for k, v in made.items()} == {k: v.shape for k, v in ours.items()}


def test_a_run_leaves_its_config_its_log_and_its_checkpoint(folder: Path) -> None:
    run = folder / "runs/tiny/prior_run"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["text_dropout"] == 0.1
    assert (run / "last.ckpt").is_file()
    assert (run / "metrics.csv").is_file()


def test_a_misspelt_key_and_a_missing_part_are_told(
    folder: Path, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    assert main(["pretrain", "--config", str(CHAIN[0]), "--model.init_args.widht=28"]) == 2
    assert "widht" in capsys.readouterr().err
    prior = next(recipe for recipe in CHAIN if recipe.stem == "prior")
    missing = [f"--model.init_args.vae={tmp_path / 'none'}", f"--model.init_args.clip={folder / 'runs/tiny/clip'}"]
    assert main(["pretrain", "--config", str(prior), *missing]) == 1
    assert "none" in capsys.readouterr().err


@pytest.mark.parametrize("path", CHAIN, ids=lambda path: path.stem)
def test_the_lab_note_is_complete(path: Path) -> None:
    note = read_note(path)
    assert "?" in note["Question"]
    assert str(path.relative_to(ROOT)) in note["Command"]
    for field in ("Time", "Numbers", "Tried"):
        assert re.search(r"\d|not measured yet", note[field]), field
