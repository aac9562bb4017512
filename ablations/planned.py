"""The plan of a study for people: every run with its state, and what the rest costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ablations.launch.slots import Slot
from ablations.registry import Study
from ablations.runner import OpenStudy

if TYPE_CHECKING:
    from ablations.estimate import Estimate


def describe_runs(study: OpenStudy) -> str:
    """A line per run: its id, whether it is done, and which run trains for it; then a line of totals."""
    done = set(study.finished)
    hosts: dict[str, str] = {}
    lines = []
    for plan in study.plans:
        host = hosts.setdefault(plan.training, plan.run_id)
        state = "done" if plan.run_id in done else "to do"
        if plan.seed is None:
            what = "not trained"
        else:
            what = f"{plan.max_steps} steps" if host == plan.run_id else f"no training: that of {host}"
        lines.append(f"{state:<6} {plan.run_id:<70} {what}")
    counted = Counter(plan.run_id in done for plan in study.plans)
    trainings = sum(job.host.seed is not None for job in study.jobs)
    lines.append(f"{len(study.plans)} runs: {counted[True]} done, {counted[False]} to do, with {trainings} trainings")
    return "\n".join(lines)


def pipe_commands(study: OpenStudy) -> list[str]:
    """The `pipe:` addresses in the data sections of a study's runs, each once."""
    return list(dict.fromkeys(url for plan in study.plans for url in _pipes(plan.config["data"])))


def _pipes(config: Any) -> Iterator[str]:
    if isinstance(config, dict | list):
        for value in config.values() if isinstance(config, dict) else config:
            yield from _pipes(value)
    elif isinstance(config, str) and config.startswith("pipe:"):
        yield config


def describe_hypotheses(study: Study) -> str:
    """The question, what all is compared with, and per ablation what it is and what is expected of it."""
    lines = [study.question, f"compared with {study.reference.name}: {study.reference.description}"]
    for ablation in study.ablations:
        kind = study.controls.get(ablation.name)
        marks = [f"{kind} control"] * (kind is not None) + ["no training"] * (not ablation.retrains)
        name = f"{ablation.name} ({', '.join(marks)})" if marks else ablation.name
        lines += [f"{name}: {ablation.description}", f"    expected: {ablation.hypothesis}"]
    return "\n".join(lines)


def describe_cost(cost: Estimate, slots: Sequence[Slot]) -> str:
    """Two lines: time and storage."""
    names = Counter(slot.name for slot in slots)
    where = ", ".join(name if count == 1 else f"{count} x {name}" for name, count in names.items())
    gpu = any(slot.environment.get("CUDA_VISIBLE_DEVICES") for slot in slots)
    return (
        f"about {_duration(cost.wall_s)} on {where} "
        f"({cost.slot_s / 3600:.1f} {'GPU' if gpu else 'process'} hours; from a few steps, one at a time)\n"
        f"about {cost.bytes / 1e6:.0f} MB of disk"
    )


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
