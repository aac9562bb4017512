"""Runs a study in this process, one run after the other; what is finished is not run again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ablations.plan import Components, RunPlan, default_components, plan_runs, read_recipe
from ablations.registry import get_study
from ablations.results import RunResult, StudyResult, read_finished
from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.evaluator import Evaluator
from megasr.evaluation.protocol import WEIGHT_FREE_V1, Protocol


def run_study(
    study: str,
    config: Path,
    output: Path,
    seeds: Sequence[int] | None = None,
    steps: int | None = None,
    *,
    protocol: Protocol = WEIGHT_FREE_V1,
    components: Components | None = None,
) -> StudyResult:
    """Run every planned run of a study that is not finished yet under `output/<run_id>/`.

    Args:
        study: name of a registered study.
        config: the recipe.
        output: folder of the run folders.
        seeds: instead of the recipe's study.seeds.
        steps: instead of the recipe's trainer.max_steps.
        protocol: how the numbers are taken.
        components: classes the config builds; the project's own by default.

    Raises:
        UsageError: unknown study, a recipe that is not for it, or a config that does not fit.
        MegaSRError: a run failed; finished runs are kept and the message names the failed one.
    """
    chosen = get_study(study)
    components = components or default_components()
    recipe = read_recipe(config, components, steps)
    if recipe.study != chosen.name:
        raise UsageError(f"{config} is a recipe for study {recipe.study!r}, not for {chosen.name!r}")
    plans = plan_runs(chosen, recipe, components, seeds)
    finished = {plan.run_id: read_finished(plan, protocol, output / plan.run_id) for plan in plans}
    reused = tuple(run_id for run_id, result in finished.items() if result is not None)
    todo = [plan for plan in plans if finished[plan.run_id] is None]
    if todo:
        group = f"{chosen.name}-{hashlib.blake2b(json.dumps(recipe.config).encode(), digest_size=4).hexdigest()}"
        finished |= {
            result.run_id: result
            for result in _run_all(todo, group, output / plans[0].run_id, components, protocol, output)
        }
    runs = [finished[plan.run_id] for plan in plans]
    return StudyResult(chosen, protocol, tuple(run for run in runs if run is not None), output, reused)


def _run_all(
    plans: Sequence[RunPlan], group: str, baseline: Path, components: Components, protocol: Protocol, output: Path
) -> Iterator[RunResult]:
    from ablations.execute import execute_baseline, execute_run
    from ablations.tracking import Tracker

    evaluator = Evaluator(protocol)
    with _progress(sum(plan.max_steps for plan in plans)) as (advance, describe, tell):
        tracker = Tracker(group, tell)
        for number, plan in enumerate(plans, start=1):
            describe(f"run {number}/{len(plans)}: {plan.ablation}" + (f" seed {plan.seed}" if plan.max_steps else ""))
            folder = output / plan.run_id
            try:
                if plan.seed is None:
                    yield execute_baseline(plan, components, evaluator, folder)
                else:
                    yield execute_run(plan, components, evaluator, folder, baseline, tracker, advance)
            except (MegaSRError, UsageError) as error:
                raise MegaSRError(f"run {plan.run_id}: {error} (finished runs are kept)") from error


@contextmanager
def _progress(total_steps: int) -> Iterator[tuple[Callable[[], None], Callable[[str], None], Callable[[str], None]]]:
    """One bar over the steps of all runs, with the time left: yields advance(), describe(text) and tell(line)."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps ·"),
        TimeElapsedColumn(),
        TextColumn("· left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("", total=total_steps)
        yield (
            lambda: bar.advance(task),
            lambda text: bar.update(task, description=text),
            lambda line: bar.console.print(line, markup=False, highlight=False),
        )
