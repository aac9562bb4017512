"""Runs tasks side by side on this machine's devices, each in a process of its own.

The processes are forked from this one, which has imported everything by then: starting one takes a moment, not the
seconds of an import. (submitit's LocalExecutor knows no device slots and reports nothing while a job runs.) A task's
processes are one process group; they die with the driver, however it ends, and print into a file.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn, Protocol

from megasr.errors import MegaSRError, UsageError

LOG_FILE = "log.txt"
_MOST_CPU_SLOTS = 4  # each holds a prior of its own in memory
_SAVING_S = 30.0  # for tasks that save after Ctrl-C
_POLL_S = 0.5
_ERRORS = {"MegaSRError": MegaSRError, "UsageError": UsageError}


@dataclass(frozen=True)
class Slot:
    """A place for one task at a time.

    Attributes:
        name: for people.
        threads: of torch, on the CPU.
        environment: variables of the task, which hide the other devices.
    """

    name: str
    threads: int
    environment: Mapping[str, str] = field(default_factory=dict)


class Outbox:
    """A task's way to its driver: what is sent arrives there as an event.

    Args:
        pipe: to the driver.
        lifeline: a file descriptor that is closed when the driver ends; the task's process group then ends too.
    """

    def __init__(self, pipe: Connection, lifeline: int) -> None:
        self._pipe, self._lifeline = pipe, lifeline
        threading.Thread(target=_die_with_driver, args=(lifeline,), daemon=True).start()

    def __call__(self, kind: str, **details: Any) -> None:
        """Send an event to the driver."""
        self._pipe.send((kind, details))

    def run(self, work: Callable[[Outbox], None]) -> None:
        """Do the work, and send how it ended."""
        try:
            work(self)
        except (MegaSRError, UsageError) as error:
            traceback.print_exc()
            self("failed", type=type(error).__name__, message=str(error))
        except BaseException as error:
            traceback.print_exc()
            self("crashed", reason=" ".join(f"{type(error).__name__}: {error}".split()))
        else:
            self("finished")

    def become(self, module: str, *arguments: str) -> NoReturn:
        """Turn this process into `python -m module arguments.. pipe lifeline`, which calls `inherited` with the two."""
        descriptors = (self._pipe.fileno(), self._lifeline)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        os.execv(sys.executable, [sys.executable, "-m", module, *arguments, *map(str, descriptors)])

    @classmethod
    def inherited(cls, pipe: str, lifeline: str) -> Outbox:
        """The one of the process that this one was; the processes that it starts do not inherit it."""
        for descriptor in (pipe, lifeline):
            os.set_inheritable(int(descriptor), False)
        return cls(Connection(int(pipe), readable=False), int(lifeline))


class Work(Protocol):
    """What a task does; on SLURM it is pickled, and asked whether it is done."""

    def __call__(self, send: Outbox) -> None: ...
    def is_done(self) -> bool: ...


@dataclass(frozen=True)
class Task:
    """Something to be done in a process of its own.

    Attributes:
        name: unique.
        work: what is done; a local executor takes any function.
        folder: for its log.
    """

    name: str
    work: Work | Callable[[Outbox], None]
    folder: Path


@dataclass(frozen=True)
class Event:
    """What happened to a task: started, what it sent, crashed (reason), failed (error), finished; queue (SLURM)."""

    task: str
    kind: str
    details: dict[str, Any] = field(default_factory=dict)


class Executor(Protocol):
    """Runs tasks somewhere and yields what happens to them; each ends in `finished` or `failed`."""

    def run(self, tasks: Sequence[Task]) -> Iterator[Event]: ...


@dataclass(frozen=True)
class LocalExecutor:
    """As many tasks at a time as there are slots.

    A task that raises a MegaSRError has failed: trying again would not help. One that dies otherwise (a bug, memory, a
    signal) has crashed and is started again `retries` times. All others go on. When the caller stops iterating, or this
    process is interrupted, the tasks get half a minute to save.
    """

    slots: Sequence[Slot]
    retries: int = 1

    def run(self, tasks: Sequence[Task]) -> Iterator[Event]:
        """See Executor."""
        import torch  # noqa: F401  once, before the forks

        lifeline = os.pipe()  # its writing end is open in this process only: tasks see it close
        waiting = [(task, 0) for task in tasks]
        free, running = list(self.slots), list[_Running]()
        try:
            while waiting or running:
                while waiting and free:
                    running.append(_start(*waiting.pop(0), free.pop(0), lifeline))
                    yield Event(running[-1].task.name, "started", {"slot": running[-1].slot.name})
                ready = wait([one.inbox for one in running], _POLL_S)
                for one in [one for one in running if one.inbox in ready]:
                    yield from _receive(one)
                    if one.end is None:
                        continue
                    running.remove(one)
                    free.append(one.slot)
                    yield one.end
                    if one.end.kind == "crashed" and one.attempt < self.retries:
                        waiting.insert(0, (one.task, one.attempt + 1))
                    elif one.end.kind == "crashed":
                        reason = f"{one.end.details['reason']}; see {one.task.folder / LOG_FILE}"
                        yield Event(one.task.name, "failed", {"error": MegaSRError(reason)})
        finally:
            _stop([one.process for one in running])
            for end in lifeline:
                os.close(end)


@dataclass
class _Running:
    task: Task
    slot: Slot
    process: Any
    inbox: Connection
    attempt: int
    end: Event | None = None


def _start(task: Task, attempt: int, slot: Slot, lifeline: tuple[int, int]) -> _Running:
    context: Any = multiprocessing.get_context("fork")
    inbox, outbox = context.Pipe(duplex=False)
    sys.stdout.flush()
    process = context.Process(target=_child, args=(task, slot, outbox, lifeline), name=task.name)
    process.start()
    outbox.close()
    return _Running(task, slot, process, inbox, attempt)


def _receive(one: _Running) -> Iterator[Event]:
    """The events that a task has sent; its last one becomes `one.end`."""
    try:
        while one.inbox.poll():
            kind, details = one.inbox.recv()
            if kind == "failed":
                details = {"error": _ERRORS[details["type"]](details["message"])}
            event = Event(one.task.name, kind, details)
            if kind in ("failed", "finished", "crashed"):
                one.end = event
            else:
                yield event
        if one.end is None:
            return
    except (EOFError, OSError):
        pass
    one.process.join()
    _kill_group(one.process)  # processes that outlived it would meet its next attempt
    if one.end is None:
        code = one.process.exitcode
        reason = f"killed by signal {-code} (out of memory?)" if code < 0 else f"ended with exit code {code}"
        one.end = Event(one.task.name, "crashed", {"reason": reason})


def _child(task: Task, slot: Slot, outbox: Connection, lifeline: tuple[int, int]) -> None:
    os.close(lifeline[1])
    os.setpgrp()  # Ctrl-C reaches the driver alone, which then asks every task once to save and end
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a driver in the background of a script ignores it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in (signal.SIGUSR1, signal.SIGUSR2):  # SLURM's warnings are the driver's affair
        signal.signal(other, signal.SIG_IGN)
    os.environ.update(slot.environment)
    task.folder.mkdir(parents=True, exist_ok=True)
    with (task.folder / LOG_FILE).open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
    import torch

    torch.set_num_threads(slot.threads)
    Outbox(outbox, lifeline[0]).run(task.work)
    sys.stdout.flush()
    sys.stderr.flush()


def _die_with_driver(descriptor: int) -> None:
    """Without its driver a task would go on beside the next driver's, in the same folder."""
    os.read(descriptor, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def stop_children() -> None:
    """Give all tasks of this process half a minute to save and end."""
    _stop(multiprocessing.active_children())


def _stop(processes: Sequence[Any]) -> None:
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, signal.SIGINT)
    for process in processes:
        process.join(_SAVING_S)
        _kill_group(process)
        process.join()


