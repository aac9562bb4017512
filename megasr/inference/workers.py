"""One process per device. Batches go to whichever is free; one that dies takes its batch with it, no other.

The processes are forked from this one after it has imported what they need. They end with it, however it ends, and a
file that one is writing when it is stopped does not come into being. The folders must be ours alone: what is half
written in them is removed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from megasr.errors import MegaSRError, UsageError
from megasr.files import remove_parts
from megasr.inference.jobs import Job
from megasr.inference.progress import Progress
from megasr.inference.restoring import Outcome, Settings, load_pipeline, restore_files

Batch = Sequence[Job]
OnShare = Callable[[Batch, float], None]  # a batch, and the share of it that is done
_PATIENCE_S = 10.0
_ERRORS = {"UsageError": UsageError, "MegaSRError": MegaSRError}


def restore_all(
    batches: Sequence[Batch], settings: Settings, devices: Sequence[str], on_share: OnShare
) -> Iterator[Outcome]:
    """Restore all batches on all devices and yield what becomes of every file, as it happens.

    Args:
        batches: what is restored together.
        settings: how.
        devices: as torch names them; one is used in this process. cpu may be named more than once.
        on_share: called as a batch goes on.

    Raises:
        UsageError, MegaSRError: the pipeline cannot be loaded.
    """
    if len(devices) > 1 and len(batches) > 1:
        try:
            yield from _restore_in_processes(list(batches), settings, devices[: len(batches)], on_share)
        finally:
            for folder in {job.target.parent for batch in batches for job in batch}:
                remove_parts(folder)  # of processes that were stopped
        return
    pipeline = load_pipeline(settings, devices[0])
    for batch in batches:

        def progress(share: float, batch: Batch = batch) -> None:
            on_share(batch, share)

        yield from restore_files(pipeline, batch, settings, progress)


@dataclass
class _Worker:
    device: str
    process: Any
    line: Connection
    batch: Batch | None = None


def _restore_in_processes(
    waiting: list[Batch], settings: Settings, devices: Sequence[str], on_share: OnShare
) -> Iterator[Outcome]:
    import megasr.inference.pipeline  # noqa: F401  once, before the forks

    workers: list[_Worker] = []
    try:
        for device in devices:
            workers.append(_start(device, settings, len(devices), [worker.line for worker in workers]))
        while workers:
            for worker in _heard_of(workers):
                try:
                    kind, content = worker.line.recv()
                except (EOFError, OSError):
                    workers.remove(worker)
                    yield from _lost(worker)
                    continue
                if kind == "share":
                    on_share(worker.batch or (), content)
                    continue
                if kind == "failed":
                    raise _ERRORS[content[0]](content[1])
                if kind == "done":
                    yield from content
                worker.batch = waiting.pop(0) if waiting else None
                worker.line.send(worker.batch)
                if worker.batch is None:
                    workers.remove(worker)
                    worker.process.join()
        for batch in waiting:  # nobody is left
            yield from (Outcome(job, "no device is left: all processes died") for job in batch)
    finally:
        _stop(workers)


def _start(device: str, settings: Settings, sharing: int, others: Sequence[Connection]) -> _Worker:
    context: Any = multiprocessing.get_context("fork")
    line, far = context.Pipe()
    process = context.Process(target=_work, args=(device, settings, sharing, far, [line, *others]), daemon=True)
    sys.stdout.flush()
    process.start()
    far.close()
    return _Worker(device, process, line)


def _heard_of(workers: Sequence[_Worker]) -> list[_Worker]:
    ready = wait([worker.line for worker in workers])
    return [worker for worker in workers if worker.line in ready]


def _lost(worker: _Worker) -> Iterator[Outcome]:
    worker.process.join()
    code = worker.process.exitcode
    how = f"was killed by signal {-code} (out of memory?)" if code < 0 else f"ended with exit code {code}"
    for job in worker.batch or ():
        yield Outcome(job, f"the process of {worker.device} {how}")


def _stop(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join(_PATIENCE_S)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _work(device: str, settings: Settings, sharing: int, line: Connection, others: Sequence[Connection]) -> None:
    for other in others:  # copies of the parent's ends: with these open, nobody would notice that it died
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair, which then terminates
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # at once: an exception would wait for what torch computes
    if device == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // sharing))
    try:
        pipeline = load_pipeline(settings, device)
        line.send(("ready", None))
        with suppress(EOFError):  # the parent died
            while (batch := line.recv()) is not None:
                line.send(("done", restore_files(pipeline, batch, settings, _share_through(line))))
    except (UsageError, MegaSRError) as error:
        line.send(("failed", (type(error).__name__, str(error))))
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        line.send(("failed", ("UsageError", f"--devices: {device} cannot be used: {str(error).splitlines()[0]}")))


def _share_through(line: Connection) -> Progress:
    return lambda share: line.send(("share", share))
