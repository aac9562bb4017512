"""How much faster two processes train than one, and how much of what is trained each of several processes holds.

    python -m experiments.benchmarks.scaling --output scaling.json

Whole trainings of MegaSR on the tiny prior by Lightning's Trainer: photographs cut and degraded on-line, maps of canny
and superpixel, ControlNet, clipped gradients, AdamW. Every process has one thread and the same number of samples per
step, so that N processes take N times as many. Processes are forked from this one and connected by gloo.

    single         one process
    unconnected    two processes that know nothing of each other: what two cores with one memory can give
    ddp            two processes, each with a copy of everything; static graph, gradients in buckets
    fsdp2          two processes, what is trained is spread over them

They take turns in every round. `samples_per_s` are of all processes together, from the median step of all rounds; the
first steps of a training are not counted. `efficiency` is that number over twice the number of `single`; the goal for
ddp is 0.85. `share` is what lies in one process of all trained weights and optimizer states, the largest of all
processes, with 2 and with 4; the goal is 1 / N within 10 %.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy

from data_pipelines.datamodules import PhotoDataModule
from experiments.benchmarks.record import publish
from megasr.networks.config import AdapterConfig
from megasr.training.module import MegaSRModule
from megasr.training.sharding import ShardedStrategy, local
from tests.helpers.ranks import run_ranks

_NOT_COUNTED = 3
_STRATEGIES: dict[str, Any] = {
    "single": lambda: "auto",
    "unconnected": lambda: "auto",
    "ddp": lambda: DDPStrategy(static_graph=True, gradient_as_bucket_view=True),
    "fsdp2": ShardedStrategy,
}
_PROCESSES = {"single": 1, "unconnected": 2, "ddp": 2, "fsdp2": 2}


class StepClock(lightning.Callback):
    """The seconds of every step, data included."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: Any, *unused: Any) -> None:
        """A step is done."""
        self.ends.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Of the steps that count."""
        ends = self.ends[_NOT_COUNTED - 1 :]
        return [after - before for before, after in itertools.pairwise(ends)]


def train(
    name: str, processes: int, steps: int, batch_size: int, accelerator: str = "cpu"
) -> tuple[list[float], float, float]:
    """(seconds of every step, share of the trained weights, share of the optimizer's state) of this process."""
    torch.set_num_threads(1)
    module = MegaSRModule(adapter=AdapterConfig(guidance=("canny", "superpixel")))
    data = PhotoDataModule(crop_size_px=64, batch_size=batch_size, train_samples=10**6, eval_samples=1)
    clock = StepClock()
    trainer = lightning.Trainer(
        accelerator=accelerator, devices=1 if name == "unconnected" else processes, strategy=_STRATEGIES[name](),
        max_steps=steps + _NOT_COUNTED, callbacks=[clock], gradient_clip_val=1.0, limit_val_batches=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    trained = [p for p in module.parameters() if p.requires_grad]
    state = [value for of_one in trainer.optimizers[0].state.values() for value in of_one.values() if value.dim()]
    total = sum(p.numel() for p in trained)
    return clock.seconds(), _here(trained) / total, _here(state) / (2 * total)


def _here(tensors: list[torch.Tensor]) -> int:
    return sum(local(tensor).numel() for tensor in tensors)


def throughput(rounds: int, steps: int, batch_size: int) -> dict[str, Any]:
    """Samples per second of every way, and their ratio to that of so many single processes."""
    seconds: dict[str, list[float]] = {name: [] for name in _PROCESSES}
    for number in range(rounds):
        for name, processes in _PROCESSES.items():
            ranks = run_ranks(processes, train, name, processes, steps, batch_size, timeout_s=1200)
            seconds[name] += [statistics.fmean(of_all) for of_all in zip(*(r[0] for r in ranks), strict=True)]
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    rate = {n: _PROCESSES[n] * batch_size / statistics.median(values) for n, values in seconds.items()}
    return {
        "step_s": {n: round(statistics.median(values), 4) for n, values in seconds.items()},
        "samples_per_s": {n: round(value, 3) for n, value in rate.items()},
        "efficiency": {n: round(value / (_PROCESSES[n] * rate["single"]), 3) for n, value in rate.items()},
    }


def shares(processes: int, batch_size: int) -> dict[str, float]:
    """The largest share of a process of what is trained."""
    ranks = run_ranks(processes, train, "fsdp2", processes, 1, batch_size, timeout_s=1200)
    return {"weights": round(max(r[1] for r in ranks), 4), "optimizer": round(max(r[2] for r in ranks), 4)}


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="that count, of every training")
    parser.add_argument("--batch-size", type=int, default=4, help="samples per process and step")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    results = throughput(arguments.rounds, arguments.steps, arguments.batch_size)
    results["share"] = {f"{n} processes": shares(n, 1) for n in (2, 4)}
    settings = {name: getattr(arguments, name) for name in ("rounds", "steps", "batch_size")} | {"threads": 1}
    publish("scaling", settings, results, arguments.output)


if __name__ == "__main__":
    main()
