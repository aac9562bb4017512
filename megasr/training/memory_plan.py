"""Peak memory of a training step, from a traced step of the real network under fake tensors."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from megasr.batch import SRBatch
from megasr.errors import MegaSRError, UsageError
from megasr.guidance.registry import GuidanceType
from megasr.training.memory_setup import TrainingSetup, build_batch, build_weightless, cast, without_bytes

if TYPE_CHECKING:
    from megasr.training.module import MegaSRModule


KINDS = ("frozen", "trained", "optimizer", "gradients", "activations")
PHASES = ("between", "extracting guidance", "image tokens", "text", "encoding hq", "forward", "backward", "optimizer")


@dataclass(frozen=True)
class MemoryTrace:
    """Live bytes after every operation that made a new storage.

    Attributes:
        phases: (N,) index into PHASES.
        live: (N, 5) bytes, in the order of KINDS.
        trained: number of trained values.
        largest_group: bytes of the largest block of trained parameters, which FSDP gathers at a time.
    """

    phases: np.ndarray
    live: np.ndarray
    trained: int
    largest_group: int

    def peak(self, shares: Mapping[str, float]) -> tuple[str, dict[str, float]]:
        """The phase of the largest sum, and its bytes per kind.

        Args:
            shares: kind -> the share of its bytes that is on one device, 1 where nothing is said; "step" is that of
                the optimizer's temporary tensors.
        """
        weighted = self._weighted(shares)
        place = int(np.argmax(weighted.sum(1)))
        return PHASES[self.phases[place]], dict(zip(KINDS, map(float, weighted[place]), strict=True))

    def peak_of_phases(self, shares: Mapping[str, float]) -> dict[str, float]:
        """Phase -> bytes at its own peak, of every phase that occurred."""
        sums = self._weighted(shares).sum(1)
        return {name: float(sums[self.phases == i].max()) for i, name in enumerate(PHASES) if i in self.phases}

    def bytes_of(self, kind: str) -> int:
        """The most that a kind ever takes."""
        return int(self.live[:, KINDS.index(kind)].max())

    def _weighted(self, shares: Mapping[str, float]) -> np.ndarray:
        weighted = self.live * np.array([shares.get(kind, 1.0) for kind in KINDS])
        weighted[self.phases == PHASES.index("optimizer"), KINDS.index("activations")] *= shares.get("step", 1.0)
        return weighted


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations return.

    Args:
        block_bytes: every storage takes a multiple of so many bytes.
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

    def call(self, tensor: torch.Tensor, kind: str) -> None:
        """Say what a storage is from now on."""
        if not self.see(tensor, kind):
            old, size, reference = self._known[tensor.untyped_storage()._cdata]
            self._known[tensor.untyped_storage()._cdata] = (kind, size, reference)
            self.totals[old] -= size
            self.totals[kind] += size

    def record(self) -> None:
        """Note what is alive."""
        self.rows.append((PHASES.index(self.phase), *self.totals.values()))

    def _forget(self, key: int) -> None:
        kind, size, _ = self._known.pop(key)
        self.totals[kind] -= size

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Inside, bytes belong to a phase."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before


class FakeAnswers(TorchDispatchMode):
    """Answers the looks at values that fake tensors do not hold.

    Args:
        truth: the answer to every question. A step asks whether its loss is finite (yes); an initialiser whether a draw
            must be repeated (no). Numbers are 1/2, which is in the range of every map.
    """

    def __init__(self, truth: bool) -> None:
        super().__init__()
        self.truth = truth

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            kind = args[0].dtype
            return self.truth if kind == torch.bool else 0.5 if kind.is_floating_point else 1
        return func(*args, **(kwargs or {}))


_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
# What CUDA's autocast computes in float32 and the processor's does not; normalisations are what matters here.
_FLOAT32_ON_CUDA = {"group_norm", "layer_norm", "softmax", "log_softmax", "pow", "norm", "exp", "log", "cumsum"}


@dataclass(frozen=True)
class StepSettings:
    """What a trainer adds to the module's own step.

    Args:
        precision: Lightning's, one of 32-true, bf16-mixed, 16-mixed, bf16-true.
        accumulates: gradients of earlier micro-batches are still there in the backward pass.
        clips: the norm of the gradients is clipped.
        on_gpu: count as CUDA does it: its autocast, its optimizer over lists of tensors, blocks of 512 bytes.
    """

    precision: str = "32-true"
    accumulates: bool = False
    clips: bool = False
    on_gpu: bool = False


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


def trace_step(module: MegaSRModule, batch: SRBatch, settings: StepSettings) -> MemoryTrace:
    """Run one step of training with the state that a later step finds: gradients of the last one, optimizer's moments.

    Args:
        module: with real parameters, or made under FakeTensorMode, which must then be active here too.
        batch: of training.
        settings: what the trainer adds.
    """
    module.train()
    tracker = LiveBytes(512 if settings.on_gpu else 1)
    optimizer = module.configure_optimizers()["optimizer"]
    for group in optimizer.param_groups:
        group["foreach"] = settings.on_gpu  # as torch chooses by itself on CUDA
    trained = [p for p in module.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    networks = load_extractors(module, batch)
    _see_state(tracker, module, networks, batch, optimizer)
    with ExitStack() as stack:
        for parameter in trained:
            handle = parameter.register_post_accumulate_grad_hook(lambda p: tracker.call(p.grad, "gradients"))
            stack.callback(handle.remove)
        for part, phase in _phases(module, networks):
            _watch(part, phase, tracker, stack)
        if settings.on_gpu:  # around the backward pass too, which computes blocks again under autocast
            stack.enter_context(_CudaAutocast())
        stack.enter_context(tracker)
        _run(module, batch, settings, optimizer, tracker)
    rows = np.array(tracker.rows, dtype=np.int64)
    return MemoryTrace(rows[:, 0], rows[:, 1:], sum(p.numel() for p in trained), _largest_group(module))


def _run(module: MegaSRModule, batch: SRBatch, settings: StepSettings, optimizer: Any, tracker: LiveBytes) -> None:
    """Lightning's automatic optimisation: forward, zero_grad, backward, clip, step."""
    tracker.record()
    with tracker.during("forward"), _precision(settings):
        loss = module.training_step(batch, 0)["loss"]
    if not settings.accumulates:
        optimizer.zero_grad()
    with tracker.during("backward"):
        _backward(loss)
    with tracker.during("optimizer"):
        if settings.clips:
            torch.nn.utils.clip_grad_norm_([p for p in module.parameters() if p.requires_grad], 1.0)
        optimizer.step()


