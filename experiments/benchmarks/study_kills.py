"""Kill a study again and again, at random, and compare its table with that of an undisturbed one.

    python -m experiments.benchmarks.study_kills --kills 20 --output study_kills.json

The study is the quick prior-selection study on the shipped prior, made small. A kill is SIGKILL to the driver or to one
of the trainings. After each kill of the driver the same command is given again; a killed training is started again by
its driver. Exit status 1 when a number of any image differs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import yaml

from ablations.launch.local import LocalExecutor, Slot
from ablations.results import METRICS_FILE
from ablations.runner import open_study
from experiments.benchmarks.record import publish
from megasr.rng import numpy_generator

RECIPE = Path(__file__).parents[1] / "tiny" / "prior_selection_quick.yaml"
STUDY = "prior_selection_quick"
_SMALLER = {"pool": 32, "eval_samples": 4, "eval_crop_size_px": 64, "train_samples": 512}
_STARTING_S = 60.0


def write_recipe(folder: Path, steps: int) -> Path:
    """The quick recipe with fewer scenes and steps."""
    recipe = yaml.safe_load(RECIPE.read_text())
    recipe["data"]["init_args"] |= _SMALLER
    recipe["trainer"]["max_steps"] = steps
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def start(recipe: Path, output: Path) -> Any:
    """The study in a process of its own, two trainings at a time; a kill counts as no failure of its own."""
    process = multiprocessing.get_context("fork").Process(target=_study, args=(recipe, output))
    process.start()
    return process


def _study(recipe: Path, output: Path) -> None:
    os.setpgrp()
    output.mkdir(parents=True, exist_ok=True)
    with (output.parent / f"{output.name}.log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        result = open_study(STUDY, recipe, output).run(LocalExecutor([Slot("cpu0", 1), Slot("cpu1", 1)], retries=1000))
        os._exit(1 if result.failed else 0)


def rows_of(output: Path) -> dict[str, Any]:
    """Run id -> the numbers of every image."""
    return {path.parent.name: json.loads(path.read_text())["rows"] for path in sorted(output.glob(f"*/{METRICS_FILE}"))}


def disturb(recipe: Path, output: Path, kills: int, seed: int) -> Counter[str]:
    """Run the study to its end through `kills` random kills. Returns how often what was killed."""
    generator = numpy_generator(seed, "study_kills")
    killed: Counter[str] = Counter()
    driver = start(recipe, output)
    while True:
        driver.join(generator.uniform(1, 12) if killed.total() < kills else None)
        if driver.exitcode is not None:
            break
        children = _trainings(driver.pid)
        what = "driver" if not children or generator.random() < 0.4 else "training"
        victim = psutil.Process(driver.pid) if what == "driver" else children[int(generator.integers(len(children)))]
        print(f"kill {killed.total() + 1}: {what} {victim.pid}", flush=True)
        victim.kill()
        killed[what] += 1
        if what == "driver":
            driver.join()
            driver = start(recipe, output)
    if driver.exitcode != 0:
        sys.exit(f"the study ended with {driver.exitcode}; see {output.parent / f'{output.name}.log'}")
    return killed


def _trainings(driver: int) -> list[psutil.Process]:
    deadline = time.monotonic() + _STARTING_S
    while time.monotonic() < deadline:
        try:
            found = psutil.Process(driver).children()
        except psutil.NoSuchProcess:
            return []
        if found:
            return found
        time.sleep(0.05)
    return []


def main() -> None:
    """Parse, run both studies, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=120, help="of each training (default: 120)")
    parser.add_argument("--seed", type=int, default=0, help="of when and what is killed")
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args()
    import ablations.execute  # noqa: F401  once: the drivers are forked from this process

    os.environ["WANDB_MODE"] = "disabled"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recipe = write_recipe(folder, arguments.steps)
        killed = disturb(recipe, folder / "killed", arguments.kills, arguments.seed)
        calm = start(recipe, folder / "calm")
        calm.join()
        if calm.exitcode != 0:
            sys.exit(f"the undisturbed study ended with {calm.exitcode}:\n{(folder / 'calm.log').read_text()}")
        expected, found = rows_of(folder / "calm"), rows_of(folder / "killed")
        differing = sorted(run for run in expected.keys() | found.keys() if expected.get(run) != found.get(run))
    results = {"killed": dict(killed), "runs": len(expected), "runs_that_differ": differing}
    publish("study_kills", {"steps": arguments.steps, "seed": arguments.seed}, results, arguments.output)
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
