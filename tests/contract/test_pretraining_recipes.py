"""`make prior`, small: every recipe of `megasr pretrain` runs on what the one before has exported."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from experiments import make_prior
from megasr.cli import main
from megasr.guidance.extract import load_network
from megasr.guidance.registry import get_guidance
from megasr.guidance.tiny import load_tiny
from megasr.prior import load_prior
from megasr.semantics.clip import load_clip
from tests.helpers.extractor_checkpoints import write_depth, write_hed, write_segmentation
from tests.helpers.recipes import is_fit_recipe, read_note
from tests.helpers.sources import ROOT

EXPERIMENTS = ROOT / "experiments"
PARTS = make_prior.parts_of("tiny")
CHAIN = [ROOT / words[3] for part in PARTS for words in part.commands if "pretrain" in words]
TRAINER = {"max_steps": 2, "accelerator": "cpu", "devices": 1, "strategy": "auto", "enable_progress_bar": False}
SMALL = {"pool": 3, "batch_size": 2, "train_samples": 4, "eval_samples": 2}


def test_make_prior_runs_every_small_recipe() -> None:
    every = {path for path in (ROOT / "experiments" / "tiny").rglob("*.yaml") if not is_fit_recipe(path)}
    assert set(CHAIN) == every
    assert len(CHAIN) == len(every)


def _in_this_process(words: list[str]) -> int:
    """What `python -m` does, without another process; a recipe with its data and its training small."""
    module, *arguments = words[2:]
    if module == "megasr.cli":
        changes = [f"--data.init_args.{name}={value}" for name, value in SMALL.items()]
        changes += [f"--trainer.{name}={value}" for name, value in TRAINER.items()]
        return main([*arguments, *changes])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *arguments])
        importlib.import_module(module).main()
    return 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the whole chain has run, two steps each."""
    folder = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "disabled")
        patch.setattr(make_prior, "run", _in_this_process)
        make_prior.make(PARTS)
    return folder


def test_the_chain_ends_in_a_prior_and_a_clip(folder: Path) -> None:
    prior = load_prior(str(folder / "runs/tiny/prior"))
    shipped = load_prior("tiny")
    for name in ("vae", "unet"):
        ours, theirs = getattr(prior, name).state_dict(), getattr(shipped, name).state_dict()
        assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert (folder / "runs/tiny/adapter/adapter.ckpt").is_file()
    assert prior.text_encoder(["brick wall"]).shape == shipped.text_encoder(["brick wall"]).shape
    made, ours = load_clip(str(folder / "runs/tiny/clip_vision")).state_dict(), load_clip("tiny").state_dict()
    assert {k: v.shape for k, v in made.items()} == {k: v.shape for k, v in ours.items()}


def test_a_run_leaves_its_config_its_log_and_its_checkpoint(folder: Path) -> None:
    run = folder / "runs/tiny/prior_run"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["text_dropout"] == 0.1
    assert (run / "last.ckpt").is_file()
    assert (run / "metrics.csv").is_file()


def test_what_is_made_stays_and_what_was_interrupted_goes_on(
    folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def run(words: list[str]) -> int:
        ran.append(words)
        return _in_this_process(words)

    monkeypatch.chdir(folder)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(make_prior, "run", run)
    capsys.readouterr()
    make_prior.make(PARTS)
    assert ran == []
    assert capsys.readouterr().out == "everything is made: runs/tiny, runs/tiny/adapter\n"
    shutil.rmtree("runs/tiny/clip")
    make_prior.make(PARTS)
    assert [words[-2:] for words in ran] == [["--ckpt_path", "last"]]
    assert "2 of 8: tiny/clip.yaml, resumed; about 8 min left" in capsys.readouterr().out
    assert load_clip("runs/tiny/clip")


def test_a_misspelt_key_and_a_missing_part_are_told(
    folder: Path, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    assert main(["pretrain", "--config", str(CHAIN[0]), "--model.init_args.widht=28"]) == 2
    assert "widht" in capsys.readouterr().err
    prior = next(recipe for recipe in CHAIN if recipe.stem == "prior")
    missing = [f"--model.init_args.vae={tmp_path / 'none'}", f"--model.init_args.clip={folder / 'runs/tiny/clip'}"]
    assert main(["pretrain", "--config", str(prior), *missing]) == 1
    assert "none" in capsys.readouterr().err


def test_the_chain_makes_what_is_shipped(folder: Path) -> None:
    for made, shipped in (("extractors", "tiny"), ("extractors_lq", "tiny_lq")):
        ours, theirs = load_tiny(str(folder / "runs/tiny" / made)), load_tiny(shipped)
        assert ours.config == theirs.config
        assert {k: v.shape for k, v in ours.state_dict().items()} == {
            k: v.shape for k, v in theirs.state_dict().items()
        }
    assert load_clip(str(folder / "runs/tiny/clip_lq")).state_dict().keys() == load_clip("tiny_lq").state_dict().keys()


@pytest.mark.parametrize("name", ["hed", "depth", "segmentation", "clip"])
def test_a_full_size_fine_tuning_runs_on_small_networks(name: str, tmp_path: Path, folder: Path) -> None:
    """The recipe of SD 2.1, with its own losses and LoRA, on a random network in the real format and on scenes."""
    write = {"hed": write_hed, "depth": write_depth, "segmentation": write_segmentation}
    source = folder / "runs/tiny/clip" if name == "clip" else write[name](tmp_path / "plain")
    config = yaml.safe_load((ROOT / f"experiments/sd21/pgft_{name}.yaml").read_text())
    config["model"]["init_args"]["source"] = str(source)
    config["export"]["folder"] = str(tmp_path / "tuned")
    sizes = {**SMALL, "crop_size_px": 32, "eval_crop_size_px": 64, "degradation": "realesrgan_strong"}
    config["data"] = {"class_path": "WorldDataModule", "init_args": sizes}
    config["trainer"] = {**TRAINER, "default_root_dir": str(tmp_path)}
    (tmp_path / "twin.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        assert main(["pretrain", "--config", str(tmp_path / "twin.yaml")]) == 0
    if name == "clip":
        assert load_clip(str(tmp_path / "tuned"))
    else:
        assert name in load_network(get_guidance(name), str(tmp_path / "tuned")).gives


@pytest.mark.parametrize(
    "path",
    [*CHAIN, *sorted(EXPERIMENTS.glob("sd21/pgft_*.yaml")), *sorted(EXPERIMENTS.glob("world/*.yaml"))],
    ids=lambda p: f"{p.parent.name}/{p.stem}",
)
def test_the_lab_note_is_complete(path: Path) -> None:
    note = read_note(path)
    assert "?" in note["Question"]
    assert str(path.relative_to(ROOT)) in note["Command"]
    for field in ("Time", "Numbers", "Tried"):
        assert re.search(r"\d|not measured yet", note[field]), field
