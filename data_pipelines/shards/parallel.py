"""Worker processes for packing, baking and verifying."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from data_pipelines.samples import SampleLoader, SampleSet
from data_pipelines.workers import start_worker
from megasr.errors import MegaSRError

Item = TypeVar("Item")
Result = TypeVar("Result")
# (what is being done, items done, items in all, bytes done)
Progress = Callable[[str, int, int, int], None]


def no_progress(what: str, done: int, total: int, size: int) -> None:
    """For callers that show nothing."""


def map_ordered(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """function(item) for every item, in order, by the workers of a DataLoader; one worker works in this process.

    Raises:
        MegaSRError: a worker process died, or function raised it.
    """
    if workers <= 1 or len(items) <= 1:
        yield from map(function, items)
        return
    calls = SampleSet(partial(_call, function, items), len(items))
    try:
        yield from SampleLoader(
            calls,
            batch_size=None,
            num_workers=min(workers, len(items)),
            collate_fn=_unchanged,
            worker_init_fn=_start_worker,
        )
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise MegaSRError("a worker process was killed, perhaps for want of memory: try fewer --workers") from error


def _call(function: Callable[[Item], Result], items: Sequence[Item], number: int) -> Result:
    return function(items[number])


def _unchanged(result: Any) -> Any:
    return result


def _start_worker(worker: int) -> None:
    start_worker(worker)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed holds the lock on its folder: DataLoader takes seconds to notice."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
