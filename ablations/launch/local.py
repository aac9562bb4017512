"""Runs tasks side by side, each in a process of its own: what one does, or what becomes of it, harms no other.

The processes are forked from this one, which has imported everything by then: starting one takes a moment, not the
many seconds of an import. They die with this process, however it ends, and what they print goes into a file.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from ablations.launch.slots import Slot
from megasr.errors import MegaSRError, UsageError

LOG_FILE = "log.txt"
_PATIENCE_S = 30.0  # for tasks that save after Ctrl-C
_LOOK_S = 0.5
Send = Callable[..., None]  # send(kind, **details): tells the parent process
_FAILURES = {"MegaSRError": MegaSRError, "UsageError": UsageError}


@dataclass(frozen=True)
class Task:
    """Something to be done in a process of its own.

    Attributes:
        name: unique.
        work: what is done; gets a function that sends events to the parent.
        folder: its log goes there.
    """

    name: str
    work: Callable[[Send], None]
    folder: Path


@dataclass(frozen=True)
class Event:
    """What happens to a task: started, what it sends, crashed (with reason), failed (with error), or finished."""

    task: str
    kind: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Running:
    task: Task
    slot: Slot
    process: Any
    inbox: Connection
    attempt: int
    end: Event | None = None


def run_tasks(tasks: Sequence[Task], slots: Sequence[Slot], retries: int = 1) -> Iterator[Event]:
    """Run every task, as many at a time as there are slots, and yield what happens.

    A task that raises a MegaSRError has failed: trying again would not help. One that dies otherwise (a bug, memory,
    a signal) has crashed and is started again `retries` times; then it has failed too. All others go on.

    When the caller stops listening, or this process is interrupted, the tasks are given half a minute to save.
    """
    import torch  # noqa: F401  once, before the forks

    context: Any = multiprocessing.get_context("fork")
    lifeline = os.pipe()  # its writing end is open in this process only: tasks see it close
    waiting = [(task, 0) for task in tasks]
    free = list(slots)
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and free:
                task, attempt = waiting.pop(0)
                running.append(_start(context, task, free.pop(0), attempt, lifeline))
                yield Event(task.name, "started", {"slot": running[-1].slot.name, "attempt": attempt})
            for one in _heard_of(running):
                yield from _listen(one)
                if one.end is None:
                    continue
                running.remove(one)
                free.append(one.slot)
                if one.end.kind == "crashed" and one.attempt < retries:
                    waiting.insert(0, (one.task, one.attempt + 1))
                yield one.end
                if one.end.kind == "crashed" and one.attempt >= retries:
                    reason = f"{one.end.details['reason']}; see {one.task.folder / LOG_FILE}"
                    yield Event(one.task.name, "failed", {"error": MegaSRError(reason)})
    finally:
        _stop([one.process for one in running])
        for end in lifeline:
            os.close(end)


def _start(context: Any, task: Task, slot: Slot, attempt: int, lifeline: tuple[int, int]) -> _Running:
    inbox, outbox = context.Pipe(duplex=False)
    sys.stdout.flush()
    process = context.Process(target=_child, args=(task, slot, outbox, lifeline), name=task.name)
    process.start()
    outbox.close()
    return _Running(task, slot, process, inbox, attempt)


def _heard_of(running: Sequence[_Running]) -> list[_Running]:
    ready = wait([one.inbox for one in running], _LOOK_S)
    return [one for one in running if one.inbox in ready]


def _listen(one: _Running) -> Iterator[Event]:
    """What a task has sent; its end is put into `one.end`."""
    try:
        while one.inbox.poll():
            kind, details = one.inbox.recv()
            if kind == "failed":
                one.end = Event(one.task.name, kind, {"error": _FAILURES[details["type"]](details["message"])})
            elif kind in ("finished", "crashed"):
                one.end = Event(one.task.name, kind, details)
            else:
                yield Event(one.task.name, kind, details)
    except (EOFError, OSError):
        pass
    else:
        if one.end is None:
            return
    one.process.join()
    if one.end is None:
        code = one.process.exitcode
        reason = f"killed by signal {-code} (out of memory?)" if code < 0 else f"ended with exit code {code}"
        one.end = Event(one.task.name, "crashed", {"reason": reason})


def _child(task: Task, slot: Slot, outbox: Connection, lifeline: tuple[int, int]) -> None:
    os.close(lifeline[1])
    os.setpgrp()  # Ctrl-C reaches the driver alone, which then asks every task once to save and end
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a driver in the background of a script ignores it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in (signal.SIGUSR1, signal.SIGUSR2):  # SLURM warns a job by them: the driver's affair
        signal.signal(other, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, args=(lifeline[0],), daemon=True).start()
    os.environ.update(slot.environment)
    task.folder.mkdir(parents=True, exist_ok=True)
    with (task.folder / LOG_FILE).open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))

    def send(kind: str, **details: Any) -> None:
        outbox.send((kind, details))

    try:
        import torch

        torch.set_num_threads(slot.threads)
        task.work(send)
    except (MegaSRError, UsageError) as error:
        traceback.print_exc()
        send("failed", type=type(error).__name__, message=str(error))
    except BaseException as error:
        traceback.print_exc()
        send("crashed", reason=" ".join(f"{type(error).__name__}: {error}".split()))
    else:
        send("finished")
    sys.stdout.flush()
    sys.stderr.flush()


def _die_with_parent(descriptor: int) -> None:
    """Without its driver a task would go on beside the next one, in the same folder."""
    os.read(descriptor, 1)
    os._exit(1)


def stop_children() -> None:
    """Give all tasks of this process half a minute to save and end."""
    _stop(multiprocessing.active_children())


def _stop(processes: Sequence[Any]) -> None:
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, signal.SIGINT)
    for process in processes:
        process.join(_PATIENCE_S)
        if process.is_alive():
            process.kill()
            process.join()
