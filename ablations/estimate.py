"""What a study will cost, before it starts: a few real steps and one restored batch, on this machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ablations.jobs import Job
from ablations.launch.local import Send, Task, run_tasks
from ablations.launch.slots import Slot
from ablations.plan import Components, RunPlan, build

_STEPS, _COUNTED = 6, 3  # the first ones fill caches
_IMAGE_BYTES_PER_PIXEL = 2.0  # a PNG of a photograph


@dataclass(frozen=True)
class Cost:
    """Of one training configuration.

    Attributes:
        start_s: seconds before the first step.
        step_s: seconds per optimizer step.
        image_s: seconds to restore and measure one image.
        images: in the evaluation set.
        checkpoint_bytes: of adapter.ckpt.
        picture_bytes: of the pictures of one evaluation, about.
    """

    start_s: float
    step_s: float
    image_s: float
    images: int
    checkpoint_bytes: int
    picture_bytes: float


@dataclass(frozen=True)
class Estimate:
    """Of a whole study.

    Attributes:
        slot_s: seconds of all its jobs, one after the other.
        wall_s: seconds until the last one ends, with all slots.
        bytes: on the disk.
    """

    slot_s: float
    wall_s: float
    bytes: float


def estimate(jobs: Sequence[Job], slots: Sequence[Slot], components: Components) -> Estimate:
    """Measure the jobs with the fewest and the most guidance types, and take what lies between in a line.

    Raises:
        MegaSRError: the probe failed, as the study would.
        UsageError: a config does not fit.
    """
    trained = sorted((job for job in jobs if job.host.seed is not None), key=lambda job: len(job.host.guidance))
    if not trained:
        return Estimate(0.0, 0.0, 0.0)
    ends = {len(job.host.guidance): job.host for job in (trained[0], trained[-1])}
    costs = {types: probe(plan, slots[0], components) for types, plan in ends.items()}
    each = [_seconds(job, costs) for job in trained]
    low = next(iter(costs.values()))
    size = sum(low.checkpoint_bytes + low.picture_bytes * len(job.todo) for job in trained)
    return Estimate(sum(each), _schedule(each, len(slots)), size)


def probe(plan: RunPlan, slot: Slot, components: Components) -> Cost:
    """A few steps of a plan and one restored batch, in a process of its own.

    Raises:
        MegaSRError: it failed, as the run would.
        UsageError: the config does not fit.
    """
    found: list[Cost] = []
    with tempfile.TemporaryDirectory() as folder:
        task = Task("probe", lambda send: _probe(plan, components, Path(folder), send), Path(folder))
        for event in run_tasks([task], [slot], retries=0):
            if event.kind == "cost":
                found.append(event.details["cost"])
            if event.kind == "failed":
                raise event.details["error"]
    return found[0]


def _probe(plan: RunPlan, components: Components, folder: Path, send: Send) -> None:
    import torch

    from ablations.train import CHECKPOINT, train

    short = replace(plan, config={**plan.config, "trainer": {**plan.config["trainer"], "max_steps": _STEPS}})
    began = time.perf_counter()
    built = build(components, short.config)
    times: list[float] = []
    train(short, built, components, folder, None, lambda step, loss: times.append(time.perf_counter()))
    step_s = (times[-1] - times[-1 - _COUNTED]) / _COUNTED
    built.data.setup("validate")
    loader = built.data.val_dataloader()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = built.model.to(device).eval()
    batch = built.data.transfer_batch_to_device(next(iter(loader)), device, 0)
    batch = built.data.on_after_batch_transfer(batch, 0)
    restoring = time.perf_counter()
    sr = module.restore(batch).cpu()
    image_s = (time.perf_counter() - restoring) / len(sr)
    images = len(loader.dataset)
    pixels = sr.shape[-2] * sr.shape[-1] * images
    size = (folder / CHECKPOINT).stat().st_size
    start_s = times[0] - began - step_s
    send("cost", cost=Cost(start_s, step_s, image_s, images, size, pixels * _IMAGE_BYTES_PER_PIXEL))


def _seconds(job: Job, costs: dict[int, Cost]) -> float:
    """Of a job, between the two that were measured."""
    (few, low), (many, high) = (min(costs.items()), max(costs.items()))
    share = (len(job.host.guidance) - few) / (many - few) if many > few else 0.0
    of_each = [
        cost.start_s + cost.step_s * job.host.max_steps + cost.image_s * cost.images * len(job.todo)
        for cost in (low, high)
    ]
    return of_each[0] + share * (of_each[1] - of_each[0])


def _schedule(seconds: Sequence[float], slots: int) -> float:
    """When the last job ends, each started where it is soonest free, in order."""
    free = [0.0] * slots
    for job in seconds:
        first = free.index(min(free))
        free[first] += job
    return max(free)
