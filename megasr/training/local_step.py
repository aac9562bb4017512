"""An optimizer's step and clipping on what lies in this process of weights that are spread over several.

AdamW's update of an element needs that element, its gradient and its moments, and a norm is a sum over all elements. On
DTensors the same arithmetic is dispatched tensor by tensor, which for an adapter's hundreds of small tensors takes
longer than the arithmetic.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from megasr.training.sharding import local


def step_locally(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer step on local shares. Between steps it holds the spread parameters, and local states of them."""
    exchanged: list[tuple[torch.Tensor, torch.Tensor]] = []  # (spread parameter, its share), during a step

    def rename(new: dict[int, torch.Tensor]) -> None:
        for group in optimizer.param_groups:
            group["params"] = [new[id(p)] for p in group["params"]]
        optimizer.state = defaultdict(dict, {new[id(p)]: state for p, state in optimizer.state.items()})

    def exchange() -> None:
        spread = [p for group in optimizer.param_groups for p in group["params"]]
        exchanged[:] = zip(spread, _shares(spread), strict=True)
        rename({id(p): share for p, share in exchanged})

    def before(optimizer: torch.optim.Optimizer, arguments: tuple[Any, ...], settings: dict[str, Any]) -> Any:
        _, *rest = arguments
        closure = settings.pop("closure", None) or (rest[0] if rest else None)
        if closure is None:
            exchange()
            return arguments, settings

        def closure_and_exchange() -> Any:
            loss = closure()
            exchange()  # not before: the closure zeroes and makes the gradients of the spread parameters
            return loss

        return (optimizer,), {**settings, "closure": closure_and_exchange}

    def after(*unused: Any) -> None:
        rename({id(share): p for p, share in exchanged})
        exchanged.clear()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def total_norm(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """L2 norm () of all elements of tensors that may be spread. All processes must ask for it together."""
    norm: torch.Tensor = torch.nn.utils.get_total_norm([local(tensor) for tensor in tensors])
    if not (tensors and isinstance(tensors[0], DTensor)):
        return norm
    squared = norm.square()
    dist.all_reduce(squared, group=tensors[0].device_mesh.get_group())
    return squared.sqrt()


def clip_norm(parameters: Iterable[torch.Tensor], max_norm: float) -> None:
    """Scale the gradients of parameters that may be spread, in place, so that their norm is at most max_norm."""
    graded = [p for p in parameters if p.grad is not None]
    norm = total_norm([p.grad for p in graded])
    torch.nn.utils.clip_grads_with_norm_(_shares(graded), max_norm, norm)


def _shares(parameters: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """What lies here of parameters and of their gradients; the memory is shared."""
    shares = []
    for parameter in parameters:
        share = local(parameter)
        share.grad = None if parameter.grad is None else local(parameter.grad)
        shares.append(share)
    return shares
