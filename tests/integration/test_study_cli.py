"""`megasr study` on the tiny prior: the plan, one run after another as a sweep's agents do them, and the report."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path

import pytest
import yaml

from megasr import cli
from megasr import system as parts
from tests.helpers.recipes import cached_prior

QUICK = Path(__file__).parents[2] / "experiments/tiny/prior_selection_quick.yaml"
NAME = "prior_selection_quick"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quick study, too small to find anything out."""
    config = yaml.safe_load(QUICK.read_text())
    config["study"]["seeds"] = [0, 1]
    config["data"]["init_args"] |= {"pool": 8, "train_samples": 16, "eval_samples": 2, "batch_size": 2}
    config["data"]["init_args"] |= {"crop_size_px": 32, "eval_crop_size_px": 64}
    config["trainer"] |= {"max_steps": 2, "log_every_n_steps": 1}
    config["model"]["optimizer"]["warmup_steps"] = 1
    del config["study"]["evaluation"]["photographs"]
    path = tmp_path_factory.mktemp("recipe") / "quick.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(autouse=True)
def _without_wandb_and_with_one_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(parts, "load_prior", cached_prior)


def _study(action: str, recipe: Path, output: Path, *options: str) -> int:
    return cli.main(["study", action, NAME, "--config", str(recipe), "--output", str(output), *options])


def test_agents_of_a_sweep_do_the_study(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert _study("run", recipe, output, "--launcher", "wandb", "--retries", "0") == 0
    printed = capsys.readouterr().out
    assert f"wandb sweep {output / 'sweep.yaml'}" in printed

    sweep = yaml.safe_load((output / "sweep.yaml").read_text())
    points = product(*(axis["values"] for axis in sweep["parameters"].values()))
    points = [dict(zip(sweep["parameters"], values, strict=True)) for values in points]
    assert [(point["ablation"], point["seed"]) for point in points] == [("none", 0), ("none", 1)]
    program, *arguments, last = sweep["command"]
    assert (program, last, sweep["method"], len(points)) == ("megasr", "${args}", "grid", 2)
    for point in points:
        for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID"):  # as an agent starts it
            monkeypatch.setenv(name, "of-the-agent")
        assert cli.main([*arguments, *(f"--{name}={value}" for name, value in point.items())]) == 0
        assert "WANDB_RUN_ID" not in os.environ
    assert not (output / "index.html").exists()

    capsys.readouterr()
    assert _study("plan", recipe, output) == 0
    assert "to do  " not in capsys.readouterr().out
    assert _study("report", recipe, output) == 0
    assert (output / "index.html").is_file()
    assert cli.main([*arguments, "--ablation=none", "--seed=0"]) == 0  # done: nothing is done again
    assert cli.main([*arguments, "--ablation=none", "--seed=7"]) == 2
    assert "has no run of ablation 'none' with seed 7" in capsys.readouterr().err


def test_the_plan_names_runs_and_cost(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _study("plan", recipe, tmp_path / "out", "--devices", "cpu", "--per-device", "1") == 0
    said = capsys.readouterr().out
    assert "0 done" in said
    assert "with 2 trainings" in said
    assert "MB of disk" in said
    assert not (tmp_path / "out").exists()


def test_a_plan_runs_no_command_unless_it_is_asked_to_measure(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"pipe:sh -c 'touch {tmp_path}/ran' {{name}}"
    config = yaml.safe_load(recipe.read_text())
    urls = {"train_url": command, "eval_url": command}
    config["data"] = {"class_path": "ShardDataModule", "init_args": urls}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(config))
    plan = ("plan", tmp_path / "recipe.yaml", tmp_path / "out")
    assert _study(*plan) == 0
    said = capsys.readouterr().out
    assert f"cost not measured, because reading the data runs {command}; --probe measures it" in said
    monkeypatch.setenv("MEGASR_NO_PIPE", "1")
    for action in (plan, ("run", *plan[1:])):
        assert _study(*action, *["--probe"] * (action is plan)) == 2
        assert "MEGASR_NO_PIPE is set" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    monkeypatch.delenv("MEGASR_NO_PIPE")
    assert _study(*plan, "--probe") == 1
    assert "manifest.json: not a shard manifest" in capsys.readouterr().err
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--slurm", "partition=a"], "--slurm goes with --launcher slurm"),
        (["--launcher", "slurm", "--only", "a"], "leave out --launcher slurm"),
        (["--launcher", "wandb", "--ablation", "a", "--seed", "0"], "leave out --launcher wandb"),
        (["--ablation", "a"], "--ablation and --seed name a run together"),
        (["--ablation", "a", "--seed", "0", "--only", "b"], "--only and --ablation both name a run"),
        (["--launcher", "slurm", "--devices", "0"], "are of --launcher local"),
        (["--launcher", "wandb", "--per-device", "2"], "are of --launcher local"),
        (["--launcher", "slurm", "--slurm", "gpus"], "KEY=VALUE, got 'gpus'"),
        (["--only", "nobody"], "no run 'nobody'"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    options: list[str], says: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _study("run", recipe, tmp_path / "out", *options) == 2
    assert says in capsys.readouterr().err


def test_bicubic_comes_before_any_run(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _study("plan", recipe, tmp_path / "out", "--no-probe") == 0
    last = [line.split()[2] for line in capsys.readouterr().out.splitlines() if line.startswith("to do")][-1]
    assert _study("run", recipe, tmp_path / "out", "--only", last) == 1
    assert "comes first" in capsys.readouterr().err
