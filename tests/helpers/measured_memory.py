"""What one training step really takes, by torch's own allocator: nothing here knows how the prediction is made."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from megasr.training.memory_setup import TrainingSetup, build_batch, module_arguments
from megasr.training.module import MegaSRModule


def measure_step(setup: TrainingSetup) -> tuple[int, int]:
    """Build the module with its weights and train two steps on the processor.

    Returns the most bytes that the allocator had given out during the second step, and at its beginning. The profiler
    is on from before the module is built, as it knows only the deallocation of what it saw allocated. It remembers that
    from one profile to the next: what an earlier measurement left behind is collected first, as its deallocation would
    count against this one.
    """
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        module = MegaSRModule(**module_arguments(setup.model)).train()
        batch = build_batch(setup, module)
        optimizer = module.configure_optimizers()["optimizer"]
        _train(module, batch, optimizer)
        with torch.profiler.record_function("second step"):
            _train(module, batch, optimizer)
    events = list(profiler.profiler.kineto_results.events())
    begin = next(event for event in events if event.name() == "second step")
    last = begin.start_ns() + begin.duration_ns()
    alive = peak = at_begin = 0
    for time, size in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        if time <= last:
            alive += size
            at_begin = alive if time < begin.start_ns() else at_begin
            peak = max(peak, alive) if time >= begin.start_ns() else alive
    return peak, at_begin


def _train(module: MegaSRModule, batch: Any, optimizer: Any) -> None:
    loss = module.training_step(batch, 0)["loss"]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