def _kill_group(process: Any) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def make_slots(devices: str = "auto", per_device: int | None = None, devices_per_slot: int = 1) -> list[Slot]:
    """Slots on the CPU or on GPUs.

    Args:
        devices: `cpu`, numbers of GPUs ("0,1"), or `auto`: all GPUs, the CPU where there is none.
        per_device: tasks at a time on each; None is 1 on a GPU, and on the CPU one per core, 4 at most.
        devices_per_slot: GPUs of one task, for recipes with trainer.devices above 1.

    Raises:
        UsageError: a GPU that this machine does not have, or no slot at all.
    """
    if per_device is not None and per_device < 1:
        raise UsageError(f"--per-device must be 1 or more, got {per_device}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = _gpus(devices)
    if not gpus:
        count = per_device or max(1, min(cores // devices_per_slot, _MOST_CPU_SLOTS))
        return [Slot(f"cpu{n}", max(1, cores // count), {"CUDA_VISIBLE_DEVICES": ""}) for n in range(count)]
    groups = [",".join(gpus[n : n + devices_per_slot]) for n in range(0, len(gpus), devices_per_slot)]
    if len(gpus) % devices_per_slot:
        groups.pop()
    if not groups:
        raise UsageError(f"the recipe's trainer.devices is {devices_per_slot}, --devices {devices}: {len(gpus)} GPU(s)")
    each = per_device or 1
    threads = max(1, cores // (len(groups) * each))
    # Turn by turn over the GPUs, so that few tasks do not share one.
    return [Slot(f"gpu{gpu}", threads, {"CUDA_VISIBLE_DEVICES": gpu}) for _ in range(each) for gpu in groups]


def _gpus(devices: str) -> list[str]:
    if devices == "cpu":
        return []
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()  # does not open a device: the tasks are forked
    names = visible.split(",")[:count] if visible else [str(n) for n in range(count)]
    if devices == "auto":
        return names
    numbers = [part.strip() for part in devices.split(",")]
    if not all(part.isdigit() for part in numbers) or len(set(numbers)) != len(numbers):
        raise UsageError(f"--devices must be cpu, auto or numbers of GPUs like 0,1, got {devices!r}")
    if missing := [part for part in numbers if int(part) >= count]:
        raise UsageError(f"--devices: GPU {', '.join(missing)} is not free for use here: this machine shows {count}")
    return [names[int(part)] for part in numbers]
