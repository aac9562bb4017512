"""The devices of this machine, cut into slots: each runs one task at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from megasr.errors import UsageError

_MOST_CPU_SLOTS = 4  # each holds a prior of its own in memory


@dataclass(frozen=True)
class Slot:
    """A place for one task.

    Attributes:
        name: for people.
        threads: of torch, on the CPU.
        environment: variables that the task sees, which hide the other devices.
    """

    name: str
    threads: int
    environment: Mapping[str, str] = field(default_factory=dict)


def make_slots(devices: str = "auto", per_device: int | None = None) -> list[Slot]:
    """Slots on the CPU or on GPUs.

    Args:
        devices: `cpu`, numbers of GPUs ("0,1"), or `auto`: all GPUs, the CPU where there is none.
        per_device: tasks at a time on each; None is 1 on a GPU, and on the CPU one per core, 4 at most.

    Raises:
        UsageError: a GPU that this machine does not have, or no slot at all.
    """
    if per_device is not None and per_device < 1:
        raise UsageError(f"--per-device must be 1 or more, got {per_device}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = _gpus(devices)
    if not gpus:
        count = per_device or min(cores, _MOST_CPU_SLOTS)
        return [Slot(f"cpu{n}", max(1, cores // count), {"CUDA_VISIBLE_DEVICES": ""}) for n in range(count)]
    each = per_device or 1
    threads = max(1, cores // (len(gpus) * each))
    # Turn by turn over the GPUs, so that few tasks do not share one.
    return [Slot(f"gpu{gpu}", threads, {"CUDA_VISIBLE_DEVICES": gpu}) for _ in range(each) for gpu in gpus]


def _gpus(devices: str) -> list[str]:
    if devices == "cpu":
        return []
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()  # does not open a device: the tasks are forked
    names = visible.split(",")[:count] if visible else [str(n) for n in range(count)]
    if devices == "auto":
        return names
    wanted = [part.strip() for part in devices.split(",")]
    if not all(part.isdigit() for part in wanted) or len(set(wanted)) != len(wanted):
        raise UsageError(f"--devices must be cpu, auto or numbers of GPUs like 0,1, got {devices!r}")
    if missing := [part for part in wanted if int(part) >= count]:
        raise UsageError(f"--devices: GPU {', '.join(missing)} is not free for use here: this machine shows {count}")
    return [names[int(part)] for part in wanted]
