"""Train every asked seed of every asked recipe in this process, and keep each as soon as it is finished."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations.plan import Components, RunPlan, build, default_components
from ablations.progress import steps_progress
from ablations.registry import flatten
from ablations.tracking import Tracker
from experiments.benchmarks.record import cpu_name
from experiments.reference.recipes import RECIPES, Recipe, load_recipe
from experiments.reference.records import (
    REFERENCES,
    Reference,
    SeedRun,
    changes,
    read_reference,
    same_images,
    write_reference,
)
from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.evaluator import Evaluator
from megasr.evaluation.protocol import WEIGHT_FREE_V1, Protocol
from megasr.evaluation.result import Row
from megasr.files import locked_folder
from megasr.provenance import provenance

RUNS = Path("runs/reference")


@dataclass(frozen=True)
class Workplace:
    """Where measurements are made.

    Attributes:
        recipes: folder of the recipes; "tiny/megasr" is tiny/megasr.yaml in it.
        references: folder of the references; "tiny/megasr" is tiny/megasr.json in it.
        runs: folder for checkpoints and pictures, and for the lock of processes that write references.
        protocol: how the numbers are taken.
        components: classes the recipes build; the project's own by default.
    """

    recipes: Path = RECIPES
    references: Path = REFERENCES
    runs: Path = RUNS
    protocol: Protocol = WEIGHT_FREE_V1
    components: Components | None = None

    def load(self, name: str) -> Recipe:
        """A recipe by its name. Raises as load_recipe."""
        return load_recipe(name, self.recipes, self.classes, self.protocol)

    def path(self, name: str) -> Path:
        """The file of a reference."""
        return self.references / f"{name}.json"

    @property
    def classes(self) -> Components:
        """The components; the project's own take seconds to import."""
        return self.components or default_components()


class Untracked(Tracker):
    """The reference is the record: nothing goes to Weights & Biases."""

    def open(self, plan: RunPlan, folder: Path) -> Any | None:
        """Open nothing."""
        return None


def measure(names: Sequence[str], seeds: Sequence[int], place: Workplace) -> None:
    """Measure the seeds that the references do not hold yet, seed after seed, so that recipes can soon be compared.

    A reference of another recipe, prior, protocol or evaluation set is started anew, which is said. A run that fails
    is told, and the others go on.

    Raises:
        UsageError: an unknown recipe, or one that cannot be used; nothing has been trained then.
        MegaSRError: runs have failed; they are named.
    """
    if len(set(seeds)) != len(seeds) or len(set(names)) != len(names):
        raise UsageError(f"a recipe or a seed is named twice: {', '.join(names)}; {', '.join(map(str, seeds))}")
    recipes = [place.load(name) for name in names]  # all of them, before hours of training
    evaluator = Evaluator(place.protocol)
    starts = {recipe.name: start(recipe, place, evaluator) for recipe in recipes}
    known = {name: _known(reference, place) for name, reference in starts.items()}
    failed = []
    for seed in seeds:
        todo = [recipe for recipe in recipes if seed not in known[recipe.name]]
        if not todo:
            continue
        for recipe in todo:
            prepare(recipe.plan(seed), place)
        with steps_progress(sum(recipe.plan(seed).max_steps for recipe in todo)) as (advance, describe, tell):
            for number, recipe in enumerate(todo, start=1):
                describe(f"seed {seed}, {number}/{len(todo)}: {recipe.name}")
                try:
                    run = run_seed(recipe, seed, place, evaluator, place.runs, advance)
                    tell(_summary(_keep(starts[recipe.name], run, place), run))
                except (MegaSRError, UsageError) as error:
                    failed.append(f"{recipe.name} seed {seed}")
                    tell(f"{failed[-1]} failed: {error}")
    if failed:
        raise MegaSRError(f"not measured: {', '.join(failed)}; the reasons are above")


def start(recipe: Recipe, place: Workplace, evaluator: Evaluator) -> Reference:
    """A reference without seeds: bicubic is measured, and its lq and hq written for the runs to be checked against."""
    return Reference(
        recipe=recipe.name,
        fingerprints=dict(recipe.fingerprints),
        protocol=place.protocol.name,
        steps=recipe.plan(0).max_steps,
        batch_size=recipe.config["data"]["init_args"].get("batch_size"),
        config=flatten(recipe.config),
        bicubic=_bicubic(recipe, place, evaluator),
    )


def _bicubic(recipe: Recipe, place: Workplace, evaluator: Evaluator) -> list[Row]:
    from ablations.execute import execute_baseline

    plan = recipe.baseline()
    return execute_baseline(plan, place.classes, evaluator, place.runs / plan.run_id).rows


def _known(fresh: Reference, place: Workplace) -> list[int]:
    """Seeds that need not be run again."""
    path = place.path(fresh.recipe)
    if not path.is_file():
        return []
    found = read_reference(path)
    if reasons := _differences(found, fresh):
        print(f"{fresh.recipe}: changed since it was measured: {', '.join(reasons)}; its file is started anew")
        return []
    print(f"{fresh.recipe}: already measured: seed {', '.join(map(str, found.seeds))}")
    return found.seeds


def _differences(found: Reference, fresh: Reference) -> list[str]:
    reasons = changes(found, fresh.config, fresh.fingerprints)
    return reasons or ([] if same_images(found.bicubic, fresh.bicubic) else ["evaluation images"])


def _keep(fresh: Reference, run: SeedRun, place: Workplace) -> Reference:
    """Add the run to the file, beside the seeds that another process may have added since."""
    path = place.path(fresh.recipe)
    with locked_folder(place.runs):
        found = read_reference(path) if path.is_file() else fresh
        merged = (fresh if _differences(found, fresh) else found).with_run(run)
        write_reference(merged, path)
    return merged


def prepare(plan: RunPlan, place: Workplace) -> None:
    """Make what the data keep for all runs of this process, such as a pool of scenes: no run's training time."""

    data = build(place.classes, {"data": plan.config["data"]}).data
    data.setup("fit")
    next(iter(data.train_dataloader()))


def run_seed(
    recipe: Recipe, seed: int, place: Workplace, evaluator: Evaluator, runs: Path, on_step: Callable[[int, float], None]
) -> SeedRun:
    """Train, restore the evaluation set and measure it. The bicubic baseline must have been measured.

    Raises:
        MegaSRError: as execute_run.
    """
    from ablations.execute import execute_run

    plan, baseline = recipe.plan(seed), place.runs / recipe.baseline().run_id
    # A reference is of today's code: what an earlier one has trained is not gone on from.
    shutil.rmtree(runs / plan.run_id, ignore_errors=True)
    result = execute_run(
        plan, place.classes, evaluator, runs / plan.run_id, baseline, Untracked(plan.study, print), on_step
    )
    about = provenance(result.device)
    return SeedRun(
        seed=seed,
        rows=result.rows,
        train_s=round(result.train_s, 3),
        evaluate_s=round(result.evaluate_s, 3),
        platform=describe_platform(result.device, about),
        commit=about["commit"],
        time=about["time"],
    )


def describe_platform(device: str, about: dict[str, Any]) -> dict[str, Any]:
    """What decides, beside the code, whether numbers come out equal to the last bit; and the number of cores."""
    import cv2
    import torch

    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": about["machine"],
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **about["versions"], "opencv": cv2.__version__},
    }


def _summary(reference: Reference, run: SeedRun) -> str:
    means = (f"{name} {sum(row[name] for row in run.rows) / len(run.rows):.4f}" for name in reference.metrics)
    return f"{reference.recipe} seed {run.seed}: {', '.join(means)}; {run.train_s:.0f} s of training"
