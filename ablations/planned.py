"""The plan of a study for people: hypotheses, every run with its state, and what the rest costs on this machine."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ablations.evaluation import EvaluationSet, open_set
from ablations.launch.local import LocalExecutor, Outbox, Slot, Task
from ablations.plan import Components, RunPlan, build
from ablations.registry import Study
from ablations.results import CHECKPOINT
from ablations.runner import Job, OpenStudy

_STEPS, _COUNTED = 6, 3  # the first ones fill caches
_IMAGE_BYTES_PER_PIXEL = 2.0  # a PNG of a photograph


def describe_hypotheses(study: Study) -> str:
    """The question, what all is compared with, and per ablation what it is and what is expected of it."""
    lines = [study.question, f"compared with {study.reference.name}: {study.reference.description}"]
    for ablation in study.ablations:
        kind = study.controls.get(ablation.name)
        name = f"{ablation.name} ({kind} control)" if kind else ablation.name
        lines += [
            f"{name}: {ablation.description}",
            f"    expected: {ablation.hypothesis or 'nothing was written down'}",
        ]
    return "\n".join(lines)


def describe_runs(study: OpenStudy) -> str:
    """A line per run: its id, whether it is done, which run trains for it, what is left; then a line of totals."""
    jobs = study.jobs
    trained = {plan.run_id for job in jobs if not study.needs_training(job) for plan in job.todo}
    left = {plan.run_id for job in jobs for plan in job.todo}
    lines = []
    for plan in study.plans:
        host = study.hosts[plan.training].run_id
        if plan.seed is None:
            what = "not trained"
        elif plan.run_id in trained:
            what = "trained, to evaluate"
        else:
            what = f"{plan.max_steps} steps" if host == plan.run_id else f"no training: that of {host}"
        if plan.run_id in left and len(study.sets) > 1:
            what += f"; evaluation sets {', '.join(one.name for one in study.left(plan))}"
        lines.append(f"{'to do' if plan.run_id in left else 'done':<6} {plan.run_id:<70} {what}")
    trainings = sum(study.needs_training(job) for job in jobs)
    done = len(study.plans) - len(left)
    lines.append(f"{len(study.plans)} runs: {done} done, {len(left)} to do, with {trainings} trainings")
    return "\n".join(lines)


def pipe_commands(study: OpenStudy) -> list[str]:
    """The `pipe:` addresses in the data sections of a study's runs and evaluation sets, each once."""
    sections = [*(plan.config["data"] for plan in study.plans), *(one.data for one in study.sets)]
    return list(dict.fromkeys(url for section in sections for url in _pipes(section)))


def _pipes(config: Any) -> Iterator[str]:
    if isinstance(config, dict | list):
        for value in config.values() if isinstance(config, dict) else config:
            yield from _pipes(value)
    elif isinstance(config, str) and config.startswith("pipe:"):
        yield config


@dataclass(frozen=True)
class Cost:
    """Measured on one training.

    Attributes:
        start_s: seconds before the first step.
        step_s: seconds per optimizer step.
        images_s: seconds to restore the evaluation sets.
        checkpoint_bytes: of adapter.ckpt.
        picture_bytes: of the pictures of one evaluation, about.
    """

    start_s: float
    step_s: float
    images_s: float
    checkpoint_bytes: int
    picture_bytes: float

    def seconds(self, job: Job, training: bool) -> float:
        """Of a job: its training, unless it is trained, and its evaluations."""
        return self.start_s + self.step_s * job.host.max_steps * training + self.images_s * len(job.todo)


def describe_cost(study: OpenStudy, slots: Sequence[Slot]) -> str:
    """Time and disk of what is left in two lines, from a few steps of the training with the most guidance types.

    Raises:
        MegaSRError: the probe failed, as the study would.
        UsageError: the config does not fit.
    """
    trainings = [job for job in study.jobs if job.host.seed is not None]
    if not trainings:
        return "no training is left to do"
    host = max(trainings, key=lambda job: len(job.host.guidance)).host
    cost = probe(host, study.sets, slots[0], study.components)
    free = [0.0] * len(slots)
    for job in trainings:
        free[free.index(min(free))] += cost.seconds(job, study.needs_training(job))
    size = sum(cost.checkpoint_bytes + cost.picture_bytes * len(job.todo) for job in trainings)
    names = Counter(slot.name for slot in slots)
    where = ", ".join(name if count == 1 else f"{count} x {name}" for name, count in names.items())
    gpu = any(slot.environment.get("CUDA_VISIBLE_DEVICES") for slot in slots)
    minutes = round(max(free) / 60)
    duration = f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
    others = [job.label for job in study.jobs if "baseline" in job.host.config]
    without = f", without restoring by {', '.join(others)}" if others else ""
    return (
        f"about {duration} on {where} ({sum(free) / 3600:.1f} {'GPU' if gpu else 'process'} hours; at the speed of the "
        f"training with the most guidance types, measured alone{without})\nabout {size / 1e6:.0f} MB of disk"
    )


def probe(plan: RunPlan, sets: Sequence[EvaluationSet], slot: Slot, components: Components) -> Cost:
    """A few steps of a plan and one restored batch of every set, in a process of its own.

    Raises:
        MegaSRError: it failed, as the run would.
        UsageError: the config does not fit.
    """
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        task = Task("probe", lambda send: _probe(plan, sets, components, Path(folder), send), Path(folder))
        for event in LocalExecutor([slot], retries=0).run([task]):
            if event.kind == "cost":
                measured = event.details
            if event.kind == "failed":
                raise event.details["error"]
    return Cost(**measured)


def _probe(plan: RunPlan, sets: Sequence[EvaluationSet], components: Components, folder: Path, send: Outbox) -> None:
    import torch

    from ablations.execute import batches_of
    from ablations.train import train

    trainer = {**plan.config["trainer"], "max_steps": _STEPS, "devices": 1}
    began, times = time.perf_counter(), list[float]()
    short = replace(plan, config={**plan.config, "trainer": trainer})
    train(short, components, folder, None, lambda step, loss: times.append(time.perf_counter()))
    step_s = (times[-1] - times[-1 - _COUNTED]) / _COUNTED
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build(components, {"model": plan.config["model"]}).model.to(device).eval()
    images_s = picture_bytes = 0.0
    for one in sets:
        data = open_set(one, plan.config["data"], components)
        images = len(data.val_dataloader().dataset)
        batch = next(batches_of(data, device))
        restoring = time.perf_counter()
        sr = model.restore(batch).cpu()
        images_s += (time.perf_counter() - restoring) / len(sr) * images
        picture_bytes += sr.shape[-2] * sr.shape[-1] * images * _IMAGE_BYTES_PER_PIXEL
    send(
        "cost",
        start_s=times[0] - began - step_s,
        step_s=step_s,
        images_s=images_s,
        checkpoint_bytes=(folder / CHECKPOINT).stat().st_size,
        picture_bytes=picture_bytes,
    )
