"""`megasr study list | plan | run | evaluate | report | agree`: answer a question over many runs."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megasr.errors import MegaSRError, UsageError
from megasr.files import at_home, write_whole

if TYPE_CHECKING:
    from ablations.launch.local import LocalExecutor
    from ablations.runner import OpenStudy


def add_parser(commands: Any) -> None:
    """Declare `study` and its actions."""
    parser = commands.add_parser("study", help="run a study: a question over many runs", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    show = actions.add_parser("list", help="name the studies and their questions, or what one expects")
    show.add_argument("name", metavar="NAME", nargs="?", help="a study: show its ablations and their hypotheses")
    show.set_defaults(run=list_studies, passes_options_on=False)
    plan = actions.add_parser("plan", help="name the runs, what is done, and what the rest will cost here")
    probe = "take a few steps to measure the cost (default, unless reading the data runs a pipe: command)"
    plan.add_argument("--probe", action=argparse.BooleanOptionalAction, help=probe)
    start = actions.add_parser("run", help="run a study and write its report; finished runs are kept")
    start.add_argument("--retries", type=int, default=1, help="of a training whose process dies (default: 1)")
    where = "processes here (default), SLURM jobs, or the agents of a W&B sweep"
    start.add_argument("--launcher", choices=("local", "slurm", "wandb"), default="local", help=where)
    start.add_argument("--slurm", nargs="+", default=[], metavar="KEY=VALUE", help="of the jobs: partition=a time=600")
    start.add_argument("--only", metavar="RUN_ID", help="do the training of this run alone, and write no report")
    start.add_argument("--ablation", metavar="NAME", help="with --seed: as --only, as the agents of a sweep give it")
    start.add_argument("--seed", type=int, help="of --ablation")
    again = actions.add_parser("evaluate", help="evaluate what is trained, also on new sets or by another protocol")
    again.add_argument("--protocol", metavar="NAME", help="of all evaluation sets, instead of the recipe's")
    report = actions.add_parser("report", help="write the report of what is finished, and run nothing")
    agree = actions.add_parser("agree", help="say how well one study's ranking predicts another's")
    agree.add_argument("--config", type=Path, nargs=2, required=True, help="recipes: of the cheap study, of the other")
    agree.add_argument("--output", type=Path, nargs=2, required=True, help="the folders of both")
    agree.set_defaults(run=run_agree, passes_options_on=False)
    for action, run in ((plan, run_plan), (start, run_study), (again, run_evaluate), (report, run_report)):
        named = "a study of `megasr study list`, or the YAML file of one of your own, which is its recipe too"
        action.add_argument("name", metavar="NAME", help=named)
        action.add_argument("--config", type=Path, help="YAML recipe of the study")
        action.add_argument("--output", type=Path, required=True, help="folder for the runs and the report")
        action.add_argument("--seeds", type=int, nargs="+", help="seeds, instead of the recipe's")
        action.add_argument("--steps", type=int, help="optimiser steps per run, instead of the recipe's")
        action.set_defaults(run=run, passes_options_on=False)
    for action in (plan, start, again):
        action.add_argument("--devices", default="auto", help="cpu, or GPUs like 0,1 (default: all GPUs, else the CPU)")
        action.add_argument("--per-device", type=int, help="trainings at a time on each (default: 1 per GPU or core)")


def list_studies(arguments: argparse.Namespace) -> None:
    """Print one line per study, or of one study its ablations and their hypotheses."""
    from ablations.studies import get_study, studies

    if arguments.name is not None:
        from ablations.planned import describe_hypotheses

        print(describe_hypotheses(get_study(arguments.name)))
        return
    for name, study in sorted(studies().items()):
        print(f"{name:<26} {study.question}")


def run_plan(arguments: argparse.Namespace) -> None:
    """Print what is expected, every run with its state, and the cost of those that are not finished."""
    study = _open(arguments)
    from ablations.planned import describe_cost, describe_hypotheses, describe_runs, pipe_commands

    study.check_unchanged()
    print(describe_hypotheses(study.study) + "\n")
    print(describe_runs(study))
    commands = pipe_commands(study)
    if study.jobs and not commands:
        study.check()
    if study.jobs and arguments.probe is None and commands:
        print(f"cost not measured, because reading the data runs {', '.join(commands)}; --probe measures it")
    elif study.jobs and arguments.probe is not False:
        _show_commands(study)
        print(describe_cost(study, _local(study, arguments).slots))


def run_study(arguments: argparse.Namespace) -> None:
    """Run the study, then write its report into the output folder.

    With `--only`, or `--ablation` and `--seed`, one training is done and no report is written; with `--launcher wandb`
    a sweep over these is written, whose agents do that. Raises MegaSRError when a run failed.
    """
    parameters = _check_options(arguments)
    study = _open(arguments)
    _show_commands(study)
    if arguments.ablation is not None:
        arguments.only = study.find(arguments.ablation, arguments.seed).run_id
    if arguments.only is not None:
        from ablations.tracking import join_sweep

        host, *others = study.sharing(arguments.only)
        join_sweep(study.output / host.run_id, (study.output / plan.run_id for plan in others))
        if failed := study.run_one(arguments.only, _local(study, arguments)):
            raise MegaSRError("; ".join(f"{run_id}: {reason}" for run_id, reason in failed.items()))
        return
    if arguments.launcher == "wandb":
        _write_sweep(study, arguments)
        return
    from ablations.launch.slurm import SlurmExecutor
    from ablations.report import write_report

    if arguments.launcher == "slurm":
        executor = SlurmExecutor(arguments.output, parameters, arguments.retries, study.devices)
        executor.check()
        result = study.run(executor)
    else:
        result = study.run(_local(study, arguments))
    write_report(result, arguments.output)


def _check_options(arguments: argparse.Namespace) -> dict[str, str]:
    """The parameters of --slurm. Raises UsageError when options do not go together."""
    if arguments.slurm and arguments.launcher != "slurm":
        raise UsageError("--slurm goes with --launcher slurm")
    if (arguments.ablation is None) != (arguments.seed is None):
        raise UsageError("--ablation and --seed name a run together; --seeds are the seeds of the study")
    if arguments.only is not None and arguments.ablation is not None:
        raise UsageError("--only and --ablation both name a run; leave one out")
    if (arguments.only is not None or arguments.ablation is not None) and arguments.launcher != "local":
        raise UsageError(f"--only does a run here and now; leave out --launcher {arguments.launcher}")
    if arguments.launcher != "local" and (arguments.devices != "auto" or arguments.per_device is not None):
        raise UsageError("--devices and --per-device are of --launcher local; a job takes the device that it is given")
    if wrong := [option for option in arguments.slurm if "=" not in option]:
        raise UsageError(f"--slurm takes KEY=VALUE, got {wrong[0]!r}")
    return dict(option.split("=", 1) for option in arguments.slurm)


def _local(study: OpenStudy, arguments: argparse.Namespace) -> LocalExecutor:
    from ablations.launch.local import LocalExecutor, make_slots

    slots = make_slots(arguments.devices, arguments.per_device, study.devices)
    return LocalExecutor(slots[:1] if getattr(arguments, "only", None) else slots, getattr(arguments, "retries", 0))


def _write_sweep(study: OpenStudy, arguments: argparse.Namespace) -> None:
    """Measure bicubic and write sweep.yaml: a grid over ablations and seeds of the trainings that are left."""
    import yaml

    from megasr.tracking import PROJECT

    command = ["megasr", "study", "run", arguments.name, "--config", str(arguments.config)]
    command += ["--output", str(arguments.output), "--retries", str(arguments.retries)]
    command += ["--seeds", *map(str, arguments.seeds)] if arguments.seeds else []
    command += ["--steps", str(arguments.steps)] if arguments.steps else []
    with study.claimed():
        study.run_baseline()
        left = [job.host for job in study.jobs]
        axes: dict[str, list[Any]] = {
            "ablation": [host.ablation for host in left],
            "seed": [host.seed for host in left],
        }
        sweep = {
            "name": study.group,
            "description": study.study.question,
            "project": os.environ.get("WANDB_PROJECT", PROJECT),
            "method": "grid",
            "parameters": {name: {"values": list(dict.fromkeys(values))} for name, values in axes.items()},
            "command": [*command, "${args}"],
        }
        path = arguments.output / "sweep.yaml"
        write_whole(path, yaml.safe_dump(sweep, sort_keys=False).encode())
    print(f"wandb sweep {path}\nwandb agent SWEEP_ID   # on every device, from this folder; the sweep prints its id")
    print("then the command that made the sweep, without --launcher wandb: it does what is left and writes the report")


def run_evaluate(arguments: argparse.Namespace) -> None:
    """Restore and measure what is trained, as far as that is not done, and write the report; nothing is trained.

    Raises MegaSRError when a run failed, or no seed is trained for all ablations.
    """
    study = _open(arguments)
    _show_commands(study)
    from ablations.report import write_report

    write_report(study.run(_local(study, arguments), train=False), arguments.output)


def run_report(arguments: argparse.Namespace) -> None:
    """Write the report of the runs that are finished. Raises MegaSRError when no seed is finished for all ablations."""
    study = _open(arguments)
    from ablations.report import write_report

    study.check_unchanged()
    write_report(study.result(), arguments.output)


def run_agree(arguments: argparse.Namespace) -> None:
    """Print Kendall's tau of two studies over the combinations that both have finished."""
    from ablations.agreement import compare_studies
    from ablations.conclusions import require_seeds
    from ablations.plan import default_components, read_recipe
    from ablations.runner import open_study

    results = []
    for config, output in zip(arguments.config, arguments.output, strict=True):
        name = read_recipe(config, default_components()).study
        results.append(require_seeds(open_study(name, config, output).result()))
    print(compare_studies(*results).as_markdown())


