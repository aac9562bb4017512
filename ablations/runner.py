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
from megasr.evaluation.protocol import WEIGHT_FREE_V1
from megasr.evaluation.spec import Protocol


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
        UsageError: unknown study, a recipe that is not for it, a config that does not fit, or a protocol that does not
            measure the study's primary metric.
        MegaSRError: bicubic, which every run is checked against, cannot be measured. Any other run that fails is named
            in the result, and the study goes on.
    """
    chosen = get_study(study)
    protocol.metric(chosen.primary_metric)  # before hours of runs that could not answer the question
    components = components or default_components()
    recipe = read_recipe(config, components, steps)
    if recipe.study != chosen.name:
        raise UsageError(f"{config} is a recipe for study {recipe.study!r}, not for {chosen.name!r}")
    plans = plan_runs(chosen, recipe, components, seeds)
    finished = {plan.run_id: read_finished(plan, protocol, output / plan.run_id) for plan in plans}
    reused = tuple(run_id for run_id, result in finished.items() if result is not None)
    todo = [plan for plan in plans if finished[plan.run_id] is None]
    group = f"{chosen.name}-{hashlib.blake2b(json.dumps(recipe.config).encode(), digest_size=4).hexdigest()}"
    failed: dict[str, str] = {}
    if todo:
        for result in _run_all(todo, group, output / plans[0].run_id, components, protocol, output, failed):
            finished[result.run_id] = result
    runs = [finished[plan.run_id] for plan in plans]
    return StudyResult(chosen, protocol, tuple(run for run in runs if run), output, group, reused, failed)


def _run_all(
    plans: Sequence[RunPlan],
    group: str,
    baseline: Path,
    components: Components,
    protocol: Protocol,
    output: Path,
    failed: dict[str, str],
) -> Iterator[RunResult]:
    """Results of the runs that finish; the reasons of those that do not are put into `failed`."""
    from ablations.execute import execute_baseline, execute_run
    from ablations.tracking import Tracker

    evaluator = Evaluator(protocol)
    with steps_progress(sum(plan.max_steps for plan in plans)) as (advance, describe, tell):
        tracker = Tracker(group, tell)
        for number, plan in enumerate(plans, start=1):
            describe(f"run {number}/{len(plans)}: {plan.ablation}" + (f" seed {plan.seed}" if plan.max_steps else ""))
            folder = output / plan.run_id
            try:
                if plan.seed is None:
                    yield execute_baseline(plan, components, evaluator, folder)
                else:
                    yield execute_run(plan, components, evaluator, folder, baseline, tracker, advance)
            except UsageError as error:
                raise UsageError(f"run {plan.run_id}: {error}") from error
            except MegaSRError as error:
                if plan.seed is None:
                    raise MegaSRError(f"run {plan.run_id}: {error}; no other run can be checked without it") from error
                failed[plan.run_id] = " ".join(str(error).split())
                tell(f"run {plan.run_id} failed: {failed[plan.run_id]}")


@contextmanager
def steps_progress(
    total_steps: int,
) -> Iterator[tuple[Callable[[], None], Callable[[str], None], Callable[[str], None]]]:
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
