"""How long a training step and a denoising step take, against a plain ControlNet and against SeeSR.

    SEESR_DIR=... SEESR_PYTHON=... python -m experiments.benchmarks.train_step --output train_step.json

U-Nets of Stable Diffusion's form at reduced widths, with random weights, in float32. All contenders have the same
sizes, batch and number of threads, each has a process of its own, and they take turns in every round, in an order that
moves on by one; the first round is not counted. A training step is forward, mean squared error and backward, gradients
set to None before; there is no optimizer in it. A denoising step is the forward pass without gradients.

    megasr         HED, depth and segmentation maps of 8 times the latents' size, image tokens, ControlNet; its training
                   step makes the conditions, as every new image does. `denoise` has them already, as every step of a
                   sampler but the first; `denoise_first` makes them.
    plain          diffusers' U-Net (frozen) and ControlNet (trained) with text and an image
    seesr          SeeSR's own: see seesr_pair.py. Without its variables it is left out.
    recomputing    megasr with adapter.gradient_checkpointing
    compiled       megasr with torch.compile on every ResBlock and site; left out without a C++ compiler, or when a step
                   has not compiled within --compile-limit seconds

`ratio` is of the medians of all rounds. `wall_s` is what a user waits; `cpu_s`, the processor's time of all threads, is
less disturbed by whatever else the machine does. `gflop` are the operations of one step that torch's counter sees
(matrix products, convolutions, attention).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks.extraction_cost import count
from experiments.benchmarks.record import publish
from experiments.benchmarks.seesr_pair import StepTimes, Worker, missing_peer, start_seesr
from experiments.benchmarks.step_contenders import CONTENDERS, GUIDANCE, SIZES

Found = dict[str, dict[str, list[StepTimes]]]
_STEPS = {
    "megasr": ("train", "denoise", "denoise_first"),
    "plain": ("train", "denoise"),
    "seesr": ("train", "denoise"),
    "recomputing": ("train",),
    "compiled": ("train", "denoise"),
}
# What is divided by what, and the goal of the full network; None where there is none.
_RATIOS = {
    ("megasr", "train", "seesr", "train"): 0.75,
    ("megasr", "train", "plain", "train"): 1.25,
    ("megasr", "denoise", "seesr", "denoise"): 0.65,
    ("megasr", "denoise", "plain", "denoise"): 1.10,
    ("megasr", "denoise_first", "plain", "denoise"): None,
    ("recomputing", "train", "megasr", "train"): None,
    ("compiled", "train", "megasr", "train"): None,
    ("compiled", "denoise", "megasr", "denoise"): None,
    ("seesr", "train", "plain", "train"): None,
}


def start(name: str, threads: int, limit_s: float) -> Worker:
    """A contender in a process of its own."""
    if name == "seesr":
        return start_seesr(SIZES, threads, limit_s)
    command = [sys.executable, "-m", "experiments.benchmarks.step_contenders", name, str(threads)]
    return Worker(command, {"OMP_NUM_THREADS": str(threads)}, limit_s)


def why_left_out(name: str, compile_limit_s: float) -> str | None:
    """What a contender lacks."""
    if name == "seesr" and (missing := missing_peer()):
        return f"{' and '.join(missing)} not set"
    if name == "compiled" and compile_limit_s == 0:
        return "not wanted"
    if name == "compiled" and shutil.which("g++") is None:
        return "no C++ compiler"
    return None


def take_turns(workers: dict[str, Worker], rounds: int) -> Found:
    """Times of every step of every contender."""
    found: Found = {name: {step: [] for step in _STEPS[name]} for name in workers}
    names = list(workers)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            for step, times in found[name].items():
                times.append(workers[name].step(step))
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return found


def measure(rounds: int, threads: int, compile_limit_s: float) -> dict[str, Any]:
    """Start every contender, have each do all its steps once, and then in turns."""
    left_out: dict[str, str] = {}
    workers: dict[str, Worker] = {}
    with ExitStack() as stack:
        for name, steps in _STEPS.items():
            if why := why_left_out(name, compile_limit_s):
                left_out[name] = why
                continue
            worker = start(name, threads, compile_limit_s if name == "compiled" else 600)
            stack.callback(worker.close)
            try:
                for step in steps:
                    worker.step(step)
                workers[name] = worker
            except TimeoutError as error:
                left_out[name] = str(error)
        for name, why in left_out.items():
            print(f"{name} is left out: {why}", file=sys.stderr, flush=True)
        found = take_turns(workers, rounds)
    return summarise(found) | {"left_out": left_out}


def summarise(found: dict[str, dict[str, list[StepTimes]]]) -> dict[str, Any]:
    """Medians, all rounds, and the ratios of those that took part."""
    result: dict[str, Any] = {}
    for clock in ("wall_s", "cpu_s"):
        seconds = {
            n: {s: [getattr(t, clock) for t in times] for s, times in steps.items()} for n, steps in found.items()
        }
        median = {n: {s: statistics.median(times) for s, times in steps.items()} for n, steps in seconds.items()}
        result[clock] = {
            "median": {n: {s: round(value, 3) for s, value in steps.items()} for n, steps in median.items()},
            "ratio": {
                f"{a}.{step_a} / {b}.{step_b}": round(median[a][step_a] / median[b][step_b], 3)
                for a, step_a, b, step_b in _RATIOS
                if a in median and b in median
            },
            "rounds": {
                n: {s: [round(t, 3) for t in times] for s, times in steps.items()} for n, steps in seconds.items()
            },
        }
    result["goal"] = {f"{a}.{step_a} / {b}.{step_b}": goal for (a, step_a, b, step_b), goal in _RATIOS.items() if goal}
    return result


def operations() -> dict[str, dict[str, float]]:
    """1e9 operations of every step of the full network and the plain pair."""
    found = {}
    for name in ("megasr", "plain"):
        steps = CONTENDERS[name]()
        steps["denoise"]()  # the conditions are kept from here on
        found[name] = {step: round(count(call), 1) for step, call in steps.items()}
    return found


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of every contender; torch's own")
    parser.add_argument("--compile-limit", type=float, default=300, help="seconds for a compiled step; 0 leaves it out")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = {"rounds": arguments.rounds, "threads": arguments.threads, "sizes": SIZES, "guidance": GUIDANCE}
    results = measure(arguments.rounds, arguments.threads, arguments.compile_limit)
    publish("train_step", settings, results | {"gflop": operations()}, arguments.output)


if __name__ == "__main__":
    main()
