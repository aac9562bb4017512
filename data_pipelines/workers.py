"""Worker processes of a loader, and how unusable images are replaced and counted."""

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

_LISTED = 20
Skipped = tuple[str, str, bool]  # key, reason, damaged (False: a filter dropped it)


def use_one_thread() -> None:
    """Disable the threads of OpenCV and torch in this process: the parallelism is in the workers.

    0, not 1: in a fork of a process whose OpenCV threads have run, 1 waits for threads that the fork does not have.
    """
    import cv2
    import torch

    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def start_worker(worker: int) -> None:
    """`worker_init_fn`: one thread, and no reaction to signals that are meant for the main process.

    Ctrl-C, `timeout` and SLURM send them to all processes of a training, which still needs the batches of its last step
    to stop in good order. Workers end when their parent ends them, or has died.

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


def read_or_next(source: Source, draw: int, seed: int, limit: int = 100) -> Sample:
    """The image of training draw `draw`, or instead of an unusable one the next usable one of the epoch's order.

    A function of (seed, draw). The end of an epoch continues at its beginning. `skipped` of the result names the
    images that it replaces, that of the draw itself first.

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
    raise MegaSRError(f"{len(skipped)} images in a row cannot be used: {_listed((k, r) for k, r, _ in skipped)}")


class ErrorBudget:
    """Counts the images that read_or_next replaced, and stops the run when too many are damaged.

    Damaged images are counted once each, filtered ones (which may be millions) once per draw.

    Args:
        max_damaged: the share of images that may be damaged, in [0, 1].
        samples: number of images of the source.

    Raises:
        UsageError: max_damaged is no share.
    """

    def __init__(self, max_damaged: float = 0.01, samples: int = 1) -> None:
        if not 0 <= max_damaged <= 1:
            raise UsageError(f"max_damaged must be in [0, 1], got {max_damaged}")
        self.max_damaged, self.samples = max_damaged, samples
        self.damaged: dict[str, str] = {}
        self.filtered: Counter[str] = Counter()

    def add(self, skipped: Iterable[Skipped], processes: int = 1) -> None:
        """Count Sample.skipped.

        Args:
            skipped: what was replaced.
            processes: how many share the images, and so the budget.

        Raises:
            MegaSRError: more images are damaged than the budget allows; lists the first.
        """
        for place, (key, reason, damaged) in enumerate(skipped):
            if damaged:
                self.damaged.setdefault(key, reason)
            elif place == 0:  # the others are counted as draws of their own
                self.filtered[reason] += 1
        if len(self.damaged) > self.max_damaged * self.samples / processes:
            raise MegaSRError(
                f"{self.summary()}, more than max_damaged {self.max_damaged:g} of {self.samples}"
                + (f" (this is one of {processes} processes)" if processes > 1 else "")
                + f": {_listed(self.damaged.items())}; `megasr shards verify` finds all of them"
            )

    def summary(self) -> str:
        """What was left out so far, by reason; "" when nothing was."""
        parts = []
        if self.damaged:
            parts.append(f"{len(self.damaged)} damaged images ({_counted(Counter(self.damaged.values()))})")
        if self.filtered:
            parts.append(f"{self.filtered.total()} draws of filtered images ({_counted(self.filtered)})")
        return ", ".join(parts)

    def counts(self) -> dict[str, float]:
        """The same as metrics: totals, and one number per reason."""
        metrics = {"data/damaged": float(len(self.damaged)), "data/filtered_draws": float(self.filtered.total())}
        for reason, count in (*Counter(self.damaged.values()).items(), *self.filtered.items()):
            metrics[f"data/left_out/{reason.replace(' ', '_')}"] = float(count)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Keys of the damaged and counts of the filtered images, in plain types."""
        return {"damaged": dict(self.damaged), "filtered": dict(self.filtered)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue counting from there."""
        self.damaged, self.filtered = dict(state["damaged"]), Counter(state["filtered"])


def _counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))


def _listed(problems: Iterable[tuple[str, str]]) -> str:
    lines = [f"{key}: {reason}" for key, reason in problems]
    return "; ".join(lines[:_LISTED]) + (f" and {len(lines) - _LISTED} more" if len(lines) > _LISTED else "")
