"""A W&B sweep whose agents do the trainings of a study, each wherever it was started."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from megasr.files import write_whole
from megasr.tracking import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

    from ablations.runner import OpenStudy

SWEEP_FILE = "sweep.yaml"
# An agent tells W&B to make the runs of its commands its own, under ids of its choice. A study's runs have theirs, so
# that one that is tried again, or elsewhere, goes on under the same; and one training may serve several runs.
_OF_AGENT = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")


def write_sweep(study: OpenStudy, command: Sequence[str]) -> Path:
    """Write `sweep.yaml` into the study's folder: a grid with a point for every training that is left.

    Args:
        study: the study; the agents must see its folder under the same name.
        command: what does the study here, without `--only`.

    Returns:
        The file.
    """
    import yaml

    left = [job.host.run_id for job in study.jobs if job.host.seed is not None]
    sweep = {
        "name": study.group,
        "description": study.study.question,
        "project": os.environ.get("WANDB_PROJECT", PROJECT),
        "method": "grid",
        "parameters": {"only": {"values": left}},
        "command": [*command, "${args}"],
    }
    path = study.output / SWEEP_FILE
    write_whole(path, yaml.safe_dump(sweep, sort_keys=False).encode())
    return path


def leave_sweep() -> None:
    """Let the W&B runs of this process be the study's own, not the sweep agent's."""
    for name in _OF_AGENT:
        os.environ.pop(name, None)
