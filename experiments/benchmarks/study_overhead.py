"""What a study costs beyond its runs: the same trainings as a study and started by hand, one after another.

    python -m experiments.benchmarks.study_overhead --steps 100 --output study_overhead.json

    study   `megasr study run` on one slot: one import, then a forked process per training, checkpoints
    hand    `megasr fit --config RUN/config.yaml` for the same configs: a process and an import each, checkpoints too
    spent   the study's time without its evaluations, which the other side does not make

Nothing is logged to W&B on either side. The kinds take turns, so that a slow minute hits both.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ablations.runner import OpenStudy, open_study
from experiments.benchmarks.record import publish

_NAME = "prior_selection_quick"
_RECIPE = Path(__file__).parents[1] / "tiny" / f"{_NAME}.yaml"
_CLI = (sys.executable, "-m", "megasr.cli")


def timed(*arguments: str) -> float:
    """Seconds of a command, its import included."""
    started = time.perf_counter()
    environment = os.environ | {"WANDB_MODE": "disabled"}
    subprocess.run([*_CLI, *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def open_in(folder: Path, seeds: list[int], steps: int) -> OpenStudy:
    """The study in a folder."""
    return open_study(_NAME, _RECIPE, folder, seeds, steps)


def as_study(folder: Path, seeds: list[int], steps: int) -> dict[str, float]:
    """Seconds of a study: all of it, and what of that was evaluation."""
    options = ["--output", str(folder), "--steps", str(steps), "--devices", "cpu", "--per-device", "1"]
    total = timed("study", "run", _NAME, "--config", str(_RECIPE), *options, "--seeds", *map(str, seeds))
    runs = open_in(folder, seeds, steps).finished.values()
    return {
        "total_s": total,
        "evaluation_s": sum(run.evaluate_s for run in runs),
        "training_s": sum({run.train_s for run in runs}),
    }


def by_hand(study: OpenStudy, folder: Path) -> float:
    """Seconds of the same trainings by `megasr fit`."""
    hosts = {plan.training: plan for plan in reversed(study.plans) if plan.seed is not None}
    spent = 0.0
    for plan in hosts.values():
        config = str(study.output / plan.run_id / "config.yaml")
        options = ["--trainer.logger=false", "--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"]
        spent += timed("fit", "--config", config, *options, f"--trainer.default_root_dir={folder / plan.run_id}")
    return spent


def main() -> None:
    """Print and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="of every training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3], help="one training each")
    parser.add_argument("--repeats", type=int, default=2, help="of both kinds, in turns")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the record")
    arguments = parser.parse_args()
    rounds = []
    for number in range(arguments.repeats):
        folder = Path(tempfile.mkdtemp())
        study = as_study(folder / "study", arguments.seeds, arguments.steps)
        hand_s = by_hand(open_in(folder / "study", arguments.seeds, arguments.steps), folder / "hand")
        spent = study["total_s"] - study["evaluation_s"]
        rounds.append(study | {"spent_s": spent, "hand_s": hand_s, "ratio": spent / hand_s})
        print(f"round {number}: study {spent:.0f} s without evaluation, by hand {hand_s:.0f} s", flush=True)
        shutil.rmtree(folder)
    settings = {"trainings": len(arguments.seeds), "steps": arguments.steps, "repeats": arguments.repeats}
    publish("study_overhead", settings, {"rounds": rounds}, arguments.output)


if __name__ == "__main__":
    main()
