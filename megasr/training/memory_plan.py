"""What a recipe needs of a GPU's memory, before it is run: the largest sum of live bytes in a step of training.

The step is the module's own, run once without bytes (megasr.training.memory_trace). What N devices share is arithmetic:

    single    everything on the device
    ddp       the same, and the buckets of the gradients; with gradient_as_bucket_view the gradients live in them
    fsdp2     trained weights, gradients, optimizer state and EMA divided by N, frozen weights only with
              model.shard_frozen; the largest block is gathered whole twice (the next one is fetched early) with its
              gradient once
    fsdp      optimizer state and EMA divided by N; Lightning wraps the module as one unit, which is gathered whole
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any, Literal, get_args, get_type_hints

import torch

from megasr.batch import SRBatch
from megasr.errors import MegaSRError, UsageError
from megasr.training.memory_trace import FakeAnswers, MemoryTrace, StepSettings, load_extractors, trace_step
from megasr.training.module import MegaSRModule
from megasr.training.weightless import WeightlessParts, cast

GIB = 2**30
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true")
Strategy = Literal["single", "ddp", "fsdp2", "fsdp"]
# One byte for each of AdamW's two moments, and one float32 scale of each per block of 256 values (2110.02861).
_EIGHT_BIT_BYTES = 2 + 2 * 4 / 256
_TOKENS = 256  # image tokens that come with the data: ViT-H-14's
# Options of the module that the step itself need not know: they are arithmetic, or done by `cast`.
_NOT_PASSED = ("frozen_dtype", "shard_frozen", "init")


@dataclass(frozen=True)
class TrainingSetup:
    """What a recipe says about memory.

    Attributes:
        model: arguments of MegaSRModule as plain data.
        batch_size: samples per device and micro-batch.
        crop_size_px: height and width of hq.
        devices: N.
        strategy: how the devices share the work.
        bucket_view: DDP's gradients live in its buckets.
        precision: Lightning's.
        accumulation: micro-batches per optimizer step.
        clips: the norm of the gradients is clipped.
        ema: the trained weights are averaged.
        on_gpu: count as CUDA does it (see StepSettings).
        brings_maps: the guidance maps come with the data.
    """

    model: Mapping[str, Any]
    batch_size: int
    crop_size_px: int
    devices: int = 1
    strategy: Strategy = "single"
    bucket_view: bool = False
    precision: str = "32-true"
    accumulation: int = 1
    clips: bool = False
    ema: bool = False
    on_gpu: bool = True
    brings_maps: bool = False

    @property
    def global_batch(self) -> int:
        """Samples per optimizer step."""
        return self.batch_size * self.devices * self.accumulation

    @property
    def frozen_dtype(self) -> torch.dtype:
        """In which frozen weights are held."""
        return getattr(torch, str(self.model.get("frozen_dtype") or "float32"))

    @property
    def eight_bit(self) -> bool:
        """The optimizer's moments take a byte each."""
        return bool((self.model.get("optimizer") or {}).get("eight_bit"))

    def with_model(self, path: str, value: object) -> TrainingSetup:
        """The same with another value of a dotted key of the model."""
        section, _, name = path.rpartition(".")
        changes = {section: {**(self.model.get(section) or {}), name: value}} if section else {name: value}
        return replace(self, model={**self.model, **changes})


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
        optimizer = {name: value for name, value in (setup.model.get("optimizer") or {}).items() if name != "eight_bit"}
        same = replace(same, model={**setup.model, "optimizer": optimizer, "shard_frozen": None})
        key = json.dumps(asdict(same), sort_keys=True, default=str)
        if key not in self._traces:
            self._traces[key] = _trace_without_bytes(same)
        return self._traces[key]


def build_batch(setup: TrainingSetup, scale_factor: int, module: MegaSRModule) -> SRBatch:
    """A batch of zeros with everything that the data bring."""
    size, side, small = setup.batch_size, setup.crop_size_px, setup.crop_size_px // scale_factor
    dtype = torch.bfloat16 if setup.precision == "bf16-true" else torch.float32
    keys = [f"image-{i}" for i in range(size)]
    batch = SRBatch(
        keys=keys,
        hq=torch.zeros(size, 3, side, side, dtype=dtype),
        lq=torch.zeros(size, 3, small, small, dtype=dtype),
        tags=list(keys),  # distinct, as equal prompts are embedded once
        text_dropped=[False] * size,  # type: ignore[typeddict-item]
    )
    if setup.brings_maps:
        batch["maps"] = {
            g.name: torch.zeros(size, g.channels, side, side, dtype=dtype) for g in module.network.guidance
        }
    if module.vision is None:
        batch["image_tokens"] = torch.zeros(size, _TOKENS, module.adapter.image_width, dtype=dtype)
        batch["representation"] = torch.zeros(size, _TOKENS, module.adapter.representation_width, dtype=dtype)
    return batch


def module_arguments(model: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data -> arguments of MegaSRModule, without what a plan does by itself or must not do."""
    optimizer = {**(model.get("optimizer") or {}), "decay_share": 0.0}  # a decay asks the trainer for its steps
    optimizer.pop("eight_bit", None)
    arguments: dict[str, Any] = {k: v for k, v in model.items() if k not in _NOT_PASSED} | {"optimizer": optimizer}
    for name, hint in get_type_hints(MegaSRModule.__init__).items():
        config = next((kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)), None)
        if config is not None and isinstance(arguments.get(name), Mapping):
            arguments[name] = config(**arguments[name])  # type: ignore[operator]
    return arguments


def known_options() -> frozenset[str]:
    """The options that save memory and that this version's module and recipes know, besides those of the trainer."""
    hints = get_type_hints(MegaSRModule.__init__)
    known = {name for name in ("frozen_dtype", "shard_frozen") if name in hints}
    if "eight_bit" in {field.name for field in fields(hints["optimizer"])}:
        known.add("optimizer.eight_bit")
    if "configure_model" in vars(MegaSRModule):
        known.add("fsdp2")
    return frozenset(known)


def _trace_without_bytes(setup: TrainingSetup) -> tuple[MemoryTrace, tuple[str, ...]]:
    import warnings

    from torch._subclasses.fake_tensor import FakeTensorMode

    class WeightlessModule(MegaSRModule):
        parts = WeightlessParts()

    settings = StepSettings(setup.precision, setup.accumulation > 1, setup.clips, setup.on_gpu)
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True):
        warnings.simplefilter("ignore")
        with FakeAnswers(truth=False):
            module = WeightlessModule(**module_arguments(setup.model))
            if setup.precision == "bf16-true":
                cast(module, torch.bfloat16)
            elif setup.frozen_dtype != torch.float32:
                cast(module, setup.frozen_dtype, frozen_only=True)
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
    return trace, tuple(module.parts.notes)


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
    elif setup.strategy == "fsdp":
        shares |= dict.fromkeys(("optimizer", "step"), 1 / setup.devices)
        ema_share = 1 / setup.devices
        own = (weights + trace.bytes_of("frozen")) / setup.devices
        constants["weights' own shard"] = own if setup.devices > 1 else 0.0
    if setup.eight_bit:
        shares["optimizer"] *= trace.trained * _EIGHT_BIT_BYTES / trace.bytes_of("optimizer")
        shares["step"] = 0.0  # its kernels work in place
    if setup.ema:
        constants["EMA"] = weights * ema_share
    return shares, constants
