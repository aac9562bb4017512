"""How the `device` back end computes, and how it sends numbers to the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Full float32 whatever the training does: neither gradients, nor autocast, nor products in TF32 or bfloat16."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False), _full_products():
        yield


@contextmanager
def _full_products() -> Iterator[None]:
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # before torch 2.9
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
        return
    # The older pair of functions raises once anybody has used these.
    cuda, mkldnn = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    precisions = cuda.fp32_precision, mkldnn.fp32_precision
    cuda.fp32_precision = mkldnn.fp32_precision = "ieee"
    try:
        yield
    finally:
        cuda.fp32_precision, mkldnn.fp32_precision = precisions


def upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Send to the device without waiting for what it is doing."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
