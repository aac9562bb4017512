"""Frozen weights in half the memory of trained ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from megasr.errors import UsageError

if TYPE_CHECKING:
    from megasr.training.module import MegaSRModule


def held_parts(module: MegaSRModule) -> tuple[nn.Module, nn.Module]:
    """The parts whose frozen weights module.frozen_dtype is about; towers and extractors have dtypes of their own."""
    return module.prior, module.network


def hold_frozen(module: MegaSRModule) -> None:
    """Cast what is frozen of the prior and the network to module.frozen_dtype, in place; None leaves it as it is."""
    if module.frozen_dtype is not None:
        dtype = getattr(torch, module.frozen_dtype)
        for part in held_parts(module):
            for parameter in part.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(dtype)


def check_precision(module: MegaSRModule) -> None:
    """Check that something casts between frozen and trained weights.

    Raises:
        UsageError: they differ in dtype and the trainer has no autocast.
    """
    found = module.trainer.precision
    if module.frozen_dtype is not None and found != "bf16-mixed":
        raise UsageError(f"model.frozen_dtype {module.frozen_dtype} needs trainer.precision bf16-mixed, got {found}")
