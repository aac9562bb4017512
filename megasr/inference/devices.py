"""Where a module computes and in which precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn

from megasr.errors import UsageError

if TYPE_CHECKING:
    from megasr.training.module import MegaSRModule

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def move(module: MegaSRModule, device: str | torch.device) -> torch.device:
    """Move a module.

    Raises:
        UsageError: there is no such device.
    """
    try:
        wanted = torch.device(device)
        module.to(wanted)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}") from error
    return wanted


def cast(module: MegaSRModule, dtype: torch.dtype) -> torch.dtype:
    """Let the prior and the adapter compute in a dtype; towers and extractors keep theirs.

    Raises:
        UsageError: it is not one of DTYPES.
    """
    if dtype not in DTYPES:
        raise UsageError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype}")
    module.prior.to(dtype)
    module.network.to(dtype)
    return dtype


def offload(module: MegaSRModule) -> torch.device:
    """Keep each part on the CPU while another one computes on the GPU.

    Raises:
        UsageError: there is no GPU.
    """
    if not torch.cuda.is_available():
        raise UsageError("enable_model_cpu_offload needs a GPU, and torch finds none: leave it out")
    device = torch.device("cuda")
    move(module, "cpu")
    take_turns(module, device)
    return device


def take_turns(module: MegaSRModule, device: torch.device) -> None:
    """Let the parts of a module be on a device one at a time."""
    prior = module.prior
    parts = [prior.text_encoder, prior.vae, module.network, module.vision, module.tagger]
    present = [part for part in parts if isinstance(part, nn.Module)]
    for part in present:
        add_hook_to_module(part, _Turn(device, [other for other in present if other is not part]))


class _Turn(ModelHook):
    """Sends the other parts away before a part computes."""

    def __init__(self, device: torch.device, others: list[nn.Module]) -> None:
        self.device, self.others = device, others

    def pre_forward(self, module: nn.Module, *arguments: Any, **named: Any) -> tuple[Any, Any]:
        if next(module.parameters(), torch.empty(0)).device != self.device:
            for other in self.others:
                other.to("cpu")
            module.to(self.device)
        return arguments, named
