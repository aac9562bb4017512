"""What a recipe needs of a GPU's memory, before it is run: the largest sum of live bytes in a step of training.

The step is the module's own, run once without bytes (megasr.training.memory_trace). What N devices share is arithmetic:

    single    everything on the device
    ddp       the same, and the buckets of the gradients; with gradient_as_bucket_view the gradients live in them
    fsdp2     trained weights, gradients, optimizer state and EMA divided by N, frozen weights only with its
              shard_frozen; the largest block is gathered whole twice (one is fetched early), with its gradient once
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch

from megasr.errors import MegaSRError, UsageError
from megasr.training.live_bytes import FakeAnswers, MemoryTrace
from megasr.training.memory_setup import TrainingSetup, build_batch
from megasr.training.memory_trace import StepSettings, load_extractors, trace_step
from megasr.training.weightless import build_weightless, cast, without_bytes

GIB = 2**30
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true")
# One byte for each of AdamW's two moments, and one float32 scale of each per block of 256 values (2110.02861).
_EIGHT_BIT_BYTES = 2 + 2 * 4 / 256


@dataclass(frozen=True)
class MemoryPlan:
    """The predicted peak of one device.

    Attributes:
        setup: what was planned.
        phase: of the step, in which the peak occurs.
        parts: bytes at the peak, by what they are.
        phases: bytes at the peak of each phase.
        notes: what was counted as something else, or not at all.
    """

    setup: TrainingSetup
    phase: str
    parts: Mapping[str, float]
    phases: Mapping[str, float]
    notes: tuple[str, ...] = ()

    @property
    def total_gib(self) -> float:
        """The peak."""
        return sum(self.parts.values()) / GIB


class Planner:
    """Plans setups; those that differ only in what is arithmetic share one traced step."""

    def __init__(self) -> None:
        self._traces: dict[str, tuple[MemoryTrace, tuple[str, ...]]] = {}

    def plan(self, setup: TrainingSetup) -> MemoryPlan:
        """Predict the peak of one device.

        Raises:
            UsageError: a value of the setup cannot be used.
            MegaSRError: the prior is not on this machine, or the step cannot be run.
        """
        if setup.precision not in PRECISIONS:
            raise UsageError(f"trainer.precision {setup.precision}: memory is planned for {', '.join(PRECISIONS)}")
        for name in ("batch_size", "crop_size_px", "devices", "accumulation"):
            if getattr(setup, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(setup, name)}")
        trace, notes = self._trace(setup)
        shares, constants = _arithmetic(setup, trace)
        phase, found = trace.peak(shares)
        named = {
            "frozen weights": found["frozen"],
            "trained weights": found["trained"],
            "gradients": found["gradients"],
            "optimizer state": found["optimizer"],
            "activations": found["activations"],
        }
        fixed = sum(constants.values())
        phases = {name: value + fixed for name, value in trace.peak_of_phases(shares).items()}
        return MemoryPlan(setup, phase, named | constants, phases, notes)

    def _trace(self, setup: TrainingSetup) -> tuple[MemoryTrace, tuple[str, ...]]:
        same = replace(
            setup, devices=1, strategy="single", bucket_view=False, ema=False, accumulation=min(setup.accumulation, 2)
        )
        optimizer = {**(setup.model.get("optimizer") or {})}
        optimizer.pop("state_bits", None)
        same = replace(same, model={**setup.model, "optimizer": optimizer, "shard_frozen": None})
        key = json.dumps(asdict(same), sort_keys=True, default=str)
        if key not in self._traces:
            self._traces[key] = _trace_without_bytes(same)
        return self._traces[key]


def _trace_without_bytes(setup: TrainingSetup) -> tuple[MemoryTrace, tuple[str, ...]]:
    settings = StepSettings(setup.precision, setup.accumulation > 1, setup.clips, setup.on_gpu)
    with without_bytes():
        with FakeAnswers(truth=False):
            module, parts = build_weightless(setup.model)
            if setup.precision == "bf16-true":
                cast(module, torch.bfloat16)
            elif setup.frozen_dtype != torch.float32:
                for part in module.held_parts:
                    cast(part, setup.frozen_dtype, frozen_only=True)
            batch = build_batch(setup, module.scale_factor, module)
            load_extractors(module, batch)
        try:
            with FakeAnswers(truth=True):
                trace = trace_step(module, batch, settings)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            if isinstance(error, MegaSRError):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise MegaSRError(f"this recipe's training step fails, so its memory is not known: {reason}") from error
    return trace, tuple(parts.notes)


def _arithmetic(setup: TrainingSetup, trace: MemoryTrace) -> tuple[dict[str, float], dict[str, float]]:
    """Shares of the traced kinds, and what is there all the time besides them, in bytes."""
    shares, constants = dict.fromkeys(("frozen", "trained", "gradients", "optimizer", "step"), 1.0), {}
    weights = trace.bytes_of("trained")
    ema_share = 1.0
    if setup.strategy == "ddp":
        constants["gradient buckets"] = float(weights)
        shares["gradients"] = 0.0 if setup.bucket_view else 1.0
    elif setup.strategy == "fsdp2":
        sharded = ("trained", "gradients", "optimizer", "step")
        shares |= dict.fromkeys(sharded, 1 / setup.devices)
        ema_share = 1 / setup.devices
        if setup.model.get("shard_frozen"):
            shares["frozen"] = ema_share
        constants["gathered weights"] = 3.0 * trace.largest_group if setup.devices > 1 else 0.0
    if setup.eight_bit:
        shares["optimizer"] *= trace.trained * _EIGHT_BIT_BYTES / trace.bytes_of("optimizer")
        shares["step"] = 0.0  # its kernels work in place
    if setup.ema:
        constants["EMA"] = weights * ema_share
    return shares, constants
