"""Peak memory of a training step, from a step of the real network on fake tensors, and what to change so that it fits.

torch.distributed._tools.MemTracker would do the first half, but it puts gradient hooks on all parameters, which frozen
ones refuse, and keeps one peak, while every strategy weights the kinds of memory differently. LiveBytes is within 0.1 %
of torch's allocator on a step of the tiny prior.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from megasr.batch import SRBatch
from megasr.errors import MegaSRError, UsageError
from megasr.networks.sites import Site
from megasr.training.memory_setup import TrainingSetup, build_batch, build_weightless, cast, without_bytes
from megasr.training.module import MegaSRModule

GIB = 2**30
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true")
KINDS = ("frozen", "trained", "optimizer", "gradients", "activations")
PHASES = ("between", "forward", "backward", "optimizer")


class LiveBytes(TorchDispatchMode):
    """Count the bytes of the living storages that operations return, by kind.

    Args:
        block_bytes: every storage takes a multiple of so many bytes.

    Attributes:
        rows: (index into PHASES, bytes of each of KINDS) after every operation that made a new storage.
    """

    def __init__(self, block_bytes: int = 1) -> None:
        super().__init__()
        self.block_bytes = block_bytes
        self.phase = "between"
        self.totals = dict.fromkeys(KINDS, 0)
        self.rows: list[tuple[int, ...]] = []
        self._known: dict[int, tuple[str, int, weakref.ref[Any]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        new = [self.see(leaf, "activations") for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if any(new):
            self.record()
        return result

    def see(self, tensor: torch.Tensor, kind: str) -> bool:
        """Count a tensor's storage unless it is known. True when it was new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return False
        size = -(-storage.nbytes() // self.block_bytes) * self.block_bytes
        self._known[key] = (kind, size, weakref.ref(storage, lambda _: self._forget(key)))
        self.totals[kind] += size
        return True

    def relabel(self, tensor: torch.Tensor, kind: str) -> None:
        """Count a tensor's storage as another kind from now on."""
        if not self.see(tensor, kind):
            key = tensor.untyped_storage()._cdata
            old, size, reference = self._known[key]
            self._known[key] = (kind, size, reference)
            self.totals[old] -= size
            self.totals[kind] += size

    def record(self) -> None:
        """Add a row."""
        self.rows.append((PHASES.index(self.phase), *self.totals.values()))

    def _forget(self, key: int) -> None:
        kind, size, _ = self._known.pop(key)
        self.totals[kind] -= size

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Inside, rows belong to a phase."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before


class FakeAnswers(TorchDispatchMode):
    """Answer `.item()` of fake tensors.

    Args:
        truth: for every bool. A step asks whether its loss is finite (yes); an initialiser whether a draw must be
            repeated (no). Numbers are 1/2, which is in the range of every map.
    """

    def __init__(self, truth: bool) -> None:
        super().__init__()
        self.truth = truth

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            kind = args[0].dtype
            return self.truth if kind == torch.bool else 0.5 if kind.is_floating_point else 1
        return func(*args, **(kwargs or {}))


_SHARDED_TOGETHER = ("ResnetBlock2D", "Transformer2DModel", "JointTransformerBlock")
_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
# What CUDA's autocast computes in float32 and the processor's does not; normalisations are what matters here.
_FLOAT32_ON_CUDA = {"group_norm", "layer_norm", "softmax", "log_softmax", "pow", "norm", "exp", "log", "cumsum"}


class _CudaAutocast(TorchFunctionMode):
    """The processor's autocast with the float32 operations of CUDA's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _FLOAT32_ON_CUDA and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(_to_float32, (args, kwargs))
        return func(*args, **kwargs)


def _to_float32(value: Any) -> Any:
    half = isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if half else value


@dataclass(frozen=True)
class MemoryTrace:
    """Bytes during a step.

    Attributes:
        rows: (N, 6) int64, see LiveBytes.
        trained: number of trained values.
        largest_group: bytes of the largest block of trained parameters, which FSDP2 gathers at a time.
        notes: what was counted as something else, or not at all.
    """

    rows: np.ndarray
    trained: int
    largest_group: int
    notes: tuple[str, ...]

    def bytes_of(self, kind: str) -> int:
        """The most that a kind ever takes."""
        return int(self.rows[:, 1 + KINDS.index(kind)].max())

    def weighted(self, shares: Mapping[str, float]) -> np.ndarray:
        """(N, 5): bytes on one device, which has these shares of each kind, and of "step", AdamW's temporaries."""
        weighted = self.rows[:, 1:] * np.array([shares.get(kind, 1.0) for kind in KINDS])
        weighted[self.rows[:, 0] == PHASES.index("optimizer"), KINDS.index("activations")] *= shares.get("step", 1.0)
        return weighted


def trace_step(module: MegaSRModule, batch: SRBatch, setup: TrainingSetup, notes: Sequence[str] = ()) -> MemoryTrace:
    """Run one step of training as a later one is: with gradients of the last step and the optimizer's moments.

    Args:
        module: with real parameters, or made under FakeTensorMode, which must then be active here too.
        batch: of training.
        setup: what the trainer adds: precision, accumulation, clipping.
        notes: for the reader of the plan.
    """
    module.train()
    tracker = LiveBytes(512 if setup.on_gpu else 1)
    optimizer = module.configure_optimizers()["optimizer"]
    for group in optimizer.param_groups:
        group |= {"foreach": setup.on_gpu, "fused": not setup.on_gpu}  # as build_optimizer's is there
    trained = [p for p in module.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for part in (module, *load_extractors(module, batch)):
        for tensor in (*part.parameters(), *part.buffers()):
            tracker.see(tensor, "trained" if tensor.requires_grad else "frozen")
    state = [*optimizer.state.values()]
    for kind, held in (("gradients", [p.grad for p in trained]), ("optimizer", state), ("activations", dict(batch))):
        for value in tree_leaves(held):
            if isinstance(value, torch.Tensor):
                tracker.see(value, kind)
    with ExitStack() as stack:
        for parameter in trained:
            handle = parameter.register_post_accumulate_grad_hook(lambda p: tracker.relabel(p.grad, "gradients"))
            stack.callback(handle.remove)
        if setup.on_gpu:  # around the backward pass too, which computes blocks again under autocast
            stack.enter_context(_CudaAutocast())
        stack.enter_context(tracker)
        _run(module, batch, setup, optimizer, tracker)
    blocks = [m for m in module.modules() if type(m).__name__ in _SHARDED_TOGETHER or isinstance(m, Site)]
    sizes = [sum(p.numel() * p.element_size() for p in block.parameters() if p.requires_grad) for block in blocks]
    rows = np.array(tracker.rows, dtype=np.int64)
    return MemoryTrace(rows, sum(p.numel() for p in trained), max(sizes, default=0), tuple(notes))


def _run(module: MegaSRModule, batch: SRBatch, setup: TrainingSetup, optimizer: Any, tracker: LiveBytes) -> None:
    """Lightning's automatic optimisation: forward, zero_grad, backward, clip, step."""
    tracker.record()
    autocast = torch.autocast("cpu", _AUTOCAST.get(setup.precision), enabled=setup.precision in _AUTOCAST)
    with tracker.during("forward"), autocast:
        loss = module.training_step(batch, 0)["loss"]
    if setup.accumulation == 1:
        optimizer.zero_grad()
    with tracker.during("backward"):
        # loss.backward() would switch function modes off, also in the blocks that it computes again.
        torch.autograd.Variable._execution_engine.run_backward(
            (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
        )
    with tracker.during("optimizer"):
        if setup.clips:
            torch.nn.utils.clip_grad_norm_([p for p in module.parameters() if p.requires_grad], 1.0)
        optimizer.step()


def load_extractors(module: MegaSRModule, batch: SRBatch) -> list[nn.Module]:
    """The extractors that this batch will need, loaded."""
    given = batch.get("maps") or {}
    needed = [g for g in module.network.guidance if g.load is not None and g.name not in given]
    networks = [module.networks.get(g, batch["lq"].device) for g in needed]
    return list({id(network): network for network in networks}.values())


def trace_setup(setup: TrainingSetup) -> MemoryTrace:
    """Trace a setup's step on one device, on fake tensors.

    Raises:
        MegaSRError: the prior is not on this machine, or the step fails.
    """
    with without_bytes():
        with FakeAnswers(truth=False):
            module, parts = build_weightless(setup.model)
            if setup.precision == "bf16-true":
                cast(module, torch.bfloat16)
            elif setup.frozen_dtype != torch.float32:
                for part in module.held_parts:
                    cast(part, setup.frozen_dtype, frozen_only=True)
            absent = []
            for guidance in module.network.guidance:
                try:
                    if guidance.load is not None and not setup.brings_maps:
                        module.networks.get(guidance, torch.device("cpu"))
                except MegaSRError:
                    absent.append(guidance.name)
                    parts.notes.append(f"the extractor of {guidance.name} is not on this machine, and is not counted")
            batch = build_batch(setup, module, absent)
        try:
            with FakeAnswers(truth=True):
                return trace_step(module, batch, setup, parts.notes)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            if isinstance(error, MegaSRError):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise MegaSRError(f"this recipe's training step fails, so its memory is not known: {reason}") from error


# One byte for each of AdamW's two moments, and one float32 scale of each per block of 256 values (2110.02861).
_EIGHT_BIT_BYTES = 2 + 2 * 4 / 256


@dataclass(frozen=True)
class MemoryPlan:
    """The predicted peak of one device.

    Attributes:
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
    """Plan setups; those that differ only in arithmetic share one traced step."""

    def __init__(self) -> None:
        self._traces: dict[str, MemoryTrace] = {}

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
        if setup.eight_bit and setup.strategy == "fsdp2":
            raise UsageError("model.optimizer.state_bits 8 does not work with ShardedStrategy")
        trace = self._trace(setup)
        shares, constants = _arithmetic(setup, trace)
        weighted, fixed = trace.weighted(shares), sum(constants.values())
        sums, phases = weighted.sum(1), trace.rows[:, 0]
        peak = int(sums.argmax())
        names = ("frozen weights", "trained weights", "optimizer state", "gradients", "activations")  # as KINDS
        parts = dict(zip(names, map(float, weighted[peak]), strict=True))
        of_phase = {PHASES[i]: float(sums[phases == i].max()) + fixed for i in np.unique(phases)}
        return MemoryPlan(setup, PHASES[phases[peak]], parts | constants, of_phase, trace.notes)

    def _trace(self, setup: TrainingSetup) -> MemoryTrace:
        optimizer = {**(setup.model.get("optimizer") or {}), "state_bits": None}
        model = {**setup.model, "optimizer": optimizer, "shard_frozen": None}
        same = replace(setup, model=model, devices=1, strategy="single", bucket_view=False, ema=False)
        same = replace(same, accumulation=min(setup.accumulation, 2))
        key = json.dumps(asdict(same), sort_keys=True, default=str)
        if key not in self._traces:
            self._traces[key] = trace_setup(same)
        return self._traces[key]


def _arithmetic(setup: TrainingSetup, trace: MemoryTrace) -> tuple[dict[str, float], dict[str, float]]:
    """Shares of the traced kinds on one device, and bytes that are there all the time besides them."""
    shares, constants = {}, {}
    weights, ema_share = float(trace.bytes_of("trained")), 1.0
    if setup.strategy == "ddp":
        constants["gradient buckets"] = weights
        shares["gradients"] = 0.0 if setup.bucket_view else 1.0
    elif setup.strategy == "fsdp2":
        ema_share = 1 / setup.devices
        sharded = ("trained", "gradients", "optimizer", "step")
        shares = dict.fromkeys((*sharded, "frozen") if setup.model.get("shard_frozen") else sharded, ema_share)
        constants["gathered weights"] = 3.0 * trace.largest_group if setup.devices > 1 else 0.0
    if setup.eight_bit:
        shares["optimizer"] = trace.trained * _EIGHT_BIT_BYTES / trace.bytes_of("optimizer")
        shares["step"] = 0.0  # its kernels work in place
    if setup.ema:
        constants["EMA"] = weights * ema_share
    return shares, constants


Change = tuple[tuple[str, ...], Callable[[TrainingSetup], TrainingSetup]]
_BUCKET_VIEW = (
    "trainer.strategy: {class_path: lightning.pytorch.strategies.DDPStrategy, "
    "dict_kwargs: {gradient_as_bucket_view: true}}",
)


@dataclass(frozen=True)
class Advice:
    """A plan that fits, and the lines `key: value` of the configuration that lead to it."""

    plan: MemoryPlan
    lines: tuple[str, ...]


def advise(planner: Planner, setup: TrainingSetup, usable_gib: float) -> Advice | None:
    """Add one change after another until the plan fits; None when even all of them are not enough.

    A change that saves nothing, or with which the step cannot be run, is left out again.
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
    """The changes in the order of what they cost: time, then machinery, then exactness."""
    adapter, optimizer = setup.model.get("adapter") or {}, setup.model.get("optimizer") or {}
    if not adapter.get("gradient_checkpointing"):
        key = "adapter.gradient_checkpointing"
        yield (f"model.{key}: true",), lambda s: s.with_model(key, True)
    if setup.model.get("frozen_dtype") != "bfloat16":
        yield ("model.frozen_dtype: bfloat16",), lambda s: s.with_model("frozen_dtype", "bfloat16")
    if setup.precision == "32-true":
        yield ("trainer.precision: bf16-mixed",), partial(replace, precision="bf16-mixed")
    if setup.strategy == "ddp" and not setup.bucket_view:
        yield _BUCKET_VIEW, partial(replace, bucket_view=True)
    if setup.devices > 1 and setup.strategy != "fsdp2":
        name = "trainer.strategy: {class_path: megasr.training.sharding.ShardedStrategy}"
        yield (name,), partial(replace, strategy="fsdp2", bucket_view=False)
    if not optimizer.get("state_bits"):  # not with FSDP2
        yield ("model.optimizer.state_bits: 8",), lambda s: s.with_model("optimizer.state_bits", 8)
    size, accumulation = setup.batch_size, setup.accumulation
    while size % 2 == 0:
        size, accumulation = size // 2, accumulation * 2
        lines = (f"data.init_args.batch_size: {size}", f"trainer.accumulate_grad_batches: {accumulation}")
        yield lines, partial(replace, batch_size=size, accumulation=accumulation)
