"""What a step costs: the batch as it is put together, operations, and the share of the hardware's peak (MFU)."""

from __future__ import annotations

import lightning
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch.utils.flop_counter import FlopCounterMode


def describe_batch(trainer: lightning.Trainer, micro_batch: int) -> str:
    """One line: how many images make an optimizer step, and how long an epoch is.

    Args:
        trainer: that of the training.
        micro_batch: images per device and forward pass.
    """
    accumulated = trainer.accumulate_grad_batches
    in_all = micro_batch * trainer.world_size * accumulated
    steps = trainer.num_training_batches
    epoch = f"; an epoch is {steps / accumulated:,.0f} steps" if steps != float("inf") else ""
    parts = f"{micro_batch} images x {trainer.world_size} device(s) x {accumulated} accumulated"
    return f"global batch {in_all} = {parts}{epoch}"


class OperationCount:
    """Floating-point operations of a forward and a backward pass, counted once, in the first batch.

    Matrix products, convolutions and attention are counted, as is usual for MFU (2204.02311, appendix B); what gradient
    checkpointing computes again is counted too. A compiled network hides its operations, and is not counted.
    """

    def __init__(self) -> None:
        self.per_image: float | None = None
        self._mode: FlopCounterMode | None = None

    def begin(self) -> None:
        """Count from here on, unless that was done before."""
        if self.per_image is None and self._mode is None:
            self._mode = FlopCounterMode(display=False)
            self._mode.__enter__()

    def end(self, images: int) -> None:
        """The pass of so many images is done."""
        if self._mode is not None:
            self._mode.__exit__(None, None, None)
            self.per_image = self._mode.get_total_flops() / images
            self._mode = None

    def abandon(self) -> None:
        """Leave nothing behind after an error."""
        if self._mode is not None:
            self._mode.__exit__(None, None, None)
            self._mode = None

    def rates(self, images_per_s: float, devices: int, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
        """train/tflops_per_device per second, and train/mfu in [0, 1] where the peak of the device is known."""
        if not self.per_image:
            return {}
        per_device = self.per_image * images_per_s / devices
        rates = {"train/tflops_per_device": per_device / 1e12}
        peak = get_available_flops(device, dtype) if device.type == "cuda" else None
        return rates | ({"train/mfu": per_device / peak} if peak else {})
