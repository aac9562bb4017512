"""How many bytes live while one training step runs, by what they are and in which phase, operation by operation.

A storage is counted from the operation that returned it until its last owner lets go of it, autograd's saved tensors
included. The step itself is the module's own: nothing here knows how large an activation is. Under torch's
FakeTensorMode no byte is allocated and nothing is computed; with real tensors the same code counts real ones.

What happens inside one operation (a convolution's workspace) is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from megasr.batch import SRBatch
from megasr.guidance.registry import GuidanceType

if TYPE_CHECKING:
    from megasr.training.module import MegaSRModule

KINDS = ("frozen", "trained", "optimizer", "gradients", "activations")
PHASES = ("between", "extracting guidance", "image tokens", "text", "encoding hq", "forward", "backward", "optimizer")
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
        loss.backward()
    with tracker.during("optimizer"):
        if settings.clips:
            torch.nn.utils.clip_grad_norm_([p for p in module.parameters() if p.requires_grad], 1.0)
        optimizer.step()


@contextmanager
def _precision(settings: StepSettings) -> Iterator[None]:
    with ExitStack() as stack:
        if settings.precision in _AUTOCAST:
            if settings.on_gpu:
                stack.enter_context(_CudaAutocast())
            stack.enter_context(torch.autocast("cpu", _AUTOCAST[settings.precision]))
        yield


def load_extractors(module: MegaSRModule, batch: SRBatch) -> list[nn.Module]:
    """The networks that this batch will ask for, loaded."""
    given = batch.get("maps") or {}
    wanted: list[GuidanceType] = [g for g in module.network.guidance if g.load is not None and g.name not in given]
    found = {id(n): n for n in (module.networks.get(g, batch["lq"].device)[0] for g in wanted)}
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
