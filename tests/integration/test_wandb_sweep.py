"""A study as a W&B sweep: W&B's own `wandb sweep` and agent against a server on this machine that records."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from megasr import cli
from tests.helpers.sources import ROOT
from tests.helpers.wandb_record import history, offline_runs, read_records
from tests.helpers.wandb_server import SWEEP_ID, SweepServer

QUICK = ROOT / "experiments/tiny/prior_selection_quick.yaml"
AGENT = "from wandb import wandb_agent as a; a.Agent.POLL_INTERVAL = 0.5; a.run_agent('lab/megasr/{}')"
RUN = "agent0001"


def _recipe(folder: Path) -> Path:
    """One seed of the quick study, whose training dies once, one step after its checkpoint."""
    config = yaml.safe_load(QUICK.read_text())
    config["study"]["seeds"] = [0, 1]
    config["data"]["init_args"] |= {"pool": 4, "train_samples": 4, "eval_samples": 2, "batch_size": 2}
    config["data"]["init_args"] |= {"crop_size_px": 32, "eval_crop_size_px": 64}
    die = {"class_path": "tests.helpers.die_once.DieOnce", "init_args": {"step": 3, "mark": str(folder / "died")}}
    config["trainer"] |= {"max_steps": 4, "log_every_n_steps": 1, "callbacks": [die]}
    config["model"]["optimizer"]["warmup_steps"] = 1
    config["study"]["evaluation"]["photographs"] |= {"eval_crop_size_px": 64, "eval_samples": 2}
    path = folder / "quick.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def _started(record: Path) -> dict[str, Any]:
    (run,) = (item["run"] for item in read_records(record) if item["type"] == "run")
    return run


def _of(stage: str, names: set[str]) -> set[str]:
    """A stage's names, without the ranges of timesteps that were not drawn in four steps."""
    own = {name.removeprefix(f"{stage}/") for name in names if name.startswith(f"{stage}/")}
    return {name for name in own if not name.startswith("loss_t")}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_agents_take_points_of_the_studys_axes_and_go_on_with_what_was_killed(tmp_path: Path) -> None:
    output, recipe = tmp_path / "out", _recipe(tmp_path)
    megasr = tmp_path / "bin" / "megasr"
    megasr.parent.mkdir()
    # Of the command alone: an agent needs a server, the run is read back from its files.
    start = f'{sys.executable} -c "import sys; from megasr import cli; sys.exit(cli.main())" "$@"'
    megasr.write_text(f"#!/bin/sh\nWANDB_MODE=offline exec {start}\n")
    megasr.chmod(0o755)

    def run(*command: str, **more: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{megasr.parent}:{os.environ['PATH']}", **more}
        del environment["WANDB_MODE"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    study = ("study", "run", "prior_selection_quick", "--config", str(recipe), "--output", str(output))
    assert cli.main([*study, "--launcher", "wandb", "--retries", "0"]) == 0
    with SweepServer() as server:
        login = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": 40 * "a", "WANDB_SILENT": "false"}
        said = run(sys.executable, "-m", "wandb", "sweep", str(output / "sweep.yaml"), **login)
        assert f"wandb agent lab/megasr/{SWEEP_ID}" in said
        assert server.sweep["method"] == "grid"
        assert server.sweep["parameters"] == {"ablation": {"values": ["none"]}, "seed": {"values": [0, 1]}}
        point = {"ablation": {"value": "none"}, "seed": {"value": 0}}
        command = {"type": "run", "run_id": RUN, "program": "megasr", "args": point}
        server.commands = [command, command | {"type": "resume"}]
        run(sys.executable, "-c", AGENT.format(SWEEP_ID), **login)
        assert (server.done, (tmp_path / "died").exists()) == (2, True)

    (folder,) = output.glob("*-none-s0-*")
    killed, resumed = offline_runs(folder)
    for record in (killed, resumed):
        started = _started(record)
        assert (started["run_id"], started["sweep_id"]) == (RUN, SWEEP_ID)
        config = started["config"]["update"]
        assert (config["ablation"], config["seed"], config["guidance"]["hed"]) == ("none", 0, False)
    losses = [row for row in history(resumed) if "train/loss" in row]
    assert [row["trainer/global_step"] for row in losses] == [2, 3], "from the checkpoint at the end of the epoch"
    ended = history(resumed)[-1]
    assert (ended["test/images._type"], ended["test/guidance_use._type"]) == ("table-file", "image-file")

    # A fit of the run's config has the same columns, and its numbers the same names.
    fit = ["fit", "--config", str(folder / "config.yaml"), "--monitor.every_n_steps=4", "--monitor.images=2"]
    assert cli.main([*fit, f"--trainer.default_root_dir={tmp_path / 'fit'}"]) == 0
    (fitted,) = offline_runs(tmp_path / "fit")
    assert _started(fitted)["config"]["update"]["guidance"] == config["guidance"]
    names, fit_names = ({key for row in history(record) for key in row} for record in (resumed, fitted))
    for stage in ("train", "grad_norm", "modulation"):
        assert _of(stage, names) == _of(stage, fit_names) != set()
    assert {"psnr_y", "fsim"} <= _of("test", names) & _of("val", fit_names)
    (other,) = offline_runs(next(output.glob("*-hed-s0-*")))  # trained by none's training
    started = _started(other)
    assert started["sweep_id"] == SWEEP_ID
    assert started["run_id"].startswith("prior_selection_quick-")
    assert not any(output.glob("*-s1-*"))
