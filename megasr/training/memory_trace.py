"""How many bytes live while one training step runs: the module's own step, watched operation by operation.

Nothing here knows how large an activation is. Under torch's FakeTensorMode no byte is allocated and nothing is
computed; with real tensors the same code counts real ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from megasr.batch import SRBatch
from megasr.guidance.registry import GuidanceType
from megasr.training.live_bytes import LiveBytes, MemoryTrace

if TYPE_CHECKING:
    from megasr.training.module import MegaSRModule

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
