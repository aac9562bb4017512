"""Workers of a loader, and how many broken samples are tolerated."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from data_pipelines.samples import Sample, Source, UnusableSampleError
from megasr.errors import MegaSRError, UsageError


def use_one_thread() -> None:
    """The workers are the parallelism: threads of OpenCV and torch in each of them would fight for the same cores.

    0, not 1: in a fork of a process whose OpenCV threads have worked, 1 waits for threads that the fork does not have.
    """
    import cv2
    import torch

    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def start_worker(worker: int) -> None:
    """Begin a worker of a DataLoader: one thread, and signals are its parent's affair.

    Ctrl-C, `timeout` and SLURM send them to all processes of a training, which still needs the batches of its last step
    to stop in good order. Workers end when their parent says so, or has died.

    Args:
        worker: its number.
    """
    use_one_thread()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_for_parent, daemon=True).start()


def _end_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


Skipped = tuple[str, str, bool]  # key, reason, damaged (False: a filter dropped it)
_LISTED = 20


def read_or_next(source: Source, draw: int, seed: int, limit: int = 100) -> Sample:
    """The image of training draw `draw`; in place of an unusable one, the next usable one of the epoch's order.

    It stays a function of (seed, draw), whoever reads it. The end of an epoch goes on at its beginning.

    Args:
        source: of the images.
        draw: counted from the start of training.
        seed: of the order.
        limit: how many images are tried.

    Returns:
        The image; `skipped` names those that it stands in for, the draw's own first.

    Raises:
        MegaSRError: `limit` images in a row are unusable.
    """
    length = len(source)
    epoch, position = divmod(draw, length)
    skipped: list[Skipped] = []
    for step in range(min(limit, length)):
        index = source.order(epoch * length + (position + step) % length, seed)
        try:
            sample = source.read(index)
            return replace(sample, skipped=tuple(skipped)) if skipped else sample
        except UnusableSampleError as error:
            skipped.append((error.key, error.reason, error.damaged))
    raise MegaSRError(f"{len(skipped)} images in a row cannot be used: {_listed(skipped)}")


class ErrorBudget:
    """Counts what read_or_next passed over and stops the run when too much of the set is damaged.

    Damaged images are counted once, however often they are drawn: only their names are kept, no more than the budget.
    Filtered images can be millions; of these, the draws that fell on one are counted.

    Args:
        max_damaged: the share of images that may be damaged, in [0, 1].
        samples: number of images of the source.

    Raises:
        UsageError: max_damaged is no share.
    """

    def __init__(self, max_damaged: float = 0.01, samples: int = 1) -> None:
        if not 0 <= max_damaged <= 1:
            raise UsageError(f"max_damaged must be in [0, 1], got {max_damaged}")
        self.max_damaged = max_damaged
        self.samples = samples
        self.damaged: dict[str, str] = {}
        self.filtered: Counter[str] = Counter()

    def add(self, skipped: Iterable[Skipped], processes: int = 1) -> None:
        """Count what one sample stands in for (Sample.skipped).

        Args:
            skipped: what was passed over.
            processes: how many share the images: each meets its part of the damage, and has its part of the budget.

        Raises:
            MegaSRError: more distinct images are damaged than the budget allows; lists the first.
        """
        for place, (key, reason, damaged) in enumerate(skipped):
            if damaged:
                self.damaged.setdefault(key, reason)
            elif place == 0:  # those behind it are met, and counted, as draws of their own
                self.filtered[reason] += 1
        if len(self.damaged) > self.max_damaged * self.samples / processes:
            found = [(key, reason, True) for key, reason in self.damaged.items()]
            raise MegaSRError(
                f"{self.summary()}, more than max_damaged {self.max_damaged:g} of {self.samples}"
                + (f" (this is one of {processes} processes)" if processes > 1 else "")
                + f": {_listed(found)}; `megasr shards verify` finds all of them"
            )

    def summary(self) -> str:
        """What was passed over so far, by reason, for logs; "" when nothing was."""
        parts = []
        if self.damaged:
            parts.append(f"{len(self.damaged)} damaged images ({_counted(Counter(self.damaged.values()))})")
        if self.filtered:
            parts.append(f"{self.filtered.total()} draws of filtered images ({_counted(self.filtered)})")
        return ", ".join(parts)

    def counts(self) -> dict[str, float]:
        """The same as metrics for a logger: totals, and one number per reason."""
        metrics = {"data/damaged": float(len(self.damaged)), "data/filtered_draws": float(self.filtered.total())}
        for reason, count in (*Counter(self.damaged.values()).items(), *self.filtered.items()):
            metrics[f"data/left_out/{reason.replace(' ', '_')}"] = float(count)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Names of the damaged and counts of the filtered, in plain types."""
        return {"damaged": dict(self.damaged), "filtered": dict(self.filtered)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting from there."""
        self.damaged, self.filtered = dict(state["damaged"]), Counter(state["filtered"])


def _counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))


def _listed(skipped: list[Skipped]) -> str:
    rest = f" and {len(skipped) - _LISTED} more" if len(skipped) > _LISTED else ""
    return "; ".join(f"{key}: {reason}" for key, reason, _ in skipped[:_LISTED]) + rest
