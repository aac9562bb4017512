"""`megasr study run | list`: answer a question over many runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Declare `study` and its two actions."""
    parser = commands.add_parser("study", help="run a study: a question over many runs", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    run_parser = actions.add_parser("run", help="run a study and write its report; finished runs are kept")
    run_parser.add_argument("name", metavar="NAME", help="a study of `megasr study list`")
    run_parser.add_argument("--config", type=Path, required=True, help="YAML recipe of the study")
    run_parser.add_argument("--output", type=Path, required=True, help="folder for the runs, the ledger and the report")
    run_parser.add_argument("--seeds", type=int, nargs="+", help="seeds, instead of the recipe's")
    run_parser.add_argument("--steps", type=int, help="optimiser steps per run, instead of the recipe's")
    run_parser.add_argument("--devices", default="auto", help="cpu, or GPUs like 0,1 (default: all GPUs, else the CPU)")
    run_parser.add_argument("--per-device", type=int, help="trainings at a time on each (default: 1 per GPU or core)")
    run_parser.add_argument("--retries", type=int, default=1, help="of a training whose process dies (default: 1)")
    run_parser.set_defaults(run=run, passes_options_on=False)
    list_parser = actions.add_parser("list", help="name the studies and their questions")
    list_parser.set_defaults(run=list_studies, passes_options_on=False)


def run(arguments: argparse.Namespace) -> None:
    """Run the study, then write its report below the output folder.

    Raises:
        UsageError: the study or a value of its recipe is unknown.
        MegaSRError: a run failed.
    """
    from ablations.launch.slots import make_slots
    from ablations.report import write_report
    from ablations.runner import run_study

    result = run_study(
        study=arguments.name,
        config=arguments.config,
        output=arguments.output,
        seeds=arguments.seeds,
        steps=arguments.steps,
        slots=make_slots(arguments.devices, arguments.per_device),
        retries=arguments.retries,
    )
    write_report(result, arguments.output)


def list_studies(arguments: argparse.Namespace) -> None:
    """Print one line per study: its name and its question."""
    from ablations.registry import studies

    for name, study in sorted(studies().items()):
        print(f"{name:<20} {study.question}")
