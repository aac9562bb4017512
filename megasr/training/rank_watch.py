"""Which process of a training died or hangs, said in one line by those that waited for it.

What gloo and NCCL say is that a connection was closed or that an operation took too long, not whose fault it was. Here
every process says once a second, from a thread of its own, that it lives and which step it is in, in the store through
which torch.distributed has brought the processes together. Who waits in vain looks there. Tested with gloo; NCCL may
end a process by itself before it has looked.
"""

from __future__ import annotations

import json
import re
import threading
import time
from typing import Any

import lightning
import torch.distributed as dist

from megasr.errors import MegaSRError, UsageError
from megasr.tracking import first_line

_BEAT_S = 1.0
_LOOK_S = 5.0  # a process that lives says so several times in it, and one that waited as long as this one has given up
_OF_CONNECTIONS = re.compile(r"gloo|nccl|c10d|ProcessGroup|TCPStore|connection (closed|reset)|timed out", re.IGNORECASE)
_LOST = "lost"  # what a process has to say that only waited for another


class RankWatch(lightning.Callback):
    """Finds out which process the others wait for in vain; `found` says it, and the command line ends with it.

    With one process it does nothing.
    """

    def __init__(self) -> None:
        self.found: str | None = None
        self._ended = threading.Event()
        self._state: dict[str, Any] = {}
        self._since = time.monotonic()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin to say that this process lives."""
        if trainer.world_size == 1:
            return
        self._rank, self._size = trainer.global_rank, trainer.world_size
        # A connection of its own: this one must not wait while another thread waits for a key.
        self._store = dist.PrefixStore("megasr", dist.distributed_c10d._get_default_store().clone())
        self._state = {"beat": 0, "step": trainer.global_step, "ended": None}
        self._ended.clear()
        self._say()
        threading.Thread(target=self._beat, daemon=True, name="rank watch").start()

    def on_train_batch_start(self, trainer: lightning.Trainer, *unused: Any) -> None:
        """Remember where this process is."""
        self._state["step"], self._since = trainer.global_step, time.monotonic()

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Tell the others what happened here, or find out which of them it happened to."""
        if not self._state or self.found is not None:
            return
        waited = time.monotonic() - self._since
        lost = isinstance(exception, RuntimeError) and not isinstance(exception, MegaSRError)
        lost = lost and _OF_CONNECTIONS.search(str(exception)) is not None
        try:
            own = isinstance(exception, MegaSRError | UsageError)  # says what it is
            said = first_line(exception) if own else f"{type(exception).__name__}: {first_line(exception)}"
            self._state["ended"] = _LOST if lost else said
            self._say()
            if lost:
                self._look(waited)
        except RuntimeError:  # of the store
            self.found = self.found or "rank 0 died: its store does not answer any more"

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Be silent."""
        self._ended.set()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Be silent after an error as well."""
        self._ended.set()

    def _say(self) -> None:
        self._store.set(str(self._rank), json.dumps(self._state))

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT_S):
            self._state["beat"] += 1
            try:
                self._say()
                if self.found is None and self._store.check([_LOST]):
                    self.found = self._store.get(_LOST).decode()
            except RuntimeError:  # the store is gone: the training ends, for whichever reason
                return

    def _look(self, waited: float) -> None:
        """Watch the others for a while and judge; the first to judge speaks for all."""
        before, until = self._read(), time.monotonic() + _LOOK_S
        while time.monotonic() < until and self.found is None:
            time.sleep(_BEAT_S / 4)
            now = self._read()
            if all(state["ended"] for state in now.values()):
                break
        if self.found is None:
            self.found = judge(before, now, waited)
            if self.found is not None:
                self._store.set(_LOST, self.found)
                time.sleep(2 * _BEAT_S)  # the store may end with this process: the others read it before

    def _read(self) -> dict[int, dict[str, Any]]:
        ranks = [rank for rank in range(self._size) if rank != self._rank and self._store.check([str(rank)])]
        return {rank: json.loads(self._store.get(str(rank))) for rank in ranks}


def judge(before: dict[int, dict[str, Any]], now: dict[int, dict[str, Any]], waited_s: float) -> str | None:
    """What happened to those that were waited for; None when all others have waited as well.

    Args:
        before: rank -> {"beat", "step", "ended"} of the other processes.
        now: the same, some beats later.
        waited_s: how long this process has been in its step.
    """
    failed = {rank: state for rank, state in now.items() if state["ended"] not in (None, _LOST)}
    silent = {rank: state for rank, state in now.items() if state["ended"] is None}
    dead = {rank: state for rank, state in silent.items() if state["beat"] == before[rank]["beat"]}
    if failed:
        return "; ".join(f"rank {rank} ended in step {s['step']}: {s['ended']}" for rank, s in failed.items())
    if dead:
        return "; ".join(f"rank {rank} died, last heard of in step {state['step']}" for rank, state in dead.items())
    hung = [
        f"rank {rank} did not arrive within {waited_s:.0f} s: it hangs in step {s['step']}"
        for rank, s in silent.items()
    ]
    return "; ".join(hung) or None