def _show_commands(study: OpenStudy) -> None:
    """Here, and not in the log of every training."""
    from ablations.planned import pipe_commands
    from data_pipelines.shards.storage import show_command

    for url in pipe_commands(study):
        show_command(url.removeprefix("pipe:"))


def _open(arguments: argparse.Namespace) -> OpenStudy:
    if arguments.config is None:
        arguments.config, arguments.name = _own_study(arguments.name)
    _check_recipe(arguments.name, arguments.config)
    from ablations.runner import open_study
    from megasr.evaluation.protocol import get_protocol

    named = getattr(arguments, "protocol", None)
    given = arguments.name, arguments.config, arguments.output, arguments.seeds, arguments.steps
    return open_study(*given, protocol=None if named is None else get_protocol(named))


def _own_study(file: str) -> tuple[Path, str]:
    """Path and name of the study that a file declares.

    Raises:
        UsageError: it is no YAML file, cannot be read, or names no study.
    """
    import yaml

    from megasr.configs import load_yaml

    path = Path(at_home(file))
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError(f"study {file}: give its recipe with --config, or the YAML file of a study of your own")
    try:
        raw = load_yaml(path.read_text(encoding="utf-8-sig"))
        return path, str(raw["study"]["name"])
    except OSError as error:
        raise UsageError(f"cannot read study {path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise UsageError(f"{path} declares no study: it needs the section study with a name") from error


def _check_recipe(name: str, path: Path) -> None:
    """Say what is wrong with a recipe before torch is imported, as far as that can be known."""
    import yaml

    from megasr.commands.early import check_recipe
    from megasr.configs import load_yaml

    try:
        raw = load_yaml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"cannot read recipe {path}: {error.strerror}") from error
    except (ValueError, yaml.YAMLError):
        return
    section = raw.get("study") if isinstance(raw, dict) else None
    if isinstance(section, dict) and isinstance(section.get("name"), str) and section["name"] != name:
        raise UsageError(f"{path} is a recipe for study {section['name']!r}, not for {name!r}")
    if isinstance(raw, dict):
        check_recipe(raw)
