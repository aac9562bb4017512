"""One function over many items in worker processes: results in order, clean on Ctrl-C, no orphans after kill -9."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from data_pipelines.workers import use_one_thread
from megasr.errors import MegaSRError

Item = TypeVar("Item")
Result = TypeVar("Result")
# (what is being done, items done, items in all, bytes done)
Progress = Callable[[str, int, int, int], None]

_AHEAD = 4  # items per worker that wait; more would only take memory


def no_progress(what: str, done: int, total: int, size: int) -> None:
    """For callers that show nothing."""


def map_ordered(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """function(item) for every item, in order. One worker works in this process.

    Raises:
        MegaSRError: a worker process died, or function raised it.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ProcessPoolExecutor(workers, initializer=_start_worker) as pool:
        try:
            for item in items:
                with _interrupt_later():  # a submission may start a process
                    waiting.append(pool.submit(_interruptible, function, item))
                if len(waiting) >= workers * _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise MegaSRError("a worker process was killed, perhaps for want of memory: try fewer --workers") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupt_later() -> Iterator[None]:
    """Ctrl-C waits for the end of the block: processes are started with it blocked, until they are ready for it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    use_one_thread()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for its next item for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _interruptible(function: Callable[[Item], Result], item: Item) -> Result:
    """Ctrl-C reaches all processes: it ends the work at hand, while an idle worker leaves it to its parent."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return function(item)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