def _backward(loss: torch.Tensor) -> None:
    """As loss.backward(), inside of which no function mode would be active, nor in the blocks that it recomputes."""
    engine = torch.autograd.Variable._execution_engine
    engine.run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


@contextmanager
def _precision(settings: StepSettings) -> Iterator[None]:
    with torch.autocast("cpu", _AUTOCAST.get(settings.precision), enabled=settings.precision in _AUTOCAST):
        yield


def load_extractors(module: MegaSRModule, batch: SRBatch) -> list[nn.Module]:
    """The networks that this batch will ask for, loaded."""
    given = batch.get("maps") or {}
    wanted: list[GuidanceType] = [g for g in module.network.guidance if g.load is not None and g.name not in given]
    found = {id(n): n for n in (module.networks.get(g, batch["lq"].device) for g in wanted)}
    return list(found.values())


def _see_state(
    tracker: LiveBytes, module: MegaSRModule, networks: Sequence[nn.Module], batch: SRBatch, optimizer: Any
) -> None:
    for part in (module, *networks):
        for tensor in (*part.parameters(), *part.buffers()):
            tracker.see(tensor, "trained" if tensor.requires_grad else "frozen")
            if tensor.grad is not None:
                tracker.see(tensor.grad, "gradients")
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                tracker.see(value, "optimizer")
    for value in tree_leaves(dict(batch)):
        if isinstance(value, torch.Tensor):
            tracker.see(value, "activations")


def _phases(module: MegaSRModule, networks: Sequence[nn.Module]) -> Iterator[tuple[nn.Module, str]]:
    yield module.prior.vae.encoder, "encoding hq"
    yield module.prior.text_encoder, "text"
    if module.vision is not None:
        yield module.vision, "image tokens"
    yield from ((network, "extracting guidance") for network in networks)


def _watch(part: nn.Module, phase: str, tracker: LiveBytes, stack: ExitStack) -> None:
    """Name what a part's forward pass makes after a phase."""
    before: list[str] = []

    def enter(*unused: object) -> None:
        before.append(tracker.phase)
        tracker.phase = phase

    def leave(*unused: object) -> None:
        tracker.phase = before.pop()

    stack.callback(part.register_forward_pre_hook(enter).remove)
    stack.callback(part.register_forward_hook(leave).remove)


def _largest_group(module: nn.Module) -> int:
    """Bytes of the trained parameters of the largest ResBlock, transformer or site."""
    blocks = [m for m in module.modules() if type(m).__name__ in ("ResnetBlock2D", "Transformer2DModel", "Site")]
    sizes = [sum(p.numel() * p.element_size() for p in block.parameters() if p.requires_grad) for block in blocks]
    return max(sizes, default=0)


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
        name = "trainer.strategy: {class_path: megasr.training.sharding.ShardedStrategy}"
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
