"""`megasr study list | plan | run | report | agree`: answer a question over many runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Declare `study` and its actions."""
    parser = commands.add_parser("study", help="run a study: a question over many runs", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    show = actions.add_parser("list", help="name the studies and their questions, or what one expects")
    show.add_argument("name", metavar="NAME", nargs="?", help="a study: show its ablations and their hypotheses")
    show.set_defaults(run=list_studies, passes_options_on=False)
    plan = actions.add_parser("plan", help="name the runs, what is done, and what the rest will cost here")
    plan.add_argument("--no-probe", action="store_true", help="do not take a few steps to measure the cost")
    start = actions.add_parser("run", help="run a study and write its report; finished runs are kept")
    start.add_argument("--retries", type=int, default=1, help="of a training whose process dies (default: 1)")
    report = actions.add_parser("report", help="write the report of what is finished, and run nothing")
    agree = actions.add_parser("agree", help="say how well one study's ranking predicts another's")
    agree.add_argument("--config", type=Path, nargs=2, required=True, help="recipes: of the cheap study, of the other")
    agree.add_argument("--output", type=Path, nargs=2, required=True, help="the folders of both")
    agree.set_defaults(run=run_agree, passes_options_on=False)
    for action, run in ((plan, run_plan), (start, run_study), (report, run_report)):
        action.add_argument("name", metavar="NAME", help="a study of `megasr study list`")
        action.add_argument("--config", type=Path, required=True, help="YAML recipe of the study")
        action.add_argument("--output", type=Path, required=True, help="folder for the runs, the ledger and the report")
        action.add_argument("--seeds", type=int, nargs="+", help="seeds, instead of the recipe's")
        action.add_argument("--steps", type=int, help="optimiser steps per run, instead of the recipe's")
        action.set_defaults(run=run, passes_options_on=False)
    for action in (plan, start):
        action.add_argument("--devices", default="auto", help="cpu, or GPUs like 0,1 (default: all GPUs, else the CPU)")
        action.add_argument("--per-device", type=int, help="trainings at a time on each (default: 1 per GPU or core)")


def list_studies(arguments: argparse.Namespace) -> None:
    """Print one line per study, its name and its question; of one study its ablations and their hypotheses.

    Raises:
        UsageError: there is no study of this name.
    """
    from ablations.registry import get_study, studies

    if arguments.name is not None:
        from ablations.planned import describe_hypotheses

        print(describe_hypotheses(get_study(arguments.name)))
        return
    for name, study in sorted(studies().items()):
        print(f"{name:<26} {study.question}")


def run_plan(arguments: argparse.Namespace) -> None:
    """Print what is expected, every run with its state, then the cost of those that are not finished.

    Raises:
        UsageError: the study or a value of its recipe is unknown.
        MegaSRError: the probe fails, as the study would.
    """
    from ablations.estimate import estimate
    from ablations.launch.slots import make_slots
    from ablations.planned import describe_cost, describe_hypotheses, describe_runs

    study = _open(arguments)
    print(describe_hypotheses(study.study) + "\n")
    print(describe_runs(study))
    if study.jobs and not arguments.no_probe:
        slots = make_slots(arguments.devices, arguments.per_device)
        print(describe_cost(estimate(study.jobs, slots, study.components), slots))


def run_study(arguments: argparse.Namespace) -> None:
    """Run the study, then write its report into the output folder.

    Raises:
        UsageError: the study or a value of its recipe is unknown.
        MegaSRError: a run failed.
    """
    from ablations.launch.slots import make_slots
    from ablations.report import write_report

    slots = make_slots(arguments.devices, arguments.per_device)
    write_report(_open(arguments).run(slots, arguments.retries), arguments.output)


def run_report(arguments: argparse.Namespace) -> None:
    """Write the report of the runs that are finished.

    Raises:
        UsageError: the study or a value of its recipe is unknown.
        MegaSRError: no seed is finished for every ablation.
    """
    from ablations.report import write_report

    write_report(_open(arguments).result(), arguments.output)


def run_agree(arguments: argparse.Namespace) -> None:
    """Print Kendall's tau of two studies over the combinations that both have finished.

    Raises:
        UsageError: they cannot be compared.
        MegaSRError: one of them has no seed that is finished for every ablation.
    """
    from ablations.agreement import compare_studies
    from ablations.conclusions import require_seeds
    from ablations.plan import default_components, read_recipe
    from ablations.runner import open_study

    results = []
    for config, output in zip(arguments.config, arguments.output, strict=True):
        name = read_recipe(config, default_components()).study
        results.append(require_seeds(open_study(name, config, output).result()))
    print(compare_studies(*results).as_markdown())


def _open(arguments: argparse.Namespace) -> Any:
    from ablations.runner import open_study

    return open_study(arguments.name, arguments.config, arguments.output, arguments.seeds, arguments.steps)
