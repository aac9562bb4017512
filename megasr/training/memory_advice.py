"""What to change in a recipe so that it fits a GPU: the cheapest changes first, until the predicted peak fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from megasr.errors import MegaSRError, UsageError
from megasr.training.memory_plan import MemoryPlan, Planner
from megasr.training.memory_setup import TrainingSetup

Change = tuple[tuple[str, ...], Callable[[TrainingSetup], TrainingSetup]]


@dataclass(frozen=True)
class Advice:
    """The first combination that fits.

    Attributes:
        plan: with all changes made.
        lines: the keys of the configuration to set, `key: value`.
    """

    plan: MemoryPlan
    lines: tuple[str, ...]


def advise(planner: Planner, setup: TrainingSetup, usable_gib: float) -> Advice | None:
    """Add one change after another until the plan fits; None when even all of them are not enough.

    A change that saves nothing, or with which the step cannot be run, is left out again.

    Args:
        planner: makes the plans.
        setup: what does not fit.
        usable_gib: what the peak may be.
    """
    best, lines = planner.plan(setup), dict[str, str]()
    for keys, change in _changes(setup):
        try:
            plan = planner.plan(change(best.setup))
        except (MegaSRError, UsageError):
            continue
        if plan.total_gib >= best.total_gib:
            continue
        best = plan
        lines |= dict(key.split(": ", 1) for key in keys)
        if best.total_gib <= usable_gib:
            return Advice(best, tuple(f"{key}: {value}" for key, value in lines.items()))
    return None


def _changes(setup: TrainingSetup) -> Iterator[Change]:
    """The changes in the order of what they cost: time, then exactness, then machinery."""
    adapter, optimizer = setup.model.get("adapter") or {}, setup.model.get("optimizer") or {}
    if not adapter.get("gradient_checkpointing"):
        key = "adapter.gradient_checkpointing"
        yield (f"model.{key}: true",), lambda s: s.with_model(key, True)
    if setup.model.get("frozen_dtype") != "bfloat16":
        yield ("model.frozen_dtype: bfloat16",), lambda s: s.with_model("frozen_dtype", "bfloat16")
    if setup.precision == "32-true":
        yield ("trainer.precision: bf16-mixed",), lambda s: replace(s, precision="bf16-mixed")
    if not optimizer.get("state_bits"):
        yield ("model.optimizer.state_bits: 8",), lambda s: s.with_model("optimizer.state_bits", 8)
    if setup.strategy == "ddp" and not setup.bucket_view:
        yield _BUCKET_VIEW, lambda s: replace(s, bucket_view=True)
    if setup.devices > 1 and setup.strategy != "fsdp2":
        name = "trainer.strategy: {class_path: megasr.training.strategies.ShardedStrategy}"
        yield (name,), lambda s: replace(s, strategy="fsdp2", bucket_view=False)
    size, accumulation = setup.batch_size, setup.accumulation
    while size % 2 == 0:
        size, accumulation = size // 2, accumulation * 2
        lines = (f"data.init_args.batch_size: {size}", f"trainer.accumulate_grad_batches: {accumulation}")
        yield lines, _smaller(size, accumulation)


_BUCKET_VIEW = (
    "trainer.strategy: {class_path: lightning.pytorch.strategies.DDPStrategy, "
    "dict_kwargs: {gradient_as_bucket_view: true}}",
)


def _smaller(size: int, accumulation: int) -> Callable[[TrainingSetup], TrainingSetup]:
    return lambda setup: replace(setup, batch_size=size, accumulation=accumulation)
